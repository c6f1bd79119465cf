use super::*;

fn rows_from(table: &[(u64, Row)]) -> impl FnMut(u64, Position) -> Result<Row, Why> + '_ {
    |ip, _| table.iter().find(|(pc, _)| *pc == ip).map(|(_, row)| *row).ok_or(Why::NotCode)
}

fn row(kind: u8, cfa_off: i32) -> Row {
    Row { cfa_off, bp_off: 0, kind, bp_saved: 0 }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn words_are_given_only_from_parts_that_could_be_read() {
    let copy = vec![0xff; 3 * 4096];
    // Part 0 has 16 bytes, part 1 and 2 a page each; part 1 is missing.
    let stack = StackBytes { start: 0x1ff0, bytes: &copy, valid: 0b101 };
    for (address, is_known) in [
        (0x1fe8, false),
        (0x1ff0, true),
        (0x1ff8, true),
        (0x1ffc, false),
        (0x2000, false),
        (0x2ffc, false),
        (0x3000, true),
        (0x4fe8, false),
        (u64::MAX - 3, false),
    ] {
        assert_eq!(stack.word(address).is_some(), is_known, "{address:#x}");
    }
}

#[test]
fn stack_that_leads_back_into_itself_ends() {
    let table = [(1, row(Row::SP, 0)), (2, row(Row::SP, -8)), (3, row(Row::BP, 16))];
    let copy = bytes(&[1, 2, 3, 3]);
    for ip in [1, 2, 3] {
        let stack = StackBytes { start: 0x1000, bytes: &copy, valid: 1 };
        let registers = Registers { ip, sp: 0x1010, bp: 0x1000 };
        let unwound = walk(registers, Position::At, &stack, &[], rows_from(&table));
        assert_eq!(unwound.outcome, Outcome::Truncated(Why::NoProgress), "{ip}");
        assert_eq!(unwound.addresses, [ip]);
    }
}

#[test]
fn endless_stack_is_cut() {
    let copy = bytes(&[1; 2000]);
    let stack = StackBytes { start: 0x1000, bytes: &copy, valid: u64::MAX };
    let registers = Registers { ip: 1, sp: 0x1000, bp: 0 };
    let unwound = walk(registers, Position::At, &stack, &[], rows_from(&[(1, row(Row::SP, 8))]));
    assert_eq!((unwound.outcome, unwound.addresses.len()), (Outcome::Truncated(Why::TooDeep), FRAMES_MAX));
}

#[test]
fn outermost_frames_are_recognised() {
    let copy = bytes(&[2, 0, 0, 0]);
    let stack = StackBytes { start: 0x1000, bytes: &copy, valid: 1 };
    let leaf = Registers { ip: 1, sp: 0x1000, bp: 0 };
    for (outer, expected) in [
        // The table says so.
        (Row::end(), vec![1, 2]),
        // A frame pointer of 0, as Go and threads made by hand have it.
        (row(Row::BP, 16), vec![1, 2]),
        // A return address of 0.
        (row(Row::SP, 8), vec![1, 2]),
    ] {
        let unwound = walk(leaf, Position::At, &stack, &[], rows_from(&[(1, row(Row::SP, 8)), (2, outer)]));
        assert_eq!((unwound.outcome, unwound.addresses), (Outcome::Complete, expected), "{outer:?}");
    }
    let unwound = walk(leaf, Position::At, &stack, &[], rows_from(&[(1, row(Row::SP, 8))]));
    assert_eq!((unwound.outcome, unwound.addresses), (Outcome::Truncated(Why::NotCode), vec![1]));
    let unsupported = [(1, Row::unsupported())];
    let unwound = walk(leaf, Position::At, &stack, &[], rows_from(&unsupported));
    assert_eq!(unwound.outcome, Outcome::Truncated(Why::Unsupported));
    assert_eq!(unwound.rows, unsupported);
}

#[test]
fn walk_of_rubbish_ends_without_a_panic() {
    // A small generator with a fixed start: what it found once it finds again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let start = next();
        let near = |offset: u64| start.wrapping_add(offset % 600);
        let copy: Vec<u8> =
            (0..64).flat_map(|_| if next() % 2 == 0 { next() } else { near(next()) }.to_le_bytes()).collect();
        let registers = Registers { ip: next() | 1, sp: near(next()), bp: near(next()) };
        let stack = StackBytes { start, bytes: &copy, valid: next() };
        let unwound = walk(registers, Position::At, &stack, &[], |_, _| {
            let bits = next();
            let near = |value: u64| (value % 1024) as i32 - 256;
            let cfa_off = if bits % 3 == 0 { bits as i32 } else { near(bits >> 8) };
            let bp_off = if bits % 5 == 0 { bits as i16 } else { near(bits >> 16) as i16 };
            Ok(Row { cfa_off, bp_off, kind: (bits >> 32) as u8 % 7, bp_saved: (bits >> 40) as u8 & 1 })
        });
        assert!(unwound.addresses.len() <= FRAMES_MAX);
        assert_eq!(unwound.addresses.first(), Some(&registers.ip));
    }
}
