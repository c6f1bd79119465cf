//! curl: the process that is gone as soon as it has connected.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::Stopped;
use crate::http::{Closed, Server};
use crate::judge::{Expected, Outcome, Run, Traced};
use crate::programs::{self, many};
use crate::stage::Stage;

const COMM: &str = "curl";
/// curl's exit code for "failed to connect to host".
const REFUSED: i32 = 7;

/// Two requests, one connection.
pub fn one_shot(stage: &Stage) -> Result<(), Stopped> {
    let server = Server::start();
    let run = curl(stage, &["-sSf", &server.url(), &server.url()])?;
    let seen = server.seen();
    assert_eq!((seen.requests, seen.peers.len()), (2, 1), "{}", run.stderr());
    let expected = accepted(&server, [(stage.command_pid()?, 1)].into());
    Ok(run.check(0, &[expected])?)
}

pub fn refused(stage: &Stage) -> Result<(), Stopped> {
    let closed = Closed::new();
    let run = curl(stage, &["-sS", &closed.url()])?;
    let expected = refused_at(&closed, [(stage.command_pid()?, 1)].into());
    Ok(run.check(REFUSED, &[expected])?)
}

fn curl<'a>(stage: &'a Stage, args: &[&str]) -> Result<Run<'a>, Stopped> {
    let curl = programs::find(COMM)?;
    let command: Vec<_> = [curl.as_str()].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    Ok(Traced::command(stage, &command)?.wait()?)
}

fn accepted(server: &Server, begun: BTreeMap<u32, usize>) -> Expected {
    let outcome = Outcome::Accepted(Some(server.seen().peers));
    Expected { comm: COMM.to_owned(), to: server.address, begun, outcome }
}

fn refused_at(closed: &Closed, begun: BTreeMap<u32, usize>) -> Expected {
    Expected { comm: COMM.to_owned(), to: closed.address, begun, outcome: Outcome::Refused }
}

/// Says of every curl its process id and its exit code.
const LOOP: &str = r#"
curl=$1 server=$2 closed=$3 count=$4 told=$5
while [ "$count" -gt 0 ]; do
    url=$server
    if [ $((count % 8)) -eq 0 ]; then url=$closed; fi
    "$curl" -sS "$url" & pid=$!
    wait $pid
    echo "$pid $?" >>"$told"
    count=$((count - 1))
done
exit 9
"#;

/// A process for every connection: none of them lives long enough to be looked up.
pub fn children_of_a_loop(stage: &Stage) -> Result<(), Stopped> {
    let (server, closed) = (Server::start(), Closed::new());
    let count = many(40);
    let curl = programs::find(COMM)?;
    let args = [&curl, &server.url(), &closed.url(), &count.to_string(), &stage.path_text("told")];
    let command: Vec<_> = ["sh", "-c", LOOP, "loop"].into_iter().chain(args.map(String::as_str)).collect();
    let command: Vec<_> = command.into_iter().map(str::to_owned).collect();
    let run = Traced::command(stage, &command)?.wait()?;

    let (mut connected, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for line in stage.read("told")?.lines() {
        let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [pid, code] = numbers[..] else { panic!("the loop says `{line}`") };
        match code.cast_signed() {
            0 => connected.insert(pid, 1),
            REFUSED => refused.insert(pid, 1),
            _ => panic!("curl ended with {code}: {}", run.stderr()),
        };
    }
    assert_eq!((connected.len(), refused.len()), (count - count / 8, count / 8));
    assert_eq!(server.seen().peers.len(), connected.len());
    Ok(run.check(9, &[accepted(&server, connected), refused_at(&closed, refused)])?)
}

/// The command's death by a signal is told by the exit code, and the log is whole.
pub fn killed(stage: &Stage) -> Result<(), Stopped> {
    let (server, script) = (Server::start(), r#""$1" -sSf "$2" & echo $! >"$3"; wait $!; kill -KILL $$"#);
    let curl = programs::find(COMM)?;
    let command = ["sh", "-c", script, "killed", &curl, &server.url(), &stage.path_text("curl")];
    let run = Traced::command(stage, &command.map(str::to_owned))?.wait()?;
    assert_eq!(server.seen().peers.len(), 1, "{}", run.stderr());
    let expected = accepted(&server, [(stage.pid_in("curl")?, 1)].into());
    Ok(run.check(128 + Signal::SIGKILL as i32, &[expected])?)
}
