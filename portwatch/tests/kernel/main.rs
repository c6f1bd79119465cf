//! Real sockets on the real kernel: portwatch judged from outside, by its event log alone.
//!
//! Per rung one `portwatch record` traces everything, while scenarios run beside it, each in a process and a
//! network namespace of its own ([`scenarios`]). A scenario tells what it did ([`truth`]), the kernel what it
//! counted ([`namespace`]), and the log must tell the same, each thing once ([`check`], [`whole`]). What a
//! rung cannot see is a table ([`coverage`]). [`flags`] has the tests that need a tracer of their own.
//!
//! Environment: `PORTWATCH_BIN`, the binary to test; `PORTWATCH_RUNGS`, a comma list, all of them unless told,
//! where `none` plays the scenarios untraced and compares them with the kernel's counters alone;
//! `PORTWATCH_REQUIRE_KERNEL=1`, a skip that is not in the table of expected ones fails; `PORTWATCH_LOGS`, a
//! directory in which the event logs stay; `PORTWATCH_ALL=1`, every test on every rung.

mod acts;
mod check;
mod coverage;
mod flags;
mod log;
mod namespace;
mod planted;
mod play;
mod router;
mod run;
mod scenarios;
mod sockets;
mod stacks;
mod stage;
mod tracer;
mod truth;
mod wait;
mod whole;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use run::{Outcome, Run};
use tracer::NotStarted;

const RUNGS: &str = "fentry,kprobe,tracepoint";
const UNTRACED: &str = "none";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|first| first == play::PLAY) {
        return play::main(&args[2..]);
    }
    let args = Arguments::from_args();
    let rungs = std::env::var("PORTWATCH_RUNGS").unwrap_or_else(|_| RUNGS.to_owned());
    let mut trials: Vec<_> = rungs.split(',').flat_map(|rung| trials(rung.trim(), &args)).collect();
    trials.push(Trial::test("planted_faults_are_found", || Ok(planted::faults_are_found().map(drop)?)));
    let conclusion = libtest_mimic::run(&args, trials);
    for skipped in SKIPPED.lock().expect("no test panicked with it").iter() {
        println!("SKIP {skipped}");
    }
    conclusion.exit_code()
}

/// What to say at the end, when no other thread writes.
static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The run that the tests of a rung share; made by the first of them.
type SharedRun = Arc<OnceLock<Result<Run, NotStarted>>>;

fn trials(rung: &str, args: &Arguments) -> Vec<Trial> {
    let rung: &'static str = rung.to_owned().leak();
    let shared = SharedRun::default();
    let wanted: Vec<_> =
        scenarios::all().filter(|scenario| is_wanted(args, &format!("{rung}::{}", scenario.name))).collect();
    let mut trials = Vec::new();
    let all: Arc<[_]> = wanted.into();
    for &scenario in all.iter() {
        let (shared, all) = (Arc::clone(&shared), Arc::clone(&all));
        trials.push(trial(rung, scenario.name, move || {
            with_run(&shared, rung, &all, |run| run.check_scenario(scenario.name))
        }));
    }
    let all = Arc::clone(&all);
    if rung != UNTRACED {
        trials.push(trial(rung, "log_is_whole", move || with_run(&shared, rung, &all, Run::check_log)));
        trials.extend(flags::tests(rung).map(|&(name, test)| trial(rung, name, move || test(rung))));
    }
    trials
}

fn with_run(
    shared: &SharedRun,
    rung: &str,
    scenarios: &[&'static scenarios::Scenario],
    check: impl FnOnce(&Run) -> Result<Outcome, String>,
) -> Result<Outcome, String> {
    let run = || if rung == UNTRACED { Ok(Run::untraced(scenarios)) } else { Run::traced(rung, scenarios) };
    match shared.get_or_init(run) {
        Ok(run) => check(run),
        Err(NotStarted::CannotRun(why)) => Ok(Outcome::Skipped(why.clone())),
        Err(failed) => Err(failed.to_string()),
    }
}

fn trial(
    rung: &'static str,
    name: &'static str,
    check: impl FnOnce() -> Result<Outcome, String> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(format!("{rung}::{name}"), move || {
        if !nix::unistd::geteuid().is_root() {
            return skip(rung, name, "needs root");
        }
        match check()? {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Skipped(why) => skip(rung, name, &why),
        }
    })
}

/// A test that could not run: told, and a failure where that is not accepted.
fn skip(rung: &str, name: &str, why: &str) -> Result<Completion, Failed> {
    let is_required = std::env::var("PORTWATCH_REQUIRE_KERNEL").is_ok_and(|value| value == "1");
    if is_required && !coverage::is_skip_expected(rung, name) {
        return Err(format!("it may not be skipped here: {why}").into());
    }
    let why = why.trim().replace('\n', "; ");
    SKIPPED.lock().expect("no test panicked with it").push(format!("{rung}::{name} {why}"));
    Ok(Completion::ignored_with(why))
}

/// Whether the command line selects a test, by libtest's rules.
fn is_wanted(args: &Arguments, name: &str) -> bool {
    let matches =
        |pattern: &String| if args.exact { name == pattern } else { name.contains(pattern.as_str()) };
    args.filter.as_ref().is_none_or(matches) && !args.skip.iter().any(matches)
}
