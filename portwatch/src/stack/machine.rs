//! What of unwinding depends on the processor: x86-64, the only one so far.

use gimli::{
    CfaRule, Encoding, EndianSlice, LittleEndian, Operation, Register, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow, X86_64,
};

use super::rows::Row;

const SP: Register = X86_64::RSP;
const BP: Register = X86_64::RBP;
const RETURN_ADDRESS: Register = X86_64::RA;

/// A function that pushes the frame pointer and then points it there.
pub const FRAME_POINTER_ROW: Row = Row { cfa_off: 16, bp_off: -16, kind: Row::BP, bp_saved: 1 };

/// Where, from the stack pointer at a signal handler's return, the kernel saved the interrupted code's registers:
/// `struct ucontext`, then `uc_mcontext` at 40, whose words these are.
pub const SIGNAL_BP: u64 = 120;
pub const SIGNAL_SP: u64 = 160;
pub const SIGNAL_IP: u64 = 168;

type Slice<'t> = EndianSlice<'t, LittleEndian>;

/// The row that says the same as a table's rules; `None` when there is none.
pub fn row<'t, S: UnwindSection<Slice<'t>>>(
    rules: &UnwindTableRow<usize>,
    section: &S,
    encoding: Encoding,
) -> Option<Row> {
    match rules.register(RETURN_ADDRESS) {
        None | Some(RegisterRule::Undefined) => return Some(Row::end()),
        Some(RegisterRule::Offset(-8)) => {}
        Some(_) => return None,
    }
    let word = |expression: &UnwindExpression<usize>| word_at_bp(expression, section, encoding);
    let (kind, cfa_off) = match rules.cfa() {
        CfaRule::RegisterAndOffset { register: SP, offset } => (Row::SP, *offset),
        CfaRule::RegisterAndOffset { register: BP, offset } => (Row::BP, *offset),
        CfaRule::RegisterAndOffset { .. } => return None,
        CfaRule::Expression(expression) => match word(expression)? {
            (offset, Dereferenced::Yes) => (Row::BP_WORD, offset),
            (offset, Dereferenced::No) => (Row::BP, offset),
        },
    };
    let (bp_saved, bp_off) = match (kind, rules.register(BP)) {
        (_, None | Some(RegisterRule::SameValue)) => (0, 0),
        // Lost, and the caller does not need it, or its own rules would say so.
        (_, Some(RegisterRule::Undefined)) => (0, 0),
        (Row::SP | Row::BP, Some(RegisterRule::Offset(offset))) => (1, offset),
        (Row::BP_WORD, Some(RegisterRule::Expression(expression))) => match word(&expression)? {
            (offset, Dereferenced::No) => (1, offset),
            (_, Dereferenced::Yes) => return None,
        },
        _ => return None,
    };
    Some(Row { cfa_off: cfa_off.try_into().ok()?, bp_off: bp_off.try_into().ok()?, kind, bp_saved })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dereferenced {
    Yes,
    No,
}

/// Reads the expressions `frame pointer + offset` and `word at frame pointer + offset`.
fn word_at_bp<'t, S: UnwindSection<Slice<'t>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
    encoding: Encoding,
) -> Option<(i64, Dereferenced)> {
    let mut operations = expression.get(section).ok()?.operations(encoding);
    let Ok(Some(Operation::RegisterOffset { register: BP, offset, .. })) = operations.next() else {
        return None;
    };
    match operations.next().ok()? {
        None => Some((offset, Dereferenced::No)),
        Some(Operation::Deref { size: 8, space: false, .. }) => {
            operations.next().ok()?.is_none().then_some((offset, Dereferenced::Yes))
        }
        Some(_) => None,
    }
}
