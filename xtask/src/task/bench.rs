//! `bench`: what tracing costs a program that does nothing but connect and close, beside other tracers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Need};
use crate::bench::report::{self, Findings, Long, Sample};
use crate::bench::tracer::{self, Variant};
use crate::bench::{log, machine, proc};
use crate::process;
use crate::task::build;
use crate::workspace::Workspace;

const NEEDS: [Need; 3] = [
    Need { program: "ip", package: "iproute2" },
    Need { program: "unshare", package: "util-linux" },
    Need { program: "zstd", package: "zstd" },
];

/// Says that this process has the mount namespace that was made for it.
const INSIDE: &str = "PORTWATCH_BENCH_INSIDE";
const READY_RUNS: usize = 10;

#[derive(clap::Args)]
pub struct Args {
    /// Length of one run of the load.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds; in each, everything that is compared runs once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of the run at whose end nothing may be lost; 0 leaves it out.
    #[arg(long, default_value_t = 30.0, value_parser = seconds_or_none)]
    long: f64,
    /// Instead of all that: what a stack costs per connect in the kernel programs, by its number of frames.
    #[arg(long)]
    stacks: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.5..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("write seconds, from 0.5 to 600".to_owned()),
    }
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { seconds(text) }
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("tracing needs root\n  next: run as root");
    }
    let programs = Programs {
        portwatch: workspace.target.join("release/portwatch"),
        load: workspace.target.join("release/churn"),
    };
    if args.stacks {
        build::build(workspace, true)?;
        let load = ["build", "--release", "--package", "xtask", "--bin", "stack_cost", "--features", "bench"];
        process::run(workspace.cargo().args(load))?;
        process::run(Command::new(workspace.target.join("release/stack_cost")).arg(&programs.portwatch))?;
        return Ok(ExitCode::SUCCESS);
    }
    if std::env::var_os(INSIDE).is_none() {
        apt::provision(&NEEDS, "the benchmark")?;
        build::build(workspace, true)?;
        let load = ["build", "--release", "--package", "xtask", "--bin", "churn", "--features", "bench"];
        process::run(workspace.cargo().args(load))?;
        return again_inside(args);
    }
    mount_tracefs()?;
    let directory = workspace.target.join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
    let findings = measure(&programs, args, &directory)?;
    println!("{}", report::table(&findings));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let path = directory.join(format!("churn-{now}.json"));
    fs::write(&path, report::json(&findings))
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    eprintln!("xtask: every sample is in {}", path.display());
    let is_whole = findings.long.is_none_or(|long| long.is_whole);
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With mounts of its own: the other tracers find tracefs only where it is mounted.
fn again_inside(args: &Args) -> Result<ExitCode> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new("unshare")
        .args(["--mount", "--"])
        .arg(this)
        .arg("bench")
        .args(["--seconds", &args.seconds.to_string()])
        .args(["--rounds", &args.rounds.to_string()])
        .args(["--long", &args.long.to_string()])
        .env(INSIDE, "1")
        .status()
        .context("cannot start `unshare`")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn mount_tracefs() -> Result<()> {
    if Path::new("/sys/kernel/tracing/events").exists() {
        return Ok(());
    }
    let same = |name: &str| fs::read_link(format!("/proc/{name}/ns/mnt")).ok();
    if same("self") == same("1") {
        bail!("these are the host's mounts\n  next: unset `{INSIDE}`");
    }
    process::run(Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]))
}

/// Runs the load in a network namespace that is new for every run, so that what waits in TIME_WAIT of the one before is
/// not in its way. It gets enough ports and table entries that neither the search for a port nor a full table is what is
/// measured.
const IN_NAMESPACE: &str = "ip link set lo up && cd /proc/sys/net/ipv4 && echo 1024 65535 >ip_local_port_range \
    && echo 1000000 >tcp_max_tw_buckets && exec \"$0\" \"$1\"";

fn load_command(load: &Path, seconds: f64) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", IN_NAMESPACE]).arg(load).arg(seconds.to_string());
    command
}

struct Programs {
    portwatch: PathBuf,
    load: PathBuf,
}

