//! User stacks: walked in process context by rows that user space has taught, named by a hash, sent once per stack.
//!
//! Distribution binaries have no frame pointers; the way from a frame to its caller stands in `.eh_frame`. The walk looks
//! every return address up in a map of exact instructions. One that is not there ends the walk with a snapshot: user
//! space goes on with it, and teaches the rows that it needed. The next time the walk gets past that place by itself.
//!
//! The registers are those saved at the entry of the system call, so the first address is behind the instruction that
//! made it and every other one is a return address: nothing is ever inside of a prologue.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use portwatch_common::limits::{
    KERNEL_FRAMES_MAX, SNAPSHOT_ALIKE_NS, SNAPSHOT_BYTES, SNAPSHOTS_ALIKE, SNAPSHOTS_PER_SECOND,
    STACK_FRAMES_MAX,
};
use portwatch_common::wire::{
    Owner, Row, STACK_ID_CUT, kind, row_kind, stack_id_mix, stack_id_seed, stack_state,
};

#[cfg_attr(feature = "loop", path = "stack/looped.rs")]
#[cfg_attr(not(feature = "loop"), path = "stack/plain.rs")]
mod walk;

use crate::maps::{ROWS, SNAPSHOT_BUDGETS, SNAPSHOT_PLACES, SPACES, STACK_SCRATCH, STACKS_SEEN};
use crate::read::{kernel, user};
use crate::registers::{self, signal_frame};
use crate::settings::setting;
use crate::{counters, emit, kernel_stack, python};

#[repr(C)]
pub struct StackScratch {
    pub addresses: [u64; STACK_FRAMES_MAX],
    /// Behind `addresses` as in the records, into which both are copied at once.
    pub kernel: [u64; KERNEL_FRAMES_MAX],
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
#[derive(Clone, Copy)]
pub struct Walk {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    pub count: u32,
    pub generation: u64,
    /// Mixed from the addresses so far.
    pub id: u64,
    /// Kernel frames in the scratch memory.
    pub kernel_count: u32,
    pub place: u32,
    /// Mixed from the Python frames; 0: there are none.
    pub python: u64,
}

/// What is known of a stack.
pub struct Taken {
    /// 0: none.
    pub id: u64,
    /// One of [`stack_state`].
    pub state: u8,
}

impl Taken {
    const fn none(state: u8) -> Taken {
        Taken { id: 0, state }
    }

