//! Every map: who writes it, who reads it, how big it is, what happens when it is full.
//! Sizes given here are placeholders of one entry; the loader sets them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use portwatch_common::counters::Counters;
use portwatch_common::limits::PORT_BITMAP_WORDS;

use crate::kernel_stack::{DOORS, KernelStack};
use crate::python::PythonScratch;
use crate::slot::{InCall, Preexisting, Slot, TimeWaitSlot, UdpTold};
use crate::stack::{Budget, RowKey, StackScratch};
use portwatch_common::python::{Program, ProgramKey, Python};
use portwatch_common::wire::Row;

/// All records, in the order they were reserved. Full: the event is counted as missed.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Counts of what happened and what was missed; summed by user space.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// `struct sock *` → what is known of its hold. A plain hash: eviction would lose owners in silence.
/// Written at allocation, removed when the hold ends. Full: counted as `TABLE_FULL`.
#[map]
pub static SOCKETS: HashMap<u64, Slot> = HashMap::with_max_entries(1, 0);

/// `struct inet_timewait_sock *` → the hold that it took over from a socket. Full: counted as `TABLE_FULL`.
#[map]
pub static TIME_WAITS: HashMap<u64, TimeWaitSlot> = HashMap::with_max_entries(1, 0);

/// Socket cookie → socket that was open before the start. Written by user space.
#[map]
pub static PREEXISTING: HashMap<u64, Preexisting> = HashMap::with_max_entries(1, 0);

/// Number of a socket's file → UDP socket that was told of; only on the tracepoint rung, where nothing tells of its end. Least
/// recently used ones fall out; their next connect() is told as an allocation.
#[map]
pub static UDP_TOLD: LruHashMap<u64, UdpTold> = LruHashMap::with_max_entries(1, 0);

/// Arguments of a function under way, from its entry to its return. Written and removed there. Kprobes need it for
/// every function whose result counts; the others for those of UDP that tell what asked for a port.
#[map]
pub static IN_CALL: HashMap<[u64; 2], InCall> = HashMap::with_max_entries(1, 0);

/// Room to build a slot, too big for the program stack. One entry per place that builds one: a program never
/// runs twice at once on a CPU, but different ones may interrupt each other.
#[map]
pub static SLOT_SCRATCH: PerCpuArray<Slot> = PerCpuArray::with_max_entries(scratch::PLACES, 0);

/// Room for the addresses of a stack; likewise.
#[map]
pub static STACK_SCRATCH: PerCpuArray<StackScratch> = PerCpuArray::with_max_entries(scratch::PLACES, 0);

/// The kernel stack above a program, with `--kernel-stack`. Written at its door, taken where the user stack is.
#[map]
pub static KERNEL_STACKS: PerCpuArray<KernelStack> = PerCpuArray::with_max_entries(DOORS, 0);

/// Searches for a port under way, by the low bits of the task's number: a time-wait entry that dies inside one to the
/// same place was reused by it. By task, which may move to another CPU meanwhile, and of every task: what one that is
/// not traced reuses may belong to one that is. Two tasks in one place: the later one is remembered.
#[map]
pub static CONNECTING: Array<crate::slot::Connecting> = Array::with_max_entries(CONNECTING_PLACES, 0);

/// Two that share a place must be microseconds apart to disturb each other.
pub const CONNECTING_PLACES: u32 = 4096;

/// One of [`portwatch_common::config::gate`]: opened when every hook is attached, closed before the first is taken
/// away, so that no story begins or goes on with half of its hooks.
#[map]
pub static GATE: Array<u32> = Array::with_max_entries(1, 0);

/// 1 while this CPU runs the program for state changes.
#[map]
pub static STATE_RUNNING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// `struct net *` whose time-wait table was full when last seen. Only on the tracepoint rung. Full: a guess is worse.
#[map]
pub static TABLES_AT_LIMIT: LruHashMap<u64, u32> = LruHashMap::with_max_entries(64, 0);

/// When this CPU last woke the reader.
#[map]
pub static LAST_WAKE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Ids of stacks that user space already has. Least recently used ones fall out and are sent again.
#[map]
pub static STACKS_SEEN: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);

