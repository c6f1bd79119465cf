//! What the kernel side remembers of a socket while it holds a port, or tries to get one.

use portwatch_common::wire;

/// One socket. `hold` is ready to be sent; its header is filled in when it is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slot {
    pub hold: wire::Hold,
    /// When the port was allocated; 0 before.
    pub allocated_ns: u64,
    /// When the connect under way began; 0 when there is none.
    pub attempt_ns: u64,
    /// From the start of the connect to the established state; 0 before.
    pub connect_ns: u64,
    /// Any of [`flags`].
    pub flags: u32,
    /// Process that did the last close(); 0 before.
    pub closed_by_tgid: u32,
    /// One of [`wire::closer`].
    pub closer: u8,
    /// What `port_released` will say: one of [`wire::reason`].
    pub release_reason: u8,
    /// `inet_sport` when the connect began: a port that is long released may still stand there.
    pub stale_sport: u16,
    pub reserved: u32,
}

/// Bits of [`Slot::flags`].
pub mod flags {
    /// User space has got the `Hold`.
    pub const ANNOUNCED: u32 = 1 << 0;
    /// A port is held.
    pub const HAS_PORT: u32 = 1 << 1;
    /// `port_allocated` was sent or counted.
    pub const ALLOCATION_TOLD: u32 = 1 << 2;
    /// The task is inside connect() with this socket.
    pub const IN_CONNECT: u32 = 1 << 3;
    /// The connect under way has failed, and `connect_failed` was sent or counted.
    pub const FAILURE_TOLD: u32 = 1 << 4;
    /// The kernel has put the port; the state change that ends the hold is still to come.
    pub const PORT_PUT: u32 = 1 << 5;
    /// A time-wait entry holds the port now.
    pub const HAS_TIME_WAIT: u32 = 1 << 6;
    pub const WAS_ESTABLISHED: u32 = 1 << 7;
    /// The last close() was seen.
    pub const IS_RELEASED: u32 = 1 << 8;
    /// portwatch's own: counted by the self-test, never sent.
    pub const IS_SELF: u32 = 1 << 9;
    /// Bound, and whether it is wanted depends on the peer.
    pub const AWAITS_PEER: u32 = 1 << 10;
    pub const IS_LISTENING: u32 = 1 << 11;
    /// The connect failed after it had returned, and a further connect() may still collect the error. Only on the
    /// tracepoint rung, which sees no more of that call than its result.
    pub const MAY_BE_COLLECTED: u32 = 1 << 12;
    /// The connection has ended, and that was told; the port may still be held.
    pub const END_TOLD: u32 = 1 << 13;
}

/// A hold that a time-wait entry took over.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TimeWaitSlot {
    pub socket_id: u64,
    /// 0 when not known.
    pub allocated_ns: u64,
    /// `struct net *`: compared, never sent.
    pub net: u64,
    /// [`flags`] of the slot.
    pub flags: u32,
    pub port_local: u16,
    pub port_remote: u16,
    pub addr_remote: [u8; 16],
}

/// A socket that was open before the start, as user space describes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Preexisting {
    pub socket_id: u64,
}

/// A UDP socket that was told of, on the tracepoint rung.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UdpTold {
    pub socket_id: u64,
    pub port: u32,
    /// [`flags::ANNOUNCED`], or nothing.
    pub flags: u32,
}

/// Arguments of a probed function.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InCall {
    pub args: [u64; 3],
}

/// A search for a port under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connecting {
    /// The task that connects.
    pub pid_tgid: u64,
    /// `struct sock *`; 0: the search is over.
    pub sk: u64,
}
