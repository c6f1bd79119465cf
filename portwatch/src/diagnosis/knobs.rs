//! Which sysctl would help how much here, and which does nothing.

use super::pools::TIME_WAIT_S;
use super::report::{Knob, Pool};
use super::round;

/// The widest range that leaves the usual services alone.
const RANGE_WIDE: (u16, u16) = (10_240, 65_535);

pub fn of(pool: &Pool) -> Vec<Knob> {
    let mut knobs = Vec::new();
    let inputs = &pool.inputs;
    let held_s = |time_wait_s: f64| {
        let held_s = inputs.lifetime_mean_s? + inputs.time_wait_share? * time_wait_s;
        (held_s > 0.0).then_some(held_s)
    };
    let carries = |capacity: u64, time_wait_s| Some(round(capacity as f64 / held_s(time_wait_s)?));
    if let (Some((low, high)), Some(capacity)) = (inputs.port_range, pool.capacity) {
        let wide = u64::from(RANGE_WIDE.1 - RANGE_WIDE.0) + 1;
        let now = u64::from(high - low) + 1;
        if wide > now {
            knobs.push(Knob {
                sysctl: "net.ipv4.ip_local_port_range",
                now: format!("{low} {high}"),
                then: Some(format!("{} {}", RANGE_WIDE.0, RANGE_WIDE.1)),
                sustainable_per_s: carries(capacity + wide - now, inputs.time_wait_s),
                note: "put listeners within it into net.ipv4.ip_local_reserved_ports",
            });
        }
    }
    let reuse = inputs.tcp_tw_reuse;
    let waits = inputs.time_wait_share.is_some_and(|share| share > 0.01);
    if let Some(reuse) = reuse.filter(|_| waits) {
        let delay_s = inputs.tcp_tw_reuse_delay_ms.map_or(1.0, |ms| f64::from(ms) / 1e3);
        let (then, carries, note) = if inputs.time_wait_is_reusable {
            (
                None,
                None,
                "in effect here already: a connect takes over ports whose TIME_WAIT is older than the delay",
            )
        } else if inputs.tcp_timestamps == Some(0) {
            (None, None, "does nothing while net.ipv4.tcp_timestamps is 0")
        } else {
            let carries = pool.capacity.and_then(|capacity| carries(capacity, delay_s));
            (
                Some("1".to_owned()),
                carries,
                "lets connects take over ports in TIME_WAIT; the peer needs timestamps, too",
            )
        };
        knobs.push(Knob {
            sysctl: "net.ipv4.tcp_tw_reuse",
            now: reuse.to_string(),
            then,
            sustainable_per_s: carries,
            note,
        });
    }
    if waits && inputs.time_wait_s >= TIME_WAIT_S {
        knobs.push(Knob {
            sysctl: "net.ipv4.tcp_fin_timeout",
            now: "any".to_owned(),
            then: None,
            sustainable_per_s: None,
            note: "does nothing here: it does not shorten TIME_WAIT, whose 60 s are a constant of the kernel",
        });
    }
    knobs
}
