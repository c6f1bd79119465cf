//! The parts that scenarios are played with: servers, connections, and processes of their own.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use serde::de::DeserializeOwned;

use crate::namespace::{Row, State, tcp_rows};
use crate::sockets::Socket;
use crate::truth::{Closer, Happened, Id, Reason, Substate, Truth};
use crate::wait::{self, PATIENCE};

pub const V4: &str = "127.0.0.1:7000";
pub const V6: &str = "[::1]:7000";
/// Nobody listens here.
pub const NOBODY: &str = "127.0.0.1:7009";

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A time-wait entry ends by its timer, or with the namespace.
pub fn time_wait_ends() -> Happened {
    Happened::Released { reason: vec![Reason::TwExpired, Reason::NetnsExit] }
}

pub fn released(reason: Reason) -> Happened {
    Happened::Released { reason: vec![reason] }
}

/// A listening socket on a port outside every range that the scenarios use.
pub struct Server {
    pub socket: Socket,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(truth: &mut Truth, at: &str) -> Server {
        Server::with_backlog(truth, at, 512)
    }

    pub fn with_backlog(truth: &mut Truth, at: &str, backlog: i32) -> Server {
        let address = address(at);
        let socket = if address.is_ipv4() { Socket::v4() } else { Socket::v6().expect("IPv6") };
        let id = truth.bound(&socket, address);
        socket.listen(backlog).expect("listen");
        truth.story(id).listens = true;
        // At the latest when the process ends.
        truth.then(id, [released(Reason::Closed)]);
        Server { socket, address }
    }

    /// A server that lets no more connections in: its backlog is taken by the one that is returned.
    pub fn full(truth: &mut Truth) -> (Server, Socket, Id) {
        let server = Server::with_backlog(truth, V4, 0);
        let first = Socket::v4();
        let id = truth.connected(&first, server.address);
        (server, first, id)
    }

    pub fn connect(&self, truth: &mut Truth, client: Socket) -> Connection {
        let id = truth.connected(&client, self.address);
        let accepted = self.socket.accept(client.local());
        Connection { client, accepted, id }
    }

    pub fn connect_v4(&self, truth: &mut Truth) -> Connection {
        self.connect(truth, Socket::v4())
    }

    /// Serves `count` connections, one after the other, each until its client closes.
    pub fn serve_here(&self, count: usize) {
        for _ in 0..count {
            self.socket.accept_any().wait_for_end();
        }
    }

    pub fn serve(self, count: usize) -> JoinHandle<()> {
        std::thread::spawn(move || self.serve_here(count))
    }
}

/// Both ends of a connection; the client's end is the one that the log tells of.
pub struct Connection {
    pub client: Socket,
    pub accepted: Socket,
    pub id: Id,
}

impl Connection {
    pub fn close_client_first(self, truth: &mut Truth) {
        let Connection { client, accepted, id } = self;
        drop(client);
        accepted.wait_for_end();
        drop(accepted);
        truth.then(id, closed_into_time_wait(None));
        truth.then(id, [time_wait_ends()]);
    }

    /// Closes the client and leaves the server's end open, so that the time-wait entry waits for its FIN.
    pub fn close_client_only(self, truth: &mut Truth) -> HalfClosed {
        let Connection { client, accepted, id } = self;
        let (port_local, port_remote) = (client.local().port(), truth.story(id).peer.expect("a peer").port());
        client.half_close(port_remote);
        drop(client);
        accepted.wait_for_end();
        let half = HalfClosed { accepted, port_local, port_remote };
        half.wait_for(Some(State::FinWait2Entry));
        truth.then(id, closed_into_time_wait(Some(Substate::FinWait2)));
        half
    }

    pub fn close_server_first(self, truth: &mut Truth) {
        let Connection { client, accepted, id } = self;
        drop(accepted);
        client.wait_for_end();
        drop(client);
        truth.server_time_waits += 1;
        truth.then(id, [Happened::Closed { closer: Closer::Remote }, released(Reason::Closed)]);
    }
}

