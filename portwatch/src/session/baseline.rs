//! Sockets that were open before the start: listed once, and known by id from then on.
//!
//! The hooks are attached first and the list is taken second, so nothing falls between; what the hooks have told of
//! already is left out of the list.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use super::{Request, Shared};
use crate::bpf::{KernelFilters, Protocols};
use crate::event::{Confidence, Direction, Hold, How, Protocol, SocketId, StackState};
use crate::kernel::baseline::{Baseline, OpenSocket, Selection};
use crate::kernel::clock;
use crate::kernel::netns::{self, Seen};
use crate::kernel::socket_owners::Among;
use crate::kernel::socket_row::State;

/// A socket of the list, with the id it goes by.
#[derive(Clone, Debug)]
pub struct Listed {
    pub hold: Arc<Hold>,
    pub state: &'static str,
    /// The kernel side knows it by this, and will tell what becomes of it.
    pub cookie: Option<u64>,
    /// For time-wait entries: what is left of their life.
    pub left_ns: Option<u64>,
}

/// The list, taken at `mono_ns`.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub mono_ns: u64,
    pub sockets: Vec<Listed>,
}

/// Takes the list in a thread of its own and hands it to the pipeline. Nothing for a command that is to be started:
/// its sockets are all new.
pub(super) fn start(request: &Request, shared: &Arc<Shared>) -> Result<Option<JoinHandle<()>>> {
    if !request.command.is_empty() {
        shared.tracing().end_listing()?;
        return Ok(None);
    }
    let (filters, accepted) = (request.filters.clone(), request.accepted);
    let protocols = protocols(request.protocols);
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new()
        .name("baseline".to_owned())
        .spawn(move || {
            let taken = take(&filters, protocols, accepted, &shared);
            let ended = shared.tracing().end_listing();
            if let Err(error) = taken.and(ended) {
                eprintln!("portwatch: note: sockets open before the start are not known: {error:#}");
                shared.set_baseline(List::default());
            }
        })
        .context("cannot start the thread that lists open sockets")?;
    Ok(Some(thread))
}

fn take(filters: &KernelFilters, protocols: Vec<Protocol>, accepted: bool, shared: &Shared) -> Result<()> {
    let pids = if filters.pids.is_empty() { None } else { Some(shared.tracing().selected()?) };
    let namespaces = match (&pids, filters.netns.as_slice()) {
        (None, []) => None,
        (_, inodes @ [_, ..]) => Some(listed(|seen| inodes.contains(&seen.inode))?),
        (Some(pids), []) => {
            let inodes: Vec<u32> = pids
                .iter()
                .filter_map(|&pid| netns::Namespace::of_process(pid).ok())
                .map(|namespace| namespace.inode())
                .collect();
            Some(listed(|seen| inodes.contains(&seen.inode))?)
        }
    };
    let owners = pids.clone().map_or(Among::All, |pids| Among::Only(pids.into_iter().collect()));
    let baseline = Baseline::take(&Selection { namespaces, protocols, owners })?;
    // Whatever was opened until now may be in it.
    let mut list = List { mono_ns: clock::mono_now_ns()?, sockets: Vec::new() };
    for open in baseline.sockets {
        // Accepted connections are told of on demand, and only then do the hooks know those that are new.
        let is_accepted = open.direction == Direction::In && open.endpoints.remote_port.is_some();
        // A connect under way may have begun after the hooks were attached and not be told of yet: its answer decides.
        let is_attempt = open.state == State::SynSent;
        if (accepted || !is_accepted) && !is_attempt && wants(filters, pids.as_deref(), &open) {
            let socket = SocketId(list.sockets.len() as u64 + 1);
            list.sockets.push(describe(open, socket, baseline.mono_ns));
        }
    }
    for note in &baseline.notes {
        eprintln!("portwatch: note: {note}");
    }
    let known: Vec<(u64, u64)> =
        list.sockets.iter().filter_map(|listed| Some((listed.cookie?, listed.hold.socket.0))).collect();
    let count = list.sockets.len();
    // The pipeline has the list before the kernel side can tell of any of it.
    shared.set_baseline(list);
    let mut tracing = shared.tracing();
    for (at, (cookie, socket)) in known.into_iter().enumerate() {
        if let Err(error) = tracing.add_preexisting(cookie, socket) {
            eprintln!(
                "portwatch: note: {error:#}: {} of {count} are not followed; `--max-sockets` makes more room",
                count - at
            );
            break;
        }
    }
    Ok(())
}

