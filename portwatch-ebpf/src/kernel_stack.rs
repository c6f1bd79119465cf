//! Kernel stacks, for those who ask: noted at the door of a program, where alone its context is at hand, and taken by
//! whoever takes the user stack.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use portwatch_common::limits::KERNEL_FRAMES_MAX;

use crate::maps::{KERNEL_STACKS, scratch};
use crate::settings::setting;

#[repr(C)]
pub struct KernelStack {
    pub addresses: [u64; KERNEL_FRAMES_MAX],
    /// Valid entries; 0 once it was taken.
    pub count: u64,
}

/// Programs that may interrupt each other have entries of their own.
pub const DOORS: u32 = 3;

/// Where the program that builds a slot in `place` has its entry.
#[inline(always)]
fn door(place: u32) -> u32 {
    match place {
        scratch::CONNECT => 0,
        scratch::CONNECT_NESTED => 1,
        _ => 2,
    }
}

/// Notes the kernel stack above this program, for a slot that it may build in `place`.
#[inline(always)]
pub fn note(ctx: &impl EbpfContext, place: u32) {
    if setting!(kernel_stacks) == 0 {
        return;
    }
    let Some(stack) = KERNEL_STACKS.get_ptr_mut(door(place)) else { return };
    const BYTES: u32 = 8 * KERNEL_FRAMES_MAX as u32;
    // SAFETY: this CPU's map value, of at least so many bytes.
    unsafe {
        let bytes = bpf_get_stack(ctx.as_ptr(), (&raw mut (*stack).addresses).cast(), BYTES, 0);
        (*stack).count = if bytes > 0 { bytes as u64 / 8 } else { 0 };
    }
}

/// What was noted for a slot in `place`.
#[inline(always)]
pub fn noted(place: u32) -> Option<*mut KernelStack> {
    if setting!(kernel_stacks) == 0 {
        return None;
    }
    KERNEL_STACKS.get_ptr_mut(door(place))
}
