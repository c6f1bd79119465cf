//! The sockets that are open now, with their owners where /proc tells them.
//!
//! Taken after the hooks are attached, so that no socket falls between the two; whoever joins both has to
//! drop what the hooks already know. Which of the sockets a filter wants is decided there too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;

use super::netns::{self, Namespace, Seen};
use super::proc_dir::ProcessDir;
use super::proc_net;
use super::sock_diag::{self, Permit};
use super::socket_owners::{Among, Holder, socket_owners};
use super::socket_row::{SocketRow, State};
use crate::event::{Direction, Endpoints, Family, Owner, Protocol};
use crate::output::Netns;

/// The search for owners ends after this; what it did not reach stays without one.
const OWNERS_TIME_MAX: Duration = Duration::from_secs(3);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Selection {
    /// `None`: every network namespace of the host that can be seen.
    pub namespaces: Option<Vec<Seen>>,
    pub protocols: Vec<Protocol>,
    /// Whose descriptors are searched for owners. Sockets of others are listed all the same, without owner.
    pub owners: Among,
}

/// A socket that was open, or a time-wait entry.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenSocket {
    pub endpoints: Endpoints,
    /// `In` for listeners and for what has a listener's address and port.
    pub direction: Direction,
    pub state: State,
    /// State as the event log writes it.
    pub state_name: &'static str,
    /// `None` for time-wait entries and others without a file.
    pub inode: Option<u64>,
    pub cookie: Option<u64>,
    /// Cgroup that the socket was made in.
    pub cgroup_id: Option<u64>,
    /// `None` for time-wait entries, which do not keep it.
    pub uid: Option<u32>,
    /// How long a time-wait entry still has.
    pub time_wait_left_ms: Option<u32>,
    /// Confidence `inferred`: the oldest process that has the socket open, which need not be the one that asked for the port.
    pub owner: Option<Owner>,
    /// Processes that have it open, as far as was seen.
    pub holders: u32,
}

/// What was open at one moment, or nearly: namespaces are read one after the other.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    /// `CLOCK_MONOTONIC` before the first listing.
    pub mono_ns: u64,
    pub sockets: Vec<OpenSocket>,
    pub namespaces: Vec<Netns>,
    /// What is not known, and why; a sentence each.
    pub notes: Vec<String>,
    /// Whether TCP sockets that are bound and nothing more are among them.
    pub lists_bound_sockets: bool,
}

impl Baseline {
    /// Lists the selected sockets. What cannot be learned becomes a note.
    ///
    /// # Errors
    /// When no namespace at all could be read.
    pub fn take(selection: &Selection) -> Result<Baseline> {
        let mut notes = Notes::default();
        let namespaces = match &selection.namespaces {
            Some(namespaces) => namespaces.clone(),
            None => {
                let listing = netns::list()?;
                notes.add_count(listing.unreadable, "of the processes hide their network namespace");
                listing.namespaces
            }
        };
        let mono_ns = mono_ns()?;
        let sources = Sources::choose(&selection.protocols, &mut notes);
        let mut baseline =
            Baseline { mono_ns, lists_bound_sockets: sources.lists_bound_sockets, ..Baseline::default() };
        let mut last_error = None;
        let mut rows = Vec::new();
        for seen in &namespaces {
            match list_one(seen, mono_ns, &sources) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    notes.merge(found.notes);
                    baseline.lists_bound_sockets &= found.lists_bound_sockets;
                    rows.push((found.settings.inode, found.rows));
                    baseline.namespaces.push(found.settings);
                }
                Err(error) => {
                    notes.add(format!("network namespace {} is left out: {error:#}", seen.inode));
                    last_error = Some(error);
                }
            }
        }
        if let (true, Some(error)) = (baseline.namespaces.is_empty(), last_error) {
            return Err(error).context("cannot list open sockets");
        }
        let mut owners = find_owners(&rows, &selection.owners, &mut notes)?;
        for (netns, rows) in rows {
            let listeners = Listeners::among(&rows);
            baseline.sockets.extend(rows.iter().map(|row| describe(row, netns, &listeners, &mut owners)));
        }
        baseline.notes = notes.into_sentences();
        Ok(baseline)
    }

    /// Local ports of TCP sockets that only a bind() can have given, in one namespace: of listeners and of
    /// what is bound but not connected. Ports that were bound before their connect are not to be told apart,
    /// so there may be more. `None` where the kernel does not list bound sockets (before Linux 6.8).
    pub fn ports_bound(&self, netns: u32) -> Option<Vec<u16>> {
        let is_bound = |socket: &&OpenSocket| {
            socket.endpoints.netns == netns
                && socket.endpoints.protocol == Protocol::Tcp
                && matches!(socket.state, State::Listen | State::Close)
        };
        let ports = self.sockets.iter().filter(is_bound).filter_map(|socket| socket.endpoints.local_port);
        let ports: std::collections::BTreeSet<u16> = ports.collect();
        self.lists_bound_sockets.then(|| ports.into_iter().collect())
    }
}

