//! One tracer per rung, all scenarios under it, and what came of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::check::{self, Leeway};
use crate::coverage::{self, Seen};
use crate::log::Log;
use crate::namespace::{Counters, Era, Namespace};
use crate::play;
use crate::scenarios::Scenario;
use crate::tracer::{Ended, NotStarted, Tracer};
use crate::truth::{Kind, Truth};
use crate::{planted, wait, whole};

/// Scenarios at a time: most of them wait for the kernel.
const AT_A_TIME: usize = 3;
/// How long the kernel may take to clean namespaces up.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// What happened under one tracer.
pub struct Run {
    rung: String,
    /// Nothing: the scenarios were played untraced.
    traced: Option<Traced>,
    played: HashMap<&'static str, Result<Played, String>>,
}

struct Traced {
    tracer_pid: u32,
    ended: Result<Ended, String>,
}

/// A scenario that came to its end.
struct Played {
    truth: Truth,
    counters: Counters,
    era: Era,
}

/// How a test came out, if it did not fail.
pub enum Outcome {
    Passed,
    Skipped(String),
}

impl Run {
    /// Plays `scenarios` under a tracer on `rung`.
    pub fn traced(rung: &str, scenarios: &[&'static Scenario]) -> Result<Run, NotStarted> {
        let tracer = Tracer::start::<&str>(rung, &[])?;
        let tracer_pid = tracer.pid();
        let (played, namespaces) = play_all(scenarios);
        // Until here, so that no inode number stands for two of them; their end releases what waits in them.
        drop(namespaces);
        wait_for_releases(rung, tracer.log_path(), played.values().flatten());
        let ended = tracer.stop(Signal::SIGTERM);
        Ok(Run { rung: rung.to_owned(), traced: Some(Traced { tracer_pid, ended }), played })
    }

    pub fn untraced(scenarios: &[&'static Scenario]) -> Run {
        Run { rung: "none".to_owned(), traced: None, played: play_all(scenarios).0 }
    }

    /// Whether the log tells what the scenario did, all of it and nothing else.
    pub fn check_scenario(&self, name: &str) -> Result<Outcome, String> {
        let Played { truth, counters, era } = match &self.played[name] {
            Ok(played) => played,
            Err(error) => return Err(format!("the scenario itself failed: {error}")),
        };
        if let Some(reason) = &truth.skip {
            return Ok(Outcome::Skipped(reason.clone()));
        }
        let mut problems = check_counters(truth, counters);
        match &self.traced {
            Some(traced) => {
                let log = &traced.ended.as_ref().map_err(Clone::clone)?.log;
                let leeway = Leeway::of(&self.rung, log, &truth.stories, counters.resets_sent);
                problems.extend(check::stories(&self.rung, log, era, &truth.stories, leeway));
            }
            None => problems.extend(planted::found_in_perfect_log(&truth.stories)),
        }
        report(problems)
    }

    /// Whether the log as a whole is what the contract says.
    pub fn check_log(&self) -> Result<Outcome, String> {
        let Some(Traced { tracer_pid, ended }) = &self.traced else {
            return Err("nothing was traced".to_owned());
        };
        let ended = ended.as_ref().map_err(Clone::clone)?;
        let mut problems = whole::log(&ended.log, &self.rung, *tracer_pid);
        if !ended.status.success() {
            problems.push(format!("portwatch ended with {}: {}", ended.status, ended.stderr));
        }
        let ended_by = ended.log.summary.as_ref().map(|summary| summary.ended_by.as_str());
        if ended_by != Some("signal") {
            problems.push(format!("ended by {ended_by:?} instead of a signal"));
        }
        report(problems)
    }
}

/// All problems in one text, the first ones in full.
pub fn report(problems: Vec<String>) -> Result<Outcome, String> {
    const SHOWN: usize = 12;
    if problems.is_empty() {
        return Ok(Outcome::Passed);
    }
    let rest = problems.len().saturating_sub(SHOWN);
    let mut text = problems.iter().take(SHOWN).map(|problem| format!("- {problem}\n")).collect::<String>();
    if rest > 0 {
        text += &format!("and {rest} more\n");
    }
    Err(text)
}

/// The truth against what the kernel counted in the namespace.
fn check_counters(truth: &Truth, counters: &Counters) -> Vec<String> {
    let active_opens: u64 = truth.stories.iter().map(|story| story.active_opens()).sum();
    let time_waits = truth.stories.iter().filter(|story| story.has(Kind::TimeWait)).count() as u64;
    let facts = [
        ("ActiveOpens", counters.active_opens, active_opens),
        ("TW + TWKilled", counters.time_waits, time_waits + truth.server_time_waits),
        ("TCPTimeWaitOverflow", counters.overflows, truth.overflows),
        ("TWRecycled", counters.recycled, truth.recycled),
    ];
    let wrong = facts
        .into_iter()
        .filter(|(name, ..)| !name.starts_with("TW +") || counts_time_waits_at_entry())
        .filter(|(_, kernel, told)| kernel != told);
    wrong
        .map(|(name, kernel, told)| {
            format!("the kernel counts {kernel} {name}, the scenario tells of {told}")
        })
        .collect()
}

type Results = HashMap<&'static str, Result<Played, String>>;

/// Plays the scenarios, some at a time, each in a namespace that stays until all are done.
fn play_all(scenarios: &[&'static Scenario]) -> (Results, Vec<Namespace>) {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((Results::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            // A namespace belongs to a thread, and what the thread starts is born in it.
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let played = play_one(scenario);
                    let mut results = results.lock().expect("no player panicked");
                    let played = played.map(|(played, namespace)| {
                        results.1.push(namespace);
                        played
                    });
                    results.0.insert(scenario.name, played);
                }
            });
        }
    });
    results.into_inner().expect("no player panicked")
}

