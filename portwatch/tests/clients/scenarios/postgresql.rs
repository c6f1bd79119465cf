//! psql in a shell loop, against the connections that PostgreSQL logs.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Stopped;
use crate::http::Closed;
use crate::judge::{Expected, Outcome, Traced};
use crate::programs::{self, many};
use crate::stage::{self, Running, Stage};

/// PostgreSQL refuses to be root, so it is nobody.
const NOBODY: u32 = 65_534;
/// Logged for every connection before anything else is done with it.
const RECEIVED: &str = "connection received: host=127.0.0.1 port=";

const LOOP: &str = r#"
psql=$1 port=$2 closed=$3 count=$4 told=$5
for number in $(seq "$count"); do
    "$psql" -h 127.0.0.1 -p "$port" -U postgres -w -Atc 'select 1' postgres & pid=$!
    wait $pid
    echo "$pid $?" >>"$told"
done
"$psql" -h 127.0.0.1 -p "$closed" -U postgres -w -c 'select 1' postgres & pid=$!
wait $pid
echo "$pid $?" >>"$told"
exit 6
"#;

pub fn psql(stage: &Stage) -> Result<(), Stopped> {
    /// psql's exit code for "no connection".
    const REFUSED: u32 = 2;
    let psql = programs::postgresql("psql")?;
    let closed = Closed::new();
    let (address, server) = server(stage)?;
    let count = many(10);
    let numbers =
        [address.port().into(), closed.address.port().into(), count].map(|number| number.to_string());
    let head = ["sh", "-c", LOOP, "loop", &psql].map(str::to_owned);
    let command = [&head[..], &numbers, &[stage.path_text("told")]].concat();
    let run = Traced::command(stage, &command)?.wait()?;
    let status = server.stop(Signal::SIGINT)?;
    assert!(status.success(), "PostgreSQL ended with {status}");

    let (mut connected, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for line in stage.read("told")?.lines() {
        match line.split(' ').map(|word| word.parse().expect("a number")).collect::<Vec<u32>>()[..] {
            [pid, 0] => connected.insert(pid, 1),
            [pid, REFUSED] => refused.insert(pid, 1),
            _ => panic!("the loop says `{line}`: {}", run.stderr()),
        };
    }
    let text = stage.read("postgres.out")?;
    let port = |line: &str| line.split_once(RECEIVED).map(|(_, port)| port.parse::<u16>().expect("a port"));
    let peers: Vec<_> =
        text.lines().filter_map(port).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
    assert_eq!((connected.len(), refused.len(), peers.len()), (count, 1, count), "{}", run.stderr());
    let comm = "psql".to_owned();
    let to_server = Expected {
        comm: comm.clone(),
        to: address,
        begun: connected,
        outcome: Outcome::Accepted(Some(peers)),
    };
    let to_nobody = Expected { comm, to: closed.address, begun: refused, outcome: Outcome::Refused };
    Ok(run.check(6, &[to_server, to_nobody])?)
}

fn server(stage: &Stage) -> Result<(SocketAddr, Running), Stopped> {
    let (initdb, postgres) = (programs::postgresql("initdb")?, programs::postgresql("postgres")?);
    let port = stage::free_port();
    let directory = stage.path("postgresql");
    std::fs::create_dir(&directory).map_err(|error| format!("no directory for PostgreSQL: {error}"))?;
    // It must get there, and the directory must be its own.
    let open = std::fs::set_permissions(stage.path("."), Permissions::from_mode(0o755));
    open.and_then(|()| chown(&directory, Some(NOBODY), Some(NOBODY)))
        .map_err(|error| format!("cannot give PostgreSQL its directory: {error}"))?;
    let data = directory.join("data");
    let as_nobody = |program: String| {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).current_dir(&directory).env("LC_ALL", "C").arg("-D").arg(&data);
        command
    };
    let mut initdb = as_nobody(initdb);
    initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions"]);
    let status = stage.start("initdb", &mut initdb)?.wait()?;
    if !status.success() {
        return Err(Stopped::Failed(format!("initdb ended with {status}: {}", stage.read("initdb.out")?)));
    }
    let mut postgres = as_nobody(postgres);
    postgres.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F", "-c", "log_connections=on"]);
    postgres.args(["-c", "unix_socket_directories=", "-c", "shared_buffers=1MB"]);
    let mut server = stage.start("postgres", &mut postgres)?;
    server.wait_for_words("database system is ready to accept connections")?;
    Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), server))
}
