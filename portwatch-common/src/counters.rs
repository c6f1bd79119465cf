//! Numbered reasons for not sending an event, and the layout of the per-CPU counters.

use crate::wire::EVENT_KINDS;

/// Reasons why an event that happened was not sent. Index into [`Counters::missed`].
pub mod miss {
    /// The ring buffer had no room.
    pub const RING_FULL: usize = 0;
    /// The table of tracked sockets was full, so the socket's later events cannot be told.
    pub const TABLE_FULL: usize = 1;
    /// A burst of expiries that the ring buffer had no room for.
    pub const BURST: usize = 2;
    /// A read of kernel memory failed.
    pub const READ_FAILED: usize = 3;
}

/// How many [`miss`] reasons there are.
pub const MISS_REASONS: usize = 4;

/// Names of the reasons as the event log writes them.
pub const MISS_NAMES: [&str; MISS_REASONS] = ["ring_full", "table_full", "burst", "read_failed"];

/// Hooks that the self-test can vouch for. Index into [`Counters::self_test_hits`].
pub mod hook {
    pub const STATE_SYN_SENT: usize = 0;
    pub const STATE_ESTABLISHED: usize = 1;
    pub const STATE_CLOSE: usize = 2;
    pub const HASH_CONNECT: usize = 3;
    pub const HASH_CONNECT_V6: usize = 4;
    pub const GET_PORT: usize = 5;
    pub const TWSK_ALLOC: usize = 6;
    pub const TWSK_KILL: usize = 7;
    pub const PUT_PORT: usize = 8;
    pub const SOCK_DESTRUCT: usize = 9;
    pub const RELEASE: usize = 10;
    pub const TCP_CONNECT: usize = 11;
    pub const BIND: usize = 12;
    pub const LISTEN: usize = 13;
    pub const DISCONNECT: usize = 14;
    pub const EXIT_CONNECT: usize = 15;
    pub const EXIT_BIND: usize = 16;
    pub const EXIT_LISTEN: usize = 17;
    pub const DESTROY_SOCK: usize = 18;
    pub const UDP_GET_PORT: usize = 19;
    pub const UDP_CONNECT: usize = 20;
    pub const UDP_AUTOBIND: usize = 21;
    pub const UDP_UNHASH: usize = 22;
}

/// How many [`hook`] numbers there are.
pub const HOOKS: usize = 23;

/// Names of the hooks, by [`hook`] number: what the self-test says when one misses calls.
pub const HOOK_NAMES: [&str; HOOKS] = [
    "sock:inet_sock_set_state (SYN_SENT)",
    "sock:inet_sock_set_state (ESTABLISHED)",
    "sock:inet_sock_set_state (CLOSE)",
    "inet_hash_connect",
    "inet6_hash_connect",
    "inet_csk_get_port",
    "inet_twsk_alloc",
    "inet_twsk_kill",
    "inet_put_port",
    "inet_sock_destruct",
    "inet_release",
    "tcp_v4_connect, tcp_v6_connect",
    "inet_bind, inet6_bind",
    "inet_listen",
    "tcp_disconnect",
    "syscalls:sys_exit_connect",
    "syscalls:sys_exit_bind",
    "syscalls:sys_exit_listen",
    "tcp:tcp_destroy_sock",
    "udp_lib_get_port",
    "inet_dgram_connect",
    "inet_autobind",
    "udp_lib_unhash",
];

/// One CPU's counters. `happened[kind]` = events sent + the sum of `missed[kind]`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
)]
pub struct Counters {
    /// Events that passed the filters, by [`crate::wire::kind`].
    pub happened: [u64; EVENT_KINDS],
    /// Events that were deduced, a part of `happened`, by [`crate::wire::kind`].
    pub inferred: [u64; EVENT_KINDS],
    /// Events not sent, by [`crate::wire::kind`] and [`miss`].
    pub missed: [[u64; MISS_REASONS]; EVENT_KINDS],
    /// Calls seen from portwatch's own self-test, by [`hook`].
    pub self_test_hits: [u64; HOOKS],
    /// State changes that the second program took because the first was running.
    pub nested_runs: u64,
    /// Stacks and snapshots not sent.
    pub stacks_missed: u64,
    /// Snapshots not taken because their process had sent too many.
    pub snapshots_limited: u64,
    /// Stacks walked to their end by the kernel side alone.
    pub stacks_walked: u64,
    /// Snapshots sent.
    pub snapshots: u64,
    /// Audits that the ring had no room for.
    pub audits_missed: u64,
}
