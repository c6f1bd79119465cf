//! Listings of sockets at intervals, for what no hook tells of: how UDP sockets end on the tracepoint rung, and those
//! that their first datagram bound.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::baseline::{listed, wants};
use super::{Request, Shared};
use crate::aggregate::sightings::{Identity, Sighting};
use crate::bpf::KernelFilters;
use crate::event::{Confidence, Direction, Endpoints, Hold, How, Protocol, SocketId, StackState};
use crate::kernel::baseline::{Baseline, OpenSocket, Selection, add_owners};
use crate::kernel::clock;
use crate::kernel::socket_owners::Among;

/// From one listing to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// A listing that takes long is taken less often: at most a twentieth of a processor is spent on them.
const SHARE: u32 = 20;

/// But not more seldom: on a busy machine a listing waits more than it works.
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// Everything that was open at one moment.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Begun at, `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// Over at.
    pub ended_ns: u64,
    /// What could be looked at, by inode.
    pub namespaces: HashSet<u32>,
    pub sightings: Vec<Sighting>,
    /// In the order of `sightings`.
    pub sockets: Vec<OpenSocket>,
    /// The wanted ones of those that were first seen in this listing, by place; their owners were looked for.
    pub wanted: HashSet<usize>,
}

/// The thread that lists. It ends when this is dropped.
pub struct Lister {
    /// Nothing is ever sent: the thread ends when this is gone.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Lister {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

/// Takes the first listing, before a command starts, and the others in a thread of its own.
pub fn start(request: &Request, shared: &Arc<Shared>) -> Result<Lister> {
    let mut worker = Worker {
        filters: request.filters.clone(),
        selection: Selection {
            namespaces: None,
            protocols: vec![Protocol::Udp],
            owners: Among::Only(Vec::new()),
        },
        seen: None,
        shared: Arc::clone(shared),
    };
    let (stop, stopped) = mpsc::channel();
    let begun = Instant::now();
    worker.list()?;
    let took = begun.elapsed();
    let thread = thread::Builder::new()
        .name("listings".to_owned())
        .spawn(move || worker.run(&stopped, took))
        .context("cannot start the thread that lists sockets")?;
    Ok(Lister { stop: Some(stop), thread: Some(thread) })
}

struct Worker {
    filters: KernelFilters,
    selection: Selection,
    /// Identities in the last listing.
    seen: Option<HashSet<Identity>>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self, stopped: &Receiver<()>, mut took: Duration) {
        let mut has_failed = false;
        while stopped.recv_timeout((took * SHARE).clamp(INTERVAL, INTERVAL_MAX))
            == Err(RecvTimeoutError::Timeout)
        {
            let begun = Instant::now();
            if let Err(error) = self.list()
                && !std::mem::replace(&mut has_failed, true)
            {
                eprintln!("portwatch: note: the ends of UDP ports are not seen: {error:#}");
            }
            took = begun.elapsed();
        }
    }

    fn list(&mut self) -> Result<()> {
        // What is new is told from the listing before, so each of them has to be looked at.
        if self.shared.has_listing() {
            return Ok(());
        }
        let begun_ns = clock::mono_now_ns()?;
        if !self.filters.netns.is_empty() {
            self.selection.namespaces = Some(listed(|seen| self.filters.netns.contains(&seen.inode))?);
        }
        let baseline = Baseline::take(&self.selection)?;
        let ended_ns = clock::mono_now_ns()?;
        let mut sockets: Vec<_> =
            baseline.sockets.into_iter().filter(|socket| socket.endpoints.local_port.is_some()).collect();
        let sightings: Vec<_> = sockets.iter().map(sighting).collect();
        let fresh: HashSet<usize> = (0..sightings.len())
            .filter(|&at| self.seen.as_ref().is_some_and(|seen| !seen.contains(&sightings[at].identity)))
            .filter(|&at| !is_told(&self.shared, &sightings[at].endpoints))
            .collect();
        let mut wanted = HashSet::new();
        if !fresh.is_empty() {
            let pids =
                if self.filters.selects_processes() { Some(self.shared.tracing().selected()?) } else { None };
            let among = pids.clone().map_or(Among::All, Among::Only);
            let owned = sockets.iter_mut().enumerate().filter(|(at, _)| fresh.contains(at));
            add_owners(owned.map(|(_, socket)| socket), &among)?;
            wanted
                .extend(fresh.into_iter().filter(|&at| wants(&self.filters, pids.as_deref(), &sockets[at])));
        }
        self.seen = Some(sightings.iter().map(|sighting| sighting.identity).collect());
        let namespaces = baseline.namespaces.iter().map(|namespace| namespace.inode).collect();
        self.shared.set_listing(Listing { begun_ns, ended_ns, namespaces, sightings, sockets, wanted });
        Ok(())
    }
}

/// Whether a hold of this port is known already: then nobody's descriptors need to be searched.
fn is_told(shared: &Shared, endpoints: &Endpoints) -> bool {
    endpoints.local_port.is_some_and(|port| shared.udp_ports().contains(&(endpoints.netns, port)))
}

fn sighting(socket: &OpenSocket) -> Sighting {
    // Without a cookie the number of its file serves; a cookie is far smaller than what both might share.
    let number = socket.cookie.or(socket.inode).unwrap_or(0);
    Sighting { identity: Identity { netns: socket.endpoints.netns, number }, endpoints: socket.endpoints }
}

/// The hold of a socket that has appeared since the listing before, which was begun at `since_ns`. What binds a socket
/// unseen is its first datagram.
pub fn found(open: &mut OpenSocket, id: u64, since_ns: u64) -> Hold {
    Hold {
        socket: SocketId(id),
        owner: open.owner.take(),
        endpoints: open.endpoints,
        how: How::Autobind,
        direction: Direction::Out,
        confidence: Confidence::Inferred,
        begun_mono_ns: since_ns,
        search_ns: None,
        stack: None,
        stack_state: StackState::Unasked,
        is_late: true,
    }
}
