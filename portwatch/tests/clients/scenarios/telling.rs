//! A client of ours that says at its end what it saw.

use std::collections::BTreeMap;

use crate::Stopped;
use crate::http::{Closed, Server};
use crate::judge::{Expected, Outcome, Traced};
use crate::programs::Told;
use crate::stage::Stage;

/// What the client is to do.
pub struct Play {
    pub requests: usize,
    pub connections: usize,
    pub refusals: usize,
    /// Its exit code.
    pub exit: i32,
}

/// Traces the command that `command` makes of a server, of an address where nobody is, and of the path of the file
/// in which the client tells.
pub fn play(
    stage: &Stage,
    play: &Play,
    command: impl FnOnce(&Server, &Closed, String) -> Vec<String>,
) -> Result<(), Stopped> {
    let (server, closed) = (Server::start(), Closed::new());
    let command = command(&server, &closed, stage.path_text("told"));
    let run = Traced::command(stage, &command)?.wait()?;
    let told = Told::read(stage, "told").map_err(|error| format!("{error}\n{}", run.stderr()))?;
    let seen = server.seen();
    // Of the play itself: a client that did nothing would agree with an empty log.
    assert_eq!(
        (seen.requests, seen.peers.len(), told.refused),
        (play.requests, play.connections, play.refusals)
    );
    assert_eq!(told.pid, stage.command_pid()?);
    let to_server = Expected {
        comm: told.comm.clone(),
        to: server.address,
        begun: BTreeMap::from([(told.pid, play.connections)]),
        outcome: Outcome::Accepted(Some(seen.peers)),
    };
    let to_nobody = Expected {
        comm: told.comm,
        to: closed.address,
        begun: BTreeMap::from([(told.pid, told.refused)]),
        outcome: Outcome::Refused,
    };
    Ok(run.check(play.exit, &[to_server, to_nobody])?)
}
