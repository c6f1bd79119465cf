//! Waiting with a deadline.

use std::time::{Duration, Instant};

/// For what takes microseconds on hardware and must not fail on a busy, emulated machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks until there is an answer. Nothing: there was none in time.
pub fn until<T>(limit: Duration, ask: impl FnMut() -> Option<T>) -> Option<T> {
    until_every(Duration::from_millis(2), limit, ask)
}

/// The same for a question that takes long to answer.
pub fn until_slowly<T>(limit: Duration, ask: impl FnMut() -> Option<T>) -> Option<T> {
    until_every(Duration::from_millis(300), limit, ask)
}

fn until_every<T>(pause: Duration, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        // Asked once more after the deadline: this thread may have slept through it.
        let is_late = Instant::now() >= deadline;
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if is_late {
            return None;
        }
        std::thread::sleep(pause);
    }
}
