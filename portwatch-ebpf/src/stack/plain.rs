//! The walk as a loop that the verifier goes through turn by turn: for kernels before 5.17.

use portwatch_common::limits::STACK_FRAMES_PLAIN;

use super::{Step, Walk, visit};

/// Walks outwards as far as there are rows. What the last step found; `Caller`: there are more frames than are walked.
#[inline(always)]
pub fn follow(addresses: *mut u64, walk: &mut Walk) -> Step {
    for number in 0..STACK_FRAMES_PLAIN as u32 {
        match visit(addresses, number, walk) {
            Step::Caller => {}
            last => return last,
        }
    }
    Step::Caller
}
