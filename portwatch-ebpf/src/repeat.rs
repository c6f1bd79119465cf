//! Loops of many turns: by the helper where the kernel has it, so that the verifier goes through one turn alone, else as
//! loops that it goes through turn by turn.
//!
//! What a turn leaves for the next should be numbers that the verifier does not know, say read from a map or from the
//! process: those it can follow it does follow, each for its own.

/// The body of a loop.
pub trait Turn {
    /// The `number`th turn. False: it was the last.
    fn turn(&mut self, number: u32) -> bool;
}

/// Up to `turns_max` turns.
#[cfg(feature = "loop")]
#[inline(always)]
pub fn repeat<T: Turn>(turns_max: u32, turns: &mut T) {
    let call: unsafe extern "C" fn(u64, *mut core::ffi::c_void) -> i64 = call::<T>;
    // SAFETY: `call` is what the helper calls with a pointer to `turns`, while we are here.
    unsafe {
        aya_ebpf::helpers::generated::bpf_loop(
            turns_max,
            call as *mut core::ffi::c_void,
            (turns as *mut T).cast(),
            0,
        )
    };
}

#[cfg(feature = "loop")]
#[inline(never)]
unsafe extern "C" fn call<T: Turn>(number: u64, turns: *mut core::ffi::c_void) -> i64 {
    // SAFETY: `repeat` passes a pointer to a `T`, which nobody else looks at meanwhile.
    let turns = unsafe { &mut *turns.cast::<T>() };
    !turns.turn(number as u32) as i64
}

/// Up to `turns_max` turns.
#[cfg(not(feature = "loop"))]
#[inline(always)]
pub fn repeat<T: Turn>(turns_max: u32, turns: &mut T) {
    for number in 0..turns_max {
        if !turns.turn(number) {
            break;
        }
    }
}
