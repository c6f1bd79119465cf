//! CPython's frames, beside the native ones: which code object, and where in it. What they are called and on which line
//! that is, user space works out; a code object is sent before the first stack that it is in, so that names survive
//! the process.
//!
//! A frame is believed only if it points at a code object, and a thread only if it is the one that runs and the
//! interpreter still has it in its list. In doubt there are no Python frames.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use portwatch_common::limits::PYTHON_FRAMES_MAX;
#[cfg(feature = "loop")]
use portwatch_common::limits::PYTHON_THREADS_MAX;
#[cfg(not(feature = "loop"))]
use portwatch_common::limits::{PYTHON_FRAMES_PLAIN, PYTHON_THREADS_PLAIN};
use portwatch_common::python::{
    CODE_BYTES, Entries, FRAME_BYTES, FRAME_OBJECT_BYTES, IDENTITY_WORDS, Layout, NONE, Python, SHIM,
    THREAD_BYTES, common,
};
use portwatch_common::wire::{PythonFrame, python_flags, python_state, stack_id_mix};

use crate::maps::{PYTHON_ANY, PYTHON_CODES, PYTHON_SCRATCH, PYTHON_THREADS, PYTHONS};
use crate::owner::current_task;
use crate::read::{kernel, user};
use crate::repeat::{Turn, repeat};
use crate::settings::offset;
use crate::{emit, stack};

/// Room to work in, too big for the program stack. Arrays are longer than what is read into them, so that a masked
/// index is inside.
#[repr(C)]
pub struct PythonScratch {
    pub frames: [PythonFrame; PYTHON_FRAMES_MAX],
    /// Addresses of the frames' code objects.
    codes: [u64; PYTHON_FRAMES_MAX],
    thread: [u64; 32],
    frame: [u64; 16],
    code: [u64; 32],
    pub walk: Walk,
}

/// How far a walk has come. In a map and not in variables: the verifier would follow every number of frames through
/// all that comes after.
#[repr(C)]
pub struct Walk {
    frame: u64,
    hash: u64,
    pub count: u32,
    /// One of [`python_state`].
    pub state: u32,
}

/// Takes the Python frames of the running thread of process `tgid`, and gives back a hash of them; 0: there are none.
/// Costs one look at an array where no process has an interpreter.
#[inline(always)]
pub fn take(place: u32, tgid: u32) -> u64 {
    // Turn by turn the verifier needs minutes for it, on a slow machine.
    if cfg!(not(feature = "loop")) || PYTHON_ANY.get(0).copied() != Some(1) {
        return 0;
    }
    // SAFETY: changed only when the process's program does, which this is a part of.
    let Some(python) = (unsafe { PYTHONS.get(tgid) }) else { return 0 };
    let Some(scratch) = PYTHON_SCRATCH.get_ptr_mut(place) else { return 0 };
    // SAFETY: a part of the scratch entry, which belongs to this program on this CPU.
    let walk = unsafe { &raw mut (*scratch).walk };
    let mut state = python_state::NO_THREAD;
    if find_thread(python, scratch) {
        state = python_state::UNREADABLE;
        if let Some(frame) = innermost(&python.layout, scratch) {
            if frame == 0 {
                return 0;
            }
            // SAFETY: as above.
            state = unsafe {
                walk.write_volatile(Walk { frame, hash: 0, count: 0, state: python_state::CUT });
                repeat(FRAMES_MAX, &mut Frames { python, scratch });
                (&raw const (*walk).state).read_volatile()
            };
        }
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*walk).state).write_volatile(state);
        if !matches!(state, python_state::WHOLE | python_state::CUT) {
            // In doubt, none.
            (&raw mut (*walk).count).write_volatile(0);
            return state as u64;
        }
        (&raw const (*walk).hash).read_volatile() | 1
    }
}

