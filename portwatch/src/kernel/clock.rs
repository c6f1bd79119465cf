//! Monotonic to wall clock, from one anchor per run: events stay in order and evenly spaced even when somebody
//! sets the host's clock meanwhile.

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

/// Pairs read for one anchor. The machine may take the processor away between the two clocks of a pair; of
/// this many at least one goes undisturbed.
const PAIRS: usize = 16;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns()` reads it.
    pub mono_ns: u64,
    wall_ns: i128,
    /// The two clocks were read within this time of each other.
    pub uncertainty_ns: u64,
}

impl Anchor {
    /// Now, as exactly as a few attempts allow: below a microsecond on an idle machine.
    pub fn now() -> Result<Anchor> {
        let mut best: Option<Anchor> = None;
        for _ in 0..PAIRS {
            let anchor = Anchor::pair()?;
            if best.is_none_or(|best| anchor.uncertainty_ns < best.uncertainty_ns) {
                best = Some(anchor);
            }
        }
        best.context("no pair of clocks was read")
    }

    fn pair() -> Result<Anchor> {
        let before = mono_now_ns()?;
        let wall_ns = read(ClockId::CLOCK_REALTIME)?;
        let uncertainty_ns = mono_now_ns()?.saturating_sub(before);
        Ok(Anchor { mono_ns: before + uncertainty_ns / 2, wall_ns, uncertainty_ns })
    }

    /// Wall-clock time of a monotonic one, in nanoseconds since the epoch.
    pub fn wall_ns(&self, mono_ns: u64) -> i128 {
        self.wall_ns + i128::from(mono_ns) - i128::from(self.mono_ns)
    }
}

/// `CLOCK_MONOTONIC` now, in nanoseconds.
pub fn mono_now_ns() -> Result<u64> {
    u64::try_from(read(ClockId::CLOCK_MONOTONIC)?).context("the monotonic clock is negative")
}

fn read(clock: ClockId) -> Result<i128> {
    let time = clock_gettime(clock).context("cannot read the clock")?;
    Ok(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn anchor_is_the_wall_clock_now() {
        let wall =
            || i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        let before = wall();
        let anchor = Anchor::now().unwrap();
        let mono_after = mono_now_ns().unwrap();
        let after = wall();
        let slack = i128::from(anchor.uncertainty_ns);
        let at_anchor = anchor.wall_ns(anchor.mono_ns);
        assert!(before - slack <= at_anchor && at_anchor <= after + slack);
        assert!(anchor.mono_ns <= mono_after && anchor.wall_ns(mono_after) <= after + slack);
    }

    #[test]
    fn times_before_and_after_the_anchor_keep_their_distance() {
        let anchor = Anchor { mono_ns: 1_000, wall_ns: 5_000_000, uncertainty_ns: 0 };
        let cases = [(1_000, 5_000_000), (0, 4_999_000), (1_001, 5_000_001), (u64::MAX, 5_000_000 - 1_000)];
        for (mono_ns, expected) in cases {
            let expected = if mono_ns == u64::MAX { expected + i128::from(u64::MAX) } else { expected };
            assert_eq!(anchor.wall_ns(mono_ns), expected);
        }
    }
}
