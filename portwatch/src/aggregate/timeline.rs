//! How something was spread over time, in constant memory: slots that double in width as time goes on.

/// Slots, and the width of one at first. 48 slots of 50 ms cover a run of two seconds; an hour has slots of 100 s.
const SLOTS: usize = 48;
const WIDTH_FIRST_NS: i64 = 50_000_000;

#[derive(Clone, Debug, Default)]
pub struct Timeline {
    start_ns: Option<i64>,
    /// In powers of two of the first width.
    doublings: u32,
    opens: Vec<u32>,
    ends: Vec<u32>,
}

impl Timeline {
    pub fn open(&mut self, at_ns: i64) {
        let slot = self.slot(at_ns);
        self.opens[slot] = self.opens[slot].saturating_add(1);
    }

    pub fn end(&mut self, at_ns: i64) {
        let slot = self.slot(at_ns);
        self.ends[slot] = self.ends[slot].saturating_add(1);
    }

    pub fn width_ns(&self) -> i64 {
        WIDTH_FIRST_NS << self.doublings
    }

    pub fn start_ns(&self) -> Option<i64> {
        self.start_ns
    }

    /// Opens and ends per slot, from the first on, up to the slot that `until_ns` is in.
    pub fn slots(&self, until_ns: i64) -> impl Iterator<Item = (u32, u32)> + '_ {
        let used = match self.start_ns {
            Some(start) => ((until_ns - start).max(0) / self.width_ns()) as usize + 1,
            None => 0,
        };
        (0..used.min(SLOTS)).map(|slot| {
            let of = |slots: &[u32]| slots.get(slot).copied().unwrap_or(0);
            (of(&self.opens), of(&self.ends))
        })
    }

    /// Takes in another timeline, to the accuracy of a slot.
    pub fn merge(&mut self, other: &Timeline) {
        let Some(start) = other.start_ns else { return };
        for (at, (opens, ends)) in
            other.slots(start + other.width_ns() * SLOTS as i64 - 1).enumerate().collect::<Vec<_>>()
        {
            if opens == 0 && ends == 0 {
                continue;
            }
            let slot = self.slot(start + other.width_ns() * at as i64);
            self.opens[slot] = self.opens[slot].saturating_add(opens);
            self.ends[slot] = self.ends[slot].saturating_add(ends);
        }
    }

    /// The slot of a time; what is a little older than the first goes into the first.
    fn slot(&mut self, at_ns: i64) -> usize {
        let start = *self.start_ns.get_or_insert(at_ns);
        if self.opens.is_empty() {
            self.opens = vec![0; SLOTS];
            self.ends = vec![0; SLOTS];
        }
        loop {
            let slot = ((at_ns.saturating_sub(start)).max(0) / self.width_ns()) as usize;
            if slot < SLOTS {
                return slot;
            }
            halve(&mut self.opens);
            halve(&mut self.ends);
            self.doublings += 1;
        }
    }
}

fn halve(slots: &mut [u32]) {
    for at in 0..SLOTS {
        let of = |at: usize| slots.get(at).copied().unwrap_or(0);
        slots[at] = of(2 * at).saturating_add(of(2 * at + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_as_slots_widen() {
        let mut timeline = Timeline::default();
        for at in 0..10_000 {
            timeline.open(at * 7_000_000);
        }
        let end = 10_000 * 7_000_000;
        assert_eq!(timeline.slots(end).map(|(opens, _)| u64::from(opens)).sum::<u64>(), 10_000);
        assert!(timeline.slots(end).count() > SLOTS / 2 - 1);
        let mut merged = Timeline::default();
        merged.open(-5);
        merged.merge(&timeline);
        assert_eq!(merged.slots(end).map(|(opens, _)| u64::from(opens)).sum::<u64>(), 10_001);
    }

    #[test]
    fn steady_opens_fill_slots_evenly() {
        let mut timeline = Timeline::default();
        for at in 0..6_400 {
            timeline.open(at * 10_000_000);
        }
        let slots: Vec<u32> = timeline.slots(6_399 * 10_000_000).map(|(opens, _)| opens).collect();
        let (full, last) = slots.split_at(slots.len() - 1);
        assert!(full.iter().all(|&opens| opens == full[0]), "{slots:?}");
        assert!(last[0] <= full[0]);
    }
}
