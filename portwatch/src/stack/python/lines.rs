//! The interpreter's tables from instruction to line, in the three forms that CPython has had since 3.6.
//!
//! They come from another process's memory and may be cut: a table that ends before it has said anything of an
//! instruction gives no line. Sources: `Objects/lnotab_notes.txt` of 3.9 and 3.10, `Objects/locations.md` of 3.11.

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `co_lnotab`, to 3.9: steps of instruction and line.
    Lnotab,
    /// `co_linetable` of 3.10: ranges of instructions, and a step of line for each.
    Ranges,
    /// `co_linetable` from 3.11 on: ranges with line and column.
    Locations,
}

/// A table, whole or its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Table<'t> {
    pub form: Form,
    pub bytes: &'t [u8],
    /// More would follow.
    pub is_cut: bool,
    /// `co_firstlineno`
    pub first_line: u32,
}

/// What a table says of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    At(u32),
    /// The instruction belongs to no line.
    None,
    /// The table was cut before it came to the instruction, or is malformed.
    Unknown,
}

/// A line delta of the ranges form that stands for "no line".
const NO_LINE: i8 = -128;

impl Table<'_> {
    /// The line of the instruction `at` bytes behind the start of the code; before it, the line that the function
    /// begins in.
    pub fn line(&self, at: i32) -> Line {
        let Ok(at) = u64::try_from(at) else { return Line::At(self.first_line) };
        match self.form {
            Form::Lnotab => self.in_lnotab(at),
            Form::Ranges => self.in_ranges(at),
            Form::Locations => self.in_locations(at),
        }
    }

    fn in_lnotab(&self, at: u64) -> Line {
        let (mut line, mut behind) = (i64::from(self.first_line), 0u64);
        for step in self.bytes.chunks_exact(2) {
            behind += u64::from(step[0]);
            if behind > at {
                return known(line);
            }
            line += i64::from(step[1].cast_signed());
        }
        if self.is_cut { Line::Unknown } else { known(line) }
    }

    fn in_ranges(&self, at: u64) -> Line {
        let (mut line, mut end) = (i64::from(self.first_line), 0u64);
        for range in self.bytes.chunks_exact(2) {
            end += u64::from(range[0]);
            let delta = range[1].cast_signed();
            if delta != NO_LINE {
                line += i64::from(delta);
            }
            if end > at {
                return if delta == NO_LINE { Line::None } else { known(line) };
            }
        }
        Line::Unknown
    }

    fn in_locations(&self, at: u64) -> Line {
        let (mut line, mut end) = (i64::from(self.first_line), 0u64);
        let mut bytes = self.bytes.iter().copied();
        while let Some(first) = bytes.next() {
            if first & 0x80 == 0 {
                return Line::Unknown;
            }
            let (code, units) = (first >> 3 & 15, first & 7);
            end += 2 * (u64::from(units) + 1);
            let skipped = match code {
                0..=9 => 1,
                10..=12 => {
                    line += i64::from(code - 10);
                    2
                }
                13 | 14 => {
                    let Some(delta) = signed(&mut bytes) else { return Line::Unknown };
                    line = line.saturating_add(delta);
                    0
                }
                _ => 0,
            };
            if end > at {
                return if code == 15 { Line::None } else { known(line) };
            }
            for _ in 0..skipped {
                bytes.next();
            }
            if code == 14 {
                // The last line, and the columns.
                for _ in 0..3 {
                    varint(&mut bytes);
                }
            }
        }
        Line::Unknown
    }
}

fn known(line: i64) -> Line {
    u32::try_from(line).map_or(Line::Unknown, Line::At)
}

/// Six bits a byte, lowest first; bit 6 says that more follow.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63).checked_shl(shift)?;
        if byte & 64 == 0 {
            return Some(value);
        }
        shift += 6;
    }
}

fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = varint(bytes)?;
    let size = (value >> 1).cast_signed();
    Some(if value & 1 == 1 { -size } else { size })
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
