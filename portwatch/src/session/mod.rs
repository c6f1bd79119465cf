//! One run of a tracing command: from what was asked for to a closed log.
//!
//! Four threads and no more: the reader empties the ring, the [`learner`] teaches the kernel side to walk stacks, the
//! [`pipeline`] turns records into lines, and the calling one waits for whatever ends the run.

mod audit;
pub(crate) mod baseline;
mod control;
mod follow;
mod learner;
mod listings;
mod pipeline;
mod self_test;

pub use follow::must_exist;

use std::collections::{BTreeMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use portwatch_common::wire::{EVENT_KINDS, EVENT_NAMES};

use crate::bpf::{self, KernelFilters, Plan, Protocols, Queue, Rung, Sizes, StackWalk, Tracing};
use crate::cli::failure::{self, Failure};
use crate::kernel::{clock, host, offsets, tracefs};
use crate::output::{Header, Output};
use crate::stack::walks::Walks;

/// What a tracing command does, checked.
#[derive(Debug)]
pub struct Request {
    pub rung: Option<Rung>,
    pub filters: KernelFilters,
    pub protocols: Protocols,
    /// Bit per [`portwatch_common::wire::kind`].
    pub kinds: u32,
    pub accepted: bool,
    pub stacks: bool,
    /// Kernel frames, too.
    pub kernel_stacks: bool,
    /// Only this way of walking them, or the best that works.
    pub stack_walk: Option<StackWalk>,
    pub library_patterns: Vec<String>,
    pub cmdline: bool,
    pub sizes: Sizes,
    pub duration: Option<Duration>,
    pub count: Option<u64>,
    pub verbose: bool,
    /// A command to run and to trace with its children.
    pub command: Vec<String>,
    /// Standard output carries the log: the command's own goes to standard error.
    pub is_stdout_taken: bool,
    /// The filters as typed, for the log's header.
    pub typed: BTreeMap<String, serde_json::Value>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Of the command that was run.
    pub command: Option<ExitStatus>,
}

impl Outcome {
    /// The exit code: the command's own, 128 + N for a signal.
    pub fn code(&self) -> u8 {
        match self.command {
            None => 0,
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => u8::try_from(code).unwrap_or(1),
                (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
                (None, None) => 1,
            },
        }
    }
}

/// Everything that several threads of a run touch.
struct Shared {
    tracing: Mutex<Tracing>,
    /// What the pipeline is to read.
    queue: Arc<Queue>,
    /// Sockets that were open before the start, until the pipeline takes them.
    baseline: Mutex<Option<baseline::List>>,
    /// The latest listing of sockets, until the pipeline takes it.
    listing: Mutex<Option<listings::Listing>>,
    /// UDP ports that hooks have told of: (network namespace, port).
    udp_ports: Mutex<HashSet<(u32, u16)>>,
    /// Events that the pipeline has received.
    received: AtomicU64,
}

impl Shared {
    fn set_baseline(&self, list: baseline::List) {
        *self.baseline.lock().unwrap_or_else(PoisonError::into_inner) = Some(list);
    }

    /// The list of sockets open before the start, if it is there and not newer than `mono_ns`.
    fn take_baseline(&self, mono_ns: u64) -> Option<baseline::List> {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner).take_if(|list| list.mono_ns <= mono_ns)
    }

    fn set_listing(&self, listing: listings::Listing) {
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(listing);
    }

    /// Whether the pipeline has still to look at a listing of sockets.
    fn has_listing(&self) -> bool {
        self.listing.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The latest listing of sockets, if it is there and not newer than `mono_ns`.
    fn take_listing(&self, mono_ns: u64) -> Option<listings::Listing> {
        self.listing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|listing| listing.ended_ns <= mono_ns)
    }

    /// UDP ports that are known to be held.
    fn udp_ports(&self) -> std::sync::MutexGuard<'_, HashSet<(u32, u16)>> {
        self.udp_ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything that the kernel side has sent until now is received.
    fn is_caught_up(&self) -> Result<bool> {
        Ok(self.received.load(Ordering::Acquire) >= self.tracing().totals()?.sent())
    }

    /// Waits until everything that the kernel side counted as sent has been received. The programs are detached:
    /// what still runs on another CPU is over in microseconds, and the deadline is for a reader that cannot go on.
    fn settle(&self) -> Result<()> {
        const DEADLINE: Duration = Duration::from_secs(10);
        let started = Instant::now();
        while !self.is_caught_up()? && started.elapsed() < DEADLINE && !self.queue.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn tracing(&self) -> std::sync::MutexGuard<'_, Tracing> {
        self.tracing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Traces until something ends it. `output` is made once tracing works, so a failed start leaves nothing behind.
///
/// # Errors
/// With an exit code, see [`crate::cli::failure`].
pub fn run(mut request: Request, output: impl FnOnce() -> Result<Box<dyn Output>>) -> Result<Outcome> {
    let mut control = control::Control::new()?;
    for &pid in &request.filters.pids {
        follow::must_exist(pid)?;
    }
    if let Some(program) = request.command.first() {
        control::must_be_runnable(program)?;
        // Children join at their birth, so the command is selected before it can do anything.
        request.filters.parents.push(std::process::id());
    }
    let (tracing, reader) = load(&request)?;
    let shared = Arc::new(Shared {
        tracing: Mutex::new(tracing),
        queue: Arc::new(Queue::default()),
        baseline: Mutex::default(),
        listing: Mutex::default(),
        udp_ports: Mutex::default(),
        received: AtomicU64::new(0),
    });
    let result = trace(&request, &shared, reader, &mut control, output);
    shared.queue.finish();
    let detached = shared.tracing().detach();
    result.and_then(|outcome| detached.map(|()| outcome))
}

fn trace(
    request: &Request,
    shared: &Arc<Shared>,
    reader: bpf::Reader,
    control: &mut control::Control,
    output: impl FnOnce() -> Result<Box<dyn Output>>,
) -> Result<Outcome> {
    if request.filters.follow {
        follow::select_descendants(&mut shared.tracing(), &request.filters.pids)?;
    }
    let anchor = clock::Anchor::now()?;
    let rung = shared.tracing().rung;
    for disabled in &shared.tracing().disabled {
        eprintln!(
            "portwatch: note: {} is not hooked ({}): {}",
            disabled.hook, disabled.reason, disabled.effect
        );
    }
    let logger = if request.verbose { Some(control::KernelLog::start(shared)?) } else { None };

    let mut output = output()?;
    output.header(&header(request, rung, &anchor)?)?;
    let walks = request.stacks.then(|| Walks::new(true));
    if let Some(note) = walks.as_ref().and_then(Walks::note) {
        eprintln!("portwatch: note: {note}");
    }
    let (ring, learner) = match &walks {
        None => (Arc::clone(&shared.queue), None),
        Some(walks) => {
            let ring = Arc::new(Queue::default());
            let learner = learner::start(shared, Arc::clone(&ring), walks.clone())?;
            (ring, Some(learner))
        }
    };
    let reader = reader.start(Arc::clone(&ring))?;
    for note in self_test::run(&shared.tracing(), rung, request.protocols) {
        eprintln!("portwatch: note: {note}");
    }
    let pipeline = pipeline::start(request, Arc::clone(shared), walks, output, anchor)?;
    let walk = shared.tracing().stack_walk;
    eprintln!("portwatch: tracing rung={rung} stacks={} walk={walk}", stack_method(request));

    let baseline = baseline::start(request, shared)?;
    // Where no hook sees UDP sockets end.
    let has_listings = rung == Rung::Tracepoint && request.protocols.udp;
    let lister = if has_listings { Some(listings::start(request, shared)?) } else { None };

    let ended = control.wait(request, shared, &pipeline);

    drop(lister);
    if let Some(baseline) = baseline {
        // Bounded in time by itself. A panic in it was printed.
        let _ = baseline.join();
    }
    shared.tracing().detach()?;
    shared.settle()?;
    pipeline.set_end(ended.as_ref().map_or("exit", |ended| ended.by));
    ring.stop();
    drop(logger);
    let reading = reader.join().map_err(|_| anyhow::anyhow!("the reader thread panicked"))?;
    let learning = learner.map_or(Ok(Ok(())), JoinHandle::join);
    let learning = learning.map_err(|_| anyhow::anyhow!("the learner thread panicked"))?;
    let writing = pipeline.finish()?;
    reading?;
    learning?;
    match writing {
        Ok(()) => {}
        // Whoever read our output has seen enough.
        Err(error) if failure::is_closed_pipe(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(Outcome { command: ended?.command })
}

/// Loads the programs, in a place where tracefs is mounted if there can be one.
fn load(request: &Request) -> Result<(Tracing, bpf::Reader)> {
    let resolved = offsets::of_running_kernel().map_err(Failure::unable)?;
    let plan = Plan {
        rung: request.rung,
        offsets: resolved.offsets,
        missing: &resolved.missing,
        filters: &request.filters,
        protocols: request.protocols,
        sizes: request.sizes,
        kinds: request.kinds,
        accepted: request.accepted,
        stacks: request.stacks,
        kernel_stacks: request.kernel_stacks,
        stack_walk: request.stack_walk,
        verbose: request.verbose,
        pid_namespace: host::pid_namespace()?,
    };
    let loaded = tracefs::with(|_| Ok(bpf::load(&plan)));
    let loaded = match loaded {
        Ok(loaded) => loaded,
        // Without tracefs the other rungs may still do.
        Err(_) => bpf::load(&plan),
    };
    loaded.map_err(|error| Failure::unable(anyhow::Error::from(error)))
}

fn header(request: &Request, rung: Rung, anchor: &clock::Anchor) -> Result<Header> {
    let names = host::names()?;
    Ok(Header {
        host: names.host,
        kernel: names.kernel,
        arch: std::env::consts::ARCH,
        rung: rung.name(),
        started_wall_ns: anchor.wall_ns(anchor.mono_ns),
        mono_ns: anchor.mono_ns,
        command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        filters: request.typed.clone(),
        coverage: coverage(rung),
        stack_method: stack_method(request),
    })
}

fn stack_method(request: &Request) -> &'static str {
    if request.stacks { "unwind" } else { "none" }
}

/// What a rung sees of each event type.
pub fn coverage(rung: Rung) -> BTreeMap<&'static str, &'static str> {
    (0..EVENT_KINDS)
        .map(|kind| {
            let how = match (rung, EVENT_NAMES[kind]) {
                (Rung::Tracepoint, "time_wait" | "port_released") => "inferred",
                _ => "exact",
            };
            (EVENT_NAMES[kind], how)
        })
        .collect()
}
