//! From batches of records to lines of output, in one thread.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portwatch_common::counters::MISS_NAMES;
use portwatch_common::limits::STACK_FRAMES_MAX;
use portwatch_common::wire::{EVENT_NAMES, kind, stack_id_mix, stack_id_seed};
use tokio::sync::Notify;

use super::audit::{self, Verdict};
use super::listings::{self, Listing};
use super::{Request, Shared};
use crate::aggregate::holds::{Holds, Joined};
use crate::aggregate::recent::Recent;
use crate::aggregate::sightings::{Alive, Sightings};
use crate::bpf::{NotRun, Received, Rung, Totals};
use crate::event::decode::{Body, DecodeError, Record, records};
use crate::event::{
    Confidence, Event, Hold, Protocol, RawPythonStack, RawSnapshot, RawStack, StackGap, StackId, StackState,
    Tuple, What,
};
use crate::kernel::ancestry::{Ancestry, Followed};
use crate::kernel::cgroups::Cgroups;
use crate::kernel::clock::{self, Anchor};
use crate::kernel::netns::{self, Namespace};
use crate::kernel::process_tree;
use crate::kernel::processes::{Cmdline, Processes};
use crate::output::{Netns, Output, Process, StackAudit, StackShares, Summary};
use crate::stack::kernel_symbols::KernelSymbols;
use crate::stack::unwind::{Outcome, Why};
use crate::stack::walks::Walks;
use crate::stack::{Snapshot, Stacks};

/// How often output is flushed while nothing comes.
const TICK: Duration = Duration::from_millis(50);

/// Output is flushed at least this often while a lot comes.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// Records are in the order of their places in the ring; their times may be out of order by less than this.
const ORDER_WINDOW_NS: u64 = 10_000_000;

/// A snapshot's hold comes right behind it, and again only if the ring was full.
const SNAPSHOTS_REMEMBERED: usize = 65_536;

/// Stacks that can be named anew when code of their process is replaced.
const RECENT_STACKS: usize = 4096;

/// Ids of holds that listings brought to light: above those that were open before the start, and below the kernel
/// side's, which are times since boot.
const FOUND_FIRST: u64 = 1 << 32;

/// The running pipeline.
pub struct Pipeline {
    thread: JoinHandle<Result<()>>,
    end: Arc<End>,
}

/// Why the pipeline wants the run to end, and, the other way, why the run ended.
#[derive(Default)]
struct End {
    wanted: Mutex<Option<&'static str>>,
    changed: Notify,
    by: Mutex<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipeline {
    /// Waits until the pipeline itself wants the run to end: enough lines, or nobody reads them any more.
    pub async fn ended(&self) -> &'static str {
        loop {
            let changed = self.end.changed.notified();
            if let Some(by) = *lock(&self.end.wanted) {
                return by;
            }
            changed.await;
        }
    }

    /// Says why the run ends. Before the queue is stopped: the last line says it.
    pub fn set_end(&self, by: &'static str) {
        *lock(&self.end.by) = by;
    }

    /// Waits for the last line. The reader must have ended. The inner result is the output's.
    pub fn finish(self) -> Result<Result<()>> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the output thread panicked"))
    }
}

/// Starts the thread. Stacks are named if there are `walks`.
pub fn start(
    request: &Request,
    shared: Arc<Shared>,
    walks: Option<Walks>,
    output: Box<dyn Output>,
    anchor: Anchor,
) -> Result<Pipeline> {
    let end = Arc::new(End::default());
    let mut worker = Worker {
        shared,
        output,
        end: Arc::clone(&end),
        count: request.count,
        started_mono_ns: anchor.mono_ns,
        holds: Holds::default(),
        sightings: Sightings::default(),
        found: 0,
        listed_ns: anchor.mono_ns,
        kinds: request.kinds,
        opened: request.command.is_empty().then(HashSet::new),
        processes: Processes::new(
            if request.cmdline { Cmdline::Read } else { Cmdline::Skip },
            Cgroups::find().ok(),
        ),
        ancestry: Ancestry::default(),
        netns_seen: HashSet::new(),
        call_sites: HashMap::new(),
        recent: Recent::new(RECENT_STACKS),
        library_patterns: request.library_patterns.clone(),
        snapshots: HashMap::new(),
        python: None,
        is_verbose: request.verbose,
        kernel_symbols: request.kernel_stacks.then(kernel_symbols).flatten(),
        written: BTreeMap::new(),
        inferred: BTreeMap::new(),
        skipped: 0,
        unowned: BTreeMap::new(),
        shares: StackShares::default(),
        is_full: false,
    };
    let thread = thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            let result = worker.run(walks);
            if result.is_err() {
                // Nobody must wait for room in a queue that nobody empties.
                worker.shared.queue.finish();
                worker.want_end("exit");
            }
            result
        })
        .context("cannot start the output thread")?;
    Ok(Pipeline { thread, end })
}

