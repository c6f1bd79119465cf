//! The kernel programs, loaded by the test itself, to see the very stacks that portwatch walks.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use portwatch::bpf::{self, KernelFilters, Plan, Protocols, Queue, Received, Rung, Sizes, Tracing};
use portwatch::event::RawSnapshot;
use portwatch::event::decode::snapshots;
use portwatch::kernel::{host, offsets, tracefs};
use portwatch::stack::Snapshot;
use portwatch::stack::unwind::Unwound;
use portwatch::stack::walks::Walks;

use crate::Stopped;

/// Stacks of everything that connects in the calling thread's network namespace.
pub struct Tap {
    tracing: Tracing,
    queue: Arc<Queue>,
    walks: Walks,
}

/// A stack as the kernel side sent it, and portwatch's walk over it.
pub struct Taken {
    pub raw: RawSnapshot,
    pub unwound: Unwound,
}

impl Tap {
    pub fn open(rung: &str) -> Result<Tap, Stopped> {
        let cannot = |error: anyhow::Error| Stopped::Skipped(format!("{error:#}"));
        let netns = std::fs::metadata("/proc/thread-self/ns/net").expect("a thread is in a namespace").ino();
        let filters = KernelFilters { netns: vec![netns as u32], ..KernelFilters::default() };
        let resolved = offsets::of_running_kernel().map_err(cannot)?;
        let plan = Plan {
            rung: Rung::ALL.into_iter().find(|known| known.name() == rung),
            offsets: resolved.offsets,
            missing: &resolved.missing,
            filters: &filters,
            sizes: Sizes::default(),
            kinds: u32::MAX,
            accepted: false,
            stacks: true,
            protocols: Protocols { tcp: true, udp: false },
            stack_walk: None,
            kernel_stacks: false,
            verbose: false,
            pid_namespace: host::pid_namespace().map_err(cannot)?,
        };
        let loaded = tracefs::with(|_| Ok(bpf::load(&plan))).map_err(cannot)?;
        let (tracing, reader) = loaded.map_err(|error| cannot(error.into()))?;
        let queue = Arc::new(Queue::default());
        reader.start(Arc::clone(&queue)).map_err(cannot)?;
        Ok(Tap { tracing, queue, walks: Walks::new(true) })
    }

    /// What came within `limit`; the ways are taught, so that a deep stack comes to its end in the end.
    pub fn take(&mut self, limit: Duration) -> Result<Vec<Taken>, String> {
        let Received::Batch(batch) = self.queue.pop(limit) else { return Ok(Vec::new()) };
        self.walks.drain_sideband();
        let mut all = Vec::new();
        for (mono_ns, raw) in snapshots(&batch) {
            let unwound = self.walks.unwind(&Snapshot::new(&raw, mono_ns));
            let rows = unwound.rows.iter().map(|&(address, row)| (address, row.wire()));
            self.tracing.learn(raw.generation, rows).map_err(|error| format!("{error:#}"))?;
            all.push(Taken { raw, unwound });
        }
        Ok(all)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.queue.stop();
    }
}
