//! Java's sockets: IPv6 ones, also for IPv4 addresses.

use super::telling::{self, Play};
use crate::Stopped;
use crate::programs::{self, many};
use crate::stage::Stage;

pub fn sockets(stage: &Stage) -> Result<(), Stopped> {
    // The compiler is asked for too: `java FILE` compiles, and a runtime alone cannot.
    let (java, _) = (programs::find("java")?, programs::find("javac")?);
    let source = stage.write("Client.java", programs::JAVA);
    let requests = many(40);
    let play = Play { requests, connections: requests, refusals: requests / 8, exit: 5 };
    telling::play(stage, &play, |server, closed, told| {
        let numbers = [server.address.port().into(), closed.address.port().into(), requests];
        let numbers = numbers.map(|number| number.to_string());
        [vec![java, source], numbers.to_vec(), vec![told]].concat()
    })
}