/// How each protocol is listed.
struct Sources {
    protocols: Vec<(Protocol, Option<Permit>)>,
    lists_bound_sockets: bool,
}

impl Sources {
    fn choose(protocols: &[Protocol], notes: &mut Notes) -> Sources {
        let mut choose = |&protocol: &Protocol| match Permit::obtain(protocol) {
            Ok(permit) => (protocol, Some(permit)),
            Err(refusal) => {
                notes.add(format!("{} sockets are read from /proc/net: {refusal}", protocol.name()));
                notes.add(proc_net::LOST.to_owned());
                (protocol, None)
            }
        };
        let protocols: Vec<_> = protocols.iter().map(&mut choose).collect();
        let is_tcp_dumped =
            protocols.iter().any(|(protocol, permit)| *protocol == Protocol::Tcp && permit.is_some());
        let lists_bound_sockets = is_tcp_dumped && sock_diag::lists_bound_sockets();
        if is_tcp_dumped && !lists_bound_sockets {
            notes.add(
                "tcp sockets that are bound but neither connected nor listening are not listed before Linux 6.8"
                    .to_owned(),
            );
        }
        Sources { protocols, lists_bound_sockets }
    }
}

/// What one namespace holds.
struct Found {
    settings: Netns,
    rows: Vec<SocketRow>,
    lists_bound_sockets: bool,
    notes: Notes,
}

/// `None` when the namespace is gone.
fn list_one(seen: &Seen, mono_ns: u64, sources: &Sources) -> Result<Option<Found>> {
    // Its last process may have ended since it was seen; any other failure comes back when it is entered.
    let namespace = match seen.open() {
        Ok(namespace) => namespace,
        Err(_) if !seen.path.exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    list_in(&namespace, mono_ns, sources).map(Some)
}

fn list_in(namespace: &Namespace, mono_ns: u64, sources: &Sources) -> Result<Found> {
    namespace.run(|| {
        let mut found = Found {
            settings: netns::settings(mono_ns)?,
            rows: Vec::new(),
            lists_bound_sockets: sources.lists_bound_sockets,
            notes: Notes::default(),
        };
        for (protocol, permit) in &sources.protocols {
            for family in [Family::Ipv4, Family::Ipv6] {
                list_family(*protocol, *permit, family, &mut found)?;
            }
        }
        Ok(found)
    })?
}

fn list_family(protocol: Protocol, permit: Option<Permit>, family: Family, found: &mut Found) -> Result<()> {
    let Found { rows, notes, lists_bound_sockets, .. } = found;
    if let Some(permit) = permit {
        let before = rows.len();
        match sock_diag::dump(permit, family, |row| rows.push(*row)) {
            Ok(dump) => {
                notes.add_count(dump.refused, "rows of socket listings could not be understood");
                if dump.is_torn {
                    notes.add(
                        "the kernel's socket table changed under a listing: sockets may be missing"
                            .to_owned(),
                    );
                }
                return Ok(());
            }
            Err(error) => {
                rows.truncate(before);
                notes.add(format!("{} sockets are read from /proc/net: {error:#}", protocol.name()));
                notes.add(proc_net::LOST.to_owned());
            }
        }
    }
    *lists_bound_sockets &= protocol != Protocol::Tcp;
    let listing = proc_net::list(protocol, family, |row| rows.push(*row))?;
    notes.add_count(listing.refused, "lines of /proc/net could not be understood");
    Ok(())
}

/// Looks for the owners of these sockets, as [`Baseline::take`] does for all.
pub fn add_owners<'a>(sockets: impl Iterator<Item = &'a mut OpenSocket>, among: &Among) -> Result<()> {
    let sockets: Vec<_> = sockets.collect();
    let inodes: HashSet<u64> = sockets.iter().filter_map(|socket| socket.inode).collect();
    let scan = socket_owners(&inodes, among, Instant::now() + OWNERS_TIME_MAX)?;
    let mut ns_tgids = HashMap::new();
    for socket in sockets {
        let Some(holder) = socket.inode.and_then(|inode| scan.holders.get(&inode)) else { continue };
        let uid = socket.uid.unwrap_or(0);
        socket.owner = Some(owner(uid, socket.cgroup_id, holder, &mut ns_tgids));
        socket.holders = holder.holders;
    }
    Ok(())
}

/// Owners by inode of the socket.
struct Owners {
    holders: HashMap<u64, Holder>,
    /// Number of a process in its own PID namespace, by its number here.
    ns_tgids: HashMap<u32, Option<u32>>,
}

fn find_owners(rows: &[(u32, Vec<SocketRow>)], among: &Among, notes: &mut Notes) -> Result<Owners> {
    let inodes: HashSet<u64> =
        rows.iter().flat_map(|(_, rows)| rows).map(|row| row.inode).filter(|&inode| inode != 0).collect();
    let scan = socket_owners(&inodes, among, Instant::now() + OWNERS_TIME_MAX)?;
    if scan.is_cut {
        let seconds = OWNERS_TIME_MAX.as_secs();
        notes.add(format!("the search for owners of open sockets ended after {seconds} s: some have none"));
    }
    notes.add_count(scan.unreadable, "of the processes hide their open files: their sockets have no owner");
    Ok(Owners { holders: scan.holders, ns_tgids: HashMap::new() })
}