/// What events say of a stack that the log has.
struct Named {
    call_site: Option<String>,
    /// It ends early, see [`StackGap::Replaced`].
    is_cut: bool,
}

/// A stack as it came, and when: it may have to be named anew.
struct Taken {
    user: RawStack,
    kernel: Vec<u64>,
    python: Option<RawPythonStack>,
    mono_ns: u64,
}

struct Worker {
    shared: Arc<Shared>,
    output: Box<dyn Output>,
    end: Arc<End>,
    /// Lines of events wanted at most.
    count: Option<u64>,
    started_mono_ns: u64,
    holds: Holds,
    sightings: Sightings,
    /// Holds that listings brought to light.
    found: u64,
    /// When the listing before was begun.
    listed_ns: u64,
    /// Bit per kind: what is wanted of what is deduced here.
    kinds: u32,
    /// The ends of what was opened since the start, told or not, until the list of what was open before is there:
    /// that may hold some of it, too.
    opened: Option<HashSet<Tuple>>,
    processes: Processes,
    ancestry: Ancestry,
    netns_seen: HashSet<u32>,
    /// Of the stacks that the log has.
    call_sites: HashMap<StackId, Named>,
    recent: Recent<StackId, Taken>,
    library_patterns: Vec<String>,
    /// What the kernel side called a stack before it was known → the stack, and how well it is known.
    snapshots: HashMap<StackId, (StackId, StackState)>,
    /// The Python frames of the stack that comes next.
    python: Option<RawPythonStack>,
    is_verbose: bool,
    /// Where kernel frames are wanted and may be named.
    kernel_symbols: Option<KernelSymbols>,
    /// Lines written, by type: those the kernel side saw.
    written: BTreeMap<&'static str, u64>,
    /// Lines written, by type: those that were deduced.
    inferred: BTreeMap<&'static str, u64>,
    /// Records of unknown kinds.
    skipped: u64,
    /// Events of holds that are not known, by type: counted as lost.
    unowned: BTreeMap<&'static str, u64>,
    shares: StackShares,
    /// `count` is reached: what still comes is counted and not written.
    is_full: bool,
}

/// Whether a listing says anything of a hold: its namespace was looked at, or its process is gone with it.
fn is_judged(hold: &Hold, listing: &Listing) -> bool {
    let pid = hold.owner.as_ref().and_then(|owner| owner.tgid);
    listing.namespaces.contains(&hold.endpoints.netns) || !pid.is_some_and(process_tree::exists)
}

fn alive(hold: &Arc<Hold>) -> Alive {
    Alive { socket: hold.socket, endpoints: hold.endpoints, begun_mono_ns: hold.begun_mono_ns }
}

impl Worker {
    fn run(&mut self, walks: Option<Walks>) -> Result<()> {
        let mut stacks = walks.map(|walks| Stacks::with(walks, self.library_patterns.clone()));
        self.netns(std::process::id(), self.started_mono_ns)?;
        let mut flushed_at = Instant::now();
        loop {
            // Asked before the queue is: what was put there until then is dealt with once the queue is empty.
            let drained_ns = self.shared.queue.drained_ns();
            match self.shared.queue.pop(TICK) {
                Received::Batch(batch) => {
                    self.batch(&batch, &mut stacks)?;
                    if flushed_at.elapsed() >= FLUSH_INTERVAL {
                        self.output.flush()?;
                        flushed_at = Instant::now();
                    }
                }
                Received::Nothing => {
                    let settled_ns = drained_ns.saturating_sub(ORDER_WINDOW_NS);
                    self.baseline(settled_ns)?;
                    self.listing(settled_ns)?;
                    let now_ns = clock::mono_now_ns()?;
                    self.expire(now_ns)?;
                    if let Some(stacks) = &stacks {
                        stacks.expire(now_ns);
                    }
                    self.output.flush()?;
                    flushed_at = Instant::now();
                }
                Received::Finished => break,
            }
        }
        // Usually it was the end that closed the queue; if not, the other threads have their reasons.
        self.want_end("exit");
        self.summary()
    }

