//! From a list of sockets to pools: who holds how many of which ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::aggregate::capacity::Automatic;
use crate::event::{Direction, Protocol};
use crate::kernel::baseline::{Baseline, OpenSocket};
use crate::kernel::socket_row::State;

/// What an automatic choice of a port is made within. UDP has no destination: one port is one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub netns: u32,
    pub is_udp: bool,
    pub local: IpAddr,
    pub remote: Option<(IpAddr, u16)>,
}

/// A process, and how many sockets of a pool it has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub comm: String,
    pub sockets: u32,
}

/// One pool and what is in use of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub key: Key,
    /// Ports that an automatic choice has, those that are bound already taken off. `None`: the range is not known.
    pub capacity: Option<u32>,
    /// Automatic ports of this pool that are held by sockets.
    pub live: u32,
    /// And by time-wait entries.
    pub time_wait: u32,
    /// Automatic ports that bind() took from every pool of the address; `None`: the kernel shows not all of them, and
    /// `capacity` is an upper bound.
    pub bound: Option<u32>,
    /// Sockets whose port no automatic choice would have come to.
    pub others: u32,
    /// Most sockets first.
    pub holders: Vec<Holder>,
}

impl Pool {
    pub fn in_use(&self) -> u32 {
        self.live + self.time_wait
    }

    /// Share of the capacity that is in use. `None`: there is none, or it is not known.
    pub fn utilization(&self) -> Option<f64> {
        let capacity = self.capacity.filter(|&capacity| capacity > 0)?;
        Some(f64::from(self.in_use()) / f64::from(capacity))
    }
}

/// A listener whose port lies among those of automatic choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub netns: u32,
    pub local: IpAddr,
    pub port: u16,
    pub holder: Option<Holder>,
}

/// All pools, fullest first, and the listeners.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pools {
    pub pools: Vec<Pool>,
    pub listeners: Vec<Listener>,
    /// Accepted connections, which hold no port of their own.
    pub accepted: usize,
}

/// What is known of a namespace before its sockets are counted.
struct Namespace {
    tcp: Option<Automatic>,
    udp: Option<Automatic>,
    /// Ports that TCP sockets are bound to and not connected.
    tcp_bound: BTreeSet<u16>,
    has_all_bound: bool,
    /// UDP ports by address.
    udp_ports: BTreeMap<IpAddr, BTreeSet<u16>>,
}

#[derive(Default)]
struct Counts {
    ports: BTreeSet<u16>,
    waiting: BTreeSet<u16>,
    others: u32,
    holders: HashMap<u32, Holder>,
}

/// Counts what `is_wanted` of a listing.
pub fn count(baseline: &Baseline, is_wanted: impl Fn(&OpenSocket) -> bool) -> Pools {
    let namespaces = namespaces(baseline);
    let mut pools = Pools::default();
    let mut counts: HashMap<Key, Counts> = HashMap::new();
    for socket in baseline.sockets.iter().filter(|socket| is_wanted(socket)) {
        let ends = &socket.endpoints;
        let (Some(port), Some(namespace)) = (ends.local_port, namespaces.get(&ends.netns)) else { continue };
        let is_udp = ends.protocol == Protocol::Udp;
        let automatic = if is_udp { &namespace.udp } else { &namespace.tcp };
        let is_automatic = automatic.as_ref().is_some_and(|automatic| automatic.has(port));
        let local = ends.local_ip();
        match (socket.state, socket.direction) {
            (State::Listen, _) => {
                if is_automatic {
                    pools.listeners.push(Listener { netns: ends.netns, local, port, holder: holder(socket) });
                }
                continue;
            }
            // Bound and nothing else: it takes its port from all pools, and stands in none.
            (State::Close, _) if !is_udp => continue,
            (_, Direction::In) if !is_udp => {
                pools.accepted += 1;
                continue;
            }
            _ => {}
        }
        let remote = ends.remote_ip().zip(ends.remote_port).filter(|_| !is_udp);
        let count = counts.entry(Key { netns: ends.netns, is_udp, local, remote }).or_default();
        if !is_automatic {
            count.others += 1;
        } else if socket.state == State::TimeWait {
            count.waiting.insert(port);
        } else {
            count.ports.insert(port);
        }
        if let Some(holder) = holder(socket) {
            count.holders.entry(holder.pid).or_insert(Holder { sockets: 0, ..holder }).sockets += 1;
        }
    }
    pools.pools = counts.into_iter().map(|(key, count)| pool(key, count, &namespaces[&key.netns])).collect();
    // Fullest first; then an order that does not change from one look to the next.
    pools.pools.sort_by(|a, b| {
        let full = |pool: &Pool| pool.utilization().unwrap_or(0.0);
        full(b).total_cmp(&full(a)).then(b.in_use().cmp(&a.in_use())).then(a.key.cmp(&b.key))
    });
    pools.listeners.sort_by_key(|listener| (listener.netns, listener.port, listener.local));
    pools
}

