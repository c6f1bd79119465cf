//! What each rung can see, as a table that the tests hold portwatch to; and which tests may be skipped where.
//!
//! `exact` must be there and say so, `inferred` must be there and say so, `absent` must not be there.
//! What is not in the table is exact.

use crate::sockets::Protocol;
use crate::truth::{Happened, How, Kind, Reason, Story};

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
        is_meant: |_, event| matches!(event, Happened::Released { reason } if *reason == [Reason::TwReused]),
        seen: Seen::Inferred,
        because: "a connect that gets the very same addresses and ports can only have taken them over",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortReleased,
        is_meant: |story, _| story.has(Kind::TimeWait),
        seen: Seen::Absent,
        because: "the end of a time-wait entry passes no tracepoint",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortAllocated,
        is_meant: |story, _| story.how == How::Autobind && story.is_long,
        seen: Seen::Inferred,
        because: "a program at the end of every sendto() would cost everybody who sends; listings show the socket",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortAllocated,
        is_meant: |story, _| story.how == How::Autobind,
        seen: Seen::Absent,
        because: "likewise, and it was gone before the next listing",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::ConnectFailed,
        is_meant: |story, _| story.how == How::Autobind,
        seen: Seen::Absent,
        because: "likewise, and there is nothing to list",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortReleased,
        is_meant: |story, _| story.how == How::Autobind && !story.is_long,
        seen: Seen::Absent,
        because: "of a hold that was never seen",
    },
    Cell {
        rung: "tracepoint",
        kind: Kind::PortReleased,
        is_meant: |story, _| story.protocol == Protocol::Udp,
        seen: Seen::Inferred,
        because: "the end of a UDP socket passes no tracepoint; it is missing from the next listing",
    },
];

/// How a rung sees one line of a story.
pub fn of(rung: &str, story: &Story, happened: &Happened) -> Seen {
    let cell = TABLE
        .iter()
        .find(|cell| cell.rung == rung && cell.kind == happened.kind() && (cell.is_meant)(story, happened));
    cell.map_or(Seen::Exact, |cell| cell.seen)
}

/// Whether a rung may tell more of a story than it owes: a socket that its first datagram bound is told when a listing
/// happens to show it, or when it connects.
pub fn may_be_told(rung: &str, story: &Story) -> bool {
    rung == "tracepoint" && story.how == How::Autobind
}

/// Whether a rung can tell why a UDP port was released: listings say only that it was.
pub fn knows_reason(rung: &str, story: &Story) -> bool {
    rung != "tracepoint" || story.protocol != Protocol::Udp
}

/// Lines of so many that may be missing, or deduced or told late instead of seen. A kprobe's program does not run on a
/// CPU that is inside of another one, say where a softirq interrupts it; newer kernels count that, older ones do not.
/// From 7.0 on a task can be preempted inside of any program, which then does not run for other tasks on that CPU. An
/// emulated machine takes thousands of times longer inside of a program, and so that happens there so much more often.
pub fn skipped_at_most(rung: &str, lines: usize) -> usize {
    if rung == "kprobe" || kernel() >= (7, 0) {
        (lines / 20).max(1)
    } else if kernel() >= (6, 1) {
        // A softirq inside of the same program: the state changes have a second one for that, the others do not.
        (lines / 500).max(1)
    } else {
        0
    }
}

/// Version of the running kernel.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// On the tracepoint rung a full time-wait table can only be guessed at: whether an entry was made passes no
/// tracepoint, and a table that is full afterwards may have had its last place taken or none to take. Where it
/// overflows, TIME_WAIT may be told or not.
pub fn is_time_wait_guessed(rung: &str, stories: &[Story]) -> bool {
    let is_overflow = |happened: &Happened| matches!(happened, Happened::Released { reason } if reason.contains(&Reason::TwOverflow));
    rung == "tracepoint" && stories.iter().flat_map(|story| &story.events).any(is_overflow)
}

/// Tests that may be skipped, and where: `test | kernel | reason`, as `cargo xtask test` reads it.
const EXPECTED_SKIPS: &str = include_str!("../../../xtask/expected-skips.txt");

/// Whether a skip of `test` on the running kernel is accepted.
pub fn is_skip_expected(rung: &str, test: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let series = release.splitn(3, ['.', '-']).take(2).collect::<Vec<_>>().join(".");
    let places = ["*", &series, "native"].map(|kernel| [kernel.to_owned(), format!("{kernel}/{rung}")]);
    let rows = EXPECTED_SKIPS.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| line.split_once('|')).any(|(name, rest)| {
        let place = rest.split('|').next().unwrap_or_default().trim();
        name.trim() == format!("{rung}::{test}") && places.concat().iter().any(|known| known == place)
    })
}
