//! A program without frame pointers whose destination ports say which call path led there.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::Signal;

use crate::compile;
use crate::counters::Stacks;
use crate::log::Log;
use crate::stage::Stage;
use crate::wait::{self, PATIENCE};
use crate::{Stopped, many};

const SOURCE: &str = include_str!("../programs/paths.c");
const NAME: &str = "paths";
const FIRST_PORT: u16 = 7100;
const THREADS: usize = 3;
/// Walks of every path by every thread once all is learned.
const ROUNDS: usize = 40;
/// Between two walks of all paths by a thread: 1280 connects a second altogether.
const PAUSE_US: usize = 50_000;
/// Snapshots that a path may cost until the kernel side walks it alone.
const SNAPSHOTS_PER_PATH: u64 = 5;

/// Functions of the program between connect() and `walk_all`; the port is the first one's plus the place in here.
const PATHS: [&[&str]; 16] = [
    &["direct"],
    &["plain_inner", "plain_middle", "plain"],
    &["with_alloca"],
    &["recurse"; 21],
    &["recurse_far"; 46],
    &["compare", "sort"],
    &["found", "search"],
    &["realigned"],
    &["realigned_with_arguments"],
    &["aligned_by_attribute"],
    &["big_frame"],
    &["sparse_frame"],
    &["on_signal", "signalled"],
    &["on_other_stack", "signalled_elsewhere"],
    &["twice"],
    &["twice"],
];

/// Longer than what is copied of a stack, or in two places: the first stacks of such a path end within it.
const IS_LEARNED_IN_STEPS: [&str; 3] = ["big_frame", "sparse_frame", "on_other_stack"];

/// Whence `walk_all` is called: the main thread and the others.
const ROOTS: [&[&str]; 2] = [&["walk_all", "work", "main", "_start"], &["walk_all", "work", "thread_main"]];

/// Every event names its path, the kernel side soon walks by itself, and then sends no stack any more.
pub fn known(stage: &Stage) -> Result<(), Stopped> {
    walked(stage, &[])
}

/// The same by the programs for kernels that do not have `bpf_loop`.
pub fn known_plainly(stage: &Stage) -> Result<(), Stopped> {
    walked(stage, &["--stack-walk", "plain"])
}

fn walked(stage: &Stage, args: &[&str]) -> Result<(), Stopped> {
    let program = compile::on_stage(stage, NAME, SOURCE, &["-g"])?;
    let rounds = many(ROUNDS);
    let tracer = stage.record_all_with(args)?;
    let mut paths = Walker::start(&program, rounds)?;
    let distinct = (PATHS.len() * ROOTS.len()) as u64;
    let counters = || Stacks::of(tracer.pid());
    // Warm when it has walked each path some times over and asked for nothing meanwhile.
    let mut asked = None;
    let mut walked = 0;
    let warm = wait::until(PATIENCE, || {
        let now = counters().ok()?;
        let asks = (now.snapshots, now.limited, now.missed);
        if asked != Some(asks) {
            (asked, walked) = (Some(asks), now.walked);
        }
        (now.walked > walked + 10 * distinct).then_some(())
    });
    if warm.is_none() {
        return Err(Stopped::Failed(format!("the kernel side never walks alone: {:?}", counters()?)));
    }
    paths.tell()?;
    paths.hear("warm")?;
    let before = counters()?;
    paths.tell()?;
    let made = paths.finish()?;
    let after = counters()?;
    let ended = tracer.stop(Signal::SIGTERM)?;

    let mut problems = Vec::new();
    println!(
        "{distinct} paths: {before:?} when warm, {after:?} at the end, {} connects",
        made.iter().sum::<usize>()
    );
    if before.snapshots > SNAPSHOTS_PER_PATH * distinct {
        problems.push(format!("{} snapshots for {distinct} paths", before.snapshots));
    }
    if after.snapshots != before.snapshots || after.limited + after.missed > 0 {
        problems.push(format!("stacks are sent when all is learned: {before:?}, {after:?}"));
    }
    let steady = (rounds * (THREADS + 1) * PATHS.len()) as u64;
    if after.walked - before.walked < steady {
        problems.push(format!("{} stacks walked in {steady} connects", after.walked - before.walked));
    }
    for (path, (own, made)) in PATHS.iter().zip(&made).enumerate() {
        check(&ended.log, path, own, *made, &mut problems);
    }
    report(&problems)
}

