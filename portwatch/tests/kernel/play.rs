//! Scenarios and parts run in processes of their own: this program again, which is told by its first argument.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;

use crate::truth::Truth;
use crate::{flags, scenarios, stage, wait};

/// First argument of a process that plays.
pub const PLAY: &str = "--play";
/// Several times what the longest scenario takes on an emulated machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Plays what the arguments after [`PLAY`] name, and says the truth about it on standard output.
pub fn main(args: &[String]) -> ExitCode {
    let (name, args) = args.split_first().expect("what to play");
    set_comm(&format!("kt-{name}"));
    if let Some(part) = scenarios::part(name) {
        say(&part(args));
    } else if let Some((_, part)) = flags::PARTS.iter().find(|(known, _)| known == name) {
        say(&part(args));
    } else {
        let scenario = scenarios::named(name).unwrap_or_else(|| panic!("no scenario is named `{name}`"));
        let mut truth = Truth::new();
        (scenario.run)(&mut truth);
        say(&truth);
    }
    ExitCode::SUCCESS
}

/// Tells the parent something.
pub fn say(value: &impl Serialize) {
    println!("{}", serde_json::to_string(value).expect("what is said is JSON"));
}

/// Names the calling thread as the kernel knows it: 15 bytes at most.
pub fn set_comm(name: &str) {
    let short = &name[..name.len().min(15)];
    let name = std::ffi::CString::new(short).expect("no NUL in a name");
    nix::sys::prctl::set_name(&name).expect("a task may name itself");
}

/// Plays a scenario in a new process, in the namespace of the calling thread.
pub fn scenario(name: &str) -> Result<Truth, String> {
    let mut child = stage::command(name, &[])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a process for `{name}`: {error}"))?;
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).map(|_| said)
    });
    let cried = std::thread::spawn(move || {
        let mut cried = String::new();
        stderr.read_to_string(&mut cried).map(|_| cried)
    });
    let status = wait::until(LIMIT, || child.try_wait().expect("our own child"));
    if status.is_none_or(|status| !status.success()) {
        // Its parts too, which would keep the pipes open.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        let _ = child.wait();
    }
    let text = |thread: std::thread::JoinHandle<std::io::Result<String>>| {
        thread.join().ok().and_then(Result::ok).unwrap_or_default()
    };
    let (said, cried) = (text(said), text(cried));
    match status {
        None => Err(format!("it took longer than {LIMIT:?}: {cried}")),
        Some(status) if !status.success() => Err(format!("{status}: {cried}")),
        Some(_) => serde_json::from_str(&said).map_err(|error| format!("it said `{said}`: {error}")),
    }
}
