//! Call stacks: that they are those of the calls, that the kernel side comes to walk them by itself, and that the audit
//! finds it out when it walks them wrongly.
//!
//! The workload's destination port says which path a connect came by, so every event can be judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hint::black_box;
use std::net::SocketAddr;

use aya::maps::{HashMap, MapData};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use serde_json::Value;

use crate::flags::words;
use crate::log::{Line, Log};
use crate::play::say;
use crate::run::{Outcome, report};
use crate::scenarios::PartFn;
use crate::sockets::Socket;
use crate::stage::Part;
use crate::tracer::{NotStarted, Tracer};
use crate::truth::{Kind, Truth};
use crate::wait::{self, PATIENCE};

pub const PARTS: &[(&str, PartFn)] = &[("stacks", part)];

/// Frames of recursion; with those around them the last passes the kernel side's limit in its plain form.
const DEPTHS: [u16; 4] = [3, 18, 40, 90];
/// Nobody listens here; a depth is added.
const PORT_DEPTH: u16 = 7100;
const PORT_SIGNAL: u16 = 7200;
const PORT_BIG: u16 = 7300;
const PATHS: usize = DEPTHS.len() + 2;

/// Connects by every path each time it is asked.
const ROUNDS: usize = 60;
/// Times that it is asked at most until the kernel side knows every path, or the audit has come upon a planted fault.
const TIMES_MAX: usize = 60;

#[inline(never)]
fn connect(port: u16) {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    assert_eq!(Socket::v4().connect(address), Err(Errno::ECONNREFUSED));
}

#[inline(never)]
fn kt_recurse(left: u16, port: u16) -> u16 {
    if left == 1 {
        connect(port);
        return black_box(0);
    }
    // Not the last thing done: a tail call would leave no frame.
    black_box(kt_recurse(left - 1, port)) + 1
}

#[inline(never)]
fn kt_big_frame(port: u16) -> usize {
    let big = black_box([1_u8; 40 << 10]);
    connect(port);
    black_box(&big).len()
}

extern "C" fn kt_handler(_: libc::c_int) {
    connect(PORT_SIGNAL);
}

#[inline(never)]
fn kt_interrupted() {
    raise(Signal::SIGUSR1).expect("a process may signal itself");
    black_box(0);
}

