//! `portwatch demo NAME`: one port problem, made on loopback and traced.
//!
//! The problem is made by a child process, so that it is traced like any other client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

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
  portwatch demo churn --connections 1000")]
pub struct DemoArgs {
    /// Which problem
    #[arg(value_enum)]
    name: Demo,
    /// How many connections to make
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    #[command(flatten)]
    setup: TraceSetup,
    /// Colours; auto: on a terminal and without NO_COLOR
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
    /// Make the problem without tracing it
    #[arg(long, hide = true)]
    only_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Demo {
    /// A client that opens a new connection for every request
    Churn,
}

pub fn run(args: DemoArgs) -> Result<ExitCode> {
    if args.only_run {
        match args.name {
            Demo::Churn => churn(args.connections)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let this = std::env::current_exe().context("cannot find portwatch's own program")?;
    let this = this.to_str().context("cannot start portwatch again: its path is not valid UTF-8")?;
    let name = args.name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let connections = args.connections.to_string();
    let command =
        [this, "demo", &name, "--only-run", "--connections", &connections].map(str::to_owned).to_vec();
    let request = request(&FilterArgs::default(), &LimitArgs::default(), &args.setup, command)?;
    let stdout = std::io::stdout();
    let has_color = args.color.is_on(&stdout);
    let outcome = session::run(request, || Ok(Box::new(Text::new(stdout, has_color)) as Box<dyn Output>))?;
    if outcome.code() == 0 {
        moral(args.connections);
    }
    Ok(ExitCode::from(outcome.code()))
}

/// What the demonstration means for a client that goes on like this.
fn moral(connections: u32) {
    /// `TCP_TIMEWAIT_LEN` of the kernel.
    const TIME_WAIT_S: u32 = 60;
    // Without the range there is nothing to say.
    let Some((low, high)) = netns::settings(0).ok().and_then(|settings| settings.port_range) else { return };
    let ports = u32::from(high.saturating_sub(low)) + 1;
    eprintln!(
        "portwatch: note: each of these {connections} connections keeps a port for another {TIME_WAIT_S} s; so {ports} \
         ports last for {} such requests a second to one destination",
        ports / TIME_WAIT_S
    );
}

/// No call of the demonstration waits longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A broker that answers each request, and a client that connects anew for every one.
fn churn(connections: u32) -> Result<()> {
    let broker =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot start the demonstration's broker")?;
    let address = broker.local_addr()?;
    let broker = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..connections {
            let (mut peer, _) = broker.accept()?;
            peer.set_read_timeout(Some(PATIENCE))?;
            let mut request = [0; 4];
            peer.read_exact(&mut request)?;
            peer.write_all(b"pong")?;
            // The client closes first, so the TIME_WAIT is the client's.
            let _ = peer.read(&mut request)?;
        }
        Ok(())
    });
    for _ in 0..connections {
        let mut connection =
            TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect to the broker")?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(b"ping")?;
        connection.read_exact(&mut [0; 4])?;
    }
    broker
        .join()
        .map_err(|_| anyhow::anyhow!("the demonstration's broker panicked"))?
        .context("the broker failed")
}
