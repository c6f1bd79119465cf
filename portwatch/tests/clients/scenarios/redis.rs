//! redis-benchmark without keepalive, against what redis-server says it accepted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Stopped;
use crate::http::Closed;
use crate::judge::{Expected, Outcome, Traced};
use crate::programs::{self, many};
use crate::stage::{self, Running, Stage};
use crate::wait::{self, PATIENCE};

const COMM: &str = "redis-benchmark";
/// Connections at a time.
const CLIENTS: usize = 20;

/// Connects for every request.
pub fn benchmark(stage: &Stage) -> Result<(), Stopped> {
    let benchmark = programs::find(COMM)?;
    let (address, _server) = server(stage)?;
    let mut info = Info::connect(address)?;
    let before = info.connections_received()?;
    let requests = many(1000);
    let command = command(&benchmark, address, requests);
    let run = Traced::command(stage, &command)?.wait()?;
    let pid = stage.command_pid()?;
    // The last ones may wait in the backlog still.
    let logged = run.established(pid);
    wait::until(PATIENCE, || (info.connections_received().ok()? >= before + logged).then_some(()));
    let received = info.connections_received()? - before;
    assert!(received >= requests, "{received} connections for {requests} requests: {}", run.stderr());
    let expected = expected(address, pid, received, Outcome::Accepted(None));
    Ok(run.check(0, &[expected])?)
}

/// Where nobody listens it tries once to ask for the configuration and once per client, and then waits for ever, until
/// portwatch passes a signal on.
pub fn refused(stage: &Stage) -> Result<(), Stopped> {
    let benchmark = programs::find(COMM)?;
    let closed = Closed::new();
    let command = command(&benchmark, closed.address, 10);
    let attempts = CLIENTS + 1;
    let run = Traced::command(stage, &command)?.interrupt_after(attempts as u64)?;
    let expected = expected(closed.address, stage.command_pid()?, attempts, Outcome::Refused);
    Ok(run.check(128 + Signal::SIGTERM as i32, &[expected])?)
}

fn expected(to: SocketAddr, pid: u32, begun: usize, outcome: Outcome) -> Expected {
    Expected { comm: COMM.to_owned(), to, begun: BTreeMap::from([(pid, begun)]), outcome }
}

fn command(benchmark: &str, address: SocketAddr, requests: usize) -> Vec<String> {
    let [port, requests, clients] =
        [address.port().into(), requests, CLIENTS].map(|number| number.to_string());
    let args = [
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-k",
        "0",
        "-c",
        &clients,
        "-n",
        &requests,
        "-t",
        "ping_mbulk",
        "-q",
    ];
    [benchmark].into_iter().chain(args).map(str::to_owned).collect()
}

fn server(stage: &Stage) -> Result<(SocketAddr, Running), Stopped> {
    let port = stage::free_port();
    let mut command = Command::new(programs::find("redis-server")?);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    command.args(["--daemonize", "no", "--dir", &stage.path_text(".")]);
    let mut server = stage.start("redis-server", &mut command)?;
    server.wait_for_port(port)?;
    Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), server))
}

/// One connection, kept, over which the server tells what it counted.
struct Info {
    stream: BufReader<TcpStream>,
}

impl Info {
    fn connect(address: SocketAddr) -> Result<Info, String> {
        let stream =
            TcpStream::connect(address).map_err(|error| format!("no connection to redis: {error}"))?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        Ok(Info { stream: BufReader::new(stream) })
    }

    fn connections_received(&mut self) -> Result<usize, String> {
        let text = self.ask().map_err(|error| format!("cannot ask redis: {error}"))?;
        let counter = text.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        counter.and_then(|number| number.parse().ok()).ok_or_else(|| format!("redis says `{text}`"))
    }

    fn ask(&mut self) -> std::io::Result<String> {
        self.stream.get_mut().write_all(b"INFO stats\r\n")?;
        // `$LENGTH`, then so many bytes and a line end.
        let mut length = String::new();
        self.stream.read_line(&mut length)?;
        let length: usize = length.trim_start_matches('$').trim().parse().map_err(std::io::Error::other)?;
        let mut text = vec![0; length + 2];
        self.stream.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
