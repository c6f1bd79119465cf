//! The description of one hold of a port: who, from where, between which addresses.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Header;
use crate::limits::COMM_LEN;

/// The task that asked for the port, recorded in its own context.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Owner {
    /// Process, as numbered in portwatch's own PID namespace; 0 when it has no number there.
    pub tgid: u32,
    /// Thread, likewise.
    pub tid: u32,
    /// Parent process, likewise.
    pub ppid: u32,
    /// Real user id.
    pub uid: u32,
    /// Process, as numbered in its own, innermost PID namespace.
    pub ns_tgid: u32,
    /// Non-zero for kernel threads and io_uring workers: there is no user stack to show.
    pub is_kernel: u32,
    /// When the process started, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    /// Id of the cgroup in the version 2 hierarchy.
    pub cgroup_id: u64,
    /// Name of the thread, NUL-terminated. Untrusted bytes.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<Owner>() == 56);

/// Both ends of a socket, as its owner sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Endpoints {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// `AF_INET` (2) or `AF_INET6` (10): the socket's family, also when its addresses are IPv4-mapped.
    pub family: u16,
    /// `IPPROTO_TCP` (6) or `IPPROTO_UDP` (17).
    pub protocol: u16,
    /// 0 when there is none.
    pub port_local: u16,
    /// 0 when there is no peer.
    pub port_remote: u16,
    /// Zero.
    pub reserved: u32,
    /// IPv4 addresses are written IPv4-mapped.
    pub addr_local: [u8; 16],
    /// All zero when there is no peer.
    pub addr_remote: [u8; 16],
}

const _: () = assert!(size_of::<Endpoints>() == 48);

/// One hold of a port, or one attempt to get one. Kinds `PORT_ALLOCATED` and `HOLD`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hold {
    pub header: Header,
    /// Names the hold in all later records. Unique within a run, never 0.
    pub socket_id: u64,
    /// When the attempt began, `CLOCK_MONOTONIC`; earlier than the header's time where the port was learned late.
    pub begun_mono_ns: u64,
    /// Time spent in the kernel's search for a port; 0 when not measured.
    pub search_ns: u64,
    /// Id of a [`super::Stack`] or [`super::Snapshot`]; 0 when there is none, and `stack_state` says why.
    pub stack_id: u64,
    pub owner: Owner,
    pub endpoints: Endpoints,
    /// One of [`how`].
    pub how: u8,
    /// One of [`confidence`].
    pub confidence: u8,
    /// Any of [`hold_flags`].
    pub flags: u16,
    /// One of [`stack_state`].
    pub stack_state: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<Hold>() == 160);

/// What is known of the user stack behind a hold.
pub mod stack_state {
    /// Nobody asked for it, or nobody asked for the port.
    pub const UNASKED: u8 = 0;
    /// `stack_id` names it.
    pub const TAKEN: u8 = 1;
    /// A kernel thread or io_uring worker has none.
    pub const KERNEL_TASK: u8 = 2;
    /// The task runs 32-bit code.
    pub const COMPAT: u8 = 3;
    /// The process has sent too many snapshots lately: `stack_id` names the innermost part of it.
    pub const RATE_LIMITED: u8 = 4;
    /// The ring had no room for it.
    pub const RING_FULL: u8 = 5;
    /// The saved registers could not be read.
    pub const UNREADABLE: u8 = 6;
    /// It has more frames than are walked: `stack_id` names the innermost ones.
    pub const TOO_DEEP: u8 = 7;
    /// The process has no number in portwatch's PID namespace, by which its mappings could be found.
    pub const OTHER_PID_NAMESPACE: u8 = 8;
}

/// Which call asked for the port.
pub mod how {
    pub const CONNECT: u8 = 0;
    pub const BIND: u8 = 1;
    pub const LISTEN: u8 = 2;
    pub const AUTOBIND: u8 = 3;
    /// Accepted from a listener: nobody asked for the port.
    pub const ACCEPT: u8 = 4;
}

/// How the fact is known.
pub mod confidence {
    /// A hook saw it.
    pub const EXACT: u8 = 0;
    /// Deduced from a state change.
    pub const INFERRED: u8 = 1;
    pub const UNKNOWN: u8 = 2;
}

/// Bits of [`Hold::flags`].
pub mod hold_flags {
    /// The port was learned after it was allocated; `begun_mono_ns` says when that was.
    pub const LATE: u16 = 1 << 0;
}