/// Frames and threads that are looked at.
#[cfg(feature = "loop")]
const FRAMES_MAX: u32 = PYTHON_FRAMES_MAX as u32;
#[cfg(feature = "loop")]
const THREADS_MAX: u32 = PYTHON_THREADS_MAX;
#[cfg(not(feature = "loop"))]
const FRAMES_MAX: u32 = PYTHON_FRAMES_PLAIN as u32;
#[cfg(not(feature = "loop"))]
const THREADS_MAX: u32 = PYTHON_THREADS_PLAIN;

/// The walk outwards.
struct Frames<'p> {
    python: &'p Python,
    scratch: *mut PythonScratch,
}

impl Turn for Frames<'_> {
    #[inline(always)]
    fn turn(&mut self, _number: u32) -> bool {
        let scratch = self.scratch;
        let state = match step(self.python, scratch) {
            Step::Outward => return true,
            Step::End => python_state::WHOLE,
            Step::Bad => python_state::UNREADABLE,
        };
        // SAFETY: a part of the scratch entry, which belongs to this program on this CPU.
        unsafe { (&raw mut (*scratch).walk.state).write_volatile(state) };
        false
    }
}

enum Step {
    Outward,
    End,
    Bad,
}

/// Takes one frame in.
#[inline(always)]
fn step(python: &Python, scratch: *mut PythonScratch) -> Step {
    let layout = &python.layout;
    // SAFETY: parts of the scratch entry, which belongs to this program on this CPU; indices are masked.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        let words = (&raw mut (*scratch).frame).cast::<u64>();
        let is_object = || (&raw const layout.entries).read_volatile() == Entries::EVERY;
        let bytes = if is_object() { FRAME_OBJECT_BYTES } else { FRAME_BYTES };
        if !read_into(words, bytes as u32, (&raw const (*walk).frame).read_volatile()) {
            return Step::Bad;
        }
        let word = |at: u32| words.add(((at / 8) & 15) as usize).read_volatile();
        (&raw mut (*walk).frame).write_volatile(word(layout.frame_back));
        // What is behind this one is read when it is wanted: few things at once must be kept on the stack, of which the
        // helper's callers and we have 512 bytes together.
        let at_frame = &raw const (*walk).frame;
        let outward = || if at_frame.read_volatile() == 0 { Step::End } else { Step::Outward };
        // Without such a byte the word is another, and is not looked at.
        let mark = || (word(layout.frame_entry) >> (layout.frame_entry % 8 * 8)) as u8;
        let frames = (&raw mut (*scratch).frames).cast::<PythonFrame>();
        if layout.entries == Entries::SHIMS && mark() == SHIM {
            // No function's: it stands where the evaluator was entered for the frames before it.
            let count = (&raw const (*walk).count).read_volatile();
            let before = (count.wrapping_sub(1) & (PYTHON_FRAMES_MAX as u32 - 1)) as usize;
            (&raw mut (*frames.add(before)).flags).write_volatile(python_flags::ENTRY);
            return outward();
        }
        let Some(code_id) = identity(python, scratch, word(layout.frame_code)) else { return Step::Bad };
        let count = (&raw const (*walk).count).read_volatile();
        let is_entry = is_object() || layout.entries == Entries::MARKED && mark() == 1;
        let code = word(layout.frame_code);
        let mut at = word(layout.frame_at);
        if layout.code_bytecode != NONE {
            at = at.wrapping_sub(code).wrapping_sub(layout.code_bytecode as u64);
            // Further than any function is long: not an instruction of this code.
            if at.wrapping_add(AT_MAX) > 2 * AT_MAX {
                return Step::Bad;
            }
        }
        let slot = (count & (PYTHON_FRAMES_MAX as u32 - 1)) as usize;
        let flags = if is_entry { python_flags::ENTRY } else { 0 };
        frames.add(slot).write_volatile(PythonFrame { code_id, at: at as i32, flags });
        (&raw mut (*scratch).codes).cast::<u64>().add(slot).write_volatile(code);
        let hash = (&raw const (*walk).hash).read_volatile();
        let hash = stack_id_mix(stack_id_mix(hash, code_id), at as u32 as u64);
        (&raw mut (*walk).hash).write_volatile(hash);
        (&raw mut (*walk).count).write_volatile(count + 1);
        outward()
    }
}

