//! Sizes that both sides use, each with the reason for its value.

/// Length of a task's `comm`, its final NUL included. Source: `TASK_COMM_LEN` of the kernel.
pub const COMM_LEN: usize = 16;

/// User frames kept per stack; a power of two. The deepest stack seen at a connect() on common programs has 36 frames.
pub const STACK_FRAMES_MAX: usize = 128;

/// Kernel frames kept per stack; from a connect to its system call there are fifteen.
pub const KERNEL_FRAMES_MAX: usize = 32;

/// User frames walked where the verifier goes through the loop turn by turn.
pub const STACK_FRAMES_PLAIN: usize = 64;

/// Nested PID namespaces searched for the number by which portwatch knows a task.
/// Source: `MAX_PID_NS_LEVEL` is 32; containers in containers reach three or four.
pub const PID_NS_LEVELS_MAX: usize = 8;

/// Characters of all `--comm` patterns together; one bit of a `u64` each, see [`crate::config::CommGlob`].
pub const COMM_GLOB_STATES_MAX: usize = 63;

/// Words of a bitmap with one bit per port.
pub const PORT_BITMAP_WORDS: usize = 65536 / 64;

/// Sockets tracked at once unless the user says otherwise. An entry costs about 300 bytes of kernel memory.
pub const SOCKETS_DEFAULT: u32 = 65_536;

/// Ports in TIME_WAIT tracked at once unless the user says otherwise: four times the default ephemeral range.
pub const TIME_WAITS_DEFAULT: u32 = 131_072;

/// Ring buffer bytes unless the user says otherwise: 100 ms of 400 000 events a second at 400 bytes.
pub const RING_BYTES_DEFAULT: u32 = 16 << 20;

/// Python frames kept per stack; a power of two.
pub const PYTHON_FRAMES_MAX: usize = 64;

/// Of those, the ones that are walked where the verifier goes through the loop turn by turn.
pub const PYTHON_FRAMES_PLAIN: usize = 48;

/// Threads and interpreters of a process that are looked through for the one that runs; likewise.
pub const PYTHON_THREADS_MAX: u32 = 1024;
pub const PYTHON_THREADS_PLAIN: u32 = 128;

/// Program files that are an interpreter.
pub const PYTHON_PROGRAMS_MAX: u32 = 1024;

/// Bytes kept of a code object's strings and of its table of lines; each a power of two. A function's table has some
/// 3 bytes a line, a module's more.
pub const PYTHON_FILE_BYTES: usize = 512;
pub const PYTHON_NAME_BYTES: usize = 256;
pub const PYTHON_TABLE_BYTES: usize = 4096;

/// Code objects that the kernel side remembers as sent.
pub const PYTHON_CODES_MAX: u32 = 16_384;

/// Bytes of a stack snapshot: four pages. Deeper stacks are learned in steps: the kernel side walks what it knows,
/// and sends the next snapshot from where it stopped.
pub const SNAPSHOT_BYTES: usize = 4 * 4096;

/// Snapshots that one process may send per second; a just-in-time compiler could go on for ever.
pub const SNAPSHOTS_PER_SECOND: u64 = 200;

/// Of those, so many may be alike: the rest is for what was not sent lately. Until user space has taught the way, every
/// call by it is another snapshot, and a busy process makes hundreds of them meanwhile.
pub const SNAPSHOTS_ALIKE: u64 = 100;

/// How long a snapshot stands for others like it: longer than user space needs to teach what it asked for.
pub const SNAPSHOT_ALIKE_NS: u64 = 100_000_000;

/// Places of which it is known when they last sent a snapshot.
pub const SNAPSHOT_PLACES_MAX: u32 = 8_192;

/// Of the stacks that a CPU walks to their end, its first and then one of so many is walked again by user space.
pub const STACKS_PER_AUDIT: u32 = 1024;

/// Unwind rows that the kernel side has room for, one per instruction on a path to a connect.
/// A mixed workload of nine programs needs 330.
pub const ROWS_MAX: u32 = 65_536;

/// Address spaces that it knows rows of.
pub const SPACES_MAX: u32 = 8_192;