    fn want_end(&self, by: &'static str) {
        lock(&self.end.wanted).get_or_insert(by);
        self.end.changed.notify_one();
    }

    fn batch(&mut self, batch: &[u8], stacks: &mut Option<Stacks>) -> Result<()> {
        let mut mono_ns = 0;
        for record in records(batch) {
            match record {
                Ok(record) => {
                    mono_ns = record.mono_ns;
                    self.record(record, stacks)?;
                }
                Err(DecodeError::Kind(_)) => self.skipped += 1,
                Err(error) => return Err(error).context("cannot read what the kernel side sent"),
            }
        }
        if let Some(stacks) = stacks {
            stacks.expire(mono_ns);
        }
        Ok(())
    }

    fn record(&mut self, mut record: Record, stacks: &mut Option<Stacks>) -> Result<()> {
        let settled_ns = record.mono_ns.saturating_sub(ORDER_WINDOW_NS);
        self.baseline(settled_ns)?;
        self.listing(settled_ns)?;
        self.expire(record.mono_ns)?;
        match (&mut record.body, stacks.as_mut()) {
            (Body::PythonStack(_) | Body::PythonCode(_), Some(stacks)) => {
                match record.body {
                    Body::PythonStack(raw) => self.python = Some(raw),
                    Body::PythonCode(raw) => stacks.add_python_code(*raw),
                    _ => {}
                }
                return Ok(());
            }
            (Body::Stack { user, kernel }, Some(stacks)) => {
                let python = self.python.take().filter(|python| python.id == user.id);
                return self.stack(user, kernel, python, record.mono_ns, stacks);
            }
            (Body::Snapshot(raw), Some(stacks)) => return self.snapshot(raw, record.mono_ns, stacks),
            (Body::Audit(raw), Some(stacks)) => return self.audit(raw, record.mono_ns, stacks),
            (Body::Hold { hold, .. }, stacks) => {
                if let (Protocol::Udp, Some(port)) = (hold.endpoints.protocol, hold.endpoints.local_port) {
                    self.shared.udp_ports().insert((hold.endpoints.netns, port));
                }
                if let Some(&(id, state)) = hold.stack.and_then(|id| self.snapshots.get(&id)) {
                    (hold.stack, hold.stack_state) = (Some(id), state);
                }
                if let Some(opened) = &mut self.opened {
                    opened.insert(hold.endpoints.tuple());
                }
                if let (Some(id), Some(stacks)) = (hold.stack, stacks) {
                    let id = self.revised(id, hold.begun_mono_ns, stacks)?;
                    hold.stack = Some(id);
                    if self.call_sites.get(&id).is_some_and(|named| named.is_cut) {
                        hold.stack_state = StackState::Part(StackGap::Replaced);
                    }
                }
            }
            _ => {}
        }
        if let Some((event, hold)) = self.holds.reused(&record) {
            self.event(&event, &hold, stacks.as_ref())?;
        }
        match self.holds.join(record) {
            Joined::Event(event, hold) => {
                self.shared.received.fetch_add(1, Ordering::Release);
                self.event(&event, &hold, stacks.as_ref())
            }
            Joined::Nothing => Ok(()),
            Joined::Orphan(name) => {
                self.shared.received.fetch_add(1, Ordering::Release);
                *self.unowned.entry(name).or_default() += 1;
                Ok(())
            }
        }
    }

