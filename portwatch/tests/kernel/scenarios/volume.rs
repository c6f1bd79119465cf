//! Many connections, each of them exact.

use super::owner::churn;
use super::{NO_REUSE, Scenario};
use crate::stage::{Part, Server, V4};
use crate::truth::Truth;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::with("volume_sequential", &[NO_REUSE], volume_sequential),
    Scenario::with("volume_concurrent", &[NO_REUSE], volume_concurrent),
];

fn volume_sequential(truth: &mut Truth) {
    const CONNECTS: usize = 2_000;
    let server = Server::start(truth, V4);
    let peer = server.address;
    let serving = server.serve(CONNECTS);
    churn(truth, peer, CONNECTS);
    serving.join().expect("the server ends well");
}

fn volume_concurrent(truth: &mut Truth) {
    const PROCESSES: usize = 4;
    const CONNECTS: usize = 500;
    let server = Server::start(truth, V4);
    let serving = server.serve(PROCESSES * CONNECTS);
    let parts: Vec<_> =
        (0..PROCESSES).map(|_| Part::start("connect_many", &[V4, &CONNECTS.to_string()])).collect();
    for part in parts {
        truth.extend(part.finish());
    }
    serving.join().expect("the server ends well");
}
