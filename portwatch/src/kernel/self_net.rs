//! Connections of portwatch's own, made at start so that the hooks can be compared with what was done.
//!
//! They live in a network namespace of their own that goes away with its thread, so nothing of them can meet
//! the host's ports. Where that is not permitted, they use fixed ports outside the ephemeral range on the
//! host's loopback and end in a reset, which leaves nothing in TIME_WAIT. What the hooks made of them is judged
//! elsewhere.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use zerocopy::{Immutable, IntoBytes};

use super::netlink::{self, NLM_F_ACK};
use super::netns::{self, Namespace};

/// What was done, for comparison with what the hooks counted.
///
/// The last segments may still be on their way through softirq when this is returned: wait with a deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Inode of the network namespace it was done in; that may be gone by now.
    pub netns: u32,
    pub connects_v4: u32,
    /// 0 on a host without IPv6.
    pub connects_v6: u32,
    /// bind() calls: one per server, and one per client on the host's loopback.
    pub binds: u32,
    pub listens: u32,
    pub accepts: u32,
    /// Time-wait entries that the clients left. 0 where connections end in a reset.
    pub time_waits: u32,
    /// UDP sockets that were bound, and ended. 0 on the host's loopback, like the other two.
    pub udp_binds: u32,
    /// UDP sockets that got their port from connect(), and ended.
    pub udp_connects: u32,
    /// UDP sockets that got their port with their first datagram, and ended.
    pub udp_sends: u32,
    /// Why it was done on the host's loopback; `None` when in a namespace of its own.
    pub why_on_host: Option<String>,
}

/// Makes one connection per address family, in an own network namespace or else on the host's loopback.
///
/// Takes a few milliseconds. Every call in it has a time limit of one second.
pub fn connect_to_self() -> Result<Done> {
    match in_new_netns(connect_in_own_netns) {
        Ok(done) => {
            done.context("cannot make connections for the self-test in a network namespace of its own")
        }
        Err(error) => {
            let why = format!("{error:#}");
            let mut done =
                connect_on_host().context("cannot make connections for the self-test on loopback")?;
            done.why_on_host = Some(why);
            Ok(done)
        }
    }
}

/// Runs `f` in a new thread with a new network namespace whose loopback is up; both end with `f`.
///
/// # Errors
/// When the namespace cannot be made: CAP_SYS_ADMIN is missing, or the kernel has no network namespaces.
pub fn in_new_netns<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            bring_loopback_up()?;
            Ok(f())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `struct ifinfomsg` of `linux/rtnetlink.h`
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct InterfaceInfo {
    family: u8,
    pad: u8,
    kind: u16,
    index: i32,
    flags: u32,
    change: u32,
}

/// Brings up `lo` of the current thread's network namespace. It has index 1 in every namespace, being the
/// first interface that is made there (`loopback_net_init`).
pub fn bring_loopback_up() -> Result<()> {
    const UP: u32 = libc::IFF_UP as u32;
    let up = InterfaceInfo { family: 0, pad: 0, kind: 0, index: 1, flags: UP, change: UP };
    netlink::Socket::open(SockProtocol::NetlinkRoute)
        .and_then(|mut socket| socket.ask(libc::RTM_NEWLINK, NLM_F_ACK, &up, |_, _| {}))
        .context("cannot bring up the loopback interface of a network namespace")?;
    Ok(())
}

fn connect_in_own_netns() -> Result<Done> {
    let mut done = nothing_done()?;
    for addr in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let Some(listener) = listen_on(SocketAddr::new(addr, 0))? else { continue };
        let server = listener.local_addr()?;
        let client = connect_from(None, server)?;
        let (mut accepted, _) = listener.accept().context("cannot accept")?;
        done.count(addr, 1);
        done.time_waits += 1;

        drop(client);
        // The end of the stream: the client's FIN is here, so it is the client that waits.
        accepted.set_read_timeout(Some(Duration::from_secs(TIME_LIMIT_SECONDS as u64)))?;
        accepted.read(&mut [0]).context("the client's close did not arrive")?;
        use_udp(addr, &mut done).context("cannot use UDP")?;
    }
    Ok(done)
}

/// One socket for each way to a port.
fn use_udp(addr: IpAddr, done: &mut Done) -> Result<()> {
    let server = UdpSocket::bind(SocketAddr::new(addr, 0))?;
    let to = SockaddrStorage::from(server.local_addr()?);
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = || socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp);
    connect(client()?.as_raw_fd(), &to)?;
    sendto(client()?.as_raw_fd(), b"portwatch", &to, MsgFlags::empty())?;
    done.udp_binds += 1;
    done.udp_connects += 1;
    done.udp_sends += 1;
    Ok(())
}

fn connect_on_host() -> Result<Done> {
    let mut done = nothing_done()?;
    let range =
        netns::settings(0)?.port_range.ok_or_else(|| anyhow!("the ephemeral port range is not known"))?;
    let mut ports = ports_outside(range);
    for addr in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let listener = loop {
            let port = ports.next().ok_or_else(|| anyhow!("no free port outside {}-{}", range.0, range.1))?;
            match listen_on(SocketAddr::new(addr, port)) {
                Err(error) if is_taken(&error) => {}
                other => break other?,
            }
        };
        let Some(listener) = listener else { continue };
        let server = listener.local_addr()?;
        let client = loop {
            let port = ports.next().ok_or_else(|| anyhow!("no free port outside {}-{}", range.0, range.1))?;
            match connect_from(Some(SocketAddr::new(addr, port)), server) {
                Err(error) if is_taken(&error) => {}
                other => break other?,
            }
        };
        let _accepted = listener.accept().context("cannot accept")?;
        done.count(addr, 2);

        // A close with this set sends a reset: neither side keeps the port.
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop(client);
    }
    Ok(done)
}