/// Each time it is told connects by every path, and says that it has, until nobody tells it any more.
fn part(_: &[String]) -> Truth {
    let action = SigAction::new(SigHandler::Handler(kt_handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes system calls and touches nothing that the code it interrupts uses.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        for _ in 0..ROUNDS {
            for depth in DEPTHS {
                black_box(kt_recurse(depth, PORT_DEPTH + depth));
            }
            black_box(kt_big_frame(PORT_BIG));
            kt_interrupted();
        }
        say(&"done");
        line.clear();
    }
    Truth::new()
}

/// Every event has the stack of its path, the kernel side walks it alone after a while, and the audit agrees.
pub fn of_every_path(rung: &str) -> Result<Outcome, String> {
    traced(rung, &[], Workload::until_known, |log| {
        let mut problems = wrong(log, &log.lines);
        let count = |name: &str| summary(log, name);
        if count("walked") == 0 || count("audit.checked") == 0 || count("audit.mismatched") != 0 {
            let stacks = log.summary.as_ref().map(|summary| &summary.stacks);
            problems.push(format!("stacks were come by like this: {stacks:?}"));
        }
        problems
    })
}

/// The same by the form that old kernels get.
pub fn of_every_path_plainly(rung: &str) -> Result<Outcome, String> {
    traced(rung, &["--stack-walk", "plain"], Workload::until_known, |log| wrong(log, &log.lines))
}

/// `--kernel-stack`: the way from the system call to the connect stands before the program's frames.
pub fn with_kernel_frames(rung: &str) -> Result<Outcome, String> {
    traced(rung, &["--kernel-stack"], Workload::until_known, |log| {
        let mut problems = wrong(log, &log.lines);
        for (id, frames) in &log.stacks {
            let is_kernel = |frame: &&Value| frame["kind"] == "kernel";
            let kernel: Vec<_> = frames.iter().take_while(is_kernel).collect();
            let has = |name: &str| kernel.iter().any(|frame| frame["function"] == name);
            if !has("tcp_v4_connect") || kernel.last().is_none_or(|last| last["function"] == "tcp_v4_connect")
            {
                problems.push(format!("stack {id} does not tell the way through the kernel: {kernel:?}"));
            }
            if frames[kernel.len()..].iter().any(|frame| is_kernel(&frame)) {
                problems.push(format!("stack {id} has kernel frames among the program's"));
            }
        }
        problems
    })
}

/// Rows that lead astray are found by the audit, told, and replaced.
pub fn planted_row_is_found(rung: &str) -> Result<Outcome, String> {
    let drive = |workload: &mut Workload| {
        workload.until_known()?;
        plant(workload.tracer.pid());
        workload.until("the audit comes upon it", |tracer, _| tracer.stderr().contains("wrongly"))?;
        workload.until_known()
    };
    traced(rung, &[], drive, |log| {
        let mut problems = wrong(log, last_round(log));
        if summary(log, "audit.mismatched") == 0 {
            problems.push("the summary does not know of the planted rows".to_owned());
        }
        problems
    })
}

/// The process that connects, and the tracer beside it.
struct Workload {
    part: Part,
    tracer: Tracer,
    /// Connects so far.
    connects: usize,
}

impl Workload {
    /// Goes on until no stack of a whole round is cut but for its depth.
    fn until_known(&mut self) -> Result<(), String> {
        let is_known = |line: &Line| line.stack_gap.as_deref().is_none_or(|gap| gap == "too_deep");
        let is_whole = |line: &Line| is_known(line) || line.rport == Some(PORT_SIGNAL);
        self.until("every path is known", |_, log| last_round(log).iter().all(is_whole))
    }

    /// Goes on until something is so, seen when the log has all of a round.
    fn until(&mut self, what: &str, is_so: impl Fn(&Tracer, &Log) -> bool) -> Result<(), String> {
        for _ in 0..TIMES_MAX {
            self.part.ask("done");
            self.connects += ROUNDS * PATHS;
            let caught_up = || {
                let log = Log::read(self.tracer.log_path()).ok()?;
                (log.lines.iter().filter(|line| is_connect(line)).count() >= self.connects).then_some(log)
            };
            let log = wait::until(PATIENCE, caught_up).ok_or("the log does not get all events")?;
            if is_so(&self.tracer, &log) {
                return Ok(());
            }
        }
        Err(format!("{} connects, and not yet so: {what}: {}", self.connects, self.tracer.stderr()))
    }
}

/// The line of which every connect has one.
fn is_connect(line: &Line) -> bool {
    line.kind() == Some(Kind::ConnectFailed)
}

/// Lines from the first of the last round on.
fn last_round(log: &Log) -> &[Line] {
    let connects = log.lines.iter().enumerate().filter(|(_, line)| is_connect(line));
    let first = connects.rev().nth(ROUNDS * PATHS - 1).map_or(0, |(at, _)| at);
    &log.lines[first..]
}

/// Makes all unwind rows of a tracer say that there is no caller.
fn plant(tracer_pid: u32) {
    const KIND: usize = 6;
    const END: u8 = 2;
    let fdinfo = fs::read_dir(format!("/proc/{tracer_pid}/fdinfo")).expect("our own child");
    let ids = fdinfo.flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("map_id:"))?.trim().parse().ok()
    });
    let named = |id: u32| {
        let map = MapData::from_id(id).ok()?;
        (map.info().ok()?.name_as_str() == Some("ROWS")).then_some(map)
    };
    let map = ids.filter_map(named).next().expect("the tracer has a map of rows");
    let mut rows: HashMap<_, [u64; 2], [u8; 8]> =
        HashMap::try_from(aya::maps::Map::HashMap(map)).expect("a hash");
    let known: Vec<_> = rows.iter().filter_map(Result::ok).collect();
    assert!(!known.is_empty(), "the tracer has taught no row yet");
    for (key, mut row) in known {
        row[KIND] = END;
        rows.insert(key, row, 0).expect("an entry that is there can be changed");
    }
}

