//! Log against truth: every line that is owed is there once, says the right thing, and no other line is there.

use std::collections::HashMap;
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::coverage::{self, Seen};
use crate::log::{Line, Log};
use crate::namespace::Era;
use crate::truth::{Failure, Happened, How, Kind, Reason, Story, Task, name_of};

/// What `/proc/PID/stat` counts starts of processes in: `USER_HZ`, 100 on every architecture we build for.
const NS_PER_TICK: u64 = 10_000_000;
/// Between the time of a line and the moment that a hold's length was taken.
const HELD_SLACK_NS: u64 = 5_000_000;

/// In what a log may differ from its stories and still be right.
pub struct Leeway {
    /// RSTs that the namespace's sockets sent: each may have ended a time-wait entry that nobody meant to reset. A late
    /// retransmission is answered with one, and machines that stand still for a while retransmit.
    resets: u64,
    /// Lines that may be missing, or deduced instead of seen.
    skipped: usize,
}

impl Leeway {
    pub const NONE: Leeway = Leeway { resets: 0, skipped: 0 };

    pub fn of(rung: &str, log: &Log, stories: &[Story], resets: u64) -> Leeway {
        let events = stories.iter().map(|story| story.events.len()).sum();
        let mut skipped = coverage::skipped_at_most(rung, events);
        // What is missing is counted, unless the log says that not all of it could be.
        if let Some(summary) = log.summary.as_ref().filter(|summary| !summary.lower_bound) {
            let lost: u64 = summary.lost.values().flat_map(|reasons| reasons.values()).sum();
            skipped = skipped.min(lost as usize);
        }
        Leeway { resets, skipped }
    }

    fn take_reset(&mut self) -> bool {
        let is_left = self.resets > 0;
        self.resets = self.resets.saturating_sub(1);
        is_left
    }

    fn take_skipped(&mut self, count: usize) -> bool {
        let is_left = self.skipped >= count;
        self.skipped = self.skipped.saturating_sub(count);
        is_left
    }
}

/// Compares what the log says of one namespace with what happened there; the differences, in words.
pub fn stories(rung: &str, log: &Log, era: &Era, stories: &[Story], mut leeway: Leeway) -> Vec<String> {
    let mut problems = Vec::new();
    let is_guessed = coverage::is_time_wait_guessed(rung, stories);
    let mut holds = holds_by_place(log, era);
    for story in stories {
        // A listing shows a socket, and not where its datagrams went.
        let listed = Story { peer: None, ..story.clone() };
        let story = if coverage::may_be_told(rung, story) { &listed } else { story };
        let Some(place) = place_of_story(rung, story) else { continue };
        let candidates = holds.get_mut(&place).map(Vec::as_mut_slice).unwrap_or_default();
        let begun = |hold: &Vec<&Line>| log.begun_ns(hold[0]);
        let is_meant = |hold: &Vec<&Line>| {
            let call = i128::from(story.call_ns.0)..=i128::from(story.call_ns.1);
            // What is inferred from listings began between two of them.
            let is_between = || {
                begun(hold) <= *call.end() && *call.start() <= log.start_ns() + i128::from(hold[0].mono_ns)
            };
            call.contains(&begun(hold)) || (hold[0].confidence.as_deref() == Some("inferred") && is_between())
        };
        match candidates.iter_mut().find(|hold| !hold.is_empty() && is_meant(hold)) {
            Some(hold) => {
                compare(rung, &std::mem::take(hold), story, is_guessed, &mut leeway, &mut problems);
            }
            None if leeway.take_skipped(story.events.len()) => {}
            None => problems.push(format!("not in the log: {story} in {:?}", story.call_ns)),
        }
    }
    let may_be_told: Vec<_> =
        stories.iter().filter(|story| coverage::may_be_told(rung, story)).map(|story| story.port).collect();
    let is_owed_to_nobody =
        |hold: &Vec<&Line>| hold.first().is_none_or(|line| !may_be_told.contains(&line.lport));
    for hold in holds.into_values().flatten().filter(is_owed_to_nobody) {
        let begun = hold.first().map(|line| log.begun_ns(line));
        problems.extend(hold.iter().map(|line| format!("nobody did this: {line} (begun {begun:?})")));
    }
    // No namespace of ours has sockets before its stories begin.
    let preexisting = log.preexisting.iter().filter(|line| era.has(line.netns, log.begun_ns(line)));
    problems.extend(preexisting.map(|line| format!("it did not exist before: {line}")));
    problems
}

