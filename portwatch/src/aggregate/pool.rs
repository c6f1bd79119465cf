//! One pool of ports: those that a connect towards one destination can choose from.

use std::net::IpAddr;

use crate::recording::format::Proto;

/// What the kernel picks a port within: the same port may serve other destinations at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    pub host: u32,
    pub netns: u32,
    pub proto: Proto,
    pub laddr: IpAddr,
    /// `None` for UDP: there one port is one socket.
    pub remote: Option<(IpAddr, u16)>,
}

/// Slots of the recent past, and the width of one: 16 seconds, which even short runs fill in part.
const SLOTS: usize = 64;
const SLOT_NS: i64 = 250_000_000;

/// Counts of the recent past.
#[derive(Clone, Debug)]
struct Recently {
    slots: [u32; SLOTS],
    /// Number of the youngest slot, counted from time 0.
    youngest: i64,
}

impl Default for Recently {
    fn default() -> Self {
        Recently { slots: [0; SLOTS], youngest: i64::MIN }
    }
}

impl Recently {
    fn count(&mut self, at_ns: i64) {
        let slot = at_ns.div_euclid(SLOT_NS);
        if self.youngest == i64::MIN || slot - self.youngest >= SLOTS as i64 {
            self.slots = [0; SLOTS];
            self.youngest = slot;
        }
        while self.youngest < slot {
            self.youngest += 1;
            self.slots[self.youngest.rem_euclid(SLOTS as i64) as usize] = 0;
        }
        if self.youngest - slot < SLOTS as i64 {
            let counter = &mut self.slots[slot.rem_euclid(SLOTS as i64) as usize];
            *counter = counter.saturating_add(1);
        }
    }

    /// Counts within the last `slots` slots before `at_ns`, the one it is in included.
    fn within(&self, at_ns: i64, slots: i64) -> u64 {
        if self.youngest == i64::MIN {
            return 0;
        }
        let last = at_ns.div_euclid(SLOT_NS);
        let oldest = (last - slots + 1).max(self.youngest - SLOTS as i64 + 1);
        (oldest..=last.min(self.youngest))
            .map(|slot| u64::from(self.slots[slot.rem_euclid(SLOTS as i64) as usize]))
            .sum()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Pool {
    pub live: u64,
    pub waiting: u64,
    pub peak: u64,
    /// Ports taken by connects since the start of the log.
    pub taken: u64,
    /// Connects that found no port.
    pub failures: u64,
    pub first_ns: Option<i64>,
    pub first_failure_ns: Option<i64>,
    /// Ports of the range that binds held at the first failure.
    pub bound_at_failure: Option<u64>,
    pub last_ns: i64,
    pub last_take_ns: i64,
    /// Life of full sockets, from allocation to TIME_WAIT or release.
    pub lives: u64,
    pub lives_ns: u128,
    /// Of `lives`: went into TIME_WAIT.
    pub waits: u64,
    /// Of `waits`: made while the peer had not closed. The kernel reuses none of those.
    pub waits_half_closed: u64,
    /// TIME_WAITs that a later connect took over.
    pub reused: u64,
    takes: Recently,
    /// Full sockets that ended, and those of them that left a time-wait entry.
    ends: Recently,
    entries: Recently,
    /// Time-wait entries that ended.
    expiries: Recently,
}

/// What comes and goes, a second, over the recent past.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Ports taken by connects.
    pub takes_per_s: f64,
    /// What `takes_per_s` was counted from.
    pub takes: u64,
    /// Full sockets that ended.
    pub ends_per_s: f64,
    /// TIME_WAIT entries made.
    pub entries_per_s: f64,
    /// TIME_WAIT entries that ended.
    pub expiries_per_s: f64,
}

impl Pool {
    pub fn in_use(&self) -> u64 {
        self.live + self.waiting
    }

