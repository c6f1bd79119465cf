//! The frames of a Python interpreter, and the code they are in.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Header;
use crate::limits::{PYTHON_FILE_BYTES, PYTHON_FRAMES_MAX, PYTHON_NAME_BYTES, PYTHON_TABLE_BYTES};

/// One Python frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PythonFrame {
    /// Names a [`PythonCode`] within a generation.
    pub code_id: u64,
    /// Where in the code: bytes, or instructions where the version counts those. Negative: not begun.
    pub at: i32,
    /// Any of [`python_flags`].
    pub flags: u32,
}

/// Bits of [`PythonFrame::flags`].
pub mod python_flags {
    /// The outermost frame of one run of the evaluator.
    pub const ENTRY: u32 = 1 << 0;
}

/// The Python frames of the thread. Kind `PYTHON_STACK`; comes right before the [`super::Stack`] or [`super::Snapshot`]
/// of the same `stack_id`, and after the [`PythonCode`] of every frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PythonStack {
    pub header: Header,
    /// As the stack that follows calls itself.
    pub stack_id: u64,
    /// Names the address space.
    pub generation: u64,
    /// Mixed from the frames; the id of the whole stack has it mixed in behind its addresses.
    pub hash: u64,
    /// Valid entries of `frames`.
    pub count: u32,
    /// One of [`python_state`].
    pub state: u32,
    /// Innermost first.
    pub frames: [PythonFrame; PYTHON_FRAMES_MAX],
}

const _: () = assert!(size_of::<PythonStack>() == 48 + 16 * PYTHON_FRAMES_MAX);

/// What is known of a thread's Python frames.
pub mod python_state {
    /// There is no interpreter, or the thread runs no Python code.
    pub const NONE: u32 = 0;
    /// All of them.
    pub const WHOLE: u32 = 1;
    /// The innermost ones.
    pub const CUT: u32 = 2;
    /// The interpreter does not know the thread, or has too many.
    pub const NO_THREAD: u32 = 3;
    /// What should be a frame could not be read, or is none.
    pub const UNREADABLE: u32 = 4;
}

/// A code object. Kind `PYTHON_CODE`; comes before the first [`PythonStack`] that names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PythonCode {
    pub header: Header,
    pub generation: u64,
    /// Hash of what makes up the object, its address left out.
    pub code_id: u64,
    pub tgid: u32,
    /// `co_firstlineno`
    pub first_line: u32,
    /// Bytes of the table of lines, and how many of them are in `table`.
    pub table_bytes: u32,
    pub table_kept: u32,
    /// State word, characters, and bytes kept of the file's name.
    pub file_state: u32,
    pub file_chars: u32,
    pub file_kept: u32,
    /// The same of the function's name.
    pub name_state: u32,
    pub name_chars: u32,
    pub name_kept: u32,
    /// Version of Python 3.
    pub minor: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes past those kept are not written.
    pub file: [u8; PYTHON_FILE_BYTES],
    pub name: [u8; PYTHON_NAME_BYTES],
    pub table: [u8; PYTHON_TABLE_BYTES],
}

const _: () =
    assert!(size_of::<PythonCode>() == 80 + PYTHON_FILE_BYTES + PYTHON_NAME_BYTES + PYTHON_TABLE_BYTES);