/// Traces the workload while it is driven, and judges the log and what the tracer said.
fn traced(
    rung: &str,
    args: &[&str],
    drive: impl FnOnce(&mut Workload) -> Result<(), String>,
    judge: impl FnOnce(&Log) -> Vec<String>,
) -> Result<Outcome, String> {
    let part = Part::piped("stacks");
    let args = [words(&["-p", &part.pid().to_string()]), words(args)].concat();
    let tracer = match Tracer::start(rung, &args) {
        Ok(tracer) => tracer,
        Err(NotStarted::CannotRun(why)) => return Ok(Outcome::Skipped(why)),
        Err(failed) => return Err(failed.to_string()),
    };
    let mut workload = Workload { part, tracer, connects: 0 };
    drive(&mut workload)?;
    workload.part.dismiss().finish();
    let ended = workload.tracer.wait()?;
    report(judge(&ended.log))
}

/// Events whose stack is not that of their path.
fn wrong(log: &Log, lines: &[Line]) -> Vec<String> {
    let mut problems = BTreeMap::new();
    let mut ports_by_id: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    let mut judged = BTreeSet::new();
    for line in lines {
        let (Some(port), Some(id)) = (line.rport, &line.stack) else { continue };
        let frames = log.stacks.get(id).map_or(&[][..], Vec::as_slice);
        if line.stack_gap.is_none() {
            ports_by_id.entry(id).or_default().insert(port);
            judged.insert(port);
        }
        if let Err(problem) = judge(frames, port, line.stack_gap.as_deref()) {
            problems.entry(problem).or_insert_with(|| format!("{line}"));
        }
    }
    let mut problems: Vec<_> =
        problems.into_iter().map(|(problem, line)| format!("{problem}: {line}")).collect();
    let two = ports_by_id.iter().filter(|(_, ports)| ports.len() > 1);
    problems.extend(two.map(|(id, ports)| format!("stack {id} is that of several paths: {ports:?}")));
    let is_judged = |port: &u16| judged.contains(port);
    let never: Vec<_> = paths().filter(|port| !is_judged(port) && *port != PORT_SIGNAL).collect();
    if !never.is_empty() {
        problems.push(format!("no event has a whole stack on the way to {never:?}"));
    }
    problems
}

fn paths() -> impl Iterator<Item = u16> {
    DEPTHS.into_iter().map(|depth| PORT_DEPTH + depth).chain([PORT_SIGNAL, PORT_BIG])
}

fn judge(frames: &[Value], port: u16, gap: Option<&str>) -> Result<(), String> {
    let count = |name: &str| {
        frames.iter().filter(|frame| frame["function"].as_str().is_some_and(|f| f.contains(name))).count()
    };
    let expected = |name: &str, expected: usize| match count(name) {
        found if found == expected => Ok(()),
        // What is cut has no more than there is.
        found if found < expected && gap.is_some() => Ok(()),
        found => Err(format!("{found} instead of {expected} frames `{name}` on the way to {port} ({gap:?})")),
    };
    // musl returns from signal handlers by code that no unwind table mentions.
    let is_cut_at_signal = port == PORT_SIGNAL && cfg!(target_env = "musl");
    match gap {
        None | Some("rate_limited" | "not_copied" | "ring_full") => {}
        Some("too_deep") if port == PORT_DEPTH + DEPTHS[3] => {}
        Some("not_code" | "no_progress") if is_cut_at_signal => {}
        Some(gap) => return Err(format!("`{gap}` on the way to {port}")),
    }
    let depth = DEPTHS.into_iter().find(|depth| PORT_DEPTH + depth == port);
    expected("kt_recurse", depth.unwrap_or(0).into())?;
    expected("kt_big_frame", usize::from(port == PORT_BIG))?;
    expected("kt_handler", usize::from(port == PORT_SIGNAL))?;
    if !is_cut_at_signal {
        expected("kt_interrupted", usize::from(port == PORT_SIGNAL))?;
    }
    Ok(())
}

/// A number of the summary's `stacks`, by its path there.
fn summary(log: &Log, path: &str) -> u64 {
    let stacks = &log.summary.as_ref().expect("a whole log has a summary").stacks;
    path.split('.').fold(stacks, |value, name| &value[name]).as_u64().expect("a number")
}