/// What holds are told apart by before time is: first kind of line, call, own port, peer.
type Place = (Kind, Option<String>, Option<u16>, Option<SocketAddr>);

/// Lines of a connection do not say `how`; those of a bind know no peer.
fn place(kind: Kind, how: &str, port: Option<u16>, peer: Option<SocketAddr>) -> Place {
    let is_of_connection =
        matches!(kind, Kind::Established | Kind::TimeWait | Kind::Closed | Kind::PortReleased);
    let has_peer = is_of_connection || how == How::Connect.name() || how == How::Autobind.name();
    (kind, (!is_of_connection).then(|| how.to_owned()), port, peer.filter(|_| has_peer))
}

fn holds_by_place<'a>(log: &'a Log, era: &Era) -> HashMap<Place, Vec<Vec<&'a Line>>> {
    let mut by_place: HashMap<Place, Vec<Vec<&Line>>> = HashMap::new();
    for hold in log.holds(era) {
        let first = hold[0];
        let kind = first.kind().expect("only events are kept");
        let how = first.how.as_deref().unwrap_or_default();
        let peer = first.raddr.zip(first.rport).map(SocketAddr::from);
        by_place.entry(place(kind, how, first.lport, peer)).or_default().push(hold);
    }
    by_place
}

/// Nothing: the rung shows nothing of this story.
fn place_of_story(rung: &str, story: &Story) -> Option<Place> {
    let first = story.events.iter().find(|event| coverage::of(rung, story, event) != Seen::Absent)?;
    // The failure of a bound socket's connect is a connect's.
    let is_autobind = story.how == How::Autobind;
    let how = if first.kind() == Kind::ConnectFailed && !is_autobind { How::Connect } else { story.how };
    Some(place(first.kind(), how.name(), story.port, story.peer))
}

fn compare(
    rung: &str,
    hold: &[&Line],
    story: &Story,
    is_guessed: bool,
    leeway: &mut Leeway,
    problems: &mut Vec<String>,
) {
    let is_owed = |kind: Kind| !(is_guessed && matches!(kind, Kind::TimeWait | Kind::PortReleased));
    let expected: Vec<(&Happened, Seen)> = story
        .events
        .iter()
        .map(|event| (event, coverage::of(rung, story, event)))
        .filter(|(event, seen)| *seen != Seen::Absent && is_owed(event.kind()))
        .collect();
    // What no hook of the rung sees may be deduced once its time is over.
    let may_be_deduced = |kind: Kind| {
        story
            .events
            .iter()
            .any(|event| event.kind() == kind && coverage::of(rung, story, event) == Seen::Absent)
    };
    let is_told = |line: &&Line| {
        let is_deduced = line.confidence.as_deref() == Some("inferred");
        line.kind().is_some_and(|kind| is_owed(kind) && !(is_deduced && may_be_deduced(kind)))
    };
    let lines: Vec<&Line> = hold.iter().copied().filter(is_told).collect();

    let expected_kinds: Vec<_> = expected.iter().map(|(event, _)| event.kind().name()).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line.kind.as_str()).collect();
    if kinds != expected_kinds {
        let missing = expected_kinds.len().saturating_sub(kinds.len());
        if is_part_of(&kinds, &expected_kinds) && leeway.take_skipped(missing) {
            return;
        }
        problems.push(format!("{story}: the log says {kinds:?} instead of {expected_kinds:?}"));
        return;
    }
    let mut wrong = Wrong::default();
    for (line, (event, seen)) in lines.iter().zip(expected) {
        let mut confidence = if seen == Seen::Inferred { "inferred" } else { "exact" };
        if line.confidence.as_deref() == Some("inferred") && confidence == "exact" && leeway.take_skipped(1) {
            confidence = "inferred";
        }
        wrong.unless_equal(line, "confidence", &line.confidence.as_deref(), &Some(confidence));
        let mut is_late = story.told_at_connect && line.kind() == Some(Kind::PortAllocated);
        if line.since_ns.is_some() && !is_late && rung != "tracepoint" && leeway.take_skipped(1) {
            is_late = true;
        }
        if is_late || rung != "tracepoint" {
            wrong.unless_equal(line, "since_ns (is there)", &line.since_ns.is_some(), &is_late);
        }
        if coverage::knows_reason(rung, story) || event.kind() != Kind::PortReleased {
            compare_event(line, event, leeway, &mut wrong);
        }
    }
    for line in hold {
        compare_owner(line, &story.owner, &mut wrong);
        if !coverage::may_be_told(rung, story) {
            wrong.unless_equal(line, "tid", &line.tid, &Some(story.owner.tid));
        }
        compare_place(line, story, &mut wrong);
    }
    compare_length(hold, &mut wrong);
    problems.extend(wrong.0.into_iter().map(|wrong| format!("{story}: {wrong}")));
}