fn describe(row: &SocketRow, netns: u32, listeners: &Listeners, owners: &mut Owners) -> OpenSocket {
    let is_time_wait = row.state == State::TimeWait;
    let holder = owners.holders.get(&row.inode).copied();
    OpenSocket {
        endpoints: row.endpoints(netns),
        direction: listeners.direction(row),
        state: row.state,
        state_name: row.state_name(),
        inode: (row.inode != 0).then_some(row.inode),
        cookie: row.cookie,
        cgroup_id: row.cgroup_id,
        uid: (!is_time_wait).then_some(row.uid),
        time_wait_left_ms: is_time_wait.then_some(row.expires_ms),
        owner: holder.map(|holder| owner(row.uid, row.cgroup_id, &holder, &mut owners.ns_tgids)),
        holders: holder.map_or(0, |holder| holder.holders),
    }
}

fn owner(
    uid: u32,
    cgroup_id: Option<u64>,
    holder: &Holder,
    ns_tgids: &mut HashMap<u32, Option<u32>>,
) -> Owner {
    Owner {
        tgid: Some(holder.pid),
        tid: None,
        ppid: (holder.stat.ppid != 0).then_some(holder.stat.ppid),
        // Of the one who made the socket, as an owner's is.
        uid,
        ns_tgid: *ns_tgids.entry(holder.pid).or_insert_with(|| ns_tgid(holder.pid)),
        start_boot_ns: holder.stat.start_boot_ns(),
        cgroup_id: cgroup_id.unwrap_or(0),
        comm: holder.stat.comm,
        is_kernel: holder.stat.is_kernel,
    }
}

/// The process's number in its own PID namespace, when that differs.
fn ns_tgid(pid: u32) -> Option<u32> {
    let status = ProcessDir::open(pid).ok()?.read("status", 4096).ok()?;
    parse_ns_tgid(&String::from_utf8_lossy(&status)).filter(|&own| own != pid)
}

/// `NSpid:  4711  12  1`: from the reader's namespace to the process's own.
fn parse_ns_tgid(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().last()?.parse().ok()
}

/// The listening sockets of one namespace.
struct Listeners {
    by_port: HashMap<(Protocol, u16), Vec<(Ipv6Addr, TakesIpv4)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakesIpv4 {
    Yes,
    No,
}

impl Listeners {
    fn among(rows: &[SocketRow]) -> Listeners {
        let mut by_port: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows.iter().filter(|row| row.state == State::Listen) {
            let takes_ipv4 = match row.is_v6_only {
                Some(true) => TakesIpv4::No,
                // Where it is not shown, as it usually is.
                Some(false) | None => TakesIpv4::Yes,
            };
            by_port.entry((row.protocol, row.local_port)).or_default().push((row.local, takes_ipv4));
        }
        Listeners { by_port }
    }

    fn direction(&self, row: &SocketRow) -> Direction {
        let is_in = match row.state {
            State::Listen | State::NewSynReceived => true,
            State::SynSent => false,
            _ => self
                .by_port
                .get(&(row.protocol, row.local_port))
                .is_some_and(|listeners| listeners.iter().any(|listener| covers(listener, row.local))),
        };
        if is_in { Direction::In } else { Direction::Out }
    }
}

/// Whether a listener on one address takes connections to another one.
fn covers(&(listener, takes_ipv4): &(Ipv6Addr, TakesIpv4), local: Ipv6Addr) -> bool {
    let is_ipv4 = local.to_ipv4_mapped().is_some();
    listener == local
        || (listener == Ipv4Addr::UNSPECIFIED.to_ipv6_mapped() && is_ipv4)
        || (listener.is_unspecified() && (!is_ipv4 || takes_ipv4 == TakesIpv4::Yes))
}

/// What is not known, each said once however many namespaces say it.
#[derive(Debug, Default)]
struct Notes {
    sentences: Vec<String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Notes {
    fn add(&mut self, sentence: String) {
        if !self.sentences.contains(&sentence) {
            self.sentences.push(sentence);
        }
    }

    fn add_count(&mut self, count: usize, of: &'static str) {
        if count > 0 {
            *self.counts.entry(of).or_default() += count;
        }
    }

    fn merge(&mut self, other: Notes) {
        other.sentences.into_iter().for_each(|sentence| self.add(sentence));
        other.counts.into_iter().for_each(|(of, count)| self.add_count(count, of));
    }

    fn into_sentences(self) -> Vec<String> {
        let counts = self.counts.into_iter().map(|(of, count)| format!("{count} {of}"));
        self.sentences.into_iter().chain(counts).collect()
    }
}

fn mono_ns() -> Result<u64> {
    let now = ClockId::CLOCK_MONOTONIC.now().context("cannot read the monotonic clock")?;
    let seconds = u64::try_from(now.tv_sec()).context("the monotonic clock is negative")?;
    Ok(seconds * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
#[path = "baseline_tests.rs"]
mod tests;
