//! Who held which ports, for how long, and what became of them: rows per call site and destination, and pools of ports.
//!
//! Fed with the lines of an event log, live or out of a file, in the log's order. A line that was lost leaves a row too
//! low, never too high: what a later line proves is made good, and a hold whose end was lost ends when its port is seen
//! again or its TIME_WAIT must be over. All tables are bounded, and what is given up is counted.

#[cfg(test)]
mod bench;
mod take;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::names::Names;
use super::pool::{Pool, PoolKey};
use super::recent::Recent;
use super::site::{Peer, Program, Site, SiteKey};
use crate::recording::format::{Frame, Header, Netns, Proto, Summary};

/// Ports held at once that are followed; some 120 bytes each. Sixteen full ranges.
const HOLDS_MAX: usize = 524_288;
/// Rows; 1 to 4 kB each.
const SITES_MAX: usize = 8_192;
/// Processes per row, over all rows; 100 bytes each.
const MEMBERS_MAX: usize = 131_072;
/// Processes whose names are known; 100 bytes each.
const TASKS_MAX: usize = 65_536;
/// 500 bytes each.
const POOLS_MAX: usize = 16_384;
/// Stacks whose frames are kept, and frames of each.
const STACKS_MAX: usize = 4_096;
const FRAMES_MAX: usize = 48;
/// Ends remembered, against lines that come twice.
const ENDED_MAX: usize = 65_536;
const NAMESPACES_MAX: usize = 4_096;

/// A TIME_WAIT lasts 60 s and up to 4 s more, by the granularity of the kernel's timer; one that is older lost its end.
const TIME_WAIT_MAX_NS: i64 = 70_000_000_000;

/// A row's number: never given twice.
pub type SiteId = u32;
type PoolId = u32;

/// One process's part of a row.
#[derive(Clone, Debug, Default)]
pub struct Member {
    pub pid: Option<u32>,
    pub ns_pid: Option<u32>,
    pub ppid: Option<u32>,
    pub connections: u64,
    pub failures: u64,
    pub live: u64,
    pub live_peak: u64,
    pub first_ns: i64,
    pub last_ns: i64,
}

/// What is known of a process by its number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    pub comm: Option<Arc<str>>,
    pub exe: Option<Arc<str>>,
    pub ppid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Live,
    Waiting,
}

/// A port that is held.
#[derive(Clone, Debug)]
struct Hold {
    site: SiteId,
    /// Connect-made ports only.
    pool: Option<PoolId>,
    member: u64,
    /// Where the kernel chose the port: it cannot be held twice.
    tuple: Option<u64>,
    /// `None`: before the start of the log.
    begun_ns: Option<i64>,
    since_ns: i64,
    phase: Phase,
    has_connection: bool,
    has_ended: bool,
    /// The last failed connect: one more at the same time is the same line again.
    failed_ns: Option<i64>,
    /// Of a socket that asked for a port without a peer.
    bound: Option<u16>,
    is_in_range: bool,
}

/// A host whose logs were read.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub name: String,
    pub kernel: String,
}

/// Settings of a namespace, as the log has them, and the ports that binds took since.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    pub settings: Option<Netns>,
    /// Ports that bind() made, held now, by protocol.
    bound: BTreeMap<(Proto, u16), u32>,
}

impl Namespace {
    /// Ports of automatic choice, both ends included.
    pub fn range(&self) -> Option<(u16, u16)> {
        self.settings.as_ref()?.port_range.filter(|(low, high)| low <= high)
    }

    fn is_in_range(&self, port: u16) -> bool {
        self.range().is_some_and(|(low, high)| (low..=high).contains(&port))
    }

    /// Ports within the range that bind() took, and whether the kernel listed those taken before the start.
    pub fn bound(&self, proto: Proto) -> (u64, bool) {
        let Some((low, high)) = self.range() else { return (0, false) };
        let reserved = |port: u16| self.is_reserved(port);
        let since = self.bound.range((proto, low)..=(proto, high)).map(|(&(_, port), _)| port);
        let listed = self.settings.as_ref().and_then(|settings| settings.bind_ports.as_deref());
        let before = listed.unwrap_or_default().iter().copied().filter(|_| proto == Proto::Tcp);
        let mut ports: Vec<u16> = since
            .chain(before.filter(|port| (low..=high).contains(port)))
            .filter(|&p| !reserved(p))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        (ports.len() as u64, listed.is_some() || proto == Proto::Udp)
    }