fn namespaces(baseline: &Baseline) -> HashMap<u32, Namespace> {
    let mut namespaces: HashMap<u32, Namespace> = baseline
        .namespaces
        .iter()
        .map(|settings| {
            let namespace = Namespace {
                tcp: Automatic::of(settings, Protocol::Tcp),
                udp: Automatic::of(settings, Protocol::Udp),
                tcp_bound: BTreeSet::new(),
                has_all_bound: baseline.lists_bound_sockets,
                udp_ports: BTreeMap::new(),
            };
            (settings.inode, namespace)
        })
        .collect();
    for socket in &baseline.sockets {
        let ends = &socket.endpoints;
        let (Some(port), Some(namespace)) = (ends.local_port, namespaces.get_mut(&ends.netns)) else {
            continue;
        };
        if ends.protocol == Protocol::Udp {
            namespace.udp_ports.entry(ends.local_ip()).or_default().insert(port);
        } else if matches!(socket.state, State::Listen | State::Close) {
            namespace.tcp_bound.insert(port);
        }
    }
    namespaces
}

fn pool(key: Key, count: Counts, namespace: &Namespace) -> Pool {
    let mut holders: Vec<_> = count.holders.into_values().collect();
    holders.sort_by_key(|holder| (std::cmp::Reverse(holder.sockets), holder.pid));
    let taken = if key.is_udp { taken_elsewhere(key.local, namespace) } else { namespace.tcp_bound.clone() };
    let automatic = if key.is_udp { &namespace.udp } else { &namespace.tcp };
    let bound = automatic.as_ref().map(|automatic| automatic.count() - automatic.capacity(&taken));
    // A port that is live here and waits there is one port.
    let waiting = count.waiting.difference(&count.ports).count();
    Pool {
        key,
        capacity: automatic.as_ref().map(|automatic| automatic.capacity(&taken)),
        live: count.ports.len() as u32,
        time_wait: waiting as u32,
        bound: bound.filter(|_| key.is_udp || namespace.has_all_bound),
        others: count.others,
        holders,
    }
}

/// UDP ports that this address cannot have because of sockets on others: the unspecified address is all of them.
fn taken_elsewhere(local: IpAddr, namespace: &Namespace) -> BTreeSet<u16> {
    let own = namespace.udp_ports.get(&local);
    let others = namespace
        .udp_ports
        .iter()
        .filter(|(address, _)| **address != local && (local.is_unspecified() || address.is_unspecified()));
    let taken = others.flat_map(|(_, ports)| ports);
    taken.filter(|port| !own.is_some_and(|own| own.contains(port))).copied().collect()
}

fn holder(socket: &OpenSocket) -> Option<Holder> {
    let owner = socket.owner.as_ref()?;
    Some(Holder { pid: owner.tgid?, comm: owner.comm.to_string(), sockets: 1 })
}

#[cfg(test)]
#[path = "pools_tests.rs"]
mod tests;
