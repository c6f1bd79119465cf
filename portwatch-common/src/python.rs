//! Where CPython keeps its frames: what the kernel side must know of an interpreter to walk them.
//!
//! A thread in a system call has let go of the interpreter lock, so nothing points at it but the interpreter's list of
//! threads. In it, a thread is found by its `thread_id`, which is where its thread-local storage is (`pthread_self()`), and
//! that the kernel knows. Its frames are a linked list.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "This version has no such member."
pub const NONE: u32 = u32::MAX;

/// Byte offsets of members of CPython's structures.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Layout {
    /// `_PyRuntimeState`, `interpreters.head`
    pub interpreters_head: u32,
    /// `PyInterpreterState`: `next`, and the head of its list of threads.
    pub interpreter_next: u32,
    pub interpreter_threads: u32,
    /// `PyThreadState`: `thread_id`; and the innermost frame, or what points at it. All below [`THREAD_BYTES`].
    pub thread_id: u32,
    pub thread_frame: u32,
    /// In what `thread_frame` points at: the innermost frame. [`NONE`]: it is that frame.
    pub frame_indirect: u32,
    /// A frame: its code object, the frame outside of it, where it is in the code. All below [`FRAME_BYTES`].
    pub frame_code: u32,
    pub frame_back: u32,
    pub frame_at: u32,
    /// The byte that tells where a run of the evaluator begins, see [`Entries`]. [`NONE`]: there is none.
    pub frame_entry: u32,
    /// One of [`Entries`].
    pub entries: u32,
    /// `PyCodeObject`: the first instruction. [`NONE`]: `frame_at` is a number already, else an address.
    pub code_bytecode: u32,
    /// All below [`CODE_BYTES`].
    pub code_first_line: u32,
    pub code_file: u32,
    pub code_name: u32,
    pub code_table: u32,
    /// The first of [`IDENTITY_WORDS`] words of a code object that never change.
    pub identity_word: u32,
    /// Non-zero: one of those words numbers the code objects. Else the table of lines tells apart two that had the same
    /// memory one after the other.
    pub has_code_version: u32,
    /// Where the characters of a string begin, by its form.
    pub text_ascii: u32,
    pub text_compact: u32,
}

/// Values of [`Layout::entries`]: which frames one run of the evaluator has.
pub struct Entries;

impl Entries {
    /// One each.
    pub const EVERY: u32 = 0;
    /// All up to one whose entry byte is 1.
    pub const MARKED: u32 = 1;
    /// All up to one whose entry byte is [`SHIM`], which is no function's.
    pub const SHIMS: u32 = 2;
}

/// `FRAME_OWNED_BY_CSTACK`
pub const SHIM: u8 = 3;

/// Value of the map of interpreters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Python {
    /// Address of `_PyRuntime` in the process.
    pub runtime: u64,
    /// Address of `PyCode_Type`: what is no code object is no frame.
    pub code_type: u64,
    pub layout: Layout,
    /// Of Python 3: says how its tables of lines are written.
    pub minor: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of the map of programs that are an interpreter, as the kernel numbers files.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProgramKey {
    /// 12 bits of major number, 20 of minor.
    pub device: u64,
    pub inode: u64,
}

/// Its value: what becomes a [`Python`] when the program is started.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Program {
    /// With the file's own addresses.
    pub python: Python,
    /// The file's own address of the start of its code.
    pub code_start: u64,
}

/// Bytes read of a thread state, a frame of its own kind, a frame that is an object, and a code object.
pub const THREAD_BYTES: usize = 192;
pub const FRAME_BYTES: usize = 72;
pub const FRAME_OBJECT_BYTES: usize = 112;
pub const CODE_BYTES: usize = 152;

/// See [`Layout::identity_word`].
pub const IDENTITY_WORDS: usize = 11;

/// Offsets that are the same in all versions: `PyThreadState`'s links, an object's type, and in a string or bytes object
/// its length, hash or state, and first byte.
pub mod common {
    pub const THREAD_PREV: u32 = 0;
    pub const THREAD_NEXT: u32 = 8;
    pub const THREAD_INTERPRETER: u32 = 16;
    pub const OBJECT_TYPE: u32 = 8;
    pub const TEXT_CHARS: u32 = 16;
    pub const TEXT_STATE: u32 = 32;
    pub const BYTES_SIZE: u32 = 16;
    pub const BYTES_START: u32 = 32;
}
