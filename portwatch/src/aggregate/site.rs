//! One row of the ledger: what one program did from one call site towards one destination.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::quantiles::Quantiles;
use super::timeline::Timeline;
use crate::recording::format::{Closer, Proto};

/// A program as its siblings see it: workers of one service and the short-lived children of one parent are one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Program {
    /// Path of the program; where nobody could read it, `comm` stands in.
    pub exe: Option<Arc<str>>,
    /// Only where `exe` is not known: threads of one process may have names of their own.
    pub comm: Option<Arc<str>>,
    pub cgroup: Option<Arc<str>>,
    pub container: Option<Arc<str>>,
    pub ppid: Option<u32>,
}

/// Towards what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// One destination.
    To(IpAddr, u16),
    /// Bound, listening, or not yet connected.
    None,
    /// Destinations whose own rows were given up for want of room.
    Others,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteKey {
    /// Which host's log, where several were read.
    pub host: u32,
    pub netns: u32,
    pub program: Arc<Program>,
    pub call_site: Option<Arc<str>>,
    pub proto: Proto,
    pub peer: Peer,
}

/// How connections ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closers {
    pub local: u64,
    pub remote: u64,
    pub both: u64,
    pub reset: u64,
    pub unknown: u64,
}

impl Closers {
    pub fn count(&mut self, closer: Option<Closer>) {
        let counter = match closer {
            Some(Closer::Local) => &mut self.local,
            Some(Closer::Remote) => &mut self.remote,
            Some(Closer::Both) => &mut self.both,
            Some(Closer::Reset) => &mut self.reset,
            Some(Closer::Unknown) | None => &mut self.unknown,
        };
        *counter += 1;
    }
}

/// How many ports are held, and for how long they were.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    now: u64,
    peak: u64,
    peak_at_ns: i64,
    changed_ns: i64,
    integral_ns: u128,
}

impl Level {
    pub fn up(&mut self, at_ns: i64) {
        self.touch(at_ns);
        self.now += 1;
        if self.now > self.peak {
            self.peak = self.now;
            self.peak_at_ns = at_ns;
        }
    }

    pub fn down(&mut self, at_ns: i64) {
        self.touch(at_ns);
        self.now = self.now.saturating_sub(1);
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn peak(&self) -> u64 {
        self.peak
    }

    pub fn peak_at_ns(&self) -> i64 {
        self.peak_at_ns
    }

    /// Held time up to `at_ns`, in port-nanoseconds.
    pub fn held_ns(&self, at_ns: i64) -> u128 {
        let more = at_ns.saturating_sub(self.changed_ns).max(0) as u128 * u128::from(self.now);
        self.integral_ns + more
    }

    /// Times may step back by the log's window: held time never does.
    fn touch(&mut self, at_ns: i64) {
        self.integral_ns = self.held_ns(at_ns);
        self.changed_ns = self.changed_ns.max(at_ns);
    }

    /// Another level beside this one. The sum's own peak lies between the larger one and the sum.
    pub fn merge(&mut self, other: &Level, at_ns: i64) {
        self.touch(at_ns);
        self.integral_ns += other.held_ns(at_ns);
        self.now += other.now;
        if other.peak > self.peak {
            self.peak = other.peak;
            self.peak_at_ns = other.peak_at_ns;
        }
        self.peak = self.peak.max(self.now);
    }
}

#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Names of the tasks, the first one seen.
    pub comm: Option<Arc<str>>,
    pub uid: Option<u32>,
    /// The first stack that led here.
    pub stack: Option<Arc<str>>,
    /// Sockets that were open before the start of the log.
    pub preexisting: u64,
    /// Ports that were got, with or without a connection.
    pub ports: u64,
    /// Connections that stood; for UDP, sockets that got a port to talk to the peer.
    pub connections: u64,
    pub failures: BTreeMap<Arc<str>, u64>,
    /// Failures that got no port, for whatever reason.
    pub portless: u64,
    /// Failures that say that there was no port left.
    pub searched: u64,
    /// bind() or listen() on a port that was asked for by number, and taken.
    pub conflicts: BTreeMap<u16, u64>,
    /// Ports asked for by number that this program got.
    pub binds: u64,
    pub last_bind_ns: Option<i64>,
    pub last_conflict_ns: Option<i64>,
    pub last_success_ns: Option<i64>,
    /// First and last port or failure.
    pub first_ns: Option<i64>,
    pub last_ns: i64,
    /// Ports with a full socket.
    pub live: Level,
    /// Ports in TIME_WAIT.
    pub waiting: Level,
    pub closers: Closers,
    pub closed: u64,
    pub time_waits: u64,
    pub lifetimes: Quantiles,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Connections whose traffic is known.
    pub traffic_known: u64,
    pub timeline: Timeline,
    pub failed: Timeline,
    /// Processes seen here.
    pub processes: u64,
    /// Holds that name this row.
    pub open_holds: u32,
    /// Destinations folded into this row.
    pub folded: u64,
    /// Ports bound without asking for a number, held now and at most: they are lost to every automatic connect.
    pub bound_any: Level,
}

