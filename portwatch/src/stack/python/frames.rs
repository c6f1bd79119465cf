//! From what the kernel side took of an interpreter's frames to frames with names, in their places among the native ones.

use std::collections::HashMap;
use std::rc::Rc;

use super::layout::by_version;
use super::lines::{Line, Table};
use super::text::{RawText, decode};
use crate::event::{PythonFrame, PythonState, RawPythonCode, RawPythonStack};
use crate::output::{Frame, FrameKind};
use crate::stack::call_site::PlacedFrame;

/// Code objects kept: several times what the kernel side remembers as sent, so that what it does not send again is here.
const CODES_MAX: usize = 65_536;

/// The function that runs Python code. Compilers split parts off it, with a mark behind the name.
const EVALUATOR: &str = "_PyEval_EvalFrameDefault";

/// A code object.
#[derive(Debug)]
struct Code {
    raw: RawPythonCode,
    file: Option<String>,
    function: Option<String>,
}

/// Code objects by generation and id, bounded.
#[derive(Debug, Default)]
pub struct Codes {
    known: HashMap<(u64, u64), (Rc<Code>, u64)>,
    uses: u64,
}

impl Codes {
    /// Takes in a code object.
    pub fn add(&mut self, raw: RawPythonCode) {
        if self.known.len() >= CODES_MAX {
            self.make_room();
        }
        let text = |(state, chars, bytes): &(u32, u32, Vec<u8>)| {
            decode(RawText { state: *state, chars: *chars, bytes })
        };
        let (file, function) = (text(&raw.file), text(&raw.name));
        self.uses += 1;
        let key = (raw.generation, raw.code_id);
        self.known.insert(key, (Rc::new(Code { raw, file, function }), self.uses));
    }

    /// Forgets the half that was used longest ago.
    fn make_room(&mut self) {
        let mut used: Vec<u64> = self.known.values().map(|(_, used)| *used).collect();
        let middle = used.len() / 2;
        let (_, &mut limit, _) = used.select_nth_unstable(middle);
        self.known.retain(|_, (_, used)| *used > limit);
    }

    fn frame(&mut self, generation: u64, frame: &PythonFrame) -> PlacedFrame {
        self.uses += 1;
        let code = self.known.get_mut(&(generation, frame.code_id)).map(|(code, used)| {
            *used = self.uses;
            Rc::clone(code)
        });
        let named = match code {
            Some(code) => code.frame(frame.at),
            None => Frame { reason: Some("the code object was not received".to_owned()), ..Frame::default() },
        };
        PlacedFrame { frame: Frame { kind: FrameKind::Python, ..named }, function_offset: None }
    }
}

impl Code {
    fn frame(&self, at: i32) -> Frame {
        let Some(version) = by_version(self.raw.minor) else { return Frame::default() };
        let table = Table {
            form: version.form,
            bytes: &self.raw.table,
            is_cut: self.raw.table.len() < self.raw.table_bytes as usize,
            first_line: self.raw.first_line,
        };
        let at = if version.counts_units { at.saturating_mul(2) } else { at };
        let (line, reason) = match table.line(at) {
            Line::At(line) => (Some(line).filter(|&line| line != 0), None),
            Line::None => (None, None),
            Line::Unknown => (None, Some("the function's table of lines is too long".to_owned())),
        };
        let reason = match &self.function {
            Some(_) => reason,
            None => Some("the code object could not be read".to_owned()),
        };
        Frame { function: self.function.clone(), file: self.file.clone(), line, reason, ..Frame::default() }
    }
}

/// Why the frames of an interpreter are shown in place of Python's.
fn why(python: Option<&RawPythonStack>, refused: Option<String>) -> String {
    match python.map(|python| python.state) {
        None => refused.map_or_else(
            || "its Python frames were not taken: the process was too young to be known, or the kernel is older than 5.17".to_owned(),
            |refused| format!("its Python frames were not taken: {refused}"),
        ),
        Some(PythonState::NoThread) => {
            "its Python frames were not found: the interpreter does not list the thread".to_owned()
        }
        _ => "its Python frames could not be read".to_owned(),
    }
}

/// Puts Python's frames in the places of the evaluator's that ran them. `refused` says why there are none.
///
/// Each run of the evaluator has one native frame, and its Python frames end with the one that is marked. Where one of the
/// two was cut the outer ones have no counterpart. Where neither was and their numbers differ, all Python frames stand
/// where the innermost run is: their own order is certain.
pub fn merge(
    native: Vec<PlacedFrame>,
    is_complete: bool,
    python: Option<&RawPythonStack>,
    codes: &mut Codes,
    refused: impl FnOnce() -> Option<String>,
) -> Vec<PlacedFrame> {
    let taken = python.filter(|python| matches!(python.state, PythonState::Whole | PythonState::Cut));
    let runs = native.iter().filter(|placed| is_evaluator(&placed.frame)).count();
    let Some(taken) = taken.filter(|taken| !taken.frames.is_empty()) else {
        if runs == 0 {
            return native;
        }
        let reason = why(python, refused());
        let mut native = native;
        for placed in native.iter_mut().filter(|placed| is_evaluator(&placed.frame)) {
            placed.frame.reason = Some(reason.clone());
        }
        return native;
    };
    let mut groups: Vec<Vec<PlacedFrame>> = vec![Vec::new()];
    for frame in &taken.frames {
        let named = codes.frame(taken.generation, frame);
        // Never empty.
        if let Some(group) = groups.last_mut() {
            group.push(named);
        }
        if frame.is_entry {
            groups.push(Vec::new());
        }
    }
    if groups.last().is_some_and(Vec::is_empty) {
        groups.pop();
    }
    let is_matching = match taken.state {
        PythonState::Cut => !is_complete || groups.len() <= runs,
        _ => groups.len() == runs || !is_complete && groups.len() > runs,
    };
    if !is_matching {
        groups = vec![groups.into_iter().flatten().collect()];
    }
    let mut groups = groups.into_iter();
    let mut merged = Vec::with_capacity(native.len() + taken.frames.len());
    for placed in native {
        if !is_evaluator(&placed.frame) {
            merged.push(placed);
        } else if let Some(group) = groups.next() {
            merged.extend(group);
        } else {
            merged.push(placed);
        }
    }
    // The native stack ends before the first run: Python's is further out.
    merged.extend(groups.flatten());
    merged
}

fn is_evaluator(frame: &Frame) -> bool {
    let name = frame.function.as_deref().and_then(|function| function.strip_prefix(EVALUATOR));
    name.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
