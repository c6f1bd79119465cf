//! bind() and listen(): a port is asked for by number, or chosen.

use nix::errno::Errno;

use super::Scenario;
use crate::sockets::Socket;
use crate::stage::{Connection, NOBODY, Server, V4, address, released};
use crate::truth::{Failure, Happened, Id, Reason, Truth};

const FOUR_PORTS: (&str, &str) = ("ip_local_port_range", "40000 40003");
const ANY_PORT: &str = "127.0.0.1:0";

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("bind_any_then_connect", bind_any_then_connect),
    Scenario::new("bind_any_refused_then_connect", bind_any_refused_then_connect),
    Scenario::new("bind_fixed_then_connect", bind_fixed_then_connect),
    Scenario::new("bind_fixed_refused_then_connect", bind_fixed_refused_then_connect),
    Scenario::new("bind_then_close", bind_then_close),
    Scenario::new("bind_taken", bind_taken),
    Scenario::new("bind_foreign_address", bind_foreign_address),
    Scenario::new("bind_twice", bind_twice),
    Scenario::new("bind_v6", bind_v6),
    Scenario::with("bind_exhausted", &[FOUR_PORTS], bind_exhausted),
    Scenario::new("listen_without_bind", listen_without_bind),
    Scenario::new("listen_after_bind", listen_after_bind),
];

fn bound(truth: &mut Truth, at: &str) -> (Socket, Id) {
    let socket = Socket::v4();
    let id = truth.bound(&socket, address(at));
    (socket, id)
}

/// Connects a bound socket: the hold is the bind's.
fn connect_bound(truth: &mut Truth, server: &Server, client: Socket, id: Id) -> Connection {
    let local = client.local();
    client.connect(server.address).expect("connect");
    assert_eq!(client.local().port(), local.port(), "connect keeps the port of bind");
    truth.story(id).peer = Some(server.address);
    truth.then(id, [Happened::Established]);
    let accepted = server.socket.accept(client.local());
    Connection { client, accepted, id }
}

fn refuse_bound(truth: &mut Truth, client: &Socket, id: Id, peer: &str) {
    assert_eq!(client.connect(address(peer)), Err(Errno::ECONNREFUSED));
    truth.story(id).peer = Some(address(peer));
    truth.then(id, [Happened::ConnectFailed(Failure::Errno(Errno::ECONNREFUSED as i32))]);
}

fn bind_any_then_connect(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let (client, id) = bound(truth, ANY_PORT);
        connect_bound(truth, &server, client, id).close_client_first(truth);
    }
    let (client, id) = bound(truth, "0.0.0.0:0");
    connect_bound(truth, &server, client, id).close_server_first(truth);
}

/// A port that bind chose goes with the failed connect; the next attempt gets another.
fn bind_any_refused_then_connect(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let (client, id) = bound(truth, ANY_PORT);
    refuse_bound(truth, &client, id, NOBODY);
    truth.then(id, [released(Reason::Closed)]);
    server.connect(truth, client).close_client_first(truth);
}

fn bind_fixed_then_connect(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let (client, id) = bound(truth, "127.0.0.1:8001");
    connect_bound(truth, &server, client, id).close_client_first(truth);
    let (client, id) = bound(truth, "127.0.0.1:8002");
    connect_bound(truth, &server, client, id).close_server_first(truth);
    // Inside the range that connects choose from.
    let (client, id) = bound(truth, "127.0.0.1:40050");
    connect_bound(truth, &server, client, id).close_client_first(truth);
}

/// A port that was asked for by number stays with the socket, and so does the hold.
fn bind_fixed_refused_then_connect(truth: &mut Truth) {
    let (client, id) = bound(truth, "127.0.0.1:8001");
    // Nobody listens there yet.
    refuse_bound(truth, &client, id, V4);
    let server = Server::start(truth, V4);
    connect_bound(truth, &server, client, id).close_client_first(truth);
}

fn bind_then_close(truth: &mut Truth) {
    for at in [ANY_PORT, "0.0.0.0:0", "127.0.0.1:8001"] {
        let (socket, id) = bound(truth, at);
        drop(socket);
        truth.then(id, [released(Reason::Closed)]);
    }
}

fn bind_taken(truth: &mut Truth) {
    let _server = Server::start(truth, V4);
    for _ in 0..3 {
        truth.bind_fails(&Socket::v4(), address(V4), Errno::EADDRINUSE);
    }
    truth.bind_fails(&Socket::v4(), address("0.0.0.0:7000"), Errno::EADDRINUSE);
}

fn bind_foreign_address(truth: &mut Truth) {
    for at in ["192.0.2.1:0", "192.0.2.1:8001"] {
        truth.bind_fails(&Socket::v4(), address(at), Errno::EADDRNOTAVAIL);
    }
}

fn bind_twice(truth: &mut Truth) {
    let (socket, id) = bound(truth, ANY_PORT);
    truth.bind_fails(&socket, address("127.0.0.1:8001"), Errno::EINVAL);
    drop(socket);
    truth.then(id, [released(Reason::Closed)]);
}

fn bind_v6(truth: &mut Truth) {
    let Ok(socket) = Socket::v6() else { return truth.skip = Some("no IPv6".to_owned()) };
    let id = truth.bound(&socket, address("[::1]:8001"));
    truth.bind_fails(&Socket::v6().expect("IPv6"), address("[::1]:8001"), Errno::EADDRINUSE);
    truth.bind_fails(&Socket::v6().expect("IPv6"), address("[2001:db8::1]:0"), Errno::EADDRNOTAVAIL);
    drop(socket);
    truth.then(id, [released(Reason::Closed)]);
}

/// Four ports, all bound: nothing else gets one, each call with an error of its own.
fn bind_exhausted(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let held: Vec<_> = (0..4).map(|_| bound(truth, ANY_PORT)).collect();
    for _ in 0..3 {
        truth.bind_fails(&Socket::v4(), address(ANY_PORT), Errno::EADDRINUSE);
    }
    let willing = Socket::v4();
    willing.set_reuse_address();
    truth.bind_fails(&willing, address(ANY_PORT), Errno::EADDRINUSE);
    truth.listen_fails(&Socket::v4(), Errno::EADDRINUSE);
    truth.connect_fails(&Socket::v4(), server.address, Errno::EADDRNOTAVAIL);
    for (socket, id) in held {
        drop(socket);
        truth.then(id, [released(Reason::Closed)]);
    }
}

fn listen_without_bind(truth: &mut Truth) {
    let socket = Socket::v4();
    let id = truth.listens_unbound(&socket);
    truth.then(id, [released(Reason::Closed)]);
    let address = format!("127.0.0.1:{}", socket.local().port()).parse().expect("an address");
    let server = Server { socket, address };
    server.connect_v4(truth).close_client_first(truth);
}

/// listen() on a bound socket asks for its port again, and again for more backlog; neither is an allocation.
fn listen_after_bind(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    server.socket.listen(64).expect("listen again");
    let (socket, id) = bound(truth, ANY_PORT);
    socket.listen(8).expect("listen");
    truth.story(id).listens = true;
    truth.then(id, [released(Reason::Closed)]);
    server.connect_v4(truth).close_client_first(truth);
}
