//! UDP: ports by bind(), by connect() and by the first datagram, and their end.

use std::time::Duration;

use nix::errno::Errno;

use super::Scenario;
use crate::sockets::Socket;
use crate::stage::{address, released};
use crate::truth::{Id, Reason, Truth};

const FOUR_PORTS: (&str, &str) = ("ip_local_port_range", "40000 40003");
const ANY_PORT: &str = "127.0.0.1:0";
/// Several times what portwatch lets pass from one listing to the next.
const LONG: Duration = Duration::from_secs(12);
const PEER: &str = "127.0.0.1:7053";
const OTHER_PEER: &str = "127.0.0.2:7054";
const PEER_V6: &str = "[::1]:7053";

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("udp_bind", bind),
    Scenario::new("udp_bind_fails", bind_fails),
    Scenario::new("udp_bind_shared", bind_shared),
    Scenario::new("udp_connect", connect),
    Scenario::new("udp_connect_bound", connect_bound),
    Scenario::new("udp_connect_without_route", connect_without_route),
    Scenario::new("udp_disconnect", disconnect),
    Scenario::new("udp_disconnect_bound", disconnect_bound),
    Scenario::new("udp_send", send),
    Scenario::new("udp_send_long", send_long),
    Scenario::new("udp_v6", v6),
    Scenario::with("udp_exhausted", &[FOUR_PORTS], exhausted),
    Scenario::new("udp_query_by_query", query_by_query),
];

/// Ends a socket, and with it what it holds.
fn close(truth: &mut Truth, socket: Socket, id: Id) {
    drop(socket);
    truth.then(id, [released(Reason::Closed)]);
}

fn bind(truth: &mut Truth) {
    for at in [ANY_PORT, "0.0.0.0:0", "127.0.0.1:8053", "0.0.0.0:8054"] {
        let socket = Socket::udp_v4();
        let id = truth.bound(&socket, address(at));
        // What a bound socket sends is nobody's business.
        socket.send_to(address(PEER)).expect("send");
        close(truth, socket, id);
    }
}

fn bind_fails(truth: &mut Truth) {
    let socket = Socket::udp_v4();
    let id = truth.bound(&socket, address("127.0.0.1:8053"));
    for at in ["127.0.0.1:8053", "0.0.0.0:8053"] {
        truth.bind_fails(&Socket::udp_v4(), address(at), Errno::EADDRINUSE);
    }
    truth.bind_fails(&Socket::udp_v4(), address("192.0.2.1:0"), Errno::EADDRNOTAVAIL);
    truth.bind_fails(&socket, address("127.0.0.1:8054"), Errno::EINVAL);
    close(truth, socket, id);
}

/// One number, three holds: it is one socket per address, unless the sockets agree to share.
fn bind_shared(truth: &mut Truth) {
    let mut held = Vec::new();
    for at in ["127.0.0.1:8053", "127.0.0.2:8053"] {
        let socket = Socket::udp_v4();
        let id = truth.bound(&socket, address(at));
        held.push((socket, id));
    }
    for _ in 0..2 {
        let socket = Socket::udp_v4();
        socket.set_reuse_port();
        let id = truth.bound(&socket, address("127.0.0.1:8054"));
        held.push((socket, id));
    }
    for (socket, id) in held {
        close(truth, socket, id);
    }
}

fn connect(truth: &mut Truth) {
    for _ in 0..3 {
        let socket = Socket::udp_v4();
        let id = truth.udp_connected(&socket, address(PEER));
        // To somebody else: the port stays.
        socket.connect(address(OTHER_PEER)).expect("connect again");
        socket.send(b"query").expect("send");
        close(truth, socket, id);
    }
}

fn connect_bound(truth: &mut Truth) {
    for at in [ANY_PORT, "127.0.0.1:8053"] {
        let socket = Socket::udp_v4();
        let id = truth.bound(&socket, address(at));
        socket.connect(address(PEER)).expect("connect");
        close(truth, socket, id);
    }
}

