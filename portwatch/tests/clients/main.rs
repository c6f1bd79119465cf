//! Real clients and servers, traced as a user would trace them: the log against what the other side counted.
//!
//! Each test has a network namespace of its own ([`stage`]), a server that counts ([`http`], or what nginx, redis and
//! PostgreSQL tell of themselves), and one `portwatch record`. [`judge`] compares: every connection once, with the
//! process that made it, every refused one too, and nothing lost. What single system calls come to is the business of
//! the kernel tests, whose reader of logs and starter of tracers are used here.
//!
//! Environment, beside `PORTWATCH_BIN`, `PORTWATCH_RUNGS` (`tracepoint` unless told) and `PORTWATCH_LOGS` of the kernel
//! tests: `PORTWATCH_PYTHON`, an interpreter that has `requests` (`python3` unless told); `PORTWATCH_ALL=1`, ten times
//! as many connections; `PORTWATCH_REQUIRE_CLIENTS=1`, a skip that is not in the table of expected ones fails.

#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/coverage.rs"]
mod coverage;
mod http;
mod judge;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/log.rs"]
mod log;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/namespace.rs"]
mod namespace;
mod programs;
mod scenarios;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/sockets.rs"]
mod sockets;
mod stage;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/tracer.rs"]
mod tracer;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/truth.rs"]
mod truth;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/wait.rs"]
mod wait;
#[path = "../kernel/whole.rs"]
mod whole;

use std::process::ExitCode;
use std::sync::Mutex;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use scenarios::Scenario;
use stage::Stage;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let rungs = std::env::var("PORTWATCH_RUNGS").unwrap_or_else(|_| "tracepoint".to_owned());
    let trials = rungs.split(',').flat_map(|rung| {
        let rung: &'static str = rung.trim().to_owned().leak();
        scenarios::ALL.iter().map(move |scenario| trial(rung, scenario))
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    for skipped in SKIPPED.lock().expect("no test panicked with it").iter() {
        println!("SKIP {skipped}");
    }
    conclusion.exit_code()
}

/// Why a test did not pass.
pub enum Stopped {
    /// It cannot run here.
    Skipped(String),
    Failed(String),
}

impl From<String> for Stopped {
    fn from(problem: String) -> Stopped {
        Stopped::Failed(problem)
    }
}

/// What to say at the end, when no other thread writes.
static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn trial(rung: &'static str, scenario: &'static Scenario) -> Trial {
    Trial::ignorable_test(format!("{rung}::{}", scenario.name), move || {
        if !nix::unistd::geteuid().is_root() {
            return skip(rung, scenario.name, "needs root");
        }
        match play(rung, scenario) {
            Ok(()) => Ok(Completion::Completed),
            Err(Stopped::Skipped(why)) => skip(rung, scenario.name, &why),
            Err(Stopped::Failed(problem)) => Err(problem.into()),
        }
    })
}

/// Plays a scenario in a thread of its own, which its namespace belongs to and ends with.
fn play(rung: &'static str, scenario: &'static Scenario) -> Result<(), Stopped> {
    let player = std::thread::spawn(move || (scenario.play)(&Stage::set_up(rung)?));
    player.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Stopped::Failed(format!("panicked: {}", text.unwrap_or("without a text"))))
    })
}

/// A test that could not run: told, and a failure where that is not accepted.
fn skip(rung: &str, name: &str, why: &str) -> Result<Completion, Failed> {
    let is_required = std::env::var("PORTWATCH_REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
    if is_required && !coverage::is_skip_expected(rung, name) {
        return Err(format!("it may not be skipped here: {why}").into());
    }
    let why = why.trim().replace('\n', "; ");
    SKIPPED.lock().expect("no test panicked with it").push(format!("{rung}::{name} {why}"));
    Ok(Completion::ignored_with(why))
}
