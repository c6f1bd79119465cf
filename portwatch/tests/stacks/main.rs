//! Call sites: what the log says of programs whose call paths are known, or walked by somebody else as well.
//!
//! Each test has a network namespace and a directory of its own, programs of its own ([`compile`]), and one `portwatch
//! record`. A program tells by the port that it connects to which path led there; [`log`] has what portwatch made of
//! it, and [`counters`] what its kernel side counted on the way. Other people's programs are walked twice over the same
//! bytes ([`tap`]), by portwatch and by an [`oracle`]. Starting tracers is the kernel tests', staging the
//! clients' tests'.
//!
//! Environment, beside `PORTWATCH_BIN`, `PORTWATCH_RUNGS` (`tracepoint` unless told) and `PORTWATCH_LOGS` of the kernel
//! tests: `PORTWATCH_ALL=1`, ten times as many connections; `PORTWATCH_REQUIRE_STACKS=1`, a skip that is not in the
//! table of expected ones fails.

mod compile;
mod counters;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/coverage.rs"]
mod coverage;
mod log;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/namespace.rs"]
mod namespace;
mod oracle;
mod scenarios;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/sockets.rs"]
mod sockets;
#[allow(dead_code, reason = "the clients' tests need the rest")]
#[path = "../clients/stage.rs"]
mod stage;
mod tap;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/tracer.rs"]
mod tracer;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/truth.rs"]
mod truth;
#[allow(dead_code, reason = "the kernel tests need the rest")]
#[path = "../kernel/wait.rs"]
mod wait;

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use scenarios::Scenario;
use stage::Stage;

/// First argument that makes this program a client in Rust: of the port behind it.
pub const DIAL: &str = "--dial";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, port] = &words[..]
        && word == DIAL
    {
        return dial(port.parse().expect("a port"));
    }
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

fn dial(port: u16) -> ExitCode {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let answer = stream.and_then(|mut stream| stream.read(&mut [0]));
    if answer.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    let is_required = std::env::var("PORTWATCH_REQUIRE_STACKS").is_ok_and(|value| value == "1");
    if is_required && !coverage::is_skip_expected(rung, name) {
        return Err(format!("it may not be skipped here: {why}").into());
    }
    let why = why.trim().replace('\n', "; ");
    SKIPPED.lock().expect("no test panicked with it").push(format!("{rung}::{name} {why}"));
    Ok(Completion::ignored_with(why))
}

/// So many, or ten times as many where the long tests are wanted.
pub fn many(count: usize) -> usize {
    if std::env::var_os("PORTWATCH_ALL").is_some_and(|value| value == "1") { 10 * count } else { count }
}
