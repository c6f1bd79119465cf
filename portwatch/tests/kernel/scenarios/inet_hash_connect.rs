//! connect(): a port is chosen, or not.

use nix::errno::Errno;

use super::{PartFn, Scenario};
use crate::namespace::{State, tcp_rows};
use crate::play::say;
use crate::router::Router;
use crate::sockets::Socket;
use crate::stage::{NOBODY, Part, Server, V4, V6, address, closed_into_time_wait, released, time_wait_ends};
use crate::truth::{Closer, Failure, Happened, How, Reason, Story, Truth, now_ns};
use crate::wait::{self, PATIENCE};

const FOUR_PORTS: (&str, &str) = ("ip_local_port_range", "40000 40003");

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("connect_timed_out", connect_timed_out),
    Scenario::new("connect_v4", connect_v4),
    Scenario::new("connect_v6", connect_v6),
    Scenario::new("connect_v4_mapped", connect_v4_mapped),
    Scenario::new("connect_nonblocking", connect_nonblocking),
    Scenario::new("connect_retried", connect_retried),
    Scenario::new("connect_refused", connect_refused),
    Scenario::new("connect_refused_later", connect_refused_later),
    Scenario::new("connect_unreachable", connect_unreachable),
    Scenario::new("connect_unreachable_later", connect_unreachable_later),
    Scenario::with("connect_exhausted", &[FOUR_PORTS], connect_exhausted),
    Scenario::new("connect_abandoned", connect_abandoned),
    Scenario::new("connect_killed", connect_killed),
    Scenario::new("connect_disconnected", connect_disconnected),
    Scenario::new("connect_bind_address_no_port", connect_bind_address_no_port),
    Scenario::new("connect_local_port_range", connect_local_port_range),
    Scenario::new("connect_not_ip", connect_not_ip),
];

pub const PARTS: &[(&str, PartFn)] = &[("connect_until_killed", connect_until_killed)];

fn connect_v4(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..5 {
        server.connect_v4(truth).close_client_first(truth);
    }
}

fn connect_v6(truth: &mut Truth) {
    let Ok(client) = Socket::v6() else { return truth.skip = Some("no IPv6".to_owned()) };
    let server = Server::start(truth, V6);
    server.connect(truth, client).close_client_first(truth);
    for _ in 0..4 {
        server.connect(truth, Socket::v6().expect("IPv6")).close_client_first(truth);
    }
    truth.refused(&Socket::v6().expect("IPv6"), address("[::1]:7009"), Errno::ECONNREFUSED);
}

fn connect_v4_mapped(truth: &mut Truth) {
    let Ok(client) = Socket::v6() else { return truth.skip = Some("no IPv6".to_owned()) };
    let server = Server::start(truth, V4);
    server.connect(truth, client).close_client_first(truth);
    server.connect(truth, Socket::v6().expect("IPv6")).close_server_first(truth);
    truth.refused(&Socket::v6().expect("IPv6"), address(NOBODY), Errno::ECONNREFUSED);
}

/// EINPROGRESS is no failure, and asking for the result is no second connect.
fn connect_nonblocking(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let client = Socket::v4();
        client.set_nonblocking();
        let id = truth.connecting(&client, server.address);
        assert_eq!(client.wait_for_error(), Ok(()));
        assert_eq!(client.connect(server.address), Ok(()), "the first call after the connection tells it");
        assert_eq!(client.connect(server.address), Err(Errno::EISCONN));
        truth.then(id, [Happened::Established]);
        let accepted = server.socket.accept(client.local());
        drop(client);
        accepted.wait_for_end();
        truth.then(id, closed_into_time_wait(None));
        truth.then(id, [time_wait_ends()]);
    }
}

/// Every attempt on the same descriptor gets a port of its own.
fn connect_retried(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let client = Socket::v4();
        truth.refused(&client, address(NOBODY), Errno::ECONNREFUSED);
        truth.refused(&client, address(NOBODY), Errno::ECONNREFUSED);
        server.connect(truth, client).close_client_first(truth);
    }
}