    /// Ports within the range that are never chosen automatically.
    pub fn reserved(&self) -> u64 {
        let Some((low, high)) = self.range() else { return 0 };
        let mut last = None;
        let mut count = 0;
        let mut ranges = self.settings.as_ref().and_then(|s| s.reserved.clone()).unwrap_or_default();
        ranges.sort_unstable();
        for (first, end) in ranges {
            let first = u32::from(first.max(low)).max(last.map_or(0, |last: u32| last + 1));
            let end = u32::from(end.min(high));
            if first <= end {
                count += u64::from(end - first) + 1;
                last = Some(end);
            }
        }
        count
    }

    fn is_reserved(&self, port: u16) -> bool {
        let reserved = self.settings.as_ref().and_then(|settings| settings.reserved.as_deref());
        reserved.unwrap_or_default().iter().any(|&(first, last)| (first..=last).contains(&port))
    }
}

/// What was given up for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Rows folded into coarser ones: their numbers stand there.
    pub call_sites: u64,
    pub pools: u64,
    /// Ports that were counted but not followed.
    pub holds: u64,
    pub processes: u64,
    pub stacks: u64,
}

#[derive(Debug)]
pub struct Ledger {
    names: Names,
    hosts: Vec<Host>,
    host: u32,
    /// Added to a line's time: several logs stand one behind the other.
    offset_ns: i64,
    log_start_ns: i64,
    now_ns: i64,
    /// Rung and start of the first log.
    pub rungs: Vec<String>,
    pub started: Option<String>,
    holds: HashMap<u64, Hold>,
    tuples: HashMap<u64, u64>,
    ended: Recent<u64, ()>,
    waits: VecDeque<(i64, u64)>,
    sites: BTreeMap<SiteId, (SiteKey, Site)>,
    site_ids: HashMap<SiteKey, SiteId>,
    site_next: SiteId,
    members: Recent<(SiteId, u64), Member>,
    tasks: Recent<(u32, u32), Task>,
    pools: BTreeMap<PoolId, (PoolKey, Pool)>,
    pool_ids: HashMap<PoolKey, PoolId>,
    pool_next: PoolId,
    namespaces: BTreeMap<(u32, u32), Namespace>,
    stacks: HashMap<Arc<str>, Vec<Frame>>,
    evicted: Evicted,
    /// Lines of events, by type.
    pub events: BTreeMap<&'static str, u64>,
    pub lost: BTreeMap<String, BTreeMap<String, u64>>,
    pub is_lower_bound: bool,
    /// Logs without a summary.
    pub cut: u64,
    logs: u64,
    has_summary: bool,
    pub duration_ns: u64,
    log_ended_by: Option<String>,
    /// TIME_WAIT entries of sockets whose owners were selected, now and at most.
    waiting_all: super::site::Level,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            names: Names::default(),
            hosts: Vec::new(),
            host: 0,
            offset_ns: 0,
            log_start_ns: 0,
            now_ns: 0,
            rungs: Vec::new(),
            started: None,
            holds: HashMap::new(),
            tuples: HashMap::new(),
            ended: Recent::new(ENDED_MAX),
            waits: VecDeque::new(),
            sites: BTreeMap::new(),
            site_ids: HashMap::new(),
            site_next: 0,
            members: Recent::new(MEMBERS_MAX),
            tasks: Recent::new(TASKS_MAX),
            pools: BTreeMap::new(),
            pool_ids: HashMap::new(),
            pool_next: 0,
            namespaces: BTreeMap::new(),
            stacks: HashMap::new(),
            evicted: Evicted::default(),
            events: BTreeMap::new(),
            lost: BTreeMap::new(),
            is_lower_bound: false,
            cut: 0,
            logs: 0,
            has_summary: false,
            duration_ns: 0,
            log_ended_by: None,
            waiting_all: super::site::Level::default(),
        }
    }
}

impl Ledger {
    /// Begins a log. What the one before it left open is over.
    pub fn begin(&mut self, header: &Header) {
        self.end_log();
        let host = self.hosts.iter().position(|host| host.name == header.host);
        self.host = host.unwrap_or_else(|| {
            self.hosts.push(Host { name: header.host.clone(), kernel: header.kernel.clone() });
            self.hosts.len() - 1
        }) as u32;
        if !self.rungs.contains(&header.rung) {
            self.rungs.push(header.rung.clone());
        }
        self.started.get_or_insert_with(|| header.started.clone());
        self.offset_ns = self.now_ns;
        self.log_start_ns = self.now_ns;
        self.logs += 1;
        self.has_summary = false;
    }