/// Whether every connect of a path is in the log, with that path.
fn check(log: &Log, path: usize, own: &[&str], made: usize, problems: &mut Vec<String>) {
    let port = FIRST_PORT + path as u16;
    let site = format!("{} ({NAME}.c:{})", own[0], compile::line_of(SOURCE, &format!("ATTEMPT({path})")));
    let events: Vec<_> = log.connects_to(port).collect();
    if events.len() != made {
        problems.push(format!("path {path}: {} events of {made} connects", events.len()));
    }
    let expected = ROOTS.map(|root| [own, root].concat());
    let mut ids = HashSet::new();
    let mut cut = 0;
    for event in events {
        let functions = log.functions(event, NAME);
        let is_right = expected.contains(&functions);
        // Where it began: the C library's part of the program, or of a thread.
        let outermost = log.frames(event).last().and_then(|frame| frame.function.as_deref());
        let is_whole = matches!(outermost, Some("_start" | "clone3" | "__clone3" | "clone" | "__clone"));
        let has_site = event.call_site.as_deref() == Some(&site);
        if is_right && is_whole && has_site {
            ids.insert(event.stack.as_deref());
        } else if IS_LEARNED_IN_STEPS.contains(&own[0]) && has_site && functions == own[..1] {
            // What was found of it is known now, so that the next copy begins behind that.
            cut += 1;
        } else {
            problems.push(format!(
                "path {path}: {:?} for `{site}`, {functions:?} up to {outermost:?}",
                event.call_site
            ));
        }
    }
    if cut > SNAPSHOTS_PER_PATH * ROOTS.len() as u64 {
        problems.push(format!("path {path}: {cut} stacks cut"));
    }
    // One stack of the main thread, one of the others, which share their code.
    if ids.len() != ROOTS.len() {
        problems.push(format!("path {path}: {} stacks instead of {}", ids.len(), ROOTS.len()));
    }
}

/// All problems in one text, the first ones in full.
pub fn report(problems: &[String]) -> Result<(), Stopped> {
    if problems.is_empty() {
        return Ok(());
    }
    const SHOWN: usize = 8;
    let shown: Vec<_> = problems.iter().take(SHOWN).map(|problem| format!("- {problem}")).collect();
    Err(Stopped::Failed(format!("{} problems\n{}", problems.len(), shown.join("\n"))))
}

/// The program at work.
struct Walker {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Walker {
    fn start(program: &std::path::Path, rounds: usize) -> Result<Walker, String> {
        let mut command = Command::new(program);
        command.args(
            [FIRST_PORT.into(), THREADS, rounds, PAUSE_US, 1000].map(|number: usize| number.to_string()),
        );
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Walker { child, lines })
    }

    fn tell(&mut self) -> Result<(), String> {
        let stdin = self.child.stdin.as_mut().ok_or("no input")?;
        stdin.write_all(b"!").map_err(|error| format!("it does not listen: {error}"))
    }

    fn hear(&mut self, expected: &str) -> Result<(), String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| format!("it cannot be heard: {error}"))?;
        if line.trim_end() == expected { Ok(()) } else { Err(format!("it says `{line}`, not `{expected}`")) }
    }

    /// Waits for its end: how often each path was walked.
    fn finish(mut self) -> Result<Vec<usize>, String> {
        let mut made = Vec::new();
        for line in self.lines.by_ref().lines() {
            let line = line.map_err(|error| format!("it cannot be heard: {error}"))?;
            let count = line.split_once(' ').and_then(|(_, count)| count.parse().ok());
            made.push(count.ok_or_else(|| format!("it says `{line}`"))?);
        }
        let status = self.child.wait().map_err(|error| format!("cannot wait: {error}"))?;
        if made.len() == PATHS.len() && status.success() {
            Ok(made)
        } else {
            Err(format!("it ended with {status}"))
        }
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        // Already gone, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
