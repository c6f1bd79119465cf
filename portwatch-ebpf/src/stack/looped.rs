//! The walk by `bpf_loop`, from 5.17 on: the verifier goes through one turn of it alone, and there may be more of them.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use portwatch_common::limits::STACK_FRAMES_MAX;

use super::{Step, Walk, visit};

/// What the turns share; on the program's own stack, where `bpf_loop` wants it.
struct Turns {
    addresses: *mut u64,
    walk: Walk,
    last: Step,
}

/// Walks outwards as far as there are rows. What the last step found; `Caller`: there are more frames than are walked.
#[inline(always)]
pub fn follow(addresses: *mut u64, walk: &mut Walk) -> Step {
    let mut turns = Turns { addresses, walk: *walk, last: Step::Caller };
    let turn: unsafe extern "C" fn(u64, *mut c_void) -> i64 = turn;
    // SAFETY: `turn` is what the helper calls with a pointer to `turns`, while we are here.
    unsafe { bpf_loop(STACK_FRAMES_MAX as u32, turn as *mut c_void, (&raw mut turns).cast(), 0) };
    *walk = turns.walk;
    turns.last
}

/// One frame. Not 0: the walk is over.
///
/// Nothing in it may count turns but the helper's own number, of which the verifier knows nothing: where it can follow a
/// number it goes through every turn for its own.
#[inline(never)]
unsafe extern "C" fn turn(number: u64, turns: *mut c_void) -> i64 {
    // SAFETY: `follow` passes a pointer to its `Turns`, which nobody else looks at meanwhile.
    let turns = unsafe { &mut *turns.cast::<Turns>() };
    turns.last = visit(turns.addresses, number as u32, &mut turns.walk);
    !matches!(turns.last, Step::Caller) as i64
}
