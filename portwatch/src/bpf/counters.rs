//! What the kernel side counted: sums over CPUs, and programs that the kernel did not run.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use portwatch_common::counters::{Counters, HOOKS, MISS_REASONS};
use portwatch_common::wire::EVENT_KINDS;
use zerocopy::FromBytes;

const WORDS: usize = size_of::<Counters>() / 8;

/// Sums over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By event kind.
    pub happened: [u64; EVENT_KINDS],
    /// Deduced and sent, outside of `happened`; by event kind.
    pub inferred: [u64; EVENT_KINDS],
    /// By event kind and reason.
    pub missed: [[u64; MISS_REASONS]; EVENT_KINDS],
    /// By hook.
    pub self_test_hits: [u64; HOOKS],
    /// State changes that the second program took because the first was running.
    pub nested_runs: u64,
    pub stacks_missed: u64,
    pub snapshots_limited: u64,
    pub stacks_walked: u64,
    pub snapshots: u64,
    pub audits_missed: u64,
}

impl Totals {
    /// Events that were sent: what the reader must have got by now.
    pub fn sent(&self) -> u64 {
        let happened: u64 = self.happened.iter().chain(&self.inferred).sum();
        let missed: u64 = self.missed.iter().flatten().sum();
        happened - missed.min(happened)
    }

    pub(super) fn read(map: &PerCpuArray<MapData, [u64; WORDS]>) -> Result<Totals> {
        let per_cpu = map.get(&0, 0).context("cannot read the kernel side's counters")?;
        let mut totals = Totals::default();
        for words in per_cpu.iter() {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let counters = Counters::read_from_bytes(&bytes)
                .map_err(|_| anyhow::anyhow!("the kernel side's counters have the wrong size"))?;
            totals.add(&counters);
        }
        Ok(totals)
    }

    fn add(&mut self, counters: &Counters) {
        let add = |sums: &mut [u64], more: &[u64]| sums.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
        add(&mut self.happened, &counters.happened);
        add(&mut self.inferred, &counters.inferred);
        add(&mut self.self_test_hits, &counters.self_test_hits);
        for (sums, more) in self.missed.iter_mut().zip(&counters.missed) {
            add(sums, more);
        }
        self.nested_runs += counters.nested_runs;
        self.stacks_missed += counters.stacks_missed;
        self.snapshots_limited += counters.snapshots_limited;
        self.stacks_walked += counters.stacks_walked;
        self.snapshots += counters.snapshots;
        self.audits_missed += counters.audits_missed;
    }
}

pub(super) type CountersMap = PerCpuArray<MapData, [u64; WORDS]>;

/// Calls of hooked functions for which the kernel did not run the program, say because it was running already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotRun {
    /// By number of the event kind that the hook would have told.
    pub by_kind: BTreeMap<u16, u64>,
    /// Some program's kernel does not say.
    pub is_unknown: bool,
}

impl NotRun {
    /// Adds what the kernel says of one program or link: the `recursion_misses` or `missed` line of its fdinfo.
    pub(super) fn add(&mut self, fd: impl AsFd, kind: u16) {
        match misses(fd.as_fd().as_raw_fd()) {
            Some(0) => {}
            Some(misses) => *self.by_kind.entry(kind).or_default() += misses,
            None => self.is_unknown = true,
        }
    }

    /// Takes back runs that another program made up for.
    pub(super) fn made_up(&mut self, kind: u16, runs: u64) {
        if let Some(misses) = self.by_kind.get_mut(&kind) {
            *misses = misses.saturating_sub(runs);
        }
        self.by_kind.retain(|_, misses| *misses > 0);
    }
}

fn misses(fd: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    misses_in(&text)
}

fn misses_in(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:").or_else(|| line.strip_prefix("missed:")))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_read_where_the_kernel_says_them() {
        let with = "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t12\nverified_insns:\t100\n";
        assert_eq!(misses_in(with), Some(12));
        assert_eq!(misses_in("pos:\t0\nprog_type:\t26\nrun_cnt:\t0\n"), None);
    }

    #[test]
    fn sent_is_what_happened_and_was_not_missed() {
        let mut totals = Totals::default();
        totals.happened[1] = 10;
        totals.missed[1][0] = 3;
        totals.inferred[4] = 2;
        assert_eq!(totals.sent(), 9);
    }
}
