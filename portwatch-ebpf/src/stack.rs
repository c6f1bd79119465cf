//! User stacks: walked in process context by rows that user space has taught, named by a hash, sent once per stack.
//!
//! Distribution binaries have no frame pointers; the way from a frame to its caller stands in `.eh_frame`. The walk looks
//! every return address up in a map of exact instructions. One that is not there ends the walk with a snapshot: user
//! space goes on with it, and teaches the rows that it needed. The next time the walk gets past that place by itself.
//!
//! The registers are those saved at the entry of the system call, so the first address is behind the instruction that
//! made it and every other one is a return address: nothing is ever inside of a prologue.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use portwatch_common::limits::{SNAPSHOT_BYTES, SNAPSHOTS_PER_SECOND, STACK_FRAMES_MAX};
use portwatch_common::wire::{Owner, Row, hold_flags, row_kind, stack_id_mix, stack_id_seed};

use crate::maps::{ROWS, SNAPSHOT_BUDGETS, SPACES, STACK_SCRATCH, STACKS_SEEN};
use crate::read::{kernel, user};
use crate::registers::{self, signal_frame};
use crate::settings::setting;
use crate::{counters, emit};

#[repr(C)]
pub struct StackScratch {
    pub addresses: [u64; STACK_FRAMES_MAX],
}

/// Key of the map of rows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RowKey {
    pub generation: u64,
    /// As found on the stack: a return address, or the instruction behind a system call.
    pub address: u64,
}

/// Snapshots of a process in the second that began at `since_ns`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Budget {
    pub since_ns: u64,
    pub taken: u64,
}

/// How far a walk has come.
pub struct Walk {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    pub count: u32,
    pub generation: u64,
}

/// What is known of a stack: its id, 0 for none, and [`hold_flags`].
pub struct Taken {
    pub id: u64,
    pub flags: u16,
}

const NONE: Taken = Taken { id: 0, flags: 0 };

/// Takes the user stack of the running task and makes sure that user space has it.
#[inline(always)]
pub fn take(place: u32, owner: &Owner, now_ns: u64) -> Taken {
    if setting!(stacks) == 0 || owner.is_kernel != 0 || owner.tgid == 0 {
        return NONE;
    }
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(place) else { return NONE };
    // SAFETY: the scratch entry belongs to this program on this CPU.
    let addresses = unsafe { (&raw mut (*scratch).addresses).cast::<u64>() };
    let Some(mut walk) = start(owner.tgid, now_ns) else { return NONE };
    let mut id = stack_id_seed(owner.start_boot_ns, owner.tgid);
    let mut is_complete = false;

    while walk.count < STACK_FRAMES_MAX as u32 {
        // SAFETY: `count` is below the array's length.
        unsafe { addresses.add((walk.count & (STACK_FRAMES_MAX as u32 - 1)) as usize).write(walk.ip) };
        id = stack_id_mix(id, walk.ip);
        walk.count += 1;
        let key = RowKey { generation: walk.generation, address: walk.ip };
        // SAFETY: read field by field; a row is never changed, only removed.
        let Some(row) = (unsafe { ROWS.get(key) }) else { break };
        match step(&mut walk, row) {
            Step::Caller => {}
            Step::End => {
                is_complete = true;
                break;
            }
            Step::Stuck => break,
        }
    }
    if !is_complete {
        return snapshot(addresses, &walk, owner, now_ns);
    }
    counters::stack_walked();
    let id = if id == 0 { 1 } else { id };
    // SAFETY: only asked whether it is there.
    if unsafe { STACKS_SEEN.get(id) }.is_none() {
        if !emit::stack(id, owner, walk.count, scratch.cast(), now_ns) {
            counters::stack_missed();
            return NONE;
        }
        let _ = STACKS_SEEN.insert(id, now_ns, 0);
    }
    Taken { id, flags: 0 }
}

/// The innermost frame. Nothing: the task did not come from 64-bit user space.
#[inline(always)]
fn start(tgid: u32, now_ns: u64) -> Option<Walk> {
    let saved = registers::saved()?;
    if kernel::<u16>(saved, registers::CS)? != registers::CS_USER {
        return None;
    }
    Some(Walk {
        ip: kernel(saved, registers::IP)?,
        sp: kernel(saved, registers::SP)?,
        bp: kernel(saved, registers::BP)?,
        count: 0,
        generation: generation(tgid, now_ns),
    })
}