/// As a list.
pub fn protocols(wanted: Protocols) -> Vec<Protocol> {
    let all = [(wanted.tcp, Protocol::Tcp), (wanted.udp, Protocol::Udp)];
    all.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, protocol)| protocol).collect()
}

/// Those of the host's network namespaces that are wanted.
pub fn listed(is_wanted: impl Fn(&Seen) -> bool) -> Result<Vec<Seen>> {
    Ok(netns::list()?.namespaces.into_iter().filter(is_wanted).collect())
}

fn describe(open: OpenSocket, socket: SocketId, mono_ns: u64) -> Listed {
    Listed {
        hold: Arc::new(Hold {
            socket,
            confidence: if open.owner.is_some() { Confidence::Inferred } else { Confidence::Unknown },
            owner: open.owner,
            endpoints: open.endpoints,
            how: How::None,
            direction: open.direction,
            begun_mono_ns: mono_ns,
            search_ns: None,
            stack: None,
            stack_state: StackState::Unasked,
            is_late: false,
        }),
        state: open.state_name,
        cookie: open.cookie,
        left_ns: open.time_wait_left_ms.map(|ms| u64::from(ms) * 1_000_000),
    }
}

/// The filters of the kernel side, over what /proc says. What has no owner passes no filter that asks for one.
pub fn wants(filters: &KernelFilters, pids: Option<&[u32]>, open: &OpenSocket) -> bool {
    let owner = open.owner.as_ref();
    let tgid = owner.and_then(|owner| owner.tgid);
    let ends = &open.endpoints;
    if tgid == Some(std::process::id()) {
        return false;
    }
    if pids.is_some_and(|pids| !tgid.is_some_and(|tgid| pids.contains(&tgid))) {
        return false;
    }
    if filters.comm.as_ref().is_some_and(|comm| !owner.is_some_and(|owner| comm.matches(&owner.comm.0))) {
        return false;
    }
    if !filters.uids.is_empty() && !owner.is_some_and(|owner| filters.uids.contains(&owner.uid)) {
        return false;
    }
    // Only the exact cgroup can be told from here; the kernel side knows what is below it.
    if filters.cgroup.is_some_and(|(id, _)| open.cgroup_id != Some(id)) {
        return false;
    }
    if !filters.netns.is_empty() && !filters.netns.contains(&ends.netns) {
        return false;
    }
    let is_in = |ports: &crate::filters::ports::PortSet, port: Option<u16>| {
        port.is_some_and(|port| ports.contains(port))
    };
    if filters.ports_remote.as_ref().is_some_and(|ports| !is_in(ports, ends.remote_port))
        || filters.ports_local.as_ref().is_some_and(|ports| !is_in(ports, ends.local_port))
    {
        return false;
    }
    let within = |nets: &[ipnet::IpNet], ip: Option<std::net::IpAddr>| {
        nets.is_empty() || ip.is_some_and(|ip| nets.iter().any(|net| net.contains(&ip)))
    };
    if !within(&filters.addrs_remote, ends.remote_ip())
        || !within(&filters.addrs_local, Some(ends.local_ip()))
    {
        return false;
    }
    let ip = ends.remote_ip().unwrap_or(ends.local_ip());
    !(filters.ipv4_only && ip.is_ipv6() || filters.ipv6_only && ip.is_ipv4())
}
