//! CPython's own frames: which function and line of a script stand behind the interpreter's machine code.
//!
//! The kernel side walks the interpreter's frames while the thread is in its system call, see [`portwatch_common::python`].
//! Here is what it needs for that ([`interpreter`]: where the structures of a version are, and which program files are an
//! interpreter), and what becomes of its answer: [`text`] and [`lines`] read what it copied.

pub mod frames;
pub mod interpreter;
pub mod known;
pub mod layout;
pub mod lines;
#[cfg(test)]
mod testing;
pub mod text;