/// Whether `some` is `all` without some of them, in the same order.
fn is_part_of(some: &[&str], all: &[&str]) -> bool {
    let mut rest = all.iter();
    some.iter().all(|one| rest.any(|other| other == one))
}

#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn unless_equal<T: PartialEq + std::fmt::Debug>(&mut self, line: &Line, name: &str, said: &T, is: &T) {
        if said != is {
            self.0.push(format!("`{name}` of `{}` is {said:?} instead of {is:?}", line.kind));
        }
    }
}

fn compare_event(line: &Line, event: &Happened, leeway: &mut Leeway, wrong: &mut Wrong) {
    let named = |value: &dyn Fn() -> String| Some(value());
    match event {
        Happened::Allocated | Happened::Established => {}
        Happened::ConnectFailed(failure) | Happened::BindFailed(failure) => {
            let errno = match failure {
                Failure::Errno(number) => Some(format!("{:?}", Errno::from_raw(*number))),
                Failure::Abandoned => None,
            };
            wrong.unless_equal(line, "errno", &line.errno, &errno);
            wrong.unless_equal(line, "abandoned", &line.abandoned, &(*failure == Failure::Abandoned));
        }
        Happened::TimeWait { closer, substate } => {
            wrong.unless_equal(line, "closer", &line.closer, &named(&|| name_of(closer)));
            // A rung that sees no time-wait entry knows nothing of its state.
            if let (Some(substate), true) = (substate, line.confidence.as_deref() == Some("exact")) {
                wrong.unless_equal(line, "substate", &line.substate, &named(&|| name_of(substate)));
            }
        }
        Happened::Closed { closer } => {
            wrong.unless_equal(line, "closer", &line.closer, &named(&|| name_of(closer)));
        }
        Happened::Released { reason } => {
            let allowed: Vec<_> = reason.iter().map(name_of).collect();
            let is_reset = line.reason.as_deref() == Some("tw_reset");
            if is_reset && reason.contains(&Reason::TwExpired) && leeway.take_reset() {
                return;
            }
            // The end was not seen, only that its memory serves another.
            if line.reason.as_deref() == Some("unknown") && leeway.take_skipped(1) {
                return;
            }
            if !line.reason.as_ref().is_some_and(|reason| allowed.contains(reason)) {
                wrong.0.push(format!("`reason` is {:?} instead of one of {allowed:?}", line.reason));
            }
        }
    }
}

