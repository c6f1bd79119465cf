//! File work that may be given up.
//!
//! A file of a stranger may lie on a file system that the stranger serves, or on one whose server is gone, and then even
//! asking for its size never returns. Such work is done in a thread of its own with a deadline. A thread that is stuck is
//! left behind, and when several are, no more work is taken until one comes back.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest wait for one piece of work. Copying a large program from a cold disk may take as long.
const DEADLINE: Duration = Duration::from_secs(2);

/// Threads that may be stuck at once.
const STUCK_MAX: usize = 4;

/// What became of a piece of work.
const RUNNING: u8 = 0;
const DONE: u8 = 1;
const GIVEN_UP: u8 = 2;

type Work = Box<dyn FnOnce() + Send>;

/// A handle on the thread; clones share it.
#[derive(Clone, Debug)]
pub struct Opener {
    worker: Arc<Mutex<Option<Sender<Work>>>>,
    stuck: Arc<AtomicUsize>,
    deadline: Duration,
}

impl Default for Opener {
    fn default() -> Opener {
        Opener::with_deadline(DEADLINE)
    }
}

impl Opener {
    fn with_deadline(deadline: Duration) -> Opener {
        Opener { worker: Arc::default(), stuck: Arc::default(), deadline }
    }

    /// Does `work`; `None` when it took too long, panicked, or too much work is stuck already.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.stuck.load(Ordering::Acquire) >= STUCK_MAX {
            return None;
        }
        // Held throughout: work of clones is done one after the other, so that a deadline is for one piece.
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, result) = sync_channel(1);
        let state = Arc::new(AtomicU8::new(RUNNING));
        let job: Work = {
            let done = Done { state: Arc::clone(&state), stuck: Arc::clone(&self.stuck) };
            Box::new(move || {
                let _done = done;
                // Nobody may be waiting any more.
                let _ = reply.send(work());
            })
        };
        if worker.is_none() {
            *worker = start();
        }
        worker.as_ref()?.send(job).ok()?;
        match result.recv_timeout(self.deadline) {
            Ok(done) => Some(done),
            Err(_) => {
                // The next piece gets a new thread; this one ends when it comes back.
                *worker = None;
                self.stuck.fetch_add(1, Ordering::AcqRel);
                if state.swap(GIVEN_UP, Ordering::AcqRel) == DONE {
                    self.stuck.fetch_sub(1, Ordering::AcqRel);
                }
                None
            }
        }
    }
}

/// Says that a piece of work has ended, by a panic too.
struct Done {
    state: Arc<AtomicU8>,
    stuck: Arc<AtomicUsize>,
}

impl Drop for Done {
    fn drop(&mut self) {
        if self.state.swap(DONE, Ordering::AcqRel) == GIVEN_UP {
            self.stuck.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn start() -> Option<Sender<Work>> {
    let (sender, receiver) = channel::<Work>();
    let run = move || {
        while let Ok(work) = receiver.recv() {
            work();
        }
    };
    let thread = thread::Builder::new().name("opener".to_owned()).spawn(run);
    thread.inspect_err(|error| log::debug!("cannot start a thread to read files: {error}")).ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn stuck_work_is_left_behind_and_counted_until_it_comes_back() {
        let opener = Opener::with_deadline(Duration::from_millis(20));
        assert_eq!(opener.run(|| 1), Some(1));
        let mut releases = Vec::new();
        for _ in 0..STUCK_MAX {
            let (release, wait) = mpsc::channel::<()>();
            assert_eq!(opener.run(move || wait.recv().is_ok()), None);
            releases.push(release);
        }
        assert_eq!(opener.run(|| 2), None, "no more work is taken");
        drop(releases);
        while opener.stuck.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        let patient = Opener { deadline: DEADLINE, ..opener };
        assert_eq!(patient.run(|| 3), Some(3));
    }

    #[test]
    fn panic_in_the_work_ends_only_that_work() {
        let opener = Opener::default();
        assert_eq!(opener.run(|| -> u32 { panic!("as the test wants it") }), None);
        // That thread is not stuck but gone, and is not counted for ever.
        assert_eq!(opener.run(|| 4), Some(4));
    }
}
