//! Network namespaces of our own, and what the kernel counts in them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::truth::now_ns;

/// A network namespace; it lives at least as long as this.
pub struct Namespace {
    file: File,
    made_ns: u64,
}

/// A namespace as the log knows it. The kernel gives the numbers of dead namespaces out again, so a number means
/// one of them only for a time.
#[derive(Clone, Copy, Debug)]
pub struct Era {
    pub inode: u64,
    /// `CLOCK_MONOTONIC`.
    pub from_ns: i128,
    pub until_ns: i128,
}

impl Era {
    /// Whether something that ended then may be of this namespace.
    pub fn had_begun(&self, inode: Option<u64>, ended_ns: i128) -> bool {
        inode == Some(self.inode) && self.from_ns <= ended_ns
    }

    /// Whether a hold that began then is of this namespace.
    pub fn has(&self, inode: Option<u64>, begun_ns: i128) -> bool {
        inode == Some(self.inode) && (self.from_ns..=self.until_ns).contains(&begun_ns)
    }
}

impl Namespace {
    /// Moves the calling thread into a new namespace with loopback up. Processes it starts are born there.
    pub fn enter_new(sysctls: &[(&str, &str)]) -> Result<Namespace, String> {
        let made_ns = now_ns();
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("cannot make a network namespace: {error}"))?;
        loopback_up().map_err(|error| format!("cannot bring `lo` up: {error}"))?;
        for (name, value) in sysctls {
            let path = format!("/proc/sys/net/ipv4/{name}");
            fs::write(&path, value)
                .map_err(|error| format!("cannot write `{value}` to `{path}`: {error}"))?;
        }
        let path = "/proc/thread-self/ns/net";
        let file = File::open(path).map_err(|error| format!("cannot open `{path}`: {error}"))?;
        Ok(Namespace { file, made_ns })
    }

    /// Its time until now.
    pub fn era(&self) -> Era {
        let inode = self.file.metadata().expect("an open file has metadata").ino();
        Era { inode, from_ns: self.made_ns.into(), until_ns: now_ns().into() }
    }
}

fn loopback_up() -> Result<(), Errno> {
    let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    name[0] = b'l' as libc::c_char;
    name[1] = b'o' as libc::c_char;
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: SIOCSIFFLAGS reads a live, initialised ifreq.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

/// Counters of the calling thread's namespace.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    pub active_opens: u64,
    /// `TW` + `TWKilled`: counted when an entry's timer is first set, `TWKilled` for four seconds or less.
    pub time_waits: u64,
    pub overflows: u64,
    pub recycled: u64,
    /// `OutRsts`
    pub resets_sent: u64,
}

impl Counters {
    pub fn read() -> Counters {
        let tcp = table("snmp", "Tcp");
        let ext = table("netstat", "TcpExt");
        Counters {
            active_opens: tcp["ActiveOpens"],
            time_waits: ext["TW"] + ext["TWKilled"],
            overflows: ext["TCPTimeWaitOverflow"],
            recycled: ext["TWRecycled"],
            resets_sent: tcp["OutRsts"],
        }
    }
}

fn proc_net(name: &str) -> String {
    // Not /proc/net: that is the namespace of the process's first thread.
    let path = format!("/proc/thread-self/net/{name}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read `{path}`: {error}"))
}

/// A table of /proc/net/{snmp,netstat}: a line of names and a line of values, both begun by `prefix`.
fn table(file: &str, prefix: &str) -> HashMap<String, u64> {
    let text = proc_net(file);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix)?.strip_prefix(": "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    // `MaxConn` is -1; nobody here asks for it.
    let numbers = values.split(' ').map(|value| value.parse().unwrap_or(0));
    names.split(' ').map(str::to_owned).zip(numbers).collect()
}

/// A row of /proc/net/tcp or tcp6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub port_local: u16,
    pub port_remote: u16,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    SynSent,
    /// Of a full socket.
    FinWait2,
    /// A time-wait entry, by its substate.
    FinWait2Entry,
    TimeWaitEntry,
    Other,
}

pub fn tcp_rows() -> Vec<Row> {
    let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    let text = proc_net("tcp") + &v6;
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    if !words.next()?.ends_with(':') {
        return None;
    }
    let port = |word: &str| u16::from_str_radix(word.rsplit_once(':')?.1, 16).ok();
    let (port_local, port_remote) = (port(words.next()?)?, port(words.next()?)?);
    let (state, _queues, timer) = (words.next()?, words.next()?, words.next()?);
    // Timer 3 is the one of time-wait entries alone.
    let state = match (state, timer.split(':').next()?) {
        ("02", _) => State::SynSent,
        ("05", "03") => State::FinWait2Entry,
        ("05", _) => State::FinWait2,
        ("06", _) => State::TimeWaitEntry,
        _ => State::Other,
    };
    Some(Row { port_local, port_remote, state })
}
