//! `churn SECONDS`: connects to itself and closes, as fast as one thread can, and says what that cost.
//!
//! One thread connects, one accepts, both on 127.0.0.1. Nothing is sent. Of four connections the client closes one
//! first, the server closes one first, and the client resets two: closed in the usual way alone, the ports of the
//! whole range would be in TIME_WAIT within seconds, and what is then measured is the kernel's search for a free one.
//! Every fourth connection waits for the server, so the two threads never run apart further than that.
//!
//! After a warm-up of a tenth of the time, prints `port=… connections=… cpu_ns=… wall_ns=… total=…`: what happened
//! after the warm-up, processor time being that of both threads with all that the kernel does in their name, and how
//! many connections there were in all.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeValLike;

/// Who ends a connection, by its number; client and server count alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Client,
    Server,
    Reset,
}

const ENDINGS: [Ending; 4] = [Ending::Reset, Ending::Client, Ending::Reset, Ending::Server];

fn ending(number: u64) -> Ending {
    ENDINGS[(number % ENDINGS.len() as u64) as usize]
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse::<f64>().ok());
    let Some(seconds) = seconds.filter(|seconds| (0.1..=3600.0).contains(seconds)) else {
        bail!("usage: churn SECONDS");
    };
    let wanted = Duration::from_secs_f64(seconds);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address = listener.local_addr().context("cannot ask for the listening port")?;
    std::thread::spawn(move || {
        if let Err(error) = serve(&listener) {
            eprintln!("error: the server failed: {error}");
            std::process::exit(1);
        }
    });

    let (warm_up, _) = connect_for(address, wanted / 10, 0)?;
    let (cpu_ns, started) = (cpu_ns()?, Instant::now());
    let (connections, last) = connect_for(address, wanted, warm_up)?;
    let cpu_ns = self::cpu_ns()? - cpu_ns;
    let wall_ns = last.duration_since(started).as_nanos();
    let total = warm_up + connections;
    println!(
        "port={} connections={connections} cpu_ns={cpu_ns} wall_ns={wall_ns} total={total}",
        address.port()
    );
    Ok(())
}

/// Number of connections made, a multiple of four, and when that was over. `from` is the number of the first one.
fn connect_for(address: SocketAddr, wanted: Duration, from: u64) -> Result<(u64, Instant)> {
    let end = Instant::now() + wanted;
    let mut number = from;
    loop {
        for _ in ENDINGS {
            connect(address, ending(number)).with_context(|| format!("connection {number}"))?;
            number += 1;
        }
        let now = Instant::now();
        if now >= end {
            return Ok((number - from, now));
        }
    }
}

fn connect(address: SocketAddr, ending: Ending) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    match ending {
        Ending::Client => {}
        Ending::Server => {
            stream.read(&mut [0]).context("cannot wait for the server's end")?;
        }
        Ending::Reset => {
            let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &at_once).context("cannot ask for a reset")?;
        }
    }
    Ok(())
}

fn serve(listener: &TcpListener) -> std::io::Result<()> {
    for number in 0.. {
        let (mut stream, _) = listener.accept()?;
        if ending(number) != Ending::Server {
            // The end, or the reset.
            let _ = stream.read(&mut [0]);
        }
    }
    Ok(())
}

/// Processor time of this process so far.
fn cpu_ns() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot ask for the processor time")?;
    Ok(usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds())
}