impl Site {
    /// Ports that were asked for, got or not.
    pub fn attempts(&self) -> u64 {
        self.ports + self.portless
    }

    pub fn failure_count(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Port-nanoseconds of life and TIME_WAIT.
    pub fn port_ns(&self, at_ns: i64) -> u128 {
        self.live.held_ns(at_ns) + self.waiting.held_ns(at_ns)
    }

    pub fn seen(&mut self, at_ns: i64) {
        self.first_ns = Some(self.first_ns.map_or(at_ns, |first| first.min(at_ns)));
        self.last_ns = self.last_ns.max(at_ns);
    }

    /// Takes in another row.
    pub fn merge(&mut self, other: &Site, at_ns: i64) {
        self.comm = self.comm.take().or_else(|| other.comm.clone());
        self.uid = self.uid.or(other.uid);
        self.stack = self.stack.take().or_else(|| other.stack.clone());
        self.preexisting += other.preexisting;
        self.ports += other.ports;
        self.connections += other.connections;
        for (errno, count) in &other.failures {
            *self.failures.entry(Arc::clone(errno)).or_default() += count;
        }
        self.portless += other.portless;
        self.searched += other.searched;
        for (&port, count) in &other.conflicts {
            *self.conflicts.entry(port).or_default() += count;
        }
        self.binds += other.binds;
        self.last_bind_ns = self.last_bind_ns.max(other.last_bind_ns);
        self.last_conflict_ns = self.last_conflict_ns.max(other.last_conflict_ns);
        self.last_success_ns = self.last_success_ns.max(other.last_success_ns);
        if let Some(first) = other.first_ns {
            self.seen(first);
            self.seen(other.last_ns);
        }
        self.live.merge(&other.live, at_ns);
        self.waiting.merge(&other.waiting, at_ns);
        self.bound_any.merge(&other.bound_any, at_ns);
        self.closers.local += other.closers.local;
        self.closers.remote += other.closers.remote;
        self.closers.both += other.closers.both;
        self.closers.reset += other.closers.reset;
        self.closers.unknown += other.closers.unknown;
        self.closed += other.closed;
        self.time_waits += other.time_waits;
        self.lifetimes.merge(&other.lifetimes);
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.traffic_known += other.traffic_known;
        self.timeline.merge(&other.timeline);
        self.failed.merge(&other.failed);
        self.processes += other.processes;
        self.folded += other.folded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_knows_its_peak_and_the_time_held() {
        let mut level = Level::default();
        level.up(10);
        level.up(20);
        level.down(30);
        // An event from before, within the log's window.
        level.up(25);
        level.down(40);
        level.down(50);
        level.down(60);
        assert_eq!((level.now(), level.peak(), level.peak_at_ns()), (0, 2, 20));
        assert_eq!(level.held_ns(100), 10 + 2 * 10 + 2 * 10 + 10);
    }
}