impl Done {
    fn count(&mut self, addr: IpAddr, binds: u32) {
        match addr {
            IpAddr::V4(_) => self.connects_v4 += 1,
            IpAddr::V6(_) => self.connects_v6 += 1,
        }
        self.binds += binds;
        self.listens += 1;
        self.accepts += 1;
    }
}

fn nothing_done() -> Result<Done> {
    Ok(Done {
        netns: Namespace::current()?.inode(),
        connects_v4: 0,
        connects_v6: 0,
        binds: 0,
        listens: 0,
        accepts: 0,
        time_waits: 0,
        udp_binds: 0,
        udp_connects: 0,
        udp_sends: 0,
        why_on_host: None,
    })
}

const TIME_LIMIT_SECONDS: i64 = 1;

/// A listener whose accept() has a time limit; `None` where the address family is missing or switched off.
fn listen_on(addr: SocketAddr) -> Result<Option<TcpListener>> {
    let listener = match TcpListener::bind(addr) {
        Ok(listener) => listener,
        Err(error)
            if addr.is_ipv6()
                && (error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                    || error.kind() == ErrorKind::AddrNotAvailable) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot listen on {addr}")),
    };
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(TIME_LIMIT_SECONDS, 0))?;
    Ok(Some(listener))
}

/// A blocking connect with a time limit, from a given address or from a port of the kernel's choice.
fn connect_from(local: Option<SocketAddr>, remote: SocketAddr) -> Result<TcpStream> {
    let family = if remote.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
        .context("cannot make a socket")?;
    // connect() obeys the time limit for sending.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(TIME_LIMIT_SECONDS, 0))?;
    if let Some(local) = local {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(local))
            .with_context(|| format!("cannot bind {local}"))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(remote)) {
        Ok(()) => Ok(TcpStream::from(fd)),
        Err(Errno::EINPROGRESS) => bail!("no connection to {remote} within {TIME_LIMIT_SECONDS} s"),
        Err(errno) => Err(errno).with_context(|| format!("cannot connect to {remote}")),
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    let taken = |errno| matches!(errno, libc::EADDRINUSE | libc::EACCES);
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error).is_some_and(taken)
            || cause.downcast_ref::<Errno>().is_some_and(|&errno| taken(errno as i32))
    })
}

/// A few dozen ports that no connect() gets from the kernel, spread out; those that need a privilege come last.
fn ports_outside((first, last): (u16, u16)) -> impl Iterator<Item = u16> {
    // Primes, so that a service on a run of neighbouring ports is met once.
    let unprivileged = (1031..=u16::MAX).rev().step_by(1009);
    let privileged = (601..1024).rev().step_by(13);
    unprivileged.chain(privileged).filter(move |port| !(first..=last).contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing;

    #[test]
    fn own_netns_gets_one_connection_per_family() {
        let start = std::time::Instant::now();
        let done = connect_to_self().unwrap();
        println!("{done:?} in {:?}", start.elapsed());
        assert_eq!((done.connects_v4, done.accepts, done.listens), (1, 1 + done.connects_v6, done.accepts));
        if let Some(why) = done.why_on_host {
            assert_eq!((done.time_waits, done.binds), (0, 2 * done.accepts));
            return testing::skip(&why);
        }
        assert_ne!(done.netns, Namespace::current().unwrap().inode());
        assert_eq!((done.time_waits, done.binds), (done.accepts, done.accepts));
        assert_eq!((done.udp_binds, done.udp_sends), (done.accepts, done.udp_connects));
    }

    #[test]
    fn client_leaves_the_time_wait_entry_counted() {
        let counted = testing::in_new_netns(|| {
            let done = connect_in_own_netns().unwrap();
            let text = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
            let tw = text.split_once(" tw ").unwrap().1.split(' ').next().unwrap().parse::<u32>().unwrap();
            (done.time_waits, tw)
        });
        let Some((told, found)) = counted else { return };
        assert_eq!(told, found);
    }

    #[test]
    fn host_loopback_is_left_without_time_wait() {
        // In a namespace of its own all the same: the test must not touch the host's ports either.
        let result = testing::in_new_netns(|| {
            let done = connect_on_host().unwrap();
            let mut left = Vec::new();
            crate::kernel::proc_net::list(crate::event::Protocol::Tcp, crate::event::Family::Ipv4, |row| {
                left.push(*row)
            })
            .unwrap();
            (done, left)
        });
        let Some((done, left)) = result else { return };
        assert_eq!((done.connects_v4, done.time_waits), (1, 0));
        assert_eq!(done.binds, 2 * done.listens);
        assert_eq!(left, []);
    }

    #[test]
    fn ports_outside_avoid_the_range() {
        for range in [(32768, 60999), (1024, 65535), (1, 65535), (50000, 50003)] {
            let ports: Vec<_> = ports_outside(range).collect();
            assert!(ports.iter().all(|port| !(range.0..=range.1).contains(port)), "{range:?}");
            assert_eq!(ports.len() >= 4, range != (1, 65535), "{range:?}");
        }
    }
}
