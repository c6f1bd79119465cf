//! Ends of connections that leave no time-wait entry behind.

use super::Scenario;
use crate::stage::{Server, V4, released};
use crate::truth::{Closer, Happened, Reason, Truth};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("linger_zero", linger_zero),
    Scenario::new("reset_by_peer", reset_by_peer),
    Scenario::new("closed_with_unread_data", closed_with_unread_data),
    Scenario::new("server_closes_first", server_closes_first),
];

fn reset() -> [Happened; 2] {
    [Happened::Closed { closer: Closer::Reset }, released(Reason::Closed)]
}

fn linger_zero(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let connection = server.connect_v4(truth);
        connection.client.set_linger_zero();
        truth.then(connection.id, reset());
    }
}

fn reset_by_peer(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let connection = server.connect_v4(truth);
        connection.accepted.set_linger_zero();
        drop(connection.accepted);
        truth.then(connection.id, reset());
    }
}

/// Whoever closes with data unread sends a RST.
fn closed_with_unread_data(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let connection = server.connect_v4(truth);
        connection.accepted.send(b"unread").expect("send");
        connection.client.wait_for_data();
        drop(connection.client);
        truth.then(connection.id, reset());
    }
}

fn server_closes_first(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..5 {
        server.connect_v4(truth).close_server_first(truth);
    }
}