    /// Ends the last log. Only now is it known whether that was cut short.
    pub fn end(&mut self) {
        if self.logs > 0 && !self.has_summary {
            self.cut += 1;
            self.duration_ns += (self.now_ns - self.log_start_ns).max(0) as u64;
            // Told once.
            self.has_summary = true;
        }
    }

    /// Forgets what is held: the next log has a list of its own.
    fn end_log(&mut self) {
        self.end();
        let mut open: Vec<u64> = self.holds.keys().copied().collect();
        open.sort_unstable();
        for id in open {
            self.release(id, self.now_ns);
        }
        self.tuples.clear();
        self.waits.clear();
        self.ended.clear();
        for namespace in self.namespaces.values_mut() {
            namespace.bound.clear();
        }
    }

    pub fn now_ns(&self) -> i64 {
        self.now_ns
    }

    pub fn is_complete(&self) -> bool {
        self.cut == 0 && self.logs > 0
    }

    pub fn ended_by(&self) -> Option<&str> {
        self.log_ended_by.as_deref()
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub fn sites(&self) -> impl Iterator<Item = (SiteId, &SiteKey, &Site)> {
        self.sites.iter().map(|(&id, (key, site))| (id, key, site))
    }

    pub fn pools(&self) -> impl Iterator<Item = (&PoolKey, &Pool)> {
        self.pools.values().map(|(key, pool)| (key, pool))
    }

    pub fn pool(&self, key: &PoolKey) -> Option<&Pool> {
        self.pool_ids.get(key).map(|id| &self.pools[id].1)
    }

    pub fn namespace(&self, host: u32, netns: u32) -> Option<&Namespace> {
        self.namespaces.get(&(host, netns))
    }

    pub fn namespaces(&self) -> impl Iterator<Item = ((u32, u32), &Namespace)> {
        self.namespaces.iter().map(|(&key, namespace)| (key, namespace))
    }

    /// The processes of every row, busiest first.
    pub fn members(&self) -> HashMap<SiteId, Vec<Member>> {
        let mut members: HashMap<SiteId, Vec<Member>> = HashMap::new();
        for ((site, _), member) in self.members.iter() {
            members.entry(*site).or_default().push(member.clone());
        }
        for of_site in members.values_mut() {
            of_site.sort_by_key(|member| {
                (
                    std::cmp::Reverse((member.connections, member.failures)),
                    member.first_ns,
                    member.pid,
                    member.ns_pid,
                )
            });
        }
        members
    }

    pub fn task(&self, host: u32, pid: u32) -> Option<&Task> {
        self.tasks.peek(&(host, pid))
    }

    pub fn frames(&self, stack: &str) -> &[Frame] {
        self.stacks.get(stack).map_or(&[], Vec::as_slice)
    }

    /// TIME_WAIT entries followed at once, at most.
    pub fn waiting_peak(&self) -> u64 {
        self.waiting_all.peak()
    }

    pub fn waiting_now(&self) -> u64 {
        self.waiting_all.now()
    }

    /// Ports followed now.
    pub fn held_now(&self) -> usize {
        self.holds.len()
    }

    pub fn evicted(&self) -> Evicted {
        Evicted { processes: self.members.forgotten(), ..self.evicted }
    }

    fn summary(&mut self, summary: &Summary) {
        for (kind, reasons) in &summary.lost {
            for (reason, count) in reasons {
                *self.lost.entry(kind.clone()).or_default().entry(reason.clone()).or_default() += count;
            }
        }
        self.is_lower_bound |= summary.lower_bound;
        self.duration_ns += summary.duration_ns;
        self.log_ended_by = Some(summary.ended_by.clone());
        let end_ns = i64::try_from(summary.duration_ns).unwrap_or(i64::MAX);
        self.advance(self.log_start_ns.saturating_add(end_ns));
        self.has_summary = true;
    }

    /// Time goes on: TIME_WAITs that must be over are.
    fn advance(&mut self, now_ns: i64) {
        self.now_ns = self.now_ns.max(now_ns);
        while let Some(&(since_ns, id)) = self.waits.front() {
            if self.now_ns - since_ns < TIME_WAIT_MAX_NS {
                break;
            }
            self.waits.pop_front();
            let is_waiting = |hold: &Hold| hold.phase == Phase::Waiting && hold.since_ns == since_ns;
            if self.holds.get(&id).is_some_and(is_waiting) {
                self.release(id, since_ns + TIME_WAIT_MAX_NS);
            }
        }
    }

    /// The row of a key. When all rows are taken, quiet ones are folded first.
    fn site_id(&mut self, key: SiteKey) -> SiteId {
        if let Some(&id) = self.site_ids.get(&key) {
            return id;
        }
        let key = if self.sites.len() < SITES_MAX {
            key
        } else {
            self.fold_sites();
            if self.sites.len() < SITES_MAX { key } else { self.coarsest(&key) }
        };
        if let Some(&id) = self.site_ids.get(&key) {
            return id;
        }
        self.add_site(key)
    }

    fn add_site(&mut self, key: SiteKey) -> SiteId {
        let id = self.site_next;
        self.site_next += 1;
        self.site_ids.insert(key.clone(), id);
        self.sites.insert(id, (key, Site::default()));
        id
    }

    /// One row for all that found no room, per host and protocol.
    fn coarsest(&self, key: &SiteKey) -> SiteKey {
        SiteKey {
            host: key.host,
            netns: 0,
            program: Arc::default(),
            call_site: None,
            proto: key.proto,
            peer: Peer::Others,
        }
    }

    /// The next coarser row: the one of the parent's parent for a lone child, else all destinations as one.
    pub fn coarser(&self, key: &SiteKey, site: &Site) -> Option<SiteKey> {
        if let Some(promoted) = self.promoted(key, site) {
            return Some(promoted);
        }
        match key.peer {
            Peer::Others if *key == self.coarsest(key) => None,
            Peer::Others => Some(self.coarsest(key)),
            Peer::To(..) | Peer::None => Some(SiteKey { peer: Peer::Others, ..key.clone() }),
        }
    }

    /// The row of a child whose parent had no other one: a shell or a wrapper that was started for this child alone.
    /// It is its grandparent's work.
    pub fn promoted(&self, key: &SiteKey, site: &Site) -> Option<SiteKey> {
        const OF_LONE_CHILD: u64 = 4;
        if site.processes > 1 || site.attempts() > OF_LONE_CHILD {
            return None;
        }
        let parent = key.program.ppid.filter(|&pid| pid > 1)?;
        let grandparent = self.task(key.host, parent)?.ppid.filter(|&pid| pid > 1)?;
        let program = Program { ppid: Some(grandparent), ..(*key.program).clone() };
        Some(SiteKey { program: Arc::new(program), ..key.clone() })
    }

    fn fold_sites(&mut self) {
        let mut quiet: Vec<(u64, i64, SiteId)> = self
            .sites
            .iter()
            .filter(|(_, (key, site))| site.open_holds == 0 && key.peer != Peer::Others)
            .map(|(&id, (_, site))| (site.attempts(), site.last_ns, id))
            .collect();
        quiet.sort_unstable();
        quiet.truncate(quiet.len().div_ceil(2));
        for (_, _, id) in quiet {
            let Some((key, site)) = self.sites.remove(&id) else { continue };
            self.site_ids.remove(&key);
            self.evicted.call_sites += 1;
            let Some(coarser) = self.coarser(&key, &site) else { continue };
            let into = match self.site_ids.get(&coarser) {
                Some(&into) => into,
                None => self.add_site(coarser),
            };
            if let Some((_, row)) = self.sites.get_mut(&into) {
                row.merge(&site, self.now_ns);
                row.folded += 1;
            }
        }
    }

    fn pool_id(&mut self, key: PoolKey) -> PoolId {
        if let Some(&id) = self.pool_ids.get(&key) {
            return id;
        }
        if self.pools.len() >= POOLS_MAX {
            self.drop_pools();
        }
        let id = self.pool_next;
        self.pool_next += 1;
        self.pool_ids.insert(key, id);
        self.pools.insert(id, (key, Pool::default()));
        id
    }

    /// Drops the smaller half of the pools that nobody holds a port of.
    fn drop_pools(&mut self) {
        let mut unused: Vec<(u64, u64, i64, PoolId)> = self
            .pools
            .iter()
            .filter(|(_, (_, pool))| pool.in_use() == 0)
            .map(|(&id, (_, pool))| (pool.failures, pool.peak, pool.last_ns, id))
            .collect();
        unused.sort_unstable();
        unused.truncate(unused.len().div_ceil(2));
        for (.., id) in unused {
            if let Some((key, _)) = self.pools.remove(&id) {
                self.pool_ids.remove(&key);
                self.evicted.pools += 1;
            }
        }
    }
}

/// The same on every run, unlike the hash tables' own.
fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
