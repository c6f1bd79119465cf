//! What is done to the kernel, one module per hook that must see it.

mod inet_csk_get_port;
mod inet_hash_connect;
mod inet_sock_set_state;
mod inet_twsk;
pub mod mixed;
mod owner;
mod udp;
mod volume;

use crate::truth::Truth;

/// One thing to do in a namespace of its own, by a process of its own.
pub struct Scenario {
    pub name: &'static str,
    /// Settings below /proc/sys/net/ipv4 of the namespace.
    pub sysctls: &'static [(&'static str, &'static str)],
    pub run: fn(&mut Truth),
}

/// A range that no server of the scenarios lies in.
const NARROW: (&str, &str) = ("ip_local_port_range", "40000 40099");
/// A port in TIME_WAIT is not given out again, however slow the machine.
const NO_REUSE: (&str, &str) = ("tcp_tw_reuse", "0");

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Truth)) -> Scenario {
        Scenario { name, sysctls: &[NARROW, NO_REUSE], run }
    }

    const fn with(
        name: &'static str,
        sysctls: &'static [(&'static str, &'static str)],
        run: fn(&mut Truth),
    ) -> Scenario {
        Scenario { name, sysctls, run }
    }
}

/// Slow ones first, so that the others run beside them.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        volume::SCENARIOS,
        inet_hash_connect::SCENARIOS,
        inet_twsk::SCENARIOS,
        owner::SCENARIOS,
        inet_csk_get_port::SCENARIOS,
        inet_sock_set_state::SCENARIOS,
        udp::SCENARIOS,
    ]
    .into_iter()
    .flatten()
}

pub fn named(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}

/// What a process of its own does within a scenario: arguments in, truth out.
pub type PartFn = fn(&[String]) -> Truth;

pub fn part(name: &str) -> Option<PartFn> {
    let tables = [inet_hash_connect::PARTS, owner::PARTS, mixed::PARTS, crate::stacks::PARTS];
    tables.into_iter().flatten().find(|(known, _)| *known == name).map(|(_, run)| *run)
}