fn connect_refused(truth: &mut Truth) {
    for _ in 0..5 {
        truth.refused(&Socket::v4(), address(NOBODY), Errno::ECONNREFUSED);
    }
}

fn connect_refused_later(truth: &mut Truth) {
    for _ in 0..5 {
        let client = Socket::v4();
        client.set_nonblocking();
        truth.refused(&client, address(NOBODY), Errno::ECONNREFUSED);
    }
}

/// A server that takes no more connections says nothing.
fn connect_timed_out(truth: &mut Truth) {
    let (server, first, first_id) = Server::full(truth);
    let later = Socket::v4();
    later.set_nonblocking();
    later.set_syn_retries(1);
    let id = truth.connecting(&later, server.address);

    let blocking = Socket::v4();
    blocking.set_syn_retries(1);
    truth.refused(&blocking, server.address, Errno::ETIMEDOUT);

    assert_eq!(later.wait_for_error(), Err(Errno::ETIMEDOUT));
    let timed_out = Happened::ConnectFailed(Failure::Errno(Errno::ETIMEDOUT as i32));
    truth.then(id, [timed_out, released(Reason::Closed)]);
    close_first(truth, server, first, first_id);
}

fn close_first(truth: &mut Truth, server: Server, first: Socket, id: crate::truth::Id) {
    let accepted = server.socket.accept(first.local());
    drop(first);
    accepted.wait_for_end();
    truth.then(id, closed_into_time_wait(None));
    truth.then(id, [time_wait_ends()]);
}

/// There is no route but to loopback: these fail before a port is looked for.
fn connect_unreachable(truth: &mut Truth) {
    for _ in 0..3 {
        truth.connect_fails(&Socket::v4(), address("192.0.2.1:80"), Errno::ENETUNREACH);
    }
    if let Ok(client) = Socket::v6() {
        truth.connect_fails(&client, address("[2001:db8::1]:80"), Errno::ENETUNREACH);
    }
}

/// Four ports, all held: every further connect fails, and each failure is told once.
fn connect_exhausted(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let held: Vec<_> = (0..4).map(|_| server.connect_v4(truth)).collect();
    for _ in 0..3 {
        truth.connect_fails(&Socket::v4(), server.address, Errno::EADDRNOTAVAIL);
    }
    // Again and again on one descriptor, and without waiting.
    let client = Socket::v4();
    truth.connect_fails(&client, server.address, Errno::EADDRNOTAVAIL);
    client.set_nonblocking();
    truth.connect_fails(&client, server.address, Errno::EADDRNOTAVAIL);
    for connection in held {
        connection.close_server_first(truth);
    }
}

/// Closed while the SYN is still unanswered; a second connect in the meantime is no attempt.
fn connect_abandoned(truth: &mut Truth) {
    let (server, first, first_id) = Server::full(truth);
    for _ in 0..3 {
        let client = Socket::v4();
        client.set_nonblocking();
        let id = truth.connecting(&client, server.address);
        assert_eq!(client.connect(server.address), Err(Errno::EALREADY));
        drop(client);
        truth.then(id, [Happened::ConnectFailed(Failure::Abandoned), released(Reason::Closed)]);
    }
    close_first(truth, server, first, first_id);
}

/// A process that dies inside connect(): nobody ever sees the result.
fn connect_killed(truth: &mut Truth) {
    let (server, first, first_id) = Server::full(truth);
    for _ in 0..2 {
        let mut part = Part::start("connect_until_killed", &[&server.address.to_string()]);
        let announced: Truth = part.hear();
        let mut story: Story = announced.stories.into_iter().next().expect("one story");
        let connecting = || tcp_rows().into_iter().find(|row| row.state == State::SynSent);
        let row = wait::until(PATIENCE, connecting).expect("the part connects");
        story.port = Some(row.port_local);
        story.call_ns.1 = now_ns();
        part.kill();
        truth.add(story);
    }
    close_first(truth, server, first, first_id);
}

