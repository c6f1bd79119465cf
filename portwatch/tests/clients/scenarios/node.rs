//! node's http module.

use super::telling::{self, Play};
use crate::Stopped;
use crate::programs::{self, many};
use crate::stage::Stage;

/// Eight requests at a time, each connecting without blocking.
pub fn without_keepalive(stage: &Stage) -> Result<(), Stopped> {
    let node = programs::find("node")?;
    let script = stage.write("client.js", programs::NODE);
    let requests = many(40);
    let play = Play { requests, connections: requests, refusals: requests / 8, exit: 4 };
    telling::play(stage, &play, |server, closed, told| {
        let (server, closed) = (server.url(), closed.url());
        vec![node, script, server, closed, requests.to_string(), told]
    })
}