/// The generation of the process's address space; a new one if this is its first stack.
#[inline(always)]
fn generation(tgid: u32, now_ns: u64) -> u64 {
    // SAFETY: a copy of a plain number.
    if let Some(generation) = unsafe { SPACES.get(tgid) }.copied() {
        return generation;
    }
    let _ = SPACES.insert(tgid, now_ns, 0);
    now_ns
}

enum Step {
    Caller,
    End,
    /// A word could not be read, or a row cannot say it.
    Stuck,
}

/// From a frame to its caller. On `Stuck` the walk is where it was.
#[inline(always)]
fn step(walk: &mut Walk, row: &Row) -> Step {
    let cfa = match row.kind {
        row_kind::SP => walk.sp.wrapping_add(row.cfa_off as i64 as u64),
        row_kind::BP if walk.bp == 0 => return Step::End,
        row_kind::BP => walk.bp.wrapping_add(row.cfa_off as i64 as u64),
        row_kind::END => return Step::End,
        row_kind::SIGNAL => return interrupted(walk),
        _ => return Step::Stuck,
    };
    let Some(ip) = user::<u64>(cfa.wrapping_sub(8), 0) else { return Step::Stuck };
    if row.bp_saved != 0 {
        let Some(bp) = user::<u64>(cfa.wrapping_add(row.bp_off as i64 as u64), 0) else { return Step::Stuck };
        walk.bp = bp;
    }
    walk.ip = ip;
    walk.sp = cfa;
    Step::Caller
}

/// From a signal handler to the code that it interrupted.
#[inline(always)]
fn interrupted(walk: &mut Walk) -> Step {
    // One after the other: LLVM would read all three before it looks whether the first is there, which old verifiers refuse.
    let Some(bp) = user(walk.sp, signal_frame::BP) else { return Step::Stuck };
    let Some(ip) = user(walk.sp, signal_frame::IP) else { return Step::Stuck };
    let Some(sp) = user(walk.sp, signal_frame::SP) else { return Step::Stuck };
    (walk.bp, walk.sp, walk.ip) = (bp, sp, ip);
    Step::Caller
}

/// Sends what user space needs to go on from where the walk stopped.
#[inline(always)]
fn snapshot(addresses: *const u64, walk: &Walk, owner: &Owner, now_ns: u64) -> Taken {
    if !is_within_budget(owner.tgid, now_ns) {
        counters::snapshot_limited();
        return Taken { id: 0, flags: hold_flags::STACK_RATE_LIMITED };
    }
    // A name for this one: the whole stack is not known yet.
    let id = stack_id_mix(now_ns, walk.sp) | 1;
    if emit::snapshot(id, addresses, walk, owner, now_ns) {
        counters::snapshot_sent();
        Taken { id, flags: 0 }
    } else {
        counters::stack_missed();
        NONE
    }
}

#[inline(always)]
fn is_within_budget(tgid: u32, now_ns: u64) -> bool {
    const SECOND_NS: u64 = 1_000_000_000;
    if let Some(budget) = SNAPSHOT_BUDGETS.get_ptr_mut(tgid) {
        // SAFETY: a map value; a lost race lets one more or one fewer through.
        unsafe {
            if now_ns.wrapping_sub((*budget).since_ns) < SECOND_NS {
                (*budget).taken += 1;
                return (*budget).taken <= SNAPSHOTS_PER_SECOND;
            }
            (*budget).since_ns = now_ns;
            (*budget).taken = 1;
        }
        return true;
    }
    let _ = SNAPSHOT_BUDGETS.insert(tgid, Budget { since_ns: now_ns, taken: 1 }, 0);
    true
}

/// Copies the stack from `sp` to the end of its page, and the pages behind it. Bit n: page n was readable.
///
/// # Safety
/// `bytes` must be valid for `SNAPSHOT_BYTES`.
#[inline(always)]
pub unsafe fn copy_pages(sp: u64, bytes: *mut u8) -> u32 {
    const PAGE: u64 = 4096;
    let within = sp & (PAGE - 1);
    let mut valid = 0;
    // SAFETY: within the first page of the buffer; the helper checks the source.
    unsafe {
        if bpf_probe_read_user(bytes.add(within as usize).cast(), (PAGE - within) as u32, sp as *const _) == 0
        {
            valid |= 1;
        }
        let mut page = 1;
        while page < SNAPSHOT_BYTES / PAGE as usize {
            let from = (sp & !(PAGE - 1)).wrapping_add(page as u64 * PAGE);
            // A page that was never touched cannot be read; the ones behind it may be.
            if bpf_probe_read_user(bytes.add(page * PAGE as usize).cast(), PAGE as u32, from as *const _) == 0
            {
                valid |= 1 << page;
            }
            page += 1;
        }
    }
    valid
}