/// The port comes before the route, and stays when there is none.
fn connect_without_route(truth: &mut Truth) {
    let socket = Socket::udp_v4();
    let id = truth.udp_connect_has_no_route(&socket, address("192.0.2.1:53"), Errno::ENETUNREACH);
    close(truth, socket, id);
}

fn disconnect(truth: &mut Truth) {
    let socket = Socket::udp_v4();
    for _ in 0..3 {
        let id = truth.udp_connected(&socket, address(PEER));
        socket.disconnect().expect("disconnect");
        truth.then(id, [released(Reason::Disconnected)]);
    }
    let id = truth.sent(&socket, address(PEER));
    socket.disconnect().expect("disconnect");
    truth.then(id, [released(Reason::Disconnected)]);
}

/// A port that was asked for by number stays.
fn disconnect_bound(truth: &mut Truth) {
    let socket = Socket::udp_v4();
    let id = truth.bound(&socket, address("127.0.0.1:8053"));
    for _ in 0..2 {
        socket.connect(address(PEER)).expect("connect");
        socket.disconnect().expect("disconnect");
    }
    close(truth, socket, id);
}

fn send(truth: &mut Truth) {
    for _ in 0..3 {
        let socket = Socket::udp_v4();
        let id = truth.sent(&socket, address(PEER));
        for _ in 0..3 {
            socket.send_to(address(OTHER_PEER)).expect("send again");
        }
        socket.connect(address(PEER)).expect("connect");
        close(truth, socket, id);
    }
}

/// Long enough to be in several listings, on the rung that depends on them.
fn send_long(truth: &mut Truth) {
    let held: Vec<_> = (0..3)
        .map(|_| {
            let socket = Socket::udp_v4();
            let id = truth.sent(&socket, address(PEER));
            truth.story(id).is_long = true;
            (socket, id)
        })
        .collect();
    std::thread::sleep(LONG);
    for (socket, id) in held {
        close(truth, socket, id);
    }
}

fn v6(truth: &mut Truth) {
    let Ok(bound) = Socket::udp_v6() else { return truth.skip = Some("no IPv6".to_owned()) };
    let socket = || Socket::udp_v6().expect("IPv6");
    let id = truth.bound(&bound, address("[::1]:8053"));
    truth.bind_fails(&socket(), address("[::1]:8053"), Errno::EADDRINUSE);
    close(truth, bound, id);
    // The second one speaks IPv4.
    for peer in [PEER_V6, PEER] {
        let connected = socket();
        let id = truth.udp_connected(&connected, address(peer));
        close(truth, connected, id);
    }
    let sender = socket();
    let id = truth.sent(&sender, address(PEER_V6));
    close(truth, sender, id);
}

/// Four ports, all held: each call fails with an error of its own.
fn exhausted(truth: &mut Truth) {
    let mut held = Vec::new();
    for _ in 0..4 {
        let socket = Socket::udp_v4();
        let id = truth.udp_connected(&socket, address(PEER));
        held.push((socket, id));
    }
    let poor = Socket::udp_v4();
    for _ in 0..3 {
        truth.bind_fails(&Socket::udp_v4(), address(ANY_PORT), Errno::EADDRINUSE);
        truth.connect_fails(&poor, address(PEER), Errno::EAGAIN);
        truth.send_fails(&poor, address(PEER), Errno::EAGAIN);
    }
    for (socket, id) in held {
        close(truth, socket, id);
    }
    let id = truth.udp_connected(&poor, address(PEER));
    close(truth, poor, id);
}

/// A socket for every question, as bad resolvers do it.
fn query_by_query(truth: &mut Truth) {
    for _ in 0..200 {
        let socket = Socket::udp_v4();
        let id = truth.udp_connected(&socket, address(PEER));
        socket.send(b"query").expect("send");
        close(truth, socket, id);
    }
}
