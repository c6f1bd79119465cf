//! User stacks: taken in process context, named by a hash, sent once per distinct stack.
//!
//! The frames come from the kernel's own frame-pointer walk, which is right only for code built with frame
//! pointers; the log says so. Whatever replaces it keeps this seam: an id out, a [`wire::Stack`] once before.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::bpf_get_stack;
use portwatch_common::limits::STACK_FRAMES_MAX;
use portwatch_common::wire::Owner;

use crate::maps::{STACK_SCRATCH, STACKS_SEEN};
use crate::settings::setting;
use crate::{counters, emit};

#[repr(C)]
pub struct StackScratch {
    pub addresses: [u64; STACK_FRAMES_MAX],
}

/// Takes the user stack of the running task and makes sure that user space has it. 0: there is none.
#[inline(always)]
pub fn take<C: EbpfContext>(ctx: &C, place: u32, owner: &Owner, now_ns: u64) -> u64 {
    if setting!(stacks) == 0 || owner.is_kernel != 0 || owner.tgid == 0 {
        return 0;
    }
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(place) else { return 0 };
    // SAFETY: the scratch entry belongs to this program on this CPU and is as long as stated.
    let bytes = unsafe {
        bpf_get_stack(ctx.as_ptr(), scratch.cast(), size_of::<StackScratch>() as u32, BPF_F_USER_STACK as u64)
    };
    if bytes <= 0 {
        return 0;
    }
    let count = ((bytes as u32) / 8).min(STACK_FRAMES_MAX as u32);
    let mut id = owner.start_boot_ns ^ ((owner.tgid as u64) << 32);
    for at in 0..STACK_FRAMES_MAX as u32 {
        if at >= count {
            break;
        }
        // SAFETY: `at` is below the array's length.
        let address = unsafe { (&raw const (*scratch).addresses).cast::<u64>().add(at as usize).read() };
        id = (id ^ address).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    let id = if id == 0 { 1 } else { id };
    // SAFETY: only asked whether it is there.
    if unsafe { STACKS_SEEN.get(id) }.is_none() {
        // SAFETY: as above.
        if emit::stack(id, owner, count, unsafe { &(*scratch).addresses }, now_ns) {
            let _ = STACKS_SEEN.insert(id, now_ns, 0);
        } else {
            counters::stack_missed();
            return 0;
        }
    }
    id
}
