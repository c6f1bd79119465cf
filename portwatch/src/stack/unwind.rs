//! A stack's bytes and registers → return addresses, and the rows by which they were found.
//!
//! The same walk as the kernel side's, over a copy of the stack that it sent when it met an instruction without a row.
//! The rows that were used go back to the kernel side, which then walks that path by itself.

use std::fmt;

use super::machine;
use super::rows::Row;

/// Frames walked at most.
const FRAMES_MAX: usize = 512;

/// Page size of the copy's bitmap.
const PAGE_BYTES: u64 = 4096;

/// User registers as saved at the entry of a system call, or as far as a walk came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
}

/// A copy of the stack from `start` on.
#[derive(Clone, Copy, Debug)]
pub struct StackBytes<'b> {
    pub start: u64,
    pub bytes: &'b [u8],
    /// Bit n: part n could be read. Part 0 goes from `start` to the end of its page; each other is a page.
    pub valid: u64,
}

impl StackBytes<'_> {
    /// The word at `address`, if the copy has it.
    pub fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let word = self.bytes.get(at..)?.first_chunk::<8>()?;
        let part = |address: u64| (address / PAGE_BYTES).checked_sub(self.start / PAGE_BYTES);
        let is_valid = |part: u64| part < 64 && self.valid >> part & 1 == 1;
        (is_valid(part(address)?) && is_valid(part(address + 7)?)).then(|| u64::from_le_bytes(*word))
    }
}

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At the start of the thread.
    Complete,
    Truncated(Why),
}

/// Why a walk ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A word outside the copy, or in a page that could not be read, was needed.
    NotCaptured,
    /// An address that is not in code.
    NotCode,
    /// The caller's frame would lie below its callee's.
    NoProgress,
    /// The unwind table says what cannot be followed, or is malformed.
    Unsupported,
    TooDeep,
    /// The kernel side walked by rows of code that had just been replaced.
    Replaced,
    /// The mappings or the program file could not be had; text says why.
    Unknown(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NotCaptured => "the stack is deeper than what was copied of it",
            Why::NotCode => "a return address is not in code",
            Why::NoProgress => "the stack leads back into itself",
            Why::Unsupported => "the unwind table cannot be followed",
            Why::Replaced => "the code was just replaced by other code",
            Why::TooDeep => "the stack has too many frames",
            Why::Unknown(why) => why,
        })
    }
}

/// What came of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwound {
    /// Innermost first: the given ones, then those found.
    pub addresses: Vec<u64>,
    /// For each instruction walked from, in order: its address as it stands in `addresses`, and its row.
    pub rows: Vec<(u64, Row)>,
    pub outcome: Outcome,
}

/// Where a walk stands in relation to the code at its instruction pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The instruction is about to be executed: the innermost frame's, or one that a signal interrupted.
    At,
    /// A call returns there, so the instruction before it counts.
    After,
}

impl Position {
    /// The address whose row applies.
    pub fn row_address(self, ip: u64) -> u64 {
        match self {
            Position::At => ip,
            Position::After => ip.wrapping_sub(1),
        }
    }
}

/// Walks from `registers`, whose instruction pointer is the next address after `prefix`.
///
/// `row` gives the row for an instruction pointer.
pub fn walk(
    mut registers: Registers,
    mut position: Position,
    stack: &StackBytes<'_>,
    prefix: &[u64],
    mut row: impl FnMut(u64, Position) -> Result<Row, Why>,
) -> Unwound {
    let mut addresses = prefix.to_vec();
    let mut rows = Vec::new();
    let outcome = loop {
        // The outermost frame of a thread that was set up by hand returns to 0.
        if registers.ip == 0 {
            break Outcome::Complete;
        }
        if addresses.len() >= FRAMES_MAX {
            break Outcome::Truncated(Why::TooDeep);
        }
        let found = row(registers.ip, position);
        // An address that is in no code at all is not a frame.
        if found == Err(Why::NotCode) && !rows.is_empty() {
            break Outcome::Truncated(Why::NotCode);
        }
        addresses.push(registers.ip);
        let row = match found {
            Ok(row) => row,
            Err(why) => break Outcome::Truncated(why),
        };
        rows.push((registers.ip, row));
        match step(&mut registers, row, stack) {
            Ok(Step::End) => break Outcome::Complete,
            Ok(Step::To(next)) => position = next,
            Err(why) => break Outcome::Truncated(why),
        }
    };
    Unwound { addresses, rows, outcome }
}

#[derive(Debug)]
pub(super) enum Step {
    To(Position),
    End,
}

pub(super) fn step(registers: &mut Registers, row: Row, stack: &StackBytes<'_>) -> Result<Step, Why> {
    let word = |address: u64| stack.word(address).ok_or(Why::NotCaptured);
    let offset = |base: u64, offset: i64| base.wrapping_add_signed(offset);
    let cfa = match row.kind {
        Row::END => return Ok(Step::End),
        Row::BP | Row::BP_WORD if registers.bp == 0 => return Ok(Step::End),
        Row::SIGNAL => {
            let sp = registers.sp;
            *registers = Registers {
                ip: word(sp.wrapping_add(machine::SIGNAL_IP))?,
                sp: word(sp.wrapping_add(machine::SIGNAL_SP))?,
                bp: word(sp.wrapping_add(machine::SIGNAL_BP))?,
            };
            return Ok(Step::To(Position::At));
        }
        Row::SP => offset(registers.sp, row.cfa_off.into()),
        Row::BP => offset(registers.bp, row.cfa_off.into()),
        Row::BP_WORD => word(offset(registers.bp, row.cfa_off.into()))?,
        _ => return Err(Why::Unsupported),
    };
    if cfa <= registers.sp {
        return Err(Why::NoProgress);
    }
    if row.bp_saved != 0 {
        let base = if row.kind == Row::BP_WORD { registers.bp } else { cfa };
        registers.bp = word(offset(base, row.bp_off.into()))?;
    }
    registers.ip = word(cfa.wrapping_sub(8))?;
    registers.sp = cfa;
    Ok(Step::To(Position::After))
}

#[cfg(test)]
#[path = "unwind_tests.rs"]
mod tests;