/// Up to 5.10 (as tested; 6.1 is different) `TW` and `TWKilled` are counted when an entry dies, a minute later.
fn counts_time_waits_at_entry() -> bool {
    let release = nix::sys::utsname::uname().expect("uname takes no input");
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) > (Some(5), Some(10))
}

fn play_one(scenario: &'static Scenario) -> Result<(Played, Namespace), String> {
    let namespace = Namespace::enter_new(scenario.sysctls)?;
    let truth = play::scenario(scenario.name)?;
    // The last FINs are answered in softirqs, which may lag behind the processes.
    let settled = wait::until(Duration::from_secs(5), || {
        let counters = Counters::read();
        check_counters(&truth, &counters).is_empty().then_some(counters)
    });
    let counters = settled.unwrap_or_else(Counters::read);
    Ok((Played { truth, counters, era: namespace.era() }, namespace))
}

/// Waits until the growing log tells of every release that is owed. If it never does, the checks will say so.
fn wait_for_releases<'a>(rung: &str, log: &Path, played: impl Iterator<Item = &'a Played>) {
    let mut owed: HashMap<u64, usize> = HashMap::new();
    let mut eras = HashMap::new();
    for Played { truth, era, .. } in played {
        eras.insert(era.inode, *era);
        let events =
            truth.stories.iter().flat_map(|story| story.events.iter().map(move |event| (story, event)));
        let releases = events.filter(|(story, event)| {
            event.kind() == Kind::PortReleased && coverage::of(rung, story, event) != Seen::Absent
        });
        owed.insert(era.inode, releases.count());
    }
    // One by one: more than is owed may be told of a namespace, and must not stand in for what another one lacks.
    let is_told = |counts: &HashMap<u64, usize>| {
        owed.iter().all(|(inode, &owed)| counts.get(inode).copied().unwrap_or(0) >= owed)
    };
    let count = || count_releases(&std::fs::read_to_string(log).unwrap_or_default(), &eras);
    wait::until_slowly(RELEASE_LIMIT, || is_told(&count()).then_some(()));
}

/// Releases by namespace, in a log that is still written.
fn count_releases(log: &str, eras: &HashMap<u64, Era>) -> HashMap<u64, usize> {
    #[derive(Deserialize)]
    struct Head {
        r#type: String,
        netns: Option<u64>,
        mono_ns: i64,
        held_ns: Option<i64>,
        reason: Option<String>,
        confidence: Option<String>,
    }
    let start_ns = Log::parse(log.lines().next().unwrap_or_default()).start_ns();
    let namespace_of_release = |line: &str| {
        serde_json::from_str(line).ok().and_then(|head: Head| {
            let era = head.netns.and_then(|netns| eras.get(&netns));
            let ended_ns = start_ns + i128::from(head.mono_ns);
            let begun_ns = ended_ns - i128::from(head.held_ns.unwrap_or(0));
            // What is inferred is not known to have begun at any moment.
            let is_inferred = head.confidence.as_deref() == Some("inferred");
            let is_of = |era: &Era| {
                era.has(head.netns, begun_ns) || (is_inferred && era.had_begun(head.netns, ended_ns))
            };
            // What is deduced of time-wait entries is owed by no rung.
            let is_owed = !is_inferred || head.reason.as_deref() != Some("tw_expired");
            let is_meant = head.r#type == Kind::PortReleased.name() && is_owed && era.is_some_and(is_of);
            head.netns.filter(|_| is_meant)
        })
    };
    let mut counts = HashMap::new();
    for inode in log.lines().filter_map(namespace_of_release) {
        *counts.entry(inode).or_default() += 1;
    }
    counts
}
