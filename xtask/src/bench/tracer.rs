//! The tracers that are compared, started and ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

const PATIENCE: Duration = Duration::from_secs(60);

/// What runs beside the load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Untraced,
    Record,
    RecordWithoutStacks,
    /// A program of libbpf-tools.
    Tool(&'static str),
    Bpftrace,
}

/// A line for every state change of a TCP socket, as `tcpstates` writes it.
const BPFTRACE: &str = "tracepoint:sock:inet_sock_set_state /args->protocol == 6/ \
    { printf(\"%d %s %d %d %d %d\\n\", pid, comm, args->sport, args->dport, args->oldstate, args->newstate); }";

impl Variant {
    pub const ALL: [Variant; 6] = [
        Variant::Untraced,
        Variant::Record,
        Variant::RecordWithoutStacks,
        Variant::Tool("tcplife"),
        Variant::Tool("tcpstates"),
        Variant::Bpftrace,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Variant::Untraced => "untraced",
            Variant::Record => "portwatch record",
            Variant::RecordWithoutStacks => "portwatch record --no-stacks",
            Variant::Tool(name) => name,
            Variant::Bpftrace => "bpftrace",
        }
    }

    /// Whether this machine has it. Nothing is installed for a comparison.
    pub fn is_here(self) -> bool {
        match self {
            Variant::Tool(name) => process::find_program(name).is_some(),
            Variant::Bpftrace => process::find_program("bpftrace").is_some(),
            _ => true,
        }
    }

    /// Starts it and waits until it traces.
    pub fn start(self, portwatch: &Path, directory: &Path) -> Result<Option<Tracer>> {
        let output = directory.join("log.jsonl.zst");
        let record = |more: &[&str]| {
            let mut command = Command::new(portwatch);
            command.arg("record").args(more).args(["--force", "-o"]).arg(&output).stdout(Stdio::null());
            Tracer::portwatch(&mut command, output.clone()).map(Some)
        };
        let other = |command: &mut Command| Tracer::other(command, directory).map(Some);
        match self {
            Variant::Untraced => Ok(None),
            Variant::Record => record(&[]),
            Variant::RecordWithoutStacks => record(&["--no-stacks"]),
            Variant::Tool(name) => {
                let program = process::find_program(name).with_context(|| format!("no `{name}`"))?;
                other(&mut Command::new(program))
            }
            Variant::Bpftrace => other(Command::new("bpftrace").args(["-e", BPFTRACE])),
        }
    }
}

/// A tracer at work. It ends with this.
pub struct Tracer {
    child: Child,
    /// What it writes.
    pub output: PathBuf,
}

impl Tracer {
    /// Ready when it says so.
    fn portwatch(command: &mut Command, output: PathBuf) -> Result<Tracer> {
        let child = spawn(command.stderr(Stdio::piped()))?;
        let mut tracer = Tracer { child, output };
        let errors = tracer.child.stderr.take().context("its standard error is piped")?;
        match ready_line(errors).recv_timeout(PATIENCE) {
            Ok(()) => Ok(tracer),
            Err(_) => bail!("`{}` did not become ready", process::show(command)),
        }
    }

    /// The others do not say when they are ready: they hold their kernel programs then, and their set of open files
    /// has come to rest.
    fn other(command: &mut Command, directory: &Path) -> Result<Tracer> {
        let output = directory.join("tracer.txt");
        let file = File::create(&output).with_context(|| format!("cannot make `{}`", output.display()))?;
        let child = spawn(command.stdout(file).stderr(Stdio::inherit()))?;
        let mut tracer = Tracer { child, output };
        let begun = Instant::now();
        let mut before = 0;
        loop {
            let (files, is_attached) = open_files(tracer.child.id());
            if is_attached && files == before {
                return Ok(tracer);
            }
            before = files;
            if let Some(status) = tracer.child.try_wait().context("cannot wait for the tracer")? {
                bail!("`{}` ended before it traced: {status}", process::show(command));
            }
            if begun.elapsed() > PATIENCE {
                bail!("`{}` did not attach within {PATIENCE:?}", process::show(command));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a user would, and waits.
    pub fn stop(mut self) -> Result<PathBuf> {
        interrupt(self.child.id())?;
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the tracer")? {
                // Tools differ in what they end with after an interrupt; portwatch ends with 0.
                let is_portwatch = self.output.extension().is_some_and(|extension| extension == "zst");
                if is_portwatch && !status.success() {
                    bail!("portwatch ended with {status}");
                }
                return Ok(self.output.clone());
            }
            if begun.elapsed() > PATIENCE {
                bail!("a tracer did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    let line = process::show(command);
    command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{line}`"))
}

fn interrupt(pid: u32) -> Result<()> {
    process::run(Command::new("sh").args(["-c", &format!("kill -INT {pid}")]))
}

/// Tells once when the ready line has come, and shows what else portwatch says.
fn ready_line(errors: std::process::ChildStderr) -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            if line.starts_with("portwatch: tracing ") {
                let _ = sender.send(());
            } else if !line.is_empty() {
                eprintln!("{line}");
            }
        }
    });
    receiver
}

/// Number of open files, and whether one of them holds a kernel program to its hook.
fn open_files(pid: u32) -> (usize, bool) {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let names: Vec<_> = entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|name| name.display().to_string())
        .collect();
    let is_hold = |name: &String| name.contains("bpf_link") || name.contains("[perf_event]");
    (names.len(), names.iter().any(is_hold))
}

/// Time from the start of `portwatch record` to its ready line.
pub fn time_to_ready(portwatch: &Path, directory: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let tracer = Variant::Record.start(portwatch, directory)?.context("it is a tracer")?;
    let ready = begun.elapsed();
    tracer.stop()?;
    Ok(ready)
}