fn connect_until_killed(args: &[String]) -> Truth {
    let mut truth = Truth::new();
    let peer = address(&args[0]);
    let client = Socket::v4();
    truth.add(Story {
        owner: truth.me().clone(),
        how: How::Connect,
        family: client.family,
        protocol: client.protocol,
        local: Some(peer.ip()),
        port: None,
        peer: Some(peer),
        call_ns: (now_ns(), 0),
        listens: false,
        told_at_connect: false,
        is_long: false,
        events: vec![
            Happened::Allocated,
            Happened::ConnectFailed(Failure::Abandoned),
            released(Reason::Closed),
        ],
    });
    say(&truth);
    panic!("connect came back: {:?}", client.connect(peer));
}

/// connect(AF_UNSPEC) resets the connection and frees the port; the socket lives on.
fn connect_disconnected(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let client = Socket::v4();
    let id = truth.connected(&client, server.address);
    let accepted = server.socket.accept(client.local());
    client.disconnect().expect("a connected socket");
    truth.then(id, [Happened::Closed { closer: Closer::Reset }, released(Reason::Disconnected)]);
    drop(accepted);
    server.connect(truth, client).close_client_first(truth);
}

/// A router's answer ends the connect, and a second connect() only collects it.
fn connect_unreachable_later(truth: &mut Truth) {
    let (server, first, first_id) = Server::full(truth);
    let router = Router::new();
    let client = Socket::v4();
    client.set_nonblocking();
    let id = truth.connecting(&client, server.address);
    router.answer_host_unreachable(server.address.port());
    client.wait_for_writable();
    assert_eq!(client.connect(server.address), Err(Errno::EHOSTUNREACH), "the second connect collects");
    truth.then(
        id,
        [Happened::ConnectFailed(Failure::Errno(Errno::EHOSTUNREACH as i32)), released(Reason::Closed)],
    );
    drop(client);
    close_first(truth, server, first, first_id);
}

/// bind() that leaves the choice of the port to connect().
fn connect_bind_address_no_port(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let client = Socket::v4();
        client.set_bind_address_no_port();
        client.bind(address("127.0.0.1:0")).expect("bind");
        assert_eq!(client.local().port(), 0, "bind chose no port");
        server.connect(truth, client).close_client_first(truth);
    }
}

fn connect_local_port_range(truth: &mut Truth) {
    if Socket::v4().set_port_range(40_010, 40_011) == Err(Errno::ENOPROTOOPT) {
        return truth.skip = Some("this kernel has no IP_LOCAL_PORT_RANGE".to_owned());
    }
    let server = Server::start(truth, V4);
    let narrow = || {
        let client = Socket::v4();
        client.set_port_range(40_010, 40_011).expect("IP_LOCAL_PORT_RANGE");
        client
    };
    let held: Vec<_> = (0..2).map(|_| server.connect(truth, narrow())).collect();
    for connection in &held {
        assert!([40_010, 40_011].contains(&connection.client.local().port()));
    }
    truth.connect_fails(&narrow(), server.address, Errno::EADDRNOTAVAIL);
    for connection in held {
        connection.close_client_first(truth);
    }
}

/// connect() and bind() on sockets of other kinds are not our business.
fn connect_not_ip(truth: &mut Truth) {
    use std::os::unix::net::{UnixListener, UnixStream};
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    assert!(UnixStream::connect(&path).is_err());
    let listener = UnixListener::bind(&path).expect("bind");
    assert!(UnixListener::bind(&path).is_err());
    drop((UnixStream::connect(&path).expect("connect"), listener));
    // One line of our own, so that silence is not mistaken for an absent tracer.
    truth.refused(&Socket::v4(), address(NOBODY), Errno::ECONNREFUSED);
}