/// Bytes of a function's instructions at most.
const AT_MAX: u64 = 1 << 26;

/// Names a code object by what never changes of it. Memory that was one object's may be another's later, so the address
/// would not do. Nothing: it is no code object.
#[inline(always)]
fn identity(python: &Python, scratch: *mut PythonScratch, code: u64) -> Option<u64> {
    let layout = &python.layout;
    // SAFETY: as in `step`.
    unsafe {
        let words = (&raw mut (*scratch).code).cast::<u64>();
        if !read_into(words, CODE_BYTES as u32, code) {
            return None;
        }
        let word = |at: u32| words.add((at & 31) as usize).read_volatile();
        if word(common::OBJECT_TYPE / 8) != python.code_type {
            return None;
        }
        let mut id = code;
        for at in 0..IDENTITY_WORDS as u32 {
            id = stack_id_mix(id, word(layout.identity_word + at));
        }
        if layout.has_code_version == 0 {
            let table = word(layout.code_table / 8);
            // Length, hash and first bytes.
            for at in 0..3 {
                let word = user::<u64>(table, common::BYTES_SIZE + 8 * at)?;
                id = stack_id_mix(id, word);
            }
        }
        Some(id | 1)
    }
}

/// Finds the state of the running thread, and leaves it in the scratch.
#[inline(always)]
fn find_thread(python: &Python, scratch: *mut PythonScratch) -> bool {
    let Some(local) = kernel::<u64>(current_task(), offset!(task_fsbase)) else { return false };
    let key = bpf_get_current_pid_tgid();
    // SAFETY: a copy of a plain number.
    if let Some(known) = unsafe { PYTHON_THREADS.get(key) }.copied()
        && is_linked(&python.layout, known, local, scratch)
    {
        return true;
    }
    let Some(interpreter) = user::<u64>(python.runtime, python.layout.interpreters_head) else {
        return false;
    };
    let mut threads = Threads { python, local, interpreter, thread: 0, is_begun: 0 };
    repeat(THREADS_MAX, &mut threads);
    let found = threads.thread;
    if found == 0 || !is_linked(&python.layout, found, local, scratch) {
        return false;
    }
    let _ = PYTHON_THREADS.insert(key, found, 0);
    true
}

/// The search through the threads of all interpreters.
struct Threads<'p> {
    python: &'p Python,
    /// Where the thread's local storage is.
    local: u64,
    interpreter: u64,
    /// The one that is looked at next; 0: the first of the next interpreter.
    thread: u64,
    /// The first interpreter's threads were begun with.
    is_begun: u64,
}

impl Turn for Threads<'_> {
    #[inline(always)]
    fn turn(&mut self, _number: u32) -> bool {
        let layout = &self.python.layout;
        let next = if self.thread == 0 {
            if self.is_begun != 0 {
                let Some(other) = user::<u64>(self.interpreter, layout.interpreter_next) else {
                    return false;
                };
                self.interpreter = other;
            }
            self.is_begun = 1;
            if self.interpreter == 0 {
                return false;
            }
            user::<u64>(self.interpreter, layout.interpreter_threads)
        } else {
            let id: Option<u64> = user(self.thread, layout.thread_id);
            let Some(id) = id else { return false };
            if id == self.local {
                return false;
            }
            user::<u64>(self.thread, common::THREAD_NEXT)
        };
        // One that cannot be read ends the search; the check of what was found fails on it.
        let Some(next) = next else { return false };
        self.thread = next;
        true
    }
}

