//! `portwatch demo NAME`: one port problem, made on loopback and traced.
//!
//! The problem is made by a child process, so that it is traced like any other client: see [`workloads`]. The same
//! process can be run on its own, under any command that takes one: `portwatch demo NAME --workload-only`.

mod stage;
mod workloads;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::args::{FilterArgs, LimitArgs, TraceSetup, request};
use crate::kernel::netns;
use crate::output::Output;
use crate::output::text::{Color, Text};
use crate::session;

/// Makes one port problem on loopback, bounded, and traces it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch demo churn                       20 requests, each with a connection of its own
  portwatch demo churn --connections 1000
  portwatch demo exhaustion                  no port is left, in a namespace of its own

Each demonstration ends by itself, within a minute.")]
pub struct DemoArgs {
    /// Which problem
    #[arg(value_enum)]
    name: Demo,
    /// How many connections or sockets to make [default: as many as show it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    #[command(flatten)]
    setup: TraceSetup,
    /// Colours; auto: on a terminal and without NO_COLOR
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
    /// Make the problem without tracing it
    #[arg(long, hide = true)]
    workload_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Demo {
    /// A client that opens a new connection for every request, and closes it first
    Churn,
    /// The same, with a server that closes first: the client has no TIME_WAIT
    ServerClose,
    /// A client that opens connections and never closes them
    Leak,
    /// A client that goes on until no port is left
    Exhaustion,
    /// Sockets that bind() before they connect() take ports away from everybody else
    BindBucket,
    /// A resolver that opens a UDP socket for every query
    Udp,
    /// A client that goes on connecting to where nobody listens
    Refused,
    /// A crawler: many destinations, each of them once. No problem
    Spread,
    /// A client with a pool of connections. No problem
    Healthy,
}

impl Demo {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How many connections show the problem.
    fn connections(self) -> u32 {
        match self {
            Demo::Churn => 20,
            Demo::ServerClose | Demo::Refused | Demo::Spread | Demo::Healthy => 100,
            // Long enough a growth to be none of a pool.
            Demo::Leak => 300,
            // Where ends are learned from listings, some must have ended before the last one.
            Demo::Udp => 1000,
            // More than the narrow range has ports.
            Demo::Exhaustion => stage::NARROW_PORTS + 20,
            Demo::BindBucket => stage::NARROW_PORTS,
        }
    }
}

pub fn run(args: DemoArgs) -> Result<ExitCode> {
    let connections = args.connections.unwrap_or(args.name.connections());
    if args.workload_only {
        workloads::run(args.name, connections)
            .with_context(|| format!("the demonstration `{}` failed", args.name.name()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let this = std::env::current_exe().context("cannot find portwatch's own program")?;
    let this = this.to_str().context("cannot start portwatch again: its path is not valid UTF-8")?;
    let (name, count) = (args.name.name(), connections.to_string());
    let command =
        [this, "demo", &name, "--workload-only", "--connections", &count].map(str::to_owned).to_vec();
    let request = request(&FilterArgs::default(), &LimitArgs::default(), &args.setup, command)?;
    let stdout = std::io::stdout();
    let has_color = args.color.is_on(&stdout);
    let outcome = session::run(request, || Ok(Box::new(Text::new(stdout, has_color)) as Box<dyn Output>))?;
    if outcome.code() == 0 {
        eprintln!("portwatch: note: {}", moral(args.name, connections));
    }
    Ok(ExitCode::from(outcome.code()))
}

/// What the demonstration means for a program that goes on like this.
fn moral(demo: Demo, connections: u32) -> String {
    match demo {
        Demo::Churn => {
            /// `TCP_TIMEWAIT_LEN` of the kernel.
            const TIME_WAIT_S: u32 = 60;
            let range = netns::settings(0).ok().and_then(|settings| settings.port_range);
            let kept = format!("each of these {connections} connections keeps a port for another {TIME_WAIT_S} s");
            let Some((low, high)) = range else { return kept };
            let ports = u32::from(high.saturating_sub(low)) + 1;
            format!("{kept}; so {ports} ports last for {} such requests a second to one destination", ports / TIME_WAIT_S)
        }
        Demo::ServerClose => "the server closes first, so the TIME_WAIT is its own and the client's ports are free at once; \
             each request still pays for a connection"
            .to_owned(),
        Demo::Leak => format!(
            "{connections} connections were opened and none closed until the end of the process: each keeps a port and a \
             descriptor for as long as it runs"
        ),
        Demo::Exhaustion => {
            let ports = stage::NARROW_PORTS;
            format!(
                "this namespace has {ports} automatic ports, so connect() fails with EADDRNOTAVAIL once {ports} \
                 connections to one destination are open or in TIME_WAIT"
            )
        }
        Demo::BindBucket => "a port that bind() chose is taken for every destination, so connects to elsewhere found none; \
             IP_BIND_ADDRESS_NO_PORT leaves the choice to connect()"
            .to_owned(),
        Demo::Udp => "a UDP port belongs to one socket, whatever the destination; one socket for many queries needs one port"
            .to_owned(),
        Demo::Refused => "each attempt took a port and gave it back at once; wait longer from one to the next".to_owned(),
        Demo::Spread => "ports are counted per destination: one connection to each of many is no problem".to_owned(),
        Demo::Healthy => "a few connections, used again and again: nothing to report".to_owned(),
    }
}
