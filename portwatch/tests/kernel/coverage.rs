//! What each rung can see, as a table that the tests hold portwatch to; and which tests cannot run where.
//!
//! `exact` must be there and say so, `inferred` must be there and say so, `absent` must not be there.
//! What is not in the table is exact.

use crate::truth::{Happened, Kind, Reason, Story};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Exact,
    Inferred,
    Absent,
}

/// Why a cell is lower than `exact`.
struct Cell {
    rung: &'static str,
    kind: Kind,
    /// Which of the lines of that kind.
    is_meant: fn(&Story, &Happened) -> bool,
    seen: Seen,
    /// What keeps the rung from seeing it.
    #[allow(dead_code, reason = "for the reader of the table")]
    because: &'static str,
}

const TABLE: &[Cell] = &[
    Cell {
        rung: "tracepoint",
        kind: Kind::TimeWait,
        is_meant: |_, _| true,
        seen: Seen::Inferred,
        because: "the time-wait entry is made in a function that no tracepoint tells of; \
                  the change to CLOSE of a socket that was not reset implies it",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortReleased,
        is_meant: |story, _| story.has(Kind::TimeWait),
        seen: Seen::Absent,
        because: "the end of a time-wait entry passes no tracepoint",
    },
];

/// How a rung sees one line of a story.
pub fn of(rung: &str, story: &Story, happened: &Happened) -> Seen {
    let cell = TABLE
        .iter()
        .find(|cell| cell.rung == rung && cell.kind == happened.kind() && (cell.is_meant)(story, happened));
    cell.map_or(Seen::Exact, |cell| cell.seen)
}

/// On the tracepoint rung a full time-wait table looks like TIME_WAIT: what the kernel then does passes no
/// tracepoint. Such a hold may be told either way there.
pub fn is_time_wait_guessed(rung: &str, story: &Story) -> bool {
    let is_overflow = |happened: &Happened| matches!(happened, Happened::Released { reason } if reason.contains(&Reason::TwOverflow));
    rung == "tracepoint" && story.events.iter().any(is_overflow)
}

/// A skip that is known and accepted; any other fails where tests are required to run.
struct Skip {
    /// Test name without its rung, or a rung.
    test: &'static str,
    on: fn(&Host) -> bool,
    because: &'static str,
}

const SKIPS: &[Skip] = &[
    Skip {
        test: "connect_local_port_range",
        on: |host| host.version < (6, 3),
        because: "IP_LOCAL_PORT_RANGE came with Linux 6.3",
    },
    Skip {
        test: "fentry",
        on: |host| host.is_locked_down,
        because: "the kernel is locked down and loads no tracing programs",
    },
    Skip {
        test: "kprobe",
        on: |host| host.is_locked_down,
        because: "the kernel is locked down and has no kprobes",
    },
];

struct Host {
    version: (u32, u32),
    is_locked_down: bool,
}

impl Host {
    fn here() -> Host {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
        let has_kprobes = std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists();
        Host {
            version,
            is_locked_down: lockdown.contains("[integrity]")
                || lockdown.contains("[confidentiality]")
                || !has_kprobes,
        }
    }
}

/// Why a skip of `test` on this host is expected.
pub fn expected_skip(test: &str) -> Option<&'static str> {
    let host = Host::here();
    SKIPS.iter().find(|skip| skip.test == test && (skip.on)(&host)).map(|skip| skip.because)
}
