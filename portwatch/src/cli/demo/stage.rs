//! What the demonstrations are played on: a network namespace of their own where the kernel permits one, servers that
//! answer, and limits that end every one of them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getgid, getuid};

use crate::cli::failure::Failure;
use crate::kernel::self_net::bring_loopback_up;

/// No call of a demonstration waits longer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// No demonstration runs longer.
const TIME_LIMIT: Duration = Duration::from_secs(55);

/// Size of the port range where ports are to run out.
pub const NARROW_PORTS: u32 = 100;

/// Outside of the narrow range.
const SERVER_PORT: u16 = 7000;

/// Where the servers of a demonstration listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a namespace that ends with this process.
    Own,
    /// On the host's loopback.
    Host,
}

impl Place {
    /// An own namespace where it is permitted, else the host's loopback.
    ///
    /// Must be called while the process has one thread: a user namespace is for the whole of it.
    pub fn any() -> Place {
        if enter_namespace().is_ok() { Place::Own } else { Place::Host }
    }

    /// An own namespace with few ports.
    ///
    /// # Errors
    /// Exit code 77 where it is not permitted: the host's ports are not for running out.
    pub fn narrow() -> Result<Place> {
        enter_namespace()
            .context(
                "cannot make a network namespace, and this is not to be tried with the host's own ports\n  \
                 next: run it as root, or allow user namespaces (`sysctl user.max_user_namespaces`)",
            )
            .map_err(Failure::unable)?;
        const FIRST: u32 = 40_000;
        set("ip_local_port_range", &format!("{FIRST} {}", FIRST + NARROW_PORTS - 1))?;
        // What is in TIME_WAIT is not to be had again after a second.
        set("tcp_tw_reuse", "0")?;
        Ok(Place::Own)
    }

    /// Where the first server listens; in an own namespace at a place that is easy to read.
    pub fn address(self) -> SocketAddr {
        let port = if self == Place::Own { SERVER_PORT } else { 0 };
        (Ipv4Addr::LOCALHOST, port).into()
    }
}

/// Moves this process into a network namespace of its own, as root or through a user namespace.
fn enter_namespace() -> Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        let (uid, gid) = (getuid(), getgid());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace")?;
        // Without a number in it the process may not change the namespace's settings.
        fs::write("/proc/self/setgroups", "deny").context("cannot write `/proc/self/setgroups`")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("cannot write `/proc/self/uid_map`")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("cannot write `/proc/self/gid_map`")?;
    }
    bring_loopback_up()
}

/// Writes a setting of the namespace that was just made.
fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write `{path}`"))
}

/// Makes room for this many open sockets, client and server, as far as the hard limit allows.
pub fn allow_sockets(count: u32) -> Result<()> {
    let wanted = u64::from(count) * 2 + 64;
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the limit of open files")?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
            .context("cannot raise the limit of open files")?;
    }
    if hard < wanted {
        bail!(
            "{count} connections need {wanted} open files, and {hard} are allowed\n  \
             next: make fewer with `--connections`"
        );
    }
    Ok(())
}

/// Spaces calls out, and ends what takes too long.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    interval: Duration,
    count: u32,
}

impl Pace {
    pub fn per_second(rate: u32) -> Pace {
        Pace { begun: Instant::now(), interval: Duration::from_secs(1) / rate, count: 0 }
    }

    /// Waits until it is time for the next call. False: the time is up.
    pub fn next(&mut self) -> bool {
        let due = self.begun + self.interval * self.count;
        self.count += 1;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        self.begun.elapsed() < TIME_LIMIT
    }
}

/// Who closes a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    Client,
    Server,
}

/// A server that answers each request of four bytes, on any number of connections. It ends with the process.
pub fn serve(at: SocketAddr, closer: Closer) -> Result<SocketAddr> {
    let listener = TcpListener::bind(at).with_context(|| format!("cannot start a server at {at}"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            thread::spawn(move || answer(peer, closer));
        }
    });
    Ok(address)
}

fn answer(mut peer: TcpStream, closer: Closer) -> std::io::Result<()> {
    let mut request = [0; 4];
    loop {
        match peer.read_exact(&mut request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        peer.write_all(b"pong")?;
        if closer == Closer::Server {
            return Ok(());
        }
    }
}

/// A name server of sorts: it answers each datagram. It ends with the process.
pub fn serve_datagrams(at: SocketAddr) -> Result<SocketAddr> {
    let socket = UdpSocket::bind(at).with_context(|| format!("cannot start a server at {at}"))?;
    let address = socket.local_addr()?;
    thread::spawn(move || -> std::io::Result<()> {
        let mut query = [0; 16];
        loop {
            let (length, from) = socket.recv_from(&mut query)?;
            socket.send_to(&query[..length], from)?;
        }
    });
    Ok(address)
}

/// One request on an open connection.
pub fn ask(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"ping")?;
    connection.read_exact(&mut [0; 4])
}
