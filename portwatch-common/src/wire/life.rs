//! What happens to a socket after its [`super::Hold`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Endpoints, Header};

/// A connect, bind or listen that failed. Kinds `CONNECT_FAILED` and `BIND_FAILED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Failed {
    pub header: Header,
    pub socket_id: u64,
    /// Positive errno; 0 when there is none ([`failed_flags::ABANDONED`]).
    pub errno: u32,
    /// Any of [`failed_flags`].
    pub flags: u32,
    pub endpoints: Endpoints,
}

const _: () = assert!(size_of::<Failed>() == 80);

/// Bits of [`Failed::flags`].
pub mod failed_flags {
    /// The socket was closed while the connect was still under way: nobody saw an error.
    pub const ABANDONED: u32 = 1 << 0;
    /// No port is held: this is the last record of its `socket_id`.
    pub const FINAL: u32 = 1 << 1;
    /// The failing call was listen().
    pub const LISTEN: u32 = 1 << 2;
    /// Deduced, not seen.
    pub const INFERRED: u32 = 1 << 3;
}

/// The three-way handshake is done. Kind `ESTABLISHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Established {
    pub header: Header,
    pub socket_id: u64,
    /// From the start of the connect; 0 when not known.
    pub connect_ns: u64,
    pub endpoints: Endpoints,
}

const _: () = assert!(size_of::<Established>() == 80);

/// The kernel made a time-wait entry, which holds the port from now on. Kind `TIME_WAIT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimeWait {
    pub header: Header,
    pub socket_id: u64,
    /// Payload bytes, retransmissions not counted.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// From the start of the connect to the established state; 0 when not known.
    pub connect_ns: u64,
    /// `TCP_FIN_WAIT2` (5) for the ordinary close, whose peer has not closed yet, or `TCP_TIME_WAIT` (6).
    pub substate: u8,
    /// One of [`closer`].
    pub closer: u8,
    /// One of [`super::confidence`].
    pub confidence: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

const _: () = assert!(size_of::<TimeWait>() == 56);

/// The full socket left an established state. Kind `CLOSED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Closed {
    pub header: Header,
    pub socket_id: u64,
    /// Since the port was allocated.
    pub held_ns: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub connect_ns: u64,
    /// Process that did the last close(), in portwatch's PID namespace; 0 when not seen.
    pub closed_by_tgid: u32,
    /// One of [`closer`].
    pub closer: u8,
    /// TCP state before.
    pub state_before: u8,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Closed>() == 64);

/// The port is free of this holder. Kind `PORT_RELEASED`, the last record of its `socket_id`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PortReleased {
    pub header: Header,
    pub socket_id: u64,
    /// Since the port was allocated.
    pub held_ns: u64,
    /// One of [`reason`].
    pub reason: u8,
    /// One of [`super::confidence`].
    pub confidence: u8,
    /// Non-zero when nobody asked for this event: it only ends the `socket_id` and is not counted.
    pub is_silent: u8,
    /// Non-zero when the socket was listening.
    pub was_listening: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<PortReleased>() == 40);

/// Which side ended a connection.
pub mod closer {
    pub const UNKNOWN: u8 = 0;
    pub const LOCAL: u8 = 1;
    pub const REMOTE: u8 = 2;
    /// Both sides sent their FIN before seeing the other's.
    pub const BOTH: u8 = 3;
    pub const RESET: u8 = 4;
}

/// Why a port was released.
pub mod reason {
    pub const UNKNOWN: u8 = 0;
    /// The socket went, and left no time-wait entry.
    pub const CLOSED: u8 = 1;
    pub const TW_EXPIRED: u8 = 2;
    /// A connect took the port over (`tcp_tw_reuse`).
    pub const TW_REUSED: u8 = 3;
    /// A RST or a new SYN ended the time-wait entry early.
    pub const TW_RESET: u8 = 4;
    /// The time-wait table was full, so there was no time-wait entry at all.
    pub const TW_OVERFLOW: u8 = 5;
    pub const NETNS_EXIT: u8 = 6;
    /// connect(AF_UNSPEC).
    pub const DISCONNECTED: u8 = 7;
}
