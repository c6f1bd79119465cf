//! The demonstrations themselves: one function each, which makes its problem in this process and returns.
//!
//! Each connects by itself and not through a function they share: it is to be the call site that a report names.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, socket,
};

use super::Demo;
use super::stage::{Closer, PATIENCE, Pace, Place, allow_sockets, ask, serve, serve_datagrams};

const NO_BROKER: &str = "cannot connect to the broker";

/// Makes the problem with this many connections or sockets.
pub fn run(demo: Demo, count: u32) -> Result<()> {
    match demo {
        Demo::Churn => churn(count),
        Demo::ServerClose => server_close(count),
        Demo::Leak => leak(count),
        Demo::Exhaustion => exhaustion(count),
        Demo::BindBucket => bind_bucket(count),
        Demo::Udp => udp(count),
        Demo::Refused => refused(count),
        Demo::Spread => spread(count),
        Demo::Healthy => healthy(count),
    }
}

/// A client that connects anew for every request and closes first, so that the TIME_WAIT is its own.
fn churn(count: u32) -> Result<()> {
    let broker = serve(Place::any().address(), Closer::Client)?;
    let mut pace = Pace::per_second(200);
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        let mut connection = TcpStream::connect_timeout(&broker, PATIENCE).context(NO_BROKER)?;
        ask(&mut connection).context("the broker did not answer")?;
    }
    Ok(())
}

/// The same, and the server closes first.
fn server_close(count: u32) -> Result<()> {
    let broker = serve(Place::any().address(), Closer::Server)?;
    let mut pace = Pace::per_second(200);
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        let mut connection = TcpStream::connect_timeout(&broker, PATIENCE).context(NO_BROKER)?;
        ask(&mut connection).context("the broker did not answer")?;
        // Its FIN is waited for, so that it is the first.
        let _ = connection.read(&mut [0; 4])?;
    }
    Ok(())
}

/// A job that opens a connection every time it runs and forgets it.
fn leak(count: u32) -> Result<()> {
    allow_sockets(count)?;
    let broker = serve(Place::any().address(), Closer::Client)?;
    let mut pace = Pace::per_second(100);
    let mut forgotten = Vec::new();
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        let mut connection = TcpStream::connect_timeout(&broker, PATIENCE).context(NO_BROKER)?;
        ask(&mut connection).context("the broker did not answer")?;
        forgotten.push(connection);
    }
    // The process lives on, and so do they.
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// The churning client, until no port is left, and on.
fn exhaustion(count: u32) -> Result<()> {
    let broker = serve(Place::narrow()?.address(), Closer::Client)?;
    let mut pace = Pace::per_second(100);
    let mut failures = 0;
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        match TcpStream::connect_timeout(&broker, PATIENCE) {
            Ok(mut connection) => ask(&mut connection).context("the broker did not answer")?,
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => failures += 1,
            Err(error) => return Err(error).context("cannot connect to the broker"),
        }
    }
    eprintln!("portwatch: note: {failures} of {count} requests found no port");
    Ok(())
}

/// Clients that bind a source address before they connect hold every port; then another one, which goes elsewhere.
fn bind_bucket(count: u32) -> Result<()> {
    allow_sockets(count)?;
    let place = Place::narrow()?;
    let broker = serve(place.address(), Closer::Client)?;
    let elsewhere = serve((Ipv4Addr::new(127, 0, 0, 2), broker.port()).into(), Closer::Client)?;
    let mut pace = Pace::per_second(200);
    let mut held: Vec<OwnedFd> = Vec::new();
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        match connect_bound(broker)? {
            Some(connection) => held.push(connection),
            None => break,
        }
    }
    let mut failures = 0;
    for _ in 0..20 {
        if !pace.next() {
            break;
        }
        match TcpStream::connect_timeout(&elsewhere, PATIENCE) {
            Ok(mut connection) => ask(&mut connection).context("the other server did not answer")?,
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => failures += 1,
            Err(error) => return Err(error).context("cannot connect to the other server"),
        }
    }
    let bound = held.len();
    eprintln!(
        "portwatch: note: {bound} ports were bound, and {failures} of 20 connects elsewhere found none"
    );
    Ok(())
}

/// A resolver with a socket for every query; every second one does not even connect it.
fn udp(count: u32) -> Result<()> {
    let server = serve_datagrams(Place::any().address())?;
    let mut pace = Pace::per_second(100);
    for number in 0..count {
        if !pace.next() {
            break;
        }
        query(server, number % 2 == 0).with_context(|| format!("the server at {server} did not answer"))?;
    }
    Ok(())
}

fn query(server: SocketAddr, is_connected: bool) -> Result<()> {
    // Not the standard library's socket, which binds before it is asked to.
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
    if is_connected {
        connect(fd.as_raw_fd(), &SockaddrStorage::from(server))?;
    }
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(PATIENCE))?;
    match is_connected {
        true => socket.send(b"where?")?,
        false => socket.send_to(b"where?", server)?,
    };
    socket.recv(&mut [0; 16])?;
    Ok(())
}

/// A client that tries again and again where nobody listens.
fn refused(count: u32) -> Result<()> {
    // A port that was free a moment ago, and that no automatic choice comes back to for long.
    let nobody = TcpListener::bind(Place::any().address())?.local_addr()?;
    let mut pace = Pace::per_second(200);
    for _ in 0..count {
        if !pace.next() {
            break;
        }
        match TcpStream::connect_timeout(&nobody, PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {nobody}")),
            Ok(_) => bail!("somebody began to listen at {nobody}\n  next: run it again"),
        }
    }
    Ok(())
}

/// A crawler: every destination once.
fn spread(count: u32) -> Result<()> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, Place::any().address().port()));
    let port = serve(any, Closer::Client)?.port();
    let mut pace = Pace::per_second(100);
    for number in 0..count {
        if !pace.next() {
            break;
        }
        // Every address that begins with 127 is this host.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number);
        let site = SocketAddr::from((address, port));
        let mut connection =
            TcpStream::connect_timeout(&site, PATIENCE).context("cannot connect to a site")?;
        ask(&mut connection).context("a site did not answer")?;
    }
    Ok(())
}

/// A client with a pool: a few connections, which all requests share. One of them is made anew now and then.
fn healthy(count: u32) -> Result<()> {
    const POOL: usize = 4;
    let broker = serve(Place::any().address(), Closer::Client)?;
    let mut pool = (0..POOL)
        .map(|_| TcpStream::connect_timeout(&broker, PATIENCE).context(NO_BROKER))
        .collect::<Result<Vec<_>>>()?;
    let mut pace = Pace::per_second(200);
    for number in 0..count as usize {
        if !pace.next() {
            break;
        }
        ask(&mut pool[number % POOL]).context("the broker did not answer")?;
    }
    pool[0] = TcpStream::connect_timeout(&broker, PATIENCE).context(NO_BROKER)?;
    ask(&mut pool[0]).context("the broker did not answer")
}

/// bind(), then connect(). Nothing: there was no port to bind.
fn connect_bound(to: SocketAddr) -> Result<Option<OwnedFd>> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    match bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))) {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => return Ok(None),
        Err(errno) => return Err(errno).context("cannot bind"),
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("cannot connect to {to}"))?;
    Ok(Some(fd))
}
