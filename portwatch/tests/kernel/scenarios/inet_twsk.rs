//! TIME_WAIT: how a connection gets there, and what ends it.

use std::time::Duration;

use nix::errno::Errno;

use super::{NARROW, NO_REUSE, Scenario};
use crate::namespace::Counters;
use crate::sockets::Socket;
use crate::stage::{Connection, Server, V4, closed_into_time_wait, released, time_wait_ends};
use crate::truth::{Closer, Happened, Reason, Substate, Truth};

const ONE_PORT: (&str, &str) = ("ip_local_port_range", "40000 40000");

pub const SCENARIOS: &[Scenario] = &[
    Scenario::with("time_wait_expired", &[NARROW, NO_REUSE, ("tcp_fin_timeout", "1")], time_wait_expired),
    Scenario::with("time_wait_reused", &[ONE_PORT, ("tcp_tw_reuse", "1")], time_wait_reused),
    Scenario::new("time_wait_after_fin_wait2", time_wait_after_fin_wait2),
    Scenario::new("time_wait_after_half_close", time_wait_after_half_close),
    Scenario::new("time_wait_after_simultaneous_close", time_wait_after_simultaneous_close),
    Scenario::with(
        "time_wait_overflow",
        &[NARROW, NO_REUSE, ("tcp_max_tw_buckets", "3")],
        time_wait_overflow,
    ),
    Scenario::new("time_wait_reset", time_wait_reset),
    Scenario::new("time_wait_netns_deleted", time_wait_netns_deleted),
];

/// An entry that waits for the peer's FIN lives `tcp_fin_timeout`, not sixty seconds.
fn time_wait_expired(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let connection = server.connect_v4(truth);
        let id = connection.id;
        connection.close_client_only(truth).wait_for(None);
        truth.then(id, [released(Reason::TwExpired)]);
    }
}

/// One port, one peer: the second connection can only have what the first one left.
fn time_wait_reused(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let connection = server.connect_v4(truth);
    let first = connection.id;
    connection.close_client_only(truth).close_server();

    // How old an entry must be differs between kernels. Until then there is no port, which is told each time.
    let client = Socket::v4();
    let id = (0..100).find_map(|_| {
        let attempt = truth.attempt(&client, server.address);
        if attempt == Err(Errno::EADDRNOTAVAIL) {
            std::thread::sleep(Duration::from_millis(200));
        }
        attempt.ok()
    });
    let id = id.expect("the port is given out again within 20 seconds");
    truth.then(first, [released(Reason::TwReused)]);
    let accepted = server.socket.accept(client.local());
    Connection { client, accepted, id }.close_client_first(truth);
    truth.recycled = 1;
}

/// The usual close: the entry is made before the peer closes.
fn time_wait_after_fin_wait2(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..5 {
        let connection = server.connect_v4(truth);
        let id = connection.id;
        connection.close_client_only(truth).close_server();
        truth.then(id, [time_wait_ends()]);
    }
}

/// The entry is made when the peer's FIN comes, while the client still has its socket.
fn time_wait_after_half_close(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..5 {
        let Connection { client, accepted, id } = server.connect_v4(truth);
        client.shutdown_write();
        accepted.wait_for_end();
        drop(accepted);
        client.wait_for_end();
        truth.then(id, closed_into_time_wait(Some(Substate::TimeWait)));
        truth.then(id, [time_wait_ends()]);
    }
}

/// Both FINs cross: the client's waits behind data that the server does not read, while the server's arrives.
fn time_wait_after_simultaneous_close(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..2 {
        let Connection { client, accepted, id } = server.connect_v4(truth);
        client.set_nonblocking();
        while client.send(&[0; 65536]) != Err(Errno::EAGAIN) {}
        client.shutdown_write();
        accepted.shutdown_write();
        client.wait_for_end();
        accepted.wait_for_end();
        let (closer, substate) = (Closer::Both, Some(Substate::TimeWait));
        truth.then(
            id,
            [Happened::TimeWait { closer, substate }, Happened::Closed { closer }, time_wait_ends()],
        );
        truth.server_time_waits += 1;
    }
}

/// A full table: the port is free at once, and there is no TIME_WAIT.
fn time_wait_overflow(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..8 {
        let Connection { client, accepted, id } = server.connect_v4(truth);
        client.half_close(server.address.port());
        let before = Counters::read().overflows;
        // The entry is made, or not, within this close().
        drop(client);
        accepted.wait_for_end();
        if Counters::read().overflows > before {
            truth.overflows += 1;
            truth.then(id, [Happened::Closed { closer: Closer::Local }, released(Reason::TwOverflow)]);
        } else {
            truth.then(id, closed_into_time_wait(Some(Substate::FinWait2)));
            truth.then(id, [time_wait_ends()]);
        }
    }
    assert!(truth.overflows > 0, "the table never overflowed");
}

/// Data for a socket that nobody can read any more: a RST, and the entry is gone.
fn time_wait_reset(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let connection = server.connect_v4(truth);
        let id = connection.id;
        let half = connection.close_client_only(truth);
        half.accepted.send(b"too late").expect("the server may still send");
        half.wait_for(None);
        truth.then(id, [released(Reason::TwReset)]);
    }
}

/// The namespace goes while its entries still wait.
fn time_wait_netns_deleted(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..10 {
        let connection = server.connect_v4(truth);
        let id = connection.id;
        connection.close_client_only(truth).close_server();
        truth.then(id, [released(Reason::NetnsExit)]);
    }
}
