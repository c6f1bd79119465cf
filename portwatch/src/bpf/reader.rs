//! From the ring buffer to batches in a bounded queue, in a thread that does nothing else.
//!
//! The ring is drained on a short timer and at once when the kernel side rings the bell. When the queue is full the
//! reader waits, the ring fills, and the kernel side counts what it cannot send, by type, and says again later whom
//! a socket belongs to. Dropping records here would lose that.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kernel::clock;

/// How long records wait in the ring at most while the reader keeps up.
const DRAIN_INTERVAL: Duration = Duration::from_millis(3);

/// A batch is handed over at this size, or when the ring is empty.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes that may wait in the queue, on top of the ring itself.
const QUEUE_BYTES: usize = 64 << 20;

/// The reading end of the ring buffer.
pub struct Reader {
    ring: RingBuf<MapData>,
}

impl Reader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Reader { ring }
    }

    /// Starts the thread. It ends when the queue is closed, after a last look into the ring.
    pub fn start(self, queue: Arc<Queue>) -> Result<JoinHandle<Result<()>>> {
        thread::Builder::new()
            .name("reader".to_owned())
            .spawn(move || {
                let result = self.run(&queue);
                queue.finish();
                result
            })
            .context("cannot start the reader thread")
    }

    fn run(mut self, queue: &Queue) -> Result<()> {
        loop {
            // Asked before the ring is drained: what was sent before the end of tracing is in the last batch.
            let is_over = queue.is_stopping();
            let began_ns = clock::mono_now_ns()?;
            while let Some(batch) = self.batch() {
                queue.push(batch);
            }
            queue.set_drained(began_ns);
            if is_over {
                return Ok(());
            }
            let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(DRAIN_INTERVAL).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the ring buffer"),
            }
        }
    }

    /// Records that are in the ring now, one after the other.
    fn batch(&mut self) -> Option<Bytes> {
        let mut batch = BytesMut::new();
        while let Some(record) = self.ring.next() {
            if batch.capacity() == 0 {
                batch.reserve(BATCH_BYTES + record.len());
            }
            batch.extend_from_slice(&record);
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        (!batch.is_empty()).then(|| batch.freeze())
    }
}

/// Batches between the reader and the rest.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    is_stopping: AtomicBool,
    drained_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    batches: VecDeque<Bytes>,
    bytes: usize,
    is_finished: bool,
}

/// What came out of the queue.
#[derive(Debug)]
pub enum Received {
    Batch(Bytes),
    /// Nothing in the given time.
    Nothing,
    /// Nothing any more.
    Finished,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the queue as it was: it is only pushed and popped.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the queue is full, unless the run is over: then nobody may wait for anybody.
    pub fn push(&self, batch: Bytes) {
        let mut inner = self.lock();
        while inner.bytes >= QUEUE_BYTES && !inner.is_finished {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.bytes += batch.len();
        inner.batches.push_back(batch);
        self.changed.notify_all();
    }

    /// The next batch, or nothing by the deadline.
    pub fn pop(&self, wait: Duration) -> Received {
        let deadline = Instant::now() + wait;
        let mut inner = self.lock();
        loop {
            if let Some(batch) = inner.batches.pop_front() {
                inner.bytes -= batch.len();
                self.changed.notify_all();
                return Received::Batch(batch);
            }
            if inner.is_finished {
                return Received::Finished;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Received::Nothing;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was sent before this moment, `CLOCK_MONOTONIC`, has been put into the queue.
    pub fn drained_ns(&self) -> u64 {
        self.drained_ns.load(Ordering::Acquire)
    }

    /// Says so, see [`Queue::drained_ns`].
    pub fn set_drained(&self, mono_ns: u64) {
        self.drained_ns.store(mono_ns, Ordering::Release);
    }

    /// Tells the reader to drain the ring once more and end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether nothing will come any more.
    pub fn is_finished(&self) -> bool {
        self.lock().is_finished
    }

    /// Nothing will come any more, or nobody wants it any more.
    pub fn finish(&self) {
        self.lock().is_finished = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_makes_the_reader_wait_and_loses_nothing() {
        let queue = Arc::new(Queue::default());
        let batches = 2 * QUEUE_BYTES / BATCH_BYTES;
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                for n in 0..batches {
                    queue.push(Bytes::from(vec![n as u8; BATCH_BYTES]));
                }
                queue.finish();
            })
        };
        let mut seen = 0;
        loop {
            assert!(queue.lock().bytes <= QUEUE_BYTES + BATCH_BYTES);
            match queue.pop(Duration::from_secs(10)) {
                Received::Batch(batch) => {
                    assert_eq!(batch[0], seen as u8);
                    seen += 1;
                }
                Received::Nothing => panic!("the writer is stuck"),
                Received::Finished => break,
            }
        }
        assert_eq!(seen, batches);
        writer.join().unwrap();
    }

    #[test]
    fn an_empty_queue_answers_in_time() {
        let queue = Queue::default();
        assert!(matches!(queue.pop(Duration::from_millis(1)), Received::Nothing));
        queue.finish();
        assert!(matches!(queue.pop(Duration::from_secs(60)), Received::Finished));
    }
}
