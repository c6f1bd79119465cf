//! Teaches the kernel side to walk, ahead of everything else.
//!
//! Stands between the reader and the pipeline and passes every batch on as it came. Until a way is learned, each connect
//! that takes it costs a snapshot of a stack; and the pipeline, which has names to find and lines to write, may be a
//! second behind.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Shared;
use crate::bpf::{Queue, Received};
use crate::event::decode::snapshots;
use crate::kernel::clock::mono_now_ns;
use crate::stack::walks::{Pythons, Walks};
use crate::stack::{Snapshot, start_time};

/// How often mappings are followed while nothing comes. A Python program begins to run some ten milliseconds after its
/// interpreter's code is mapped, and should be known by then.
const TICK: Duration = Duration::from_millis(4);

/// Starts the thread. It empties `from` into the pipeline's queue, and ends when `from` is finished and empty.
pub fn start(shared: &Arc<Shared>, from: Arc<Queue>, walks: Walks) -> Result<JoinHandle<Result<()>>> {
    let shared = Arc::clone(shared);
    let learn = move || {
        let result = run(&shared, &from, &walks);
        // Nobody must wait for room in a queue that nobody empties.
        from.finish();
        shared.queue.finish();
        result
    };
    thread::Builder::new().name("learner".to_owned()).spawn(learn).context("cannot start the learner thread")
}

fn run(shared: &Shared, from: &Queue, walks: &Walks) -> Result<()> {
    loop {
        // Asked before the queue is: what was put there until then is passed on once the queue is empty.
        let drained_ns = from.drained_ns();
        let received = from.pop(TICK);
        // Whatever was mapped when these events happened is known before the first of them is looked at.
        for pid in walks.drain_sideband() {
            shared.tracing().unlearn(pid)?;
            walks.unlearned(pid, mono_now_ns()?);
        }
        tell_pythons(shared, walks)?;
        match received {
            Received::Batch(batch) => {
                for (mono_ns, raw) in snapshots(&batch) {
                    let unwound = walks.unwind(&Snapshot::new(&raw, mono_ns));
                    let rows = unwound.rows.iter().map(|&(address, row)| (address, row.wire()));
                    shared.tracing().learn(raw.generation, rows)?;
                }
                shared.queue.push(batch);
            }
            Received::Nothing => shared.queue.set_drained(drained_ns),
            Received::Finished => return Ok(()),
        }
    }
}

/// Tells the kernel side which processes have a Python interpreter, and which programs are one.
fn tell_pythons(shared: &Shared, walks: &Walks) -> Result<()> {
    let Pythons { processes, programs } = walks.take_pythons();
    for (pid, python) in processes {
        let mut tracing = shared.tracing();
        tracing.add_python(pid, &python)?;
        if start_time::of_process(pid).is_none() {
            // It ended before it was told of: nobody would take it out.
            tracing.remove_python(pid)?;
        }
    }
    for (key, program) in programs {
        shared.tracing().add_python_program(&key, &program)?;
    }
    Ok(())
}