/// Process → generation of its address space: begun with its first stack, inherited at fork, ended at exec, at exit, and
/// by user space when other code takes the place of known code. Full: the process's stacks are sent as snapshots.
#[map]
pub static SPACES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Generation and instruction → how to get to the caller. Written by user space. Full: likewise.
#[map]
pub static ROWS: HashMap<RowKey, Row> = HashMap::with_max_entries(1, 0);

/// Process → snapshots lately. Least recently used ones fall out.
#[map]
pub static SNAPSHOT_BUDGETS: LruHashMap<u32, Budget> = LruHashMap::with_max_entries(1, 0);

/// Where a walk could not go on, and how it came there → when that was last sent. Least recently used ones fall out.
#[map]
pub static SNAPSHOT_PLACES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);
/// 1 once any process has an interpreter. Written with the first.
#[map]
pub static PYTHON_ANY: Array<u32> = Array::with_max_entries(1, 0);

/// Process → its interpreter. Written by user space, inherited at fork, ended at exec and exit. Full: the process has
/// no Python frames.
#[map]
pub static PYTHONS: HashMap<u32, Python> = HashMap::with_max_entries(1, 0);

/// Program file → the interpreter in it, for processes to have from their exec on. Written by user space. Full: they have
/// it when user space learns of them.
#[map]
pub static PYTHON_PROGRAMS: HashMap<ProgramKey, Program> = HashMap::with_max_entries(1, 0);

/// Process and thread → the interpreter's state of the thread, checked at each use. Least recently used ones fall out
/// and are looked for again.
#[map]
pub static PYTHON_THREADS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);

/// Generation and code object → user space has it. Least recently used ones fall out and are sent again.
#[map]
pub static PYTHON_CODES: LruHashMap<[u64; 2], u32> = LruHashMap::with_max_entries(1, 0);

/// Room to walk an interpreter's frames, as [`STACK_SCRATCH`].
#[map]
pub static PYTHON_SCRATCH: PerCpuArray<PythonScratch> = PerCpuArray::with_max_entries(scratch::PLACES, 0);

/// `-p`: process → flags, see [`portwatch_common::config::pid_flags`]. Written by user space, and by the fork hook with `-f`.
#[map]
pub static PIDS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// `--uid`
#[map]
pub static UIDS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// `--netns`, by inode number.
#[map]
pub static NETNSES: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// `--dport`, one bit per port.
#[map]
pub static PORTS_REMOTE: Array<u64> = Array::with_max_entries(PORT_BITMAP_WORDS as u32, 0);

/// `--lport`, one bit per port.
#[map]
pub static PORTS_LOCAL: Array<u64> = Array::with_max_entries(PORT_BITMAP_WORDS as u32, 0);

/// `--dst`, IPv4 as IPv4-mapped.
#[map]
pub static ADDRS_REMOTE: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);

/// `--src`, likewise.
#[map]
pub static ADDRS_LOCAL: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);

/// `--comm`: for every byte, the elements that accept it; see [`portwatch_common::config::CommGlob`].
#[map]
pub static COMM_ACCEPTS: Array<u64> = Array::with_max_entries(256, 0);

/// Places that build a slot or take a stack.
pub mod scratch {
    pub const CONNECT: u32 = 0;
    pub const CONNECT_FAILED: u32 = 1;
    pub const GET_PORT: u32 = 2;
    pub const BIND_FAILED: u32 = 3;
    pub const LISTEN_FAILED: u32 = 4;
    pub const ADOPT: u32 = 5;
    pub const ADOPT_NESTED: u32 = 6;
    pub const ADOPT_TIME_WAIT: u32 = 7;
    pub const CONNECT_NESTED: u32 = 8;
    pub const UDP_GET_PORT: u32 = 9;
    pub const UDP_CONNECT: u32 = 10;
    pub const UDP_AUTOBIND: u32 = 11;
    pub const ADOPT_UDP: u32 = 12;
    pub const PLACES: u32 = 13;
}
