//! TCP sockets, one system call a method, so that a scenario says exactly which calls are made.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockname,
    getsockopt, setsockopt, shutdown, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::wait::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

pub struct Socket {
    fd: OwnedFd,
    pub family: Family,
    pub protocol: Protocol,
}

impl Socket {
    pub fn v4() -> Socket {
        Socket::new(Family::Ipv4, Protocol::Tcp).expect("a TCP socket")
    }

    pub fn udp_v4() -> Socket {
        Socket::new(Family::Ipv4, Protocol::Udp).expect("a UDP socket")
    }

    pub fn udp_v6() -> Result<Socket, Errno> {
        Socket::new(Family::Ipv6, Protocol::Udp)
    }

    pub fn v6() -> Result<Socket, Errno> {
        Socket::new(Family::Ipv6, Protocol::Tcp)
    }

    fn new(family: Family, protocol: Protocol) -> Result<Socket, Errno> {
        let domain = match family {
            Family::Ipv4 => AddressFamily::Inet,
            Family::Ipv6 => AddressFamily::Inet6,
        };
        let (kind, number) = match protocol {
            Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
            Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        };
        let fd = nix::sys::socket::socket(domain, kind, SockFlag::SOCK_CLOEXEC, number)?;
        Ok(Socket { fd, family, protocol })
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn address(&self, address: SocketAddr) -> SockaddrStorage {
        match (self.family, address) {
            (Family::Ipv6, SocketAddr::V4(v4)) => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()).into()
            }
            (_, address) => address.into(),
        }
    }

    pub fn connect(&self, peer: SocketAddr) -> Result<(), Errno> {
        nix::sys::socket::connect(self.fd.as_raw_fd(), &self.address(peer))
    }

    /// `connect(AF_UNSPEC)`: back to an unconnected socket.
    pub fn disconnect(&self) -> Result<(), Errno> {
        let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        // SAFETY: the kernel reads `len` bytes of a live, initialised sockaddr.
        let ret =
            unsafe { libc::connect(self.fd.as_raw_fd(), &unspecified, size_of::<libc::sockaddr>() as u32) };
        Errno::result(ret).map(drop)
    }

    pub fn bind(&self, address: SocketAddr) -> Result<(), Errno> {
        nix::sys::socket::bind(self.fd.as_raw_fd(), &self.address(address))
    }

    pub fn listen(&self, backlog: i32) -> Result<(), Errno> {
        nix::sys::socket::listen(&self.fd, Backlog::new(backlog)?)
    }

    /// Own address and port; an IPv4-mapped address as IPv4.
    pub fn local(&self) -> SocketAddr {
        let name: SockaddrStorage = getsockname(self.fd.as_raw_fd()).expect("a socket has a name");
        canonical(&name)
    }

    pub fn set_nonblocking(&self) {
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK is known");
    }

    pub fn set_linger_zero(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.fd, sockopt::Linger, &linger).expect("SO_LINGER is known");
    }

    pub fn set_reuse_address(&self) {
        setsockopt(&self.fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR is known");
    }

    pub fn set_bind_address_no_port(&self) {
        setsockopt(&self.fd, sockopt::IpBindAddressNoPort, &true).expect("IP_BIND_ADDRESS_NO_PORT is known");
    }

    /// How often a SYN is sent again.
    pub fn set_syn_retries(&self, count: i32) {
        self.set_int(libc::IPPROTO_TCP, libc::TCP_SYNCNT, count).expect("TCP_SYNCNT is known");
    }

    /// `IP_LOCAL_PORT_RANGE`, Linux 6.3.
    pub fn set_port_range(&self, low: u16, high: u16) -> Result<(), Errno> {
        const IP_LOCAL_PORT_RANGE: i32 = 51;
        let range = u32::from(high) << 16 | u32::from(low);
        self.set_int(libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())
    }

    fn set_int(&self, level: i32, option: i32, value: i32) -> Result<(), Errno> {
        let (pointer, size) = ((&raw const value).cast(), size_of::<i32>() as u32);
        // SAFETY: the kernel reads `size` bytes of a live integer.
        Errno::result(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, pointer, size) })
            .map(drop)
    }

    pub fn shutdown_write(&self) {
        shutdown(self.fd.as_raw_fd(), Shutdown::Write).expect("a connected socket");
    }

    /// Waits until a connect that is under way has a result, and leaves that where it is.
    pub fn wait_for_writable(&self) {
        self.wait(PollFlags::POLLOUT);
    }

    /// Waits for the result of a connect that is under way.
    pub fn wait_for_error(&self) -> Result<(), Errno> {
        self.wait_for_writable();
        match getsockopt(&self.fd, sockopt::SocketError).expect("SO_ERROR is known") {
            0 => Ok(()),
            number => Err(Errno::from_raw(number)),
        }
    }

    fn wait(&self, events: PollFlags) {
        let mut fds = [PollFd::new(self.fd.as_fd(), events)];
        let timeout_ms = u16::try_from(PATIENCE.as_millis()).unwrap_or(u16::MAX);
        let ready = poll(&mut fds, timeout_ms).expect("poll");
        assert!(ready > 0, "nothing happened on a socket for {PATIENCE:?}");
    }

    pub fn wait_for_data(&self) {
        self.wait(PollFlags::POLLIN);
    }

    /// Waits for the peer's FIN.
    pub fn wait_for_end(&self) {
        let mut byte = [0; 4096];
        loop {
            self.wait(PollFlags::POLLIN);
            match nix::unistd::read(&self.fd, &mut byte).expect("read") {
                0 => return,
                _ => continue,
            }
        }
    }

    /// One datagram.
    pub fn send_to(&self, peer: SocketAddr) -> Result<(), Errno> {
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendto(self.fd.as_raw_fd(), b"query", &self.address(peer), flags).map(drop)
    }

    pub fn set_reuse_port(&self) {
        setsockopt(&self.fd, sockopt::ReusePort, &true).expect("SO_REUSEPORT is known");
    }

    pub fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        nix::sys::socket::send(self.fd.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)
    }

    /// Accepts the connection that comes from `from`.
    pub fn accept(&self, from: SocketAddr) -> Socket {
        self.wait(PollFlags::POLLIN);
        let accepted = self.accept_any();
        let name: SockaddrStorage = nix::sys::socket::getpeername(accepted.fd.as_raw_fd()).expect("a peer");
        assert_eq!(canonical(&name), from, "accepted another connection");
        accepted
    }

    pub fn accept_any(&self) -> Socket {
        use std::os::fd::FromRawFd;
        let fd = nix::sys::socket::accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("accept");
        // SAFETY: accept returned a descriptor that nobody else knows.
        Socket { fd: unsafe { OwnedFd::from_raw_fd(fd) }, family: self.family, protocol: self.protocol }
    }
}

fn canonical(name: &SockaddrStorage) -> SocketAddr {
    let (v4, v6) = (name.as_sockaddr_in(), name.as_sockaddr_in6());
    match (v4, v6) {
        (Some(v4), _) => SocketAddr::new(v4.ip().into(), v4.port()),
        (_, Some(v6)) => SocketAddr::new(v6.ip().to_canonical(), v6.port()),
        _ => panic!("not an IP socket"),
    }
}
