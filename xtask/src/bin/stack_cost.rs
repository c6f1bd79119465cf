//! `stack_cost PORTWATCH`: what a stack costs per connect inside the kernel programs, by the kernel's own statistics.
//!
//! A load connects to a port where nobody listens, from under a known number of frames. It is traced without stacks and
//! with them in both ways of walking; when the kernel side has learned them it connects many times more, and the time
//! that all programs of the tracer ran meanwhile (`run_time_ns`, as `BPF_ENABLE_STATS` makes the kernel count it) is
//! divided by the connects. Prints a table. Needs root.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Frames of recursion; what stands around them is counted in the log.
const DEPTHS: [u32; 3] = [1, 9, 31];
const WAYS: [(&str, &[&str]); 3] = [
    ("no stacks", &["--no-stacks"]),
    ("plain", &["--stack-walk", "plain"]),
    ("loop", &["--stack-walk", "loop"]),
];
const CONNECTS: u32 = 50_000;
/// Nobody listens on `discard` any more.
const PORT: u16 = 9;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--load", depth] => load(depth),
        [portwatch] => measure(Path::new(portwatch)),
        _ => Err(anyhow::anyhow!("usage: stack_cost PORTWATCH")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// For each number on standard input connects so many times, and says so.
fn load(depth: &str) -> Result<()> {
    let depth = depth.parse().context("the depth is no number")?;
    for line in std::io::stdin().lines() {
        let connects: u32 = line?.parse().context("that is no number")?;
        for _ in 0..connects {
            black_box(recurse(depth));
        }
        println!("done");
    }
    Ok(())
}

#[inline(never)]
fn recurse(left: u32) -> u32 {
    if left == 0 {
        return u32::from(black_box(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))).is_ok());
    }
    // Not the last thing done: a tail call would leave no frame.
    black_box(recurse(left - 1)) + 1
}

fn measure(portwatch: &Path) -> Result<()> {
    let _statistics = enable_statistics()?;
    println!("| frames | {} |", WAYS.map(|(name, _)| format!("{name}, ns/connect")).join(" | "));
    println!("| ---: |{}", " ---: |".repeat(WAYS.len()));
    for depth in DEPTHS {
        let mut frames = 0;
        let mut cells = Vec::new();
        for (name, args) in WAYS {
            let run = run(portwatch, args, depth)
                .with_context(|| format!("cannot measure `{name}` under {depth} calls"))?;
            frames = frames.max(run.frames);
            cells.push(match cells.is_empty() {
                true => format!("{}", run.ns),
                false => format!("{} (+{})", run.ns, run.ns.saturating_sub(first(&cells))),
            });
        }
        println!("| {frames} | {} |", cells.join(" | "));
    }
    Ok(())
}

fn first(cells: &[String]) -> u64 {
    cells.first().and_then(|cell| cell.parse().ok()).unwrap_or(0)
}

struct Run {
    /// Of all programs, per connect.
    ns: u64,
    frames: usize,
}

fn run(portwatch: &Path, args: &[&str], depth: u32) -> Result<Run> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut load = Talker::start(Command::new(this).args(["--load", &depth.to_string()]))?;
    let log = std::env::temp_dir().join(format!("stack-cost-{}.jsonl", std::process::id()));
    let mut tracer = start(portwatch, &log, load.child.id(), args)?;
    let pid = tracer.id();
    // Until a round has taught the kernel side nothing more. Rows come within milliseconds; the budget of copies that a
    // process may send within a second is another matter.
    for _ in 0..3 {
        load.ask(2000)?;
        std::thread::sleep(Duration::from_millis(1100));
    }
    let before = run_time_ns(pid)?;
    load.ask(CONNECTS)?;
    let ns = (run_time_ns(pid)? - before) / u64::from(CONNECTS);
    drop(load);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).context("cannot end portwatch")?;
    tracer.wait().context("cannot wait for portwatch")?;
    let frames = frames(&log);
    fs::remove_file(&log).with_context(|| format!("cannot remove `{}`", log.display()))?;
    Ok(Run { ns, frames: frames? })
}

/// Starts portwatch and waits until it is ready.
fn start(portwatch: &Path, log: &PathBuf, load: u32, args: &[&str]) -> Result<Child> {
    let mut child = Command::new(portwatch)
        .args(["record", "-p", &load.to_string(), "--force", "-o"])
        .arg(log)
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", portwatch.display()))?;
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().context("it is piped")?).lines();
    let started = Instant::now();
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("portwatch: tracing ") {
            // What it says later must not make it wait.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(child);
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("it ended after {:?}: {said}", started.elapsed())
}

/// A process that does something when it is told, and says when it has.
struct Talker {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Talker {
    fn start(command: &mut Command) -> Result<Talker> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("it is piped")?);
        Ok(Talker { child, lines })
    }

    fn ask(&mut self, connects: u32) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("it is piped")?, "{connects}")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line != "done\n" { bail!("the load ended early") } else { Ok(()) }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Nothing more can be done about a load that does not end well.
        let _ = self.child.wait();
    }
}

/// The time that all programs of a process have run. Source: `bpf_prog_show_fdinfo`.
fn run_time_ns(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read `{directory}`"))?;
    let times = entries.filter_map(|entry| {
        let text = fs::read_to_string(entry.ok()?.path()).ok()?;
        // Links tell of their programs, too.
        let is_program = text.contains("\nprog_jited:");
        let line = text.lines().find_map(|line| line.strip_prefix("run_time_ns:"))?;
        is_program.then(|| line.trim().parse::<u64>().ok())?
    });
    Ok(times.sum())
}

/// Frames of the deepest stack in a log; inlined functions have none.
fn frames(log: &Path) -> Result<usize> {
    let file = File::open(log).with_context(|| format!("cannot read `{}`", log.display()))?;
    let mut most = 0;
    for line in BufReader::new(file).lines() {
        let line = line?;
        if line.starts_with("{\"type\":\"stack\"") {
            most = most.max(line.matches("\"inlined\":false").count());
        }
    }
    Ok(most)
}

/// Makes the kernel count run times for as long as the result lives.
fn enable_statistics() -> Result<OwnedFd> {
    const BPF_ENABLE_STATS: libc::c_long = 32;
    /// `BPF_STATS_RUN_TIME` is 0, and so is the whole attribute.
    const ATTRIBUTE: [u64; 16] = [0; 16];
    // SAFETY: the kernel reads the attribute, which lives as long as the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, ATTRIBUTE.as_ptr(), size_of_val(&ATTRIBUTE))
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make the kernel count run times");
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).context("a descriptor is a small number")?) })
}
