//! A user stack, sent once per distinct stack.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Header;
use crate::limits::{KERNEL_FRAMES_MAX, SNAPSHOT_BYTES, STACK_FRAMES_MAX};

/// Return addresses of one user stack, or of its innermost part. Kind `STACK`; comes before the first [`super::Hold`] that names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stack {
    pub header: Header,
    /// Hash of the addresses and of the address space they belong to. Never 0.
    pub stack_id: u64,
    /// When its process started, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    /// Process whose address space it is, in portwatch's PID namespace.
    pub tgid: u32,
    /// Valid entries of `addresses`.
    pub count: u32,
    /// Valid entries of `kernel`.
    pub kernel_count: u64,
    /// Innermost first.
    pub addresses: [u64; STACK_FRAMES_MAX],
    /// Kernel frames above the system call, innermost first.
    pub kernel: [u64; KERNEL_FRAMES_MAX],
}

/// A stack that the kernel side could not walk to its end, because it met an instruction that it has no unwind row
/// for: the addresses up to there, the registers there, and a copy of the stack from there on. Kind `SNAPSHOT`; comes
/// before the [`super::Hold`] that names it. Kind `AUDIT` has the same form and another meaning, see there.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Snapshot {
    pub header: Header,
    /// What the `Hold` calls this stack. User space works out the id that the whole stack has.
    pub stack_id: u64,
    /// When its process started, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    /// Process, in portwatch's PID namespace.
    pub tgid: u32,
    /// Valid entries of `addresses`; the last one is `ip`.
    pub count: u32,
    /// Names the address space in the map of rows.
    pub generation: u64,
    /// Bit n: page n of `bytes` could be read.
    pub pages_valid: u32,
    /// Valid entries of `kernel`.
    pub kernel_count: u32,
    /// Registers after `addresses`.
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    /// Innermost first.
    pub addresses: [u64; STACK_FRAMES_MAX],
    /// Kernel frames above the system call, innermost first.
    pub kernel: [u64; KERNEL_FRAMES_MAX],
    /// Whole pages from the one that `sp` is in; what lies before `sp` in it is not copied.
    pub bytes: [u8; SNAPSHOT_BYTES],
}

const _: () =
    assert!(size_of::<Snapshot>() == 80 + 8 * (STACK_FRAMES_MAX + KERNEL_FRAMES_MAX) + SNAPSHOT_BYTES);

/// How to get from one frame to its caller, for one instruction: value of the kernel side's map of rows.
/// The return address is always in the word below the CFA, the caller's stack pointer after the call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Row {
    /// From the register that `kind` names to the CFA.
    pub cfa_off: i32,
    /// From the CFA to where the caller's frame pointer is saved.
    pub bp_off: i16,
    /// One of [`row_kind`].
    pub kind: u8,
    /// 1: the frame pointer is saved. 0: it is the caller's still.
    pub bp_saved: u8,
}

/// Values of [`Row::kind`].
pub mod row_kind {
    /// CFA = stack pointer + `cfa_off`.
    pub const SP: u8 = 0;
    /// CFA = frame pointer + `cfa_off`. A frame pointer of 0 marks the outermost frame.
    pub const BP: u8 = 1;
    /// There is no caller.
    pub const END: u8 = 2;
    /// A signal handler returns here; the interrupted registers are on the stack.
    pub const SIGNAL: u8 = 3;
    /// A row cannot say it: a snapshot is needed every time.
    pub const UNSUPPORTED: u8 = 4;
    /// CFA = word at frame pointer + `cfa_off`.
    pub const BP_WORD: u8 = 5;
}

/// Names a whole stack: the same on both sides. Never 0. In another generation of the address space the same addresses
/// are other code. Kernel addresses are mixed in first.
pub const fn stack_id_seed(start_boot_ns: u64, tgid: u32, generation: u64) -> u64 {
    stack_id_mix(start_boot_ns ^ ((tgid as u64) << 32), generation)
}

/// Mixed in last where a walk was cut: its innermost part is no whole stack, even if one with these addresses exists.
pub const STACK_ID_CUT: u64 = 1;

/// Mixes one address in, innermost first.
pub const fn stack_id_mix(id: u64, address: u64) -> u64 {
    (id ^ address).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

const _: () = assert!(size_of::<Stack>() == 48 + 8 * (STACK_FRAMES_MAX + KERNEL_FRAMES_MAX));
