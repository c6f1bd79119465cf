//! Counting what happened and what was missed. Atomic adds: a softirq may run a program in the middle of another.

use portwatch_common::counters::{Counters, HOOKS, MISS_REASONS};
use portwatch_common::wire::EVENT_KINDS;

use crate::maps::COUNTERS;

#[inline(always)]
fn add(field: impl FnOnce(*mut Counters) -> *mut u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // The BPF target has no atomics in `core`; the instruction itself is as old as eBPF.
        // SAFETY: a field of this CPU's map value, which lives as long as the program; aligned.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) field(counters), in(reg) 1u64) };
    }
}

/// An event passed the filters.
#[inline(always)]
pub fn happened(kind: u16, is_inferred: bool) {
    let kind = kind as usize;
    if kind >= EVENT_KINDS {
        return;
    }
    if is_inferred {
        // SAFETY: `kind` is in range.
        add(|c| unsafe { (&raw mut (*c).inferred).cast::<u64>().add(kind) });
    } else {
        // SAFETY: likewise.
        add(|c| unsafe { (&raw mut (*c).happened).cast::<u64>().add(kind) });
    }
}

/// An event that happened was not sent; `reason` is one of [`portwatch_common::counters::miss`].
#[inline(always)]
pub fn missed(kind: u16, reason: usize) {
    let kind = kind as usize;
    if kind < EVENT_KINDS && reason < MISS_REASONS {
        // SAFETY: both are in range.
        add(|c| unsafe { (&raw mut (*c).missed).cast::<u64>().add(kind * MISS_REASONS + reason) });
    }
}

/// A hook saw portwatch's own self-test.
#[inline(always)]
pub fn self_test_hit(hook: usize) {
    if hook < HOOKS {
        // SAFETY: in range.
        add(|c| unsafe { (&raw mut (*c).self_test_hits).cast::<u64>().add(hook) });
    }
}

/// A stack was not sent.
#[inline(always)]
pub fn stack_missed() {
    // SAFETY: a field.
    add(|c| unsafe { &raw mut (*c).stacks_missed });
}

/// The second program for state changes ran in place of the first.
#[inline(always)]
pub fn nested_run() {
    // SAFETY: a field.
    add(|c| unsafe { &raw mut (*c).nested_runs });
}

/// A snapshot was not taken, because its process had sent too many.
#[inline(always)]
pub fn snapshot_limited() {
    // SAFETY: a field.
    add(|c| unsafe { &raw mut (*c).snapshots_limited });
}

/// A stack was walked to its end. How many this CPU had walked before.
#[inline(always)]
pub fn stack_walked() -> u64 {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return 1 };
    // SAFETY: a field of this CPU's map value. An interrupt that counts in between makes for one audit more or less.
    unsafe {
        let field = &raw mut (*counters).stacks_walked;
        let before = field.read_volatile();
        add(|_| field);
        before
    }
}

/// A stack was to be audited, and the ring had no room.
#[inline(always)]
pub fn audit_missed() {
    // SAFETY: a field.
    add(|c| unsafe { &raw mut (*c).audits_missed });
}

/// A snapshot was sent.
#[inline(always)]
pub fn snapshot_sent() {
    // SAFETY: a field.
    add(|c| unsafe { &raw mut (*c).snapshots });
}
