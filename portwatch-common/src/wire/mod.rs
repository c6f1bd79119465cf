//! What the ring buffer carries: one struct per kind, all of fixed size, each starting with a [`Header`].
//!
//! A socket's story is told in small records that share a `socket_id`. The first of them is always a
//! [`Hold`], which says who asked for the port, from where in the code, and between which addresses; the
//! later ones carry only what is new. If the ring buffer had no room for the `Hold`, the kernel side sends
//! it again before the next record of that socket, so no event ever arrives without its owner.
//!
//! All numbers are in host byte order. IPv4 addresses are written as IPv4-mapped IPv6 addresses.
//! No record holds a kernel pointer.

mod hold;
mod life;
mod python;
mod stack;

pub use hold::{Endpoints, Hold, Owner, confidence, hold_flags, how, stack_state};
pub use life::{Closed, Established, Failed, PortReleased, TimeWait, closer, failed_flags, reason};
pub use python::{PythonCode, PythonFrame, PythonStack, python_flags, python_state};
pub use stack::{Row, STACK_ID_CUT, Snapshot, Stack, row_kind, stack_id_mix, stack_id_seed};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of every struct in this module; a change of layout or meaning raises it.
pub const WIRE_VERSION: u16 = 1;

/// Head of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// [`WIRE_VERSION`].
    pub version: u16,
    /// One of [`kind`].
    pub kind: u16,
    /// Bytes of the whole record.
    pub size: u32,
    /// When it happened, `CLOCK_MONOTONIC`.
    pub time_mono_ns: u64,
}

const _: () = assert!(size_of::<Header>() == 16);

/// Numbers of the record kinds. The first [`EVENT_KINDS`] are events and are counted; the others only describe.
pub mod kind {
    /// A [`super::Hold`]: a connect, bind or listen got a local port.
    pub const PORT_ALLOCATED: u16 = 0;
    /// A [`super::Failed`]: a connect ended without a connection.
    pub const CONNECT_FAILED: u16 = 1;
    /// A [`super::Failed`]: a bind or listen did not get what it asked for.
    pub const BIND_FAILED: u16 = 2;
    /// A [`super::Established`].
    pub const ESTABLISHED: u16 = 3;
    /// A [`super::TimeWait`].
    pub const TIME_WAIT: u16 = 4;
    /// A [`super::Closed`].
    pub const CLOSED: u16 = 5;
    /// A [`super::PortReleased`].
    pub const PORT_RELEASED: u16 = 6;
    /// A [`super::Hold`] that describes a socket whose allocation was not sent as an event.
    pub const HOLD: u16 = 7;
    /// A [`super::Stack`].
    pub const STACK: u16 = 8;
    /// A [`super::Snapshot`].
    pub const SNAPSHOT: u16 = 9;
    /// A [`super::Snapshot`] of a stack that the kernel side did walk to its end, for user space to walk again and
    /// compare: the addresses of the whole stack, and registers and copy from its innermost frame on.
    pub const AUDIT: u16 = 10;
    /// A [`super::PythonStack`].
    pub const PYTHON_STACK: u16 = 11;
    /// A [`super::PythonCode`].
    pub const PYTHON_CODE: u16 = 12;
}

/// How many of the [`kind`] numbers are events.
pub const EVENT_KINDS: usize = 7;

/// Names of the event kinds as the event log writes them, by [`kind`] number.
pub const EVENT_NAMES: [&str; EVENT_KINDS] = [
    "port_allocated",
    "connect_failed",
    "bind_failed",
    "established",
    "time_wait",
    "closed",
    "port_released",
];
