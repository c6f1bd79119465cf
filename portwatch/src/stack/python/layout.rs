//! Where the members of CPython's structures are, by version.
//!
//! Up to 3.13 from a table, each line taken from that version's own headers by `offsetof`; they never change within a
//! version. From 3.13 on the interpreter carries a description of itself (`_Py_DebugOffsets`), which is read instead.
//! Builds whose structures differ, for debugging or without the interpreter lock, are refused.

use portwatch_common::python::{Entries, FRAME_BYTES, Layout, NONE, THREAD_BYTES};
use zerocopy::FromBytes;

use super::lines::Form;

/// What is known of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub layout: Layout,
    pub form: Form,
    /// `f_lasti` counts instructions of two bytes.
    pub counts_units: bool,
}

/// Up to 3.10 code objects have other members, and frames are objects of their own.
const OLD: Layout = Layout {
    interpreters_head: 32,
    interpreter_next: 0,
    interpreter_threads: 8,
    thread_id: 176,
    thread_frame: 24,
    frame_indirect: NONE,
    frame_code: 32,
    frame_back: 24,
    frame_at: 104,
    frame_entry: NONE,
    entries: Entries::EVERY,
    code_bytecode: NONE,
    code_first_line: 40,
    code_file: 104,
    code_name: 112,
    code_table: 120,
    identity_word: 5,
    has_code_version: 0,
    text_ascii: 48,
    text_compact: 72,
};

/// From 3.11 on frames lie in a stack of their own, and one run of the evaluator has several.
const NEW: Layout = Layout {
    interpreters_head: 40,
    interpreter_next: 0,
    interpreter_threads: 16,
    thread_id: 152,
    thread_frame: 56,
    frame_indirect: 8,
    frame_code: 32,
    frame_back: 48,
    frame_at: 56,
    frame_entry: 68,
    entries: Entries::MARKED,
    code_bytecode: 184,
    code_first_line: 72,
    code_file: 112,
    code_name: 128,
    code_table: 136,
    identity_word: 7,
    ..OLD
};

const V3_12: Layout = Layout {
    interpreter_threads: 72,
    thread_id: 136,
    frame_indirect: 0,
    frame_code: 0,
    frame_back: 8,
    frame_entry: 70,
    entries: Entries::SHIMS,
    code_bytecode: 192,
    code_first_line: 68,
    has_code_version: 1,
    text_ascii: 40,
    text_compact: 56,
    ..NEW
};

const V3_13: Layout = Layout {
    interpreters_head: 632,
    interpreter_next: 7264,
    interpreter_threads: 7344,
    thread_id: 152,
    thread_frame: 72,
    frame_indirect: NONE,
    code_bytecode: 200,
    ..V3_12
};

/// What is known of Python 3.`minor`.
pub fn by_version(minor: u32) -> Option<Version> {
    let (layout, form, counts_units) = match minor {
        9 => (OLD, Form::Lnotab, false),
        10 => (Layout { frame_at: 96, ..OLD }, Form::Ranges, true),
        11 => (NEW, Form::Locations, false),
        12 => (V3_12, Form::Locations, false),
        13 => (V3_13, Form::Locations, false),
        _ => return None,
    };
    Some(Version { layout, form, counts_units })
}

/// What an interpreter says of itself, `_Py_DebugOffsets` of 3.13: only the members that are used.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    pub is_free_threaded: bool,
    words: [u64; WORDS],
}

/// First bytes of the description.
pub const COOKIE: &[u8; 8] = b"xdebugpy";

/// Words up to `code_object.co_code_adaptive`.
const WORDS: usize = 47;

/// Bytes of the description that are looked at.
pub const DESCRIPTION_BYTES: u64 = 8 * WORDS as u64;

/// Places in the description, in words.
mod place {
    pub const FREE_THREADED: usize = 2;
    pub const INTERPRETERS_HEAD: usize = 5;
    pub const INTERPRETER_NEXT: usize = 8;
    pub const INTERPRETER_THREADS: usize = 9;
    pub const THREAD_PREV: usize = 20;
    pub const THREAD_NEXT: usize = 21;
    pub const THREAD_INTERPRETER: usize = 22;
    pub const THREAD_FRAME: usize = 23;
    pub const THREAD_ID: usize = 24;
    pub const FRAME_BACK: usize = 29;
    pub const FRAME_CODE: usize = 30;
    pub const FRAME_AT: usize = 31;
    pub const FRAME_OWNER: usize = 33;
    pub const CODE_FILE: usize = 35;
    pub const CODE_NAME: usize = 37;
    pub const CODE_TABLE: usize = 38;
    pub const CODE_FIRST_LINE: usize = 39;
    pub const CODE_BYTECODE: usize = 43;
}

impl Described {
    /// From the first bytes of `_PyRuntime`. Nothing: there is no description.
    pub fn read(bytes: &[u8]) -> Option<Described> {
        let (words, _) = <[u64; WORDS]>::read_from_prefix(bytes).ok()?;
        (words[0].to_le_bytes() == *COOKIE)
            .then(|| Described { is_free_threaded: words[place::FREE_THREADED] != 0, words })
    }

    /// `version` with what the interpreter says of itself. Nothing: it contradicts what the kernel side relies on.
    pub fn apply(&self, version: Version) -> Option<Version> {
        let at = |place: usize| u32::try_from(self.words[place]).ok().filter(|&offset| offset < 1 << 20);
        let links = [at(place::THREAD_PREV)?, at(place::THREAD_NEXT)?, at(place::THREAD_INTERPRETER)?];
        let layout = Layout {
            interpreters_head: at(place::INTERPRETERS_HEAD)?,
            interpreter_next: at(place::INTERPRETER_NEXT)?,
            interpreter_threads: at(place::INTERPRETER_THREADS)?,
            thread_id: at(place::THREAD_ID)?,
            thread_frame: at(place::THREAD_FRAME)?,
            frame_back: at(place::FRAME_BACK)?,
            frame_code: at(place::FRAME_CODE)?,
            frame_at: at(place::FRAME_AT)?,
            frame_entry: at(place::FRAME_OWNER)?,
            code_file: at(place::CODE_FILE)?,
            code_name: at(place::CODE_NAME)?,
            code_table: at(place::CODE_TABLE)?,
            code_first_line: at(place::CODE_FIRST_LINE)?,
            code_bytecode: at(place::CODE_BYTECODE)?,
            ..version.layout
        };
        let known = &version.layout;
        let is_word = |at: u32, size: usize| at.is_multiple_of(8) && at as usize + 8 <= size;
        let in_thread = [layout.thread_id, layout.thread_frame];
        let in_frame = [layout.frame_back, layout.frame_code, layout.frame_at];
        // The words by which code objects are told apart are known by their places, not by the description.
        let in_code =
            |layout: &Layout| [layout.code_file, layout.code_name, layout.code_table, layout.code_first_line];
        let is_sound = links == [0, 8, 16]
            && in_thread.iter().all(|&at| is_word(at, THREAD_BYTES))
            && in_frame.iter().all(|&at| is_word(at, FRAME_BYTES))
            && (layout.frame_entry as usize) < FRAME_BYTES
            && in_code(&layout) == in_code(known);
        is_sound.then_some(Version { layout, ..version })
    }
}