fn measure(programs: &Programs, args: &Args, directory: &Path) -> Result<Findings> {
    let mut machine = machine::describe(&programs.portwatch);
    machine.push(("runs", format!("{} rounds of {} s each, interleaved", args.rounds, args.seconds)));
    let variants: Vec<Variant> = Variant::ALL.into_iter().filter(|variant| variant.is_here()).collect();
    for absent in Variant::ALL.iter().filter(|variant| !variants.contains(variant)) {
        eprintln!("xtask: `{}` is not installed, left out", absent.name());
    }

    let ready = (0..READY_RUNS)
        .map(|_| tracer::time_to_ready(&programs.portwatch, directory))
        .collect::<Result<Vec<_>>>()
        .context("while measuring the time to the ready line")?;

    let mut samples: Vec<(Variant, Vec<Sample>)> =
        variants.iter().map(|&variant| (variant, Vec::new())).collect();
    for round in 0..usize::from(args.rounds) {
        // Another one begins each round, so that none always comes after the same.
        samples.rotate_left(1);
        for (variant, samples) in &mut samples {
            eprintln!("xtask: round {} of {}: {}", round + 1, args.rounds, variant.name());
            samples.push(sample(programs, *variant, round, args.seconds, directory)?.0);
        }
    }
    samples.sort_by_key(|(variant, _)| Variant::ALL.iter().position(|known| known == variant));

    let long = if args.long > 0.0 { Some(long(programs, args.long, directory)?) } else { None };
    Ok(Findings { machine, samples, ready, long })
}

/// Runs the load once beside a tracer.
fn sample(
    programs: &Programs,
    variant: Variant,
    round: usize,
    seconds: f64,
    directory: &Path,
) -> Result<(Sample, Load, Option<PathBuf>)> {
    let tracer = variant.start(&programs.portwatch, directory)?;
    let tracer_cpu = || tracer.as_ref().map_or(Ok(0), |tracer| proc::process_cpu_ns(tracer.pid()));
    let (cpu_before, busy_before) = (tracer_cpu()?, proc::host_busy_ns()?);
    let text = process::output(&mut load_command(&programs.load, seconds))?;
    let (cpu_after, busy_after) = (tracer_cpu()?, proc::host_busy_ns()?);
    let load = Load::parse(&text).with_context(|| format!("the load says `{text}`"))?;
    let output = tracer.map(tracer::Tracer::stop).transpose()?;
    // What is counted from outside covers the warm-up, too.
    let share = load.connections as f64 / load.total as f64;
    let of_measured = |ns: u64| (ns as f64 * share) as u64;
    let sample = Sample {
        round,
        connections: load.connections,
        wall_ns: load.wall_ns,
        cpu_ns: load.cpu_ns,
        tracer_cpu_ns: of_measured(cpu_after - cpu_before),
        host_busy_ns: of_measured(busy_after - busy_before),
    };
    Ok((sample, load, output))
}

/// One long run, and whether the log has every connection of it.
fn long(programs: &Programs, seconds: f64, directory: &Path) -> Result<Long> {
    eprintln!("xtask: {seconds} s without pause: {}", Variant::Record.name());
    let (_, load, output) = sample(programs, Variant::Record, 0, seconds, directory)?;
    let path = output.context("portwatch writes a log")?;
    let account = log::read(&path, load.port)?;
    Ok(Long {
        seconds,
        connections: load.total,
        logged: account.established,
        lines: account.lines,
        bytes: account.bytes,
        is_whole: account.is_whole(load.total),
        lost: account.lost,
    })
}

/// What the load says at its end.
struct Load {
    port: u16,
    connections: u64,
    cpu_ns: u64,
    wall_ns: u64,
    /// The warm-up's included.
    total: u64,
}

impl Load {
    fn parse(text: &str) -> Option<Load> {
        let value = |name: &str| {
            text.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let number = |name: &str| value(name)?.parse::<u64>().ok().filter(|&number| number > 0);
        Some(Load {
            port: value("port")?.parse().ok()?,
            connections: number("connections")?,
            cpu_ns: number("cpu_ns")?,
            wall_ns: number("wall_ns")?,
            total: number("total")?,
        })
    }
}