    pub fn take(&mut self, at_ns: i64) {
        self.taken += 1;
        self.last_take_ns = self.last_take_ns.max(at_ns);
        self.takes.count(at_ns);
        self.open(at_ns);
    }

    /// A port that was taken before the start.
    pub fn open(&mut self, at_ns: i64) {
        self.live += 1;
        self.seen(at_ns);
    }

    pub fn seen(&mut self, at_ns: i64) {
        self.peak = self.peak.max(self.in_use());
        self.first_ns = Some(self.first_ns.map_or(at_ns, |first| first.min(at_ns)));
        self.last_ns = self.last_ns.max(at_ns);
    }

    /// A full socket became a time-wait entry.
    pub fn wait(&mut self, at_ns: i64, begun_ns: Option<i64>, is_half_closed: bool) {
        self.live = self.live.saturating_sub(1);
        self.waiting += 1;
        self.waits += 1;
        self.waits_half_closed += u64::from(is_half_closed);
        self.entries.count(at_ns);
        self.ends.count(at_ns);
        self.lived(at_ns, begun_ns);
        self.seen(at_ns);
    }

    /// A port is free again: of a full socket, or of a time-wait entry.
    pub fn free(&mut self, at_ns: i64, begun_ns: Option<i64>, is_live: bool) {
        let holders = if is_live { &mut self.live } else { &mut self.waiting };
        *holders = holders.saturating_sub(1);
        let gone = if is_live { &mut self.ends } else { &mut self.expiries };
        gone.count(at_ns);
        self.lived(at_ns, begun_ns);
        self.last_ns = self.last_ns.max(at_ns);
    }

    /// A connect found no port.
    pub fn fail(&mut self, at_ns: i64, bound: impl FnOnce() -> u64) {
        self.failures += 1;
        self.bound_at_failure.get_or_insert_with(bound);
        self.first_failure_ns.get_or_insert(at_ns);
        self.seen(at_ns);
    }

    fn lived(&mut self, at_ns: i64, begun_ns: Option<i64>) {
        if let Some(begun_ns) = begun_ns {
            self.lives += 1;
            self.lives_ns += (at_ns - begun_ns).max(0) as u128;
        }
    }

    /// Over at most the last 16 s, and no longer than the pool is known. `None` before any time has passed.
    pub fn rates(&self, at_ns: i64) -> Option<Rates> {
        let known_ns = at_ns - self.first_ns?;
        if known_ns <= 0 {
            return None;
        }
        // The slot that is still filling counts only while there is hardly another.
        let is_young = known_ns < 2 * SLOT_NS;
        let slots = (known_ns / SLOT_NS).clamp(1, SLOTS as i64 - 1);
        let (end_ns, slots, span_ns) = if is_young {
            (at_ns, 3, known_ns)
        } else {
            (at_ns.div_euclid(SLOT_NS) * SLOT_NS - 1, slots, slots * SLOT_NS)
        };
        let of = |recently: &Recently| recently.within(end_ns, slots);
        let per_s = |count: u64| count as f64 * 1e9 / span_ns as f64;
        let takes = of(&self.takes);
        Some(Rates {
            takes_per_s: per_s(takes),
            takes,
            ends_per_s: per_s(of(&self.ends)),
            entries_per_s: per_s(of(&self.entries)),
            expiries_per_s: per_s(of(&self.expiries)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_known_from_the_first_second_on() {
        let mut pool = Pool::default();
        for n in 0..60_000_i64 {
            let at_ns = 7_777_777 + n * 2_000_000;
            pool.take(at_ns);
            if n == 100 || n == 500 || n % 5_000 == 4_999 {
                let rates = pool.rates(at_ns).unwrap();
                assert!((rates.takes_per_s - 500.0).abs() < 25.0, "{rates:?} at {n}");
            }
        }
        assert_eq!(pool.rates(60_000 * 2_000_000 + 20_000_000_000).unwrap().takes_per_s, 0.0);
    }
}
