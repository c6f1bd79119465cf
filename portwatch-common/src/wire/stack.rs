//! A user stack, sent once per distinct stack.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Header;
use crate::limits::STACK_FRAMES_MAX;

/// Return addresses of one user stack. Kind `STACK`; comes before the first [`super::Hold`] that names it.
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
    /// Innermost first.
    pub addresses: [u64; STACK_FRAMES_MAX],
}

const _: () = assert!(size_of::<Stack>() == 40 + 8 * STACK_FRAMES_MAX);