/// Whether this is the state of the thread with local storage at `local`, and in the interpreter's list: the memory of
/// one that was given up may still look like it. Leaves it in the scratch.
#[inline(always)]
fn is_linked(layout: &Layout, thread: u64, local: u64, scratch: *mut PythonScratch) -> bool {
    // SAFETY: as in `step`.
    let (prev, interpreter, id) = unsafe {
        let words = (&raw mut (*scratch).thread).cast::<u64>();
        if !read_into(words, THREAD_BYTES as u32, thread) {
            return false;
        }
        let word = |at: u32| words.add(((at / 8) & 31) as usize).read_volatile();
        (word(common::THREAD_PREV), word(common::THREAD_INTERPRETER), word(layout.thread_id))
    };
    if id != local {
        return false;
    }
    let (from, at) =
        if prev != 0 { (prev, common::THREAD_NEXT) } else { (interpreter, layout.interpreter_threads) };
    let Some(linked) = user::<u64>(from, at) else { return false };
    linked == thread
}

/// The innermost frame of the thread in the scratch; 0: it runs no Python code.
#[inline(always)]
fn innermost(layout: &Layout, scratch: *mut PythonScratch) -> Option<u64> {
    // SAFETY: as in `step`.
    let first = unsafe {
        let words = (&raw mut (*scratch).thread).cast::<u64>();
        words.add(((layout.thread_frame / 8) & 31) as usize).read_volatile()
    };
    if layout.frame_indirect == NONE { Some(first) } else { user(first, layout.frame_indirect) }
}

/// Sends the frames of the stack that is to be sent next as `stack_id`, and the code objects that user space does not
/// have. False: there was no room.
#[inline(always)]
pub fn send(walk: &stack::Walk, stack_id: u64, tgid: u32, now_ns: u64) -> bool {
    if cfg!(not(feature = "loop")) || walk.python == 0 {
        return true;
    }
    let Some(scratch) = PYTHON_SCRATCH.get_ptr_mut(walk.place) else { return false };
    // SAFETY: as in `take`.
    let Some(python) = (unsafe { PYTHONS.get(tgid) }) else { return false };
    let mut codes = Codes { python, scratch, tgid, generation: walk.generation, now_ns, is_sent: 1 };
    repeat(FRAMES_MAX, &mut codes);
    codes.is_sent != 0 && emit::python_stack(scratch, walk.python, stack_id, walk.generation, now_ns)
}

/// The sending of code objects.
struct Codes<'p> {
    python: &'p Python,
    scratch: *mut PythonScratch,
    generation: u64,
    now_ns: u64,
    tgid: u32,
    is_sent: u32,
}

impl Turn for Codes<'_> {
    #[inline(always)]
    fn turn(&mut self, number: u32) -> bool {
        let slot = (number & (PYTHON_FRAMES_MAX as u32 - 1)) as usize;
        // SAFETY: as in `step`.
        let (count, code, code_id) = unsafe {
            let frames = (&raw const (*self.scratch).frames).cast::<PythonFrame>();
            let codes = (&raw const (*self.scratch).codes).cast::<u64>();
            (
                (&raw const (*self.scratch).walk.count).read_volatile(),
                codes.add(slot).read_volatile(),
                (&raw const (*frames.add(slot)).code_id).read_volatile(),
            )
        };
        if number >= count {
            return false;
        }
        let key = [self.generation, code_id];
        // SAFETY: only asked whether it is there.
        if unsafe { PYTHON_CODES.get(key) }.is_some() {
            return true;
        }
        if !emit::python_code(self.python, code, code_id, self.tgid, self.generation, self.now_ns) {
            self.is_sent = 0;
            return false;
        }
        let _ = PYTHON_CODES.insert(key, 1, 0);
        true
    }
}

/// Reads `bytes` of the process at `from`.
///
/// # Safety
/// `into` must be valid for them.
#[inline(always)]
unsafe fn read_into(into: *mut u64, bytes: u32, from: u64) -> bool {
    // SAFETY: the caller's; the helper checks the source.
    unsafe { bpf_probe_read_user(into.cast(), bytes, from as *const _) == 0 }
}
