//! portwatch itself, started and stopped as a user would.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log::Log;
use crate::wait::{self, PATIENCE};

/// Exit code for "this host cannot run it".
const CANNOT_RUN: i32 = 77;

pub struct Tracer {
    child: Child,
    stderr: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
    log_path: PathBuf,
    /// Goes with the tracer, unless logs are to be kept.
    _directory: Option<tempfile::TempDir>,
}

/// Why a tracer did not start.
#[derive(Debug)]
pub enum NotStarted {
    /// It says that this host cannot run it.
    CannotRun(String),
    Failed {
        status: Option<ExitStatus>,
        stderr: String,
    },
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotStarted::CannotRun(stderr) => {
                write!(f, "portwatch says it cannot run here: {}", stderr.trim())
            }
            NotStarted::Failed { status: Some(status), stderr } => {
                write!(f, "portwatch ended before it was ready ({status}): {}", stderr.trim())
            }
            NotStarted::Failed { status: None, stderr } => {
                write!(f, "portwatch was not ready within {PATIENCE:?}: {}", stderr.trim())
            }
        }
    }
}

/// A run that has ended.
pub struct Ended {
    pub status: ExitStatus,
    pub log: Log,
    pub stderr: String,
}

pub fn binary() -> OsString {
    std::env::var_os("PORTWATCH_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_portwatch").into())
}

impl Tracer {
    /// Starts `portwatch record --rung RUNG ARGS` and waits until it is ready.
    pub fn start<A: AsRef<std::ffi::OsStr>>(rung: &str, args: &[A]) -> Result<Tracer, NotStarted> {
        let (log_path, directory) = new_log(rung);
        let mut command = Command::new(binary());
        command.arg("record").arg("-o").arg(&log_path).args(["--rung", rung]).args(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (stderr, ready, listener) = listen(&mut child, rung);
        let mut tracer = Tracer { child, stderr, listener: Some(listener), log_path, _directory: directory };
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(tracer),
            Err(RecvTimeoutError::Timeout) => Err(tracer.fail(None)),
            Err(RecvTimeoutError::Disconnected) => {
                // It closed its standard error, so it is ending.
                let status = tracer.wait_for_end();
                Err(tracer.fail(status))
            }
        }
    }

    fn fail(&self, status: Option<ExitStatus>) -> NotStarted {
        let stderr = self.stderr();
        match status.and_then(|status| status.code()) {
            Some(CANNOT_RUN) => NotStarted::CannotRun(stderr),
            _ => NotStarted::Failed { status, stderr },
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// What it has said so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("no listener panicked").clone()
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(self, signal: Signal) -> Result<Ended, String> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .map_err(|errno| format!("kill: {errno}"))?;
        self.wait()
    }

    /// Waits until it has ended.
    pub fn wait(mut self) -> Result<Ended, String> {
        let Some(status) = self.wait_for_end() else {
            return Err(format!("portwatch did not end within {PATIENCE:?}: {}", self.stderr()));
        };
        Ok(Ended { status, log: Log::read(&self.log_path)?, stderr: self.stderr() })
    }

    fn wait_for_end(&mut self) -> Option<ExitStatus> {
        let status = wait::until(PATIENCE, || self.child.try_wait().expect("our own child"));
        if let (Some(_), Some(listener)) = (status, self.listener.take()) {
            listener.join().expect("listening does not panic");
        }
        status
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Already gone, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a log goes: into `PORTWATCH_LOGS` to be kept, or else where it is removed with its tracer.
fn new_log(rung: &str) -> (PathBuf, Option<tempfile::TempDir>) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    if let Some(directory) = std::env::var_os("PORTWATCH_LOGS") {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{rung}-{}-{number}.jsonl", std::process::id());
        return (PathBuf::from(directory).join(name), None);
    }
    let directory = tempfile::tempdir().expect("a directory for the log");
    (directory.path().join("log.jsonl"), Some(directory))
}

/// Collects standard error and tells when the ready line has come.
fn listen(child: &mut Child, rung: &str) -> (Arc<Mutex<String>>, Receiver<()>, JoinHandle<()>) {
    let ready_line = format!("portwatch: tracing rung={rung}");
    let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let collected = Arc::new(Mutex::new(String::new()));
    let (sender, receiver) = channel();
    let all = Arc::clone(&collected);
    let listener = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let is_ready = line.starts_with(&ready_line);
            let mut all = all.lock().expect("no reader panicked");
            all.push_str(&line);
            all.push('\n');
            drop(all);
            if is_ready {
                let _ = sender.send(());
            }
        }
    });
    (collected, receiver, listener)
}
