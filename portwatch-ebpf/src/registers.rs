//! The user registers that a task saved when it entered the kernel. Everything that depends on the processor is here.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};

use crate::owner::current_task;
use crate::read::{kernel, kernel_pointer, user};
use crate::settings::{offset, setting};

/// Offsets in x86's `struct pt_regs`.
pub const BP: u32 = 32;
pub const ARG1: u32 = 104;
pub const ARG0: u32 = 112;
pub const IP: u32 = 128;
pub const CS: u32 = 136;
pub const SP: u32 = 152;

/// `struct pt_regs *` of the running task.
#[inline(always)]
pub fn saved() -> Option<u64> {
    if setting!(has_task_pt_regs) != 0 {
        // SAFETY: the task is the running one.
        let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast::<task_struct>()) };
        return Some(registers as u64);
    }
    // Kernels without the helper (before 5.15) keep them at the end of a 16 KiB stack.
    const THREAD_SIZE: u64 = 16384;
    const PT_REGS_SIZE: u64 = 168;
    Some(kernel_pointer(current_task(), offset!(task_stack))? + THREAD_SIZE - PT_REGS_SIZE)
}

/// Address in user space of the `struct sockaddr` that the running task sends a datagram to; nothing where it is not in
/// such a system call, or names no address.
#[inline(always)]
pub fn destination() -> Option<u64> {
    const R8: u32 = 72;
    const ORIG_AX: u32 = 120;
    const SENDTO: u64 = 44;
    const SENDMSG: u64 = 46;
    const SENDMMSG: u64 = 307;
    let registers = saved()?;
    if kernel::<u16>(registers, CS)? != CS_USER {
        return None;
    }
    let call: u64 = kernel(registers, ORIG_AX)?;
    if call == SENDTO {
        return kernel_pointer(registers, R8);
    }
    if call == SENDMSG || call == SENDMMSG {
        // The name is the first member of `struct msghdr`, and that of `struct mmsghdr`.
        return user::<u64>(kernel(registers, ARG1)?, 0);
    }
    None
}

/// Code segment of 64-bit user space, and of 32-bit code. The kernel's is another one.
pub const CS_USER: u16 = 0x33;
pub const CS_USER_32: u16 = 0x23;

/// Offsets from the stack pointer in a signal frame, at the return from the handler: struct ucontext follows.
pub mod signal_frame {
    pub const BP: u32 = 120;
    pub const SP: u32 = 160;
    pub const IP: u32 = 168;
}
