//! The only reads of kernel and user memory: an address in, a plain value or nothing out.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user};

/// Reads a `T` at `base + offset` in kernel memory.
#[inline(always)]
pub fn kernel<T: Copy>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting; T is plain data.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as u64) as *const T) }.ok()
}

/// Reads a pointer; null counts as nothing.
#[inline(always)]
pub fn kernel_pointer(base: u64, offset: u32) -> Option<u64> {
    kernel::<u64>(base, offset).filter(|&address| address != 0)
}

/// Reads a `T` at `base + offset` in the memory of the current process.
#[inline(always)]
pub fn user<T: Copy>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(base.wrapping_add(offset as u64) as *const T) }.ok()
}