pub fn closed_into_time_wait(substate: Option<Substate>) -> [Happened; 2] {
    let closer = Closer::Local;
    [Happened::TimeWait { closer, substate }, Happened::Closed { closer }]
}

impl Socket {
    /// Sends a FIN and waits for its acknowledgement. What closes after that is sure to leave a time-wait entry: one
    /// that closes with its FIN unanswered may stay a full socket, and be reset after `tcp_fin_timeout`.
    pub fn half_close(&self, port_remote: u16) {
        self.shutdown_write();
        wait_for_client(self.local().port(), port_remote, Some(State::FinWait2));
    }
}

/// A connection whose client has gone into TIME_WAIT and whose server has not closed.
pub struct HalfClosed {
    pub accepted: Socket,
    port_local: u16,
    port_remote: u16,
}

impl HalfClosed {
    pub fn wait_for(&self, state: Option<State>) {
        wait_for_client(self.port_local, self.port_remote, state);
    }

    /// The server closes too; nothing is left of it but the client's time-wait entry.
    pub fn close_server(self) {
        let HalfClosed { accepted, port_local, port_remote } = self;
        drop(accepted);
        wait_for_client(port_remote, port_local, None);
    }
}

/// Waits until /proc/net/tcp shows a connection's end in `state`; nothing: until it is gone.
pub fn wait_for_client(port_local: u16, port_remote: u16, state: Option<State>) {
    let is_client = |row: &Row| (row.port_local, row.port_remote) == (port_local, port_remote);
    let reached = || (tcp_rows().into_iter().find(is_client).map(|row| row.state) == state).then_some(());
    wait::until(PATIENCE, reached).unwrap_or_else(|| panic!("port {port_local} never reached {state:?}"));
}

/// A process of its own that plays a part of a scenario, see [`crate::scenarios::part`].
pub struct Part {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Part {
    pub fn start(name: &str, args: &[&str]) -> Part {
        Part::with_stdin(name, args, Stdio::null())
    }

    /// The part inherits a socket as its standard input.
    pub fn with_socket(name: &str, socket: OwnedFd) -> Part {
        Part::with_stdin(name, &[], Stdio::from(socket))
    }

    pub fn with_stdin(name: &str, args: &[&str], stdin: Stdio) -> Part {
        let mut command = command(name, args);
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).spawn().expect("a part starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Part { child, lines }
    }

    /// What the part says next.
    pub fn hear<T: DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a part can be heard");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("a part said `{line}`: {error}"))
    }

    /// Lets the part come to its end.
    pub fn finish(self) -> Truth {
        self.finish_saying()
    }

    /// The same for a part whose last word is no truth.
    pub fn finish_saying<T: DeserializeOwned>(mut self) -> T {
        let last = self.hear();
        let status = self.child.wait().expect("a part ends");
        assert!(status.success(), "a part failed: {status}");
        last
    }

    /// A part that is told when to begin.
    pub fn piped(name: &str) -> Part {
        Part::with_stdin(name, &[], Stdio::piped())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells a part that waits for it to go on.
    pub fn tell(&mut self) {
        let mut stdin = self.child.stdin.take().expect("it is piped, and told once");
        stdin.write_all(b"go\n").expect("the part listens");
    }

    /// Tells a part to do its work once more, and waits until it says `answer`.
    pub fn ask(&mut self, answer: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped, and not dismissed");
        stdin.write_all(b"go\n").expect("the part listens");
        assert_eq!(self.hear::<String>(), answer);
    }

    /// Nothing more will be asked of it.
    pub fn dismiss(mut self) -> Part {
        drop(self.child.stdin.take());
        self
    }

    pub fn kill(mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }
}

/// This program again, to play `name`.
pub fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a program knows itself"));
    command.arg(crate::play::PLAY).arg(name).args(args);
    command
}
