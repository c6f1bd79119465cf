//! python-requests.

use super::telling::{self, Play};
use crate::Stopped;
use crate::programs::{self, many};
use crate::stage::Stage;

/// A connection for every request: the mistake that portwatch exists for.
pub fn each_connects(stage: &Stage) -> Result<(), Stopped> {
    client(stage, "each", many(40), many(5))
}

pub fn session_connects_once(stage: &Stage) -> Result<(), Stopped> {
    client(stage, "session", 1, 0)
}

pub fn threads(stage: &Stage) -> Result<(), Stopped> {
    client(stage, "threads", many(40), 0)
}

fn client(stage: &Stage, mode: &str, connections: usize, refusals: usize) -> Result<(), Stopped> {
    let python = programs::python()?;
    let script = stage.write("client.py", programs::PYTHON);
    let requests = many(40);
    telling::play(stage, &Play { requests, connections, refusals, exit: 3 }, |server, closed, told| {
        let (server, closed) = (server.url(), closed.url());
        vec![python, script, mode.to_owned(), server, closed, requests.to_string(), told]
    })
}