    fn expire(&mut self, mono_ns: u64) -> Result<()> {
        while let Some((event, hold)) = self.holds.expired(mono_ns) {
            self.event(&event, &hold, None)?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event, hold: &Arc<Hold>, stacks: Option<&Stacks>) -> Result<()> {
        if let Some(opened) = &mut self.opened {
            opened.insert(hold.endpoints.tuple());
        }
        if self.is_full {
            return Ok(());
        }
        let mut process = match &hold.owner {
            Some(owner) => self.processes.get(owner),
            None => Arc::new(Process::default()),
        };
        if let (None, Some(stacks), Some(owner)) = (&process.exe, stacks, &hold.owner) {
            // Too late for /proc; what ran there was followed.
            let tgid = owner.tgid.unwrap_or(0);
            if let Some(exe) = stacks.program(tgid, owner.start_boot_ns, hold.begun_mono_ns) {
                Arc::make_mut(&mut process).exe = Some(exe);
            }
        }
        if let Some(owner) = &hold.owner
            && !self.netns_seen.contains(&hold.endpoints.netns)
        {
            self.netns(owner.tgid.unwrap_or(0), event.mono_ns)?;
        }
        if let Some((tgid, ppid, owner)) = hold.owner.as_ref().and_then(|it| Some((it.tgid?, it.ppid?, it))) {
            let followed = |pid| Followed {
                ppid: stacks.and_then(|stacks| stacks.parent(pid)),
                exe: stacks.and_then(|stacks| stacks.program(pid, 0, event.mono_ns)),
            };
            let start = owner.start_boot_ns;
            for ancestor in self.ancestry.news((tgid, start), ppid, event.mono_ns, followed) {
                self.output.process(&ancestor)?;
            }
        }
        let call_site = hold.stack.and_then(|id| self.call_sites.get(&id)?.call_site.as_deref());
        self.output.event(event, hold, &process, call_site)?;
        let counts = match event.confidence {
            Confidence::Exact => &mut self.written,
            Confidence::Inferred | Confidence::Unknown => &mut self.inferred,
        };
        *counts.entry(event.what.name()).or_default() += 1;
        match hold.stack_state {
            StackState::Whole => self.shares.complete += 1,
            StackState::Part(_) => self.shares.partial += 1,
            StackState::Missing(_) | StackState::Unasked => self.shares.none += 1,
        }
        if let Some(gap) = hold.stack_state.gap() {
            *self.shares.gaps.entry(gap).or_default() += 1;
        }
        let lines: u64 = self.written.values().chain(self.inferred.values()).sum();
        if self.count.is_some_and(|count| lines >= count) {
            self.is_full = true;
            self.want_end("count");
        }
        Ok(())
    }

    /// Names a stack. The kernel side sends one again that it forgot it had sent.
    fn stack(
        &mut self,
        raw: &RawStack,
        kernel: &[u64],
        python: Option<RawPythonStack>,
        mono_ns: u64,
        stacks: &mut Stacks,
    ) -> Result<()> {
        if self.call_sites.contains_key(&raw.id) {
            return Ok(());
        }
        let mut resolved = stacks.resolve_merged(raw, python.as_ref(), raw.start_boot_ns, mono_ns);
        if let Some(symbols) = &mut self.kernel_symbols {
            resolved.stack.frames.splice(..0, symbols.frames(kernel));
        }
        self.output.stack(&resolved.stack)?;
        let named = Named { call_site: resolved.call_site, is_cut: resolved.is_cut };
        self.call_sites.insert(raw.id, named);
        self.recent.insert(raw.id, Taken { user: raw.clone(), kernel: kernel.to_vec(), python, mono_ns });
        Ok(())
    }

    /// The stack that the kernel side meant by `id` at `mono_ns`, see [`Stacks::revised`].
    fn revised(&mut self, id: StackId, mono_ns: u64, stacks: &mut Stacks) -> Result<StackId> {
        let Some(taken) = self.recent.get_mut(&id) else { return Ok(id) };
        let Some(revised) = stacks.revised(&taken.user, taken.mono_ns, mono_ns) else { return Ok(id) };
        let (kernel, python) = (taken.kernel.clone(), taken.python.clone());
        self.stack(&revised, &kernel, python, mono_ns, stacks)?;
        Ok(revised.id)
    }

    /// Walks a stack to its end, as the learner did before.
    fn snapshot(&mut self, raw: &RawSnapshot, mono_ns: u64, stacks: &mut Stacks) -> Result<()> {
        let unwound = stacks.unwind_snapshot(&Snapshot::new(raw, mono_ns));
        let seed = stack_id_seed(raw.start_boot_ns, raw.tgid, raw.generation);
        let id = raw
            .kernel
            .iter()
            .chain(unwound.addresses.iter().take(STACK_FRAMES_MAX))
            .fold(seed, |id, &address| stack_id_mix(id, address));
        let python = self.python.take().filter(|python| python.id == raw.id);
        let id = python.as_ref().map_or(id, |python| stack_id_mix(id, python.hash));
        let whole = RawStack {
            id: StackId(id.max(1)),
            tgid: raw.tgid,
            start_boot_ns: raw.start_boot_ns,
            addresses: unwound.addresses,
        };
        self.stack(&whole, &raw.kernel, python, mono_ns, stacks)?;
        if self.snapshots.len() >= SNAPSHOTS_REMEMBERED {
            self.snapshots.clear();
        }
        self.snapshots.insert(raw.id, (whole.id, state(&unwound.outcome)));
        Ok(())
    }

    /// Walks a stack again that the kernel side walked by the rows it was taught.
    fn audit(&mut self, raw: &RawSnapshot, mono_ns: u64, stacks: &mut Stacks) -> Result<()> {
        let unwound = stacks.unwind_snapshot(&Snapshot { prefix: &[], ..Snapshot::new(raw, mono_ns) });
        let counts = &mut self.shares.audit;
        match audit::judge(&raw.addresses, &unwound) {
            Verdict::Matched => counts.matched += 1,
            Verdict::MatchedInPart => counts.matched_in_part += 1,
            Verdict::Unknown => counts.unknown += 1,
            Verdict::Mismatched { .. } if stacks.is_being_replaced(raw.tgid, mono_ns) => counts.unknown += 1,
            Verdict::Mismatched { from } => {
                counts.mismatched += 1;
                if counts.mismatched == 1 || self.is_verbose {
                    eprintln!(
                        "portwatch: warning: the kernel side walked a stack of process {} wrongly from frame {from} on; \
                         it is taught that process's code anew",
                        raw.tgid
                    );
                }
                if self.is_verbose {
                    eprintln!(
                        "portwatch: it found {:x?}, the unwind tables say {:x?} ({:?})",
                        raw.addresses, unwound.addresses, unwound.outcome
                    );
                }
                self.shared.tracing().unlearn(raw.tgid)?;
            }
        }
        Ok(())
    }

    /// Lists the sockets that were open before the start, but for those that the hooks told of meanwhile.
    fn baseline(&mut self, mono_ns: u64) -> Result<()> {
        let Some(list) = self.shared.take_baseline(mono_ns) else { return Ok(()) };
        let is_deduced = self.shared.tracing().rung == Rung::Tracepoint;
        let known = self.opened.take().unwrap_or_default();
        for listed in list.sockets {
            let tuple = listed.hold.endpoints.tuple();
            // The hooks told of it, of the bind before its connect, or of the connect that it was accepted from.
            let is_known = known.contains(&tuple)
                || tuple.before_connect().iter().any(|bound| known.contains(bound))
                || tuple.peer().is_some_and(|peer| known.contains(&peer));
            if is_known {
                continue;
            }
            let process = match &listed.hold.owner {
                Some(owner) => self.processes.get(owner),
                None => Arc::new(Process::default()),
            };
            self.output.preexisting(list.mono_ns, &listed.hold, &process, listed.state)?;
            match listed.left_ns {
                Some(left_ns) if is_deduced => self.holds.insert_waiting(listed.hold, list.mono_ns, left_ns),
                _ if listed.cookie.is_some() => self.holds.insert(listed.hold),
                // Nothing more will be heard of it.
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells what a listing of sockets says beyond what the hooks told.
    fn listing(&mut self, mono_ns: u64) -> Result<()> {
        // Until then what was open before has no holds.
        if self.opened.is_some() {
            return Ok(());
        }
        let Some(mut listing) = self.shared.take_listing(mono_ns) else { return Ok(()) };
        let since_ns = std::mem::replace(&mut self.listed_ns, listing.begun_ns);
        let alive: Vec<Alive> =
            self.holds.udp().filter(|hold| is_judged(hold, &listing)).map(alive).collect();
        let changes = self.sightings.compare(&listing.sightings, listing.begun_ns, &alive);
        for (socket, identity) in changes.gone {
            if let Some(identity) = identity {
                self.shared.tracing().remove_preexisting(identity.number)?;
            }
            if let Some((event, hold)) = self.holds.end_unseen(socket, listing.ended_ns, identity.is_some()) {
                self.deduced(&event, &hold, kind::PORT_RELEASED)?;
            }
        }
        for at in changes.appeared {
            let identity = listing.sightings[at].identity;
            if !listing.wanted.contains(&at) {
                self.sightings.ignore(identity);
                continue;
            }
            self.found += 1;
            let open = &mut listing.sockets[at];
            let hold = Arc::new(listings::found(open, FOUND_FIRST + self.found, since_ns));
            if let Some(cookie) = open.cookie {
                // No room: a connect() will be told as an allocation.
                let _ = self.shared.tracing().add_preexisting(cookie, hold.socket.0);
            }
            self.sightings.pair(identity, hold.socket);
            self.holds.insert(Arc::clone(&hold));
            let event = Event {
                mono_ns: listing.ended_ns,
                socket: hold.socket,
                what: What::PortAllocated,
                confidence: Confidence::Inferred,
            };
            self.deduced(&event, &hold, kind::PORT_ALLOCATED)?;
        }
        let held = self.holds.udp().map(|hold| &hold.endpoints);
        *self.shared.udp_ports() = held.filter_map(|ends| Some((ends.netns, ends.local_port?))).collect();
        Ok(())
    }

    /// Tells what follows from a listing, where events of that kind are wanted.
    fn deduced(&mut self, event: &Event, hold: &Arc<Hold>, kind: u16) -> Result<()> {
        if self.kinds & (1 << kind) == 0 {
            return Ok(());
        }
        self.event(event, hold, None)
    }

    /// Describes the network namespace that a process is in, once.
    fn netns(&mut self, pid: u32, mono_ns: u64) -> Result<()> {
        // The process may be gone; then the next one in the same namespace serves.
        let Ok(namespace) = Namespace::of_process(pid) else { return Ok(()) };
        if !self.netns_seen.insert(namespace.inode()) {
            return Ok(());
        }
        match namespace.run(|| netns::settings(mono_ns)).and_then(|settings| settings) {
            Ok(settings) => self.output.netns(&settings),
            Err(_) => self.output.netns(&Netns { mono_ns, inode: namespace.inode(), ..Netns::default() }),
        }
    }

    /// The last line. By now the programs are detached and the ring is empty.
    fn summary(&mut self) -> Result<()> {
        let (totals, not_run) = self.final_totals()?;
        let by = *lock(&self.end.by);
        let mut summary = Summary {
            events: self.written.clone(),
            inferred: self.inferred.clone(),
            is_lower_bound: not_run.is_unknown,
            stacks: StackShares {
                walked: totals.stacks_walked,
                snapshots: totals.snapshots,
                rate_limited: totals.snapshots_limited,
                audit: StackAudit { missed: totals.audits_missed, ..self.shares.audit },
                ..self.shares.clone()
            },
            duration_ns: clock::mono_now_ns()?.saturating_sub(self.started_mono_ns),
            ended_by: if by.is_empty() { "exit" } else { by },
            ..Summary::default()
        };
        for (kind, name) in EVENT_NAMES.into_iter().enumerate() {
            let not_run = not_run.by_kind.get(&(kind as u16)).copied().unwrap_or(0);
            let total = totals.happened[kind] + not_run;
            if total == 0 {
                continue;
            }
            summary.kernel_totals.insert(name, total);
            let mut reasons: BTreeMap<&'static str, u64> =
                MISS_NAMES.into_iter().zip(totals.missed[kind]).filter(|(_, missed)| *missed > 0).collect();
            if not_run > 0 {
                reasons.insert("not_run", not_run);
            }
            if let Some(&unowned) = self.unowned.get(name) {
                reasons.insert("unowned", unowned);
            }
            if totals.missed[kind][portwatch_common::counters::miss::TABLE_FULL] > 0 {
                summary.is_lower_bound = true;
            }
            // Received and counted, but past the limit of lines.
            let written = self.written.get(name).copied().unwrap_or(0);
            let lost: u64 = reasons.values().sum();
            let filtered = total.saturating_sub(written + lost);
            if filtered > 0 {
                summary.filtered.insert(name, filtered);
            }
            if !reasons.is_empty() {
                summary.lost.insert(name, reasons);
            }
        }
        self.output.summary(&summary)?;
        self.output.flush()
    }

    fn final_totals(&self) -> Result<(Totals, NotRun)> {
        let tracing = self.shared.tracing();
        let totals = tracing.totals()?;
        let not_run = tracing.not_run(&totals);
        Ok((totals, not_run))
    }
}

/// Names of kernel functions, where this host tells them.
fn kernel_symbols() -> Option<KernelSymbols> {
    KernelSymbols::of_running_kernel()
        .inspect_err(|error| eprintln!("portwatch: note: stacks have no kernel frames: {error:#}"))
        .ok()
}

/// How well a stack is known that was walked from a copy.
fn state(outcome: &Outcome) -> StackState {
    StackState::Part(match outcome {
        Outcome::Complete => return StackState::Whole,
        Outcome::Truncated(Why::NotCaptured) => StackGap::NotCopied,
        Outcome::Truncated(Why::NotCode) => StackGap::NotCode,
        Outcome::Truncated(Why::NoProgress) => StackGap::NoProgress,
        Outcome::Truncated(Why::Unsupported) => StackGap::NoRule,
        Outcome::Truncated(Why::TooDeep) => StackGap::TooDeep,
        Outcome::Truncated(Why::Replaced) => StackGap::Replaced,
        Outcome::Truncated(Why::Unknown(_)) => StackGap::NoFile,
    })
}