/// Every line of a hold names the one who asked for the port.
fn compare_owner(line: &Line, owner: &Task, wrong: &mut Wrong) {
    wrong.unless_equal(line, "pid", &line.pid, &Some(owner.pid));
    wrong.unless_equal(line, "ppid", &line.ppid, &Some(owner.ppid));
    wrong.unless_equal(line, "ns_pid", &line.ns_pid, &owner.ns_pid);
    wrong.unless_equal(line, "comm", &line.comm.as_ref(), &Some(&owner.comm));
    wrong.unless_equal(line, "uid", &line.uid, &Some(owner.uid));
    let start_ticks = line.start_ns.as_ref().and_then(|ns| ns.parse::<u64>().ok()).map(|ns| ns / NS_PER_TICK);
    wrong.unless_equal(line, "start_ns (ticks)", &start_ticks, &Some(owner.start_ticks));
    // These are read from /proc, where a short-lived owner may be gone; then nothing is said.
    if line.cgroup.is_some() && owner.cgroup.is_some() {
        wrong.unless_equal(line, "cgroup", &line.cgroup, &owner.cgroup);
    }
    let own_exe = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    if line.exe.is_some() && own_exe.is_some() {
        wrong.unless_equal(line, "exe", &line.exe, &own_exe);
    }
}

fn compare_place(line: &Line, story: &Story, wrong: &mut Wrong) {
    let kind = line.kind().expect("only events are kept");
    wrong.unless_equal(line, "proto", &line.proto, &Some(name_of(&story.protocol)));
    wrong.unless_equal(line, "family", &line.family, &Some(name_of(&story.family)));
    wrong.unless_equal(line, "lport", &line.lport, &story.port);
    // The address of a socket bound to all of them changes when it connects.
    let is_settled = story.how == How::Connect || kind == Kind::PortAllocated || kind == Kind::BindFailed;
    if is_settled && story.local.is_some() {
        wrong.unless_equal(line, "laddr", &line.laddr, &story.local);
    }
    let is_of_connection =
        matches!(kind, Kind::ConnectFailed | Kind::Established | Kind::TimeWait | Kind::Closed)
            || matches!(story.how, How::Connect | How::Autobind);
    if let (true, Some(peer)) = (is_of_connection, story.peer) {
        wrong.unless_equal(line, "raddr", &line.raddr, &Some(peer.ip()));
        wrong.unless_equal(line, "rport", &line.rport, &Some(peer.port()));
        let is_mapped = peer.is_ipv4() && name_of(&story.family) == "ipv6";
        wrong.unless_equal(line, "mapped", &line.mapped, &is_mapped);
    } else if !story.told_at_connect && matches!(kind, Kind::PortAllocated | Kind::BindFailed) {
        wrong.unless_equal(line, "rport", &line.rport, &None);
    }
    // A bind may still become either; a listener's end is told of a listener.
    let is_in = story.how == How::Listen || story.listens;
    if kind != Kind::PortAllocated || story.how != How::Bind {
        let direction = if is_in { "in" } else { "out" };
        wrong.unless_equal(line, "direction", &line.direction.as_deref(), &Some(direction));
    }
}

/// `held_ns` is the time between the lines that begin and end the hold.
fn compare_length(hold: &[&Line], wrong: &mut Wrong) {
    let Some(first) = hold.first().filter(|line| line.kind() == Some(Kind::PortAllocated)) else { return };
    let begun_ns = first.since_ns.unwrap_or(first.mono_ns);
    for line in hold.iter().filter(|line| matches!(line.kind(), Some(Kind::Closed | Kind::PortReleased))) {
        let between_ns = line.mono_ns - begun_ns;
        match line.held_ns {
            Some(held_ns) if between_ns.abs_diff(held_ns.cast_signed()) <= HELD_SLACK_NS => {}
            // It was gone before the next listing, and that is all that is known.
            None if line.confidence.as_deref() == Some("inferred") => {}
            held_ns => wrong.0.push(format!("`held_ns` of `{}` is {held_ns:?}, not {between_ns}", line.kind)),
        }
    }
}
