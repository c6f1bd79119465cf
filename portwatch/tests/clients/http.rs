//! A web server that remembers who connected to it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::socket::{Shutdown, shutdown};

use crate::wait::PATIENCE;

/// Answers every GET with `ok`, on as many connections and as often as it is asked.
pub struct Server {
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    seen: Arc<Mutex<Seen>>,
    accepting: Option<JoinHandle<()>>,
}

/// What a server saw.
#[derive(Clone, Default)]
pub struct Seen {
    /// The other ends of the connections that it accepted.
    pub peers: Vec<SocketAddr>,
    pub requests: usize,
}

impl Server {
    /// In the calling thread's namespace.
    pub fn start() -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port to listen on");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (listener, seen) = (Arc::new(listener), Arc::new(Mutex::new(Seen::default())));
        let (accepting_at, accepting_for) = (Arc::clone(&listener), Arc::clone(&seen));
        let accepting = std::thread::spawn(move || accept(&accepting_at, &accepting_for));
        Server { address, listener, seen, accepting: Some(accepting) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// All of it, once the clients have their answers: a connection is noted before anything is answered on it.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no connection panicked with it").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its thread's accept() returns with an error.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, seen: &Arc<Mutex<Seen>>) {
    while let Ok((stream, peer)) = listener.accept() {
        seen.lock().expect("no connection panicked with it").peers.push(peer);
        let seen = Arc::clone(seen);
        // A client that breaks off is its own concern: it will say so.
        std::thread::spawn(move || serve(&stream, &seen));
    }
}

fn serve(mut stream: &TcpStream, seen: &Mutex<Seen>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let Some(request) = lines.next().transpose()? else { return Ok(()) };
        // HTTP/1.0 keeps a connection only where asked, and nobody here asks.
        let mut is_last = request.ends_with("HTTP/1.0");
        for header in lines.by_ref() {
            let header = header?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            is_last |= header.strip_prefix("connection:").is_some_and(|value| value.trim() == "close");
        }
        seen.lock().expect("no connection panicked with it").requests += 1;
        let connection = if is_last { "close" } else { "keep-alive" };
        stream.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: {connection}\r\n\r\nok").as_bytes(),
        )?;
        if is_last {
            return Ok(());
        }
    }
}

/// A port on which every connection is refused, and which nobody else can get meanwhile: bound, never listening.
pub struct Closed {
    pub address: SocketAddr,
    _socket: std::os::fd::OwnedFd,
}

impl Closed {
    pub fn new() -> Closed {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
        let name: SockaddrIn = getsockname(socket.as_raw_fd()).expect("a bound socket has an address");
        Closed { address: SocketAddr::new(name.ip().into(), name.port()), _socket: socket }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}