    const fn named(id: u64) -> Taken {
        Taken { id, state: stack_state::TAKEN }
    }
}

/// Takes the user stack of the running task and makes sure that user space has it.
#[inline(always)]
pub fn take(place: u32, owner: &Owner, now_ns: u64) -> Taken {
    if setting!(stacks) == 0 {
        return Taken::none(stack_state::UNASKED);
    }
    if owner.is_kernel != 0 {
        return Taken::none(stack_state::KERNEL_TASK);
    }
    if owner.tgid == 0 {
        return Taken::none(stack_state::OTHER_PID_NAMESPACE);
    }
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(place) else {
        return Taken::none(stack_state::UNREADABLE);
    };
    // SAFETY: the scratch entry belongs to this program on this CPU.
    let addresses = unsafe { (&raw mut (*scratch).addresses).cast::<u64>() };
    let mut first = match start(place, owner, now_ns) {
        Ok(first) => first,
        Err(state) => return Taken::none(state),
    };
    // SAFETY: likewise.
    first.kernel_count = mix_kernel(place, unsafe { (&raw mut (*scratch).kernel).cast() }, &mut first.id);
    let mut walk = first;
    match walk::follow(addresses, &mut walk) {
        Step::End => {}
        Step::Stuck => return ask(addresses, &walk, owner, now_ns),
        Step::Caller => return cut(stack_state::TOO_DEEP, addresses, &walk, owner, now_ns),
    }
    let id = named(&walk).max(1);
    if !tell(id, addresses, &walk, owner, now_ns) {
        return Taken::none(stack_state::RING_FULL);
    }
    let before = counters::stack_walked();
    let every = setting!(stacks_per_audit) as u64;
    if every != 0
        && before & (every - 1) == 0
        && !emit::snapshot(kind::AUDIT, id, addresses, walk.count, &first, owner, now_ns)
    {
        counters::audit_missed();
    }
    Taken::named(id)
}

/// The innermost frame, or one of [`stack_state`].
#[inline(always)]
fn start(place: u32, owner: &Owner, now_ns: u64) -> Result<Walk, u8> {
    const UNREADABLE: Result<Walk, u8> = Err(stack_state::UNREADABLE);
    let Some(saved) = registers::saved() else { return UNREADABLE };
    let Some(cs) = kernel::<u16>(saved, registers::CS) else { return UNREADABLE };
    match cs {
        registers::CS_USER => {}
        registers::CS_USER_32 => return Err(stack_state::COMPAT),
        _ => return Err(stack_state::KERNEL_TASK),
    }
    let Some(ip) = kernel(saved, registers::IP) else { return UNREADABLE };
    let Some(sp) = kernel(saved, registers::SP) else { return UNREADABLE };
    let Some(bp) = kernel(saved, registers::BP) else { return UNREADABLE };
    let generation = generation(owner.tgid, now_ns);
    let id = stack_id_seed(owner.start_boot_ns, owner.tgid, generation);
    let python = python::take(place, owner.tgid);
    Ok(Walk { ip, sp, bp, count: 0, generation, id, kernel_count: 0, place, python })
}

/// Takes over the kernel stack that was noted for `place`: how many frames it has.
#[inline(always)]
fn mix_kernel(place: u32, into: *mut u64, id: &mut u64) -> u32 {
    let Some(noted) = kernel_stack::noted(place) else { return 0 };
    // SAFETY: this CPU's map values, indexed within their lengths.
    unsafe {
        let count = (*noted).count;
        (*noted).count = 0;
        for at in 0..KERNEL_FRAMES_MAX {
            if at as u64 >= count {
                return at as u32;
            }
            let address = (&raw const (*noted).addresses).cast::<u64>().add(at).read();
            into.add(at).write(address);
            *id = stack_id_mix(*id, address);
        }
    }
    KERNEL_FRAMES_MAX as u32
}

/// What the next step of a walk found.
enum Step {
    Caller,
    /// This was the outermost frame.
    End,
    /// An instruction without a row, a word that could not be read, or a row that cannot say it.
    Stuck,
}

/// Notes the frame that the walk is at, the `number`th, and goes on to its caller. On `Stuck` it stays.
#[inline(always)]
fn visit(addresses: *mut u64, number: u32, walk: &mut Walk) -> Step {
    // The outermost frame of a thread that was set up by hand returns to 0.
    if walk.ip == 0 {
        return Step::End;
    }
    // SAFETY: `number` is below the array's length; the mask tells the verifier so.
    unsafe { addresses.add((number & (STACK_FRAMES_MAX as u32 - 1)) as usize).write(walk.ip) };
    walk.id = stack_id_mix(walk.id, walk.ip);
    walk.count = number + 1;
    let key = RowKey { generation: walk.generation, address: walk.ip };
    // SAFETY: read field by field; a row is never changed, only removed.
    let Some(row) = (unsafe { ROWS.get(key) }) else { return Step::Stuck };
    step(walk, row)
}

/// The id of a stack: of its addresses, and of the Python frames among them.
#[inline(always)]
fn named(walk: &Walk) -> u64 {
    if walk.python == 0 { walk.id } else { stack_id_mix(walk.id, walk.python) }
}

/// Makes sure that user space has the addresses behind an id. False: there was no room.
#[inline(always)]
fn tell(id: u64, addresses: *const u64, walk: &Walk, owner: &Owner, now_ns: u64) -> bool {
    // SAFETY: only asked whether it is there.
    if unsafe { STACKS_SEEN.get(id) }.is_some() {
        return true;
    }
    if !python::send(walk, id, owner.tgid, now_ns) || !emit::stack(id, addresses, walk, owner, now_ns) {
        counters::stack_missed();
        return false;
    }
    let _ = STACKS_SEEN.insert(id, now_ns, 0);
    true
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

/// From a frame to its caller. On `Stuck` the walk is where it was.
#[inline(always)]
fn step(walk: &mut Walk, row: &Row) -> Step {
    let cfa = match row.kind {
        row_kind::SP => walk.sp.wrapping_add(row.cfa_off as i64 as u64),
        row_kind::BP | row_kind::BP_WORD if walk.bp == 0 => return Step::End,
        row_kind::BP => walk.bp.wrapping_add(row.cfa_off as i64 as u64),
        row_kind::BP_WORD => {
            let Some(cfa) = user::<u64>(walk.bp.wrapping_add(row.cfa_off as i64 as u64), 0) else {
                return Step::Stuck;
            };
            cfa
        }
        row_kind::END => return Step::End,
        row_kind::SIGNAL => return interrupted(walk),
        _ => return Step::Stuck,
    };
    let Some(ip) = user::<u64>(cfa.wrapping_sub(8), 0) else { return Step::Stuck };
    if row.bp_saved != 0 {
        let base = if row.kind == row_kind::BP_WORD { walk.bp } else { cfa };
        let Some(bp) = user::<u64>(base.wrapping_add(row.bp_off as i64 as u64), 0) else {
            return Step::Stuck;
        };
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

/// Sends what user space needs to go on from where the walk stopped, or what is known if it has been asked too often.
#[inline(always)]
fn ask(addresses: *const u64, walk: &Walk, owner: &Owner, now_ns: u64) -> Taken {
    if !is_within_budget(walk, owner.tgid, now_ns) {
        counters::snapshot_limited();
        return cut(stack_state::RATE_LIMITED, addresses, walk, owner, now_ns);
    }
    // A name for this one: the whole stack is not known yet.
    let id = stack_id_mix(now_ns, walk.sp) | 1;
    if python::send(walk, id, owner.tgid, now_ns)
        && emit::snapshot(kind::SNAPSHOT, id, addresses, walk.count, walk, owner, now_ns)
    {
        counters::snapshot_sent();
        Taken::named(id)
    } else {
        counters::stack_missed();
        Taken::none(stack_state::RING_FULL)
    }
}

/// Names the innermost part of a stack.
#[inline(always)]
fn cut(state: u8, addresses: *const u64, walk: &Walk, owner: &Owner, now_ns: u64) -> Taken {
    let id = stack_id_mix(named(walk), STACK_ID_CUT) | 1;
    let is_told = tell(id, addresses, walk, owner, now_ns);
    Taken { id: if is_told { id } else { 0 }, state }
}

/// Whether the process may send a snapshot from where its walk stopped.
#[inline(always)]
fn is_within_budget(walk: &Walk, tgid: u32, now_ns: u64) -> bool {
    const SECOND_NS: u64 = 1_000_000_000;
    let place = stack_id_mix(walk.id, walk.sp);
    // SAFETY: a copy of a plain number.
    let sent_ns = unsafe { SNAPSHOT_PLACES.get(place) }.copied().unwrap_or(0);
    let is_alike = now_ns.wrapping_sub(sent_ns) < SNAPSHOT_ALIKE_NS;
    if let Some(budget) = SNAPSHOT_BUDGETS.get_ptr_mut(tgid) {
        // SAFETY: a map value; a lost race lets one more or one fewer through.
        unsafe {
            if now_ns.wrapping_sub((*budget).since_ns) >= SECOND_NS {
                (*budget).since_ns = now_ns;
                (*budget).taken = 0;
            }
            if (*budget).taken >= if is_alike { SNAPSHOTS_ALIKE } else { SNAPSHOTS_PER_SECOND } {
                return false;
            }
            (*budget).taken += 1;
        }
    } else {
        let _ = SNAPSHOT_BUDGETS.insert(tgid, Budget { since_ns: now_ns, taken: 1 }, 0);
    }
    if !is_alike {
        let _ = SNAPSHOT_PLACES.insert(place, now_ns, 0);
    }
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
