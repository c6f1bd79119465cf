//! Strings as CPython keeps them: the header's state word says how the characters are written.

/// Bits of the state word of `PyASCIIObject`. The same from 3.3 to 3.14.
const KIND_SHIFT: u32 = 2;
const COMPACT: u32 = 1 << 5;

/// What was read of a string object.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawText<'t> {
    pub state: u32,
    /// Characters of the whole string.
    pub chars: u32,
    /// Of those, the ones that were read: whole characters, and what follows them.
    pub bytes: &'t [u8],
}

/// A string, or its beginning and `…`; nothing if it is of a form that no longer occurs in code objects.
pub fn decode(raw: RawText<'_>) -> Option<String> {
    if raw.state & COMPACT == 0 {
        return None;
    }
    let chars = raw.chars as usize;
    let character = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    let mut text: String = match raw.state >> KIND_SHIFT & 7 {
        1 => raw.bytes.iter().take(chars).map(|&byte| char::from(byte)).collect(),
        2 => {
            let units = raw.bytes.as_chunks::<2>().0.iter().take(chars);
            units.map(|unit| character(u16::from_le_bytes(*unit).into())).collect()
        }
        4 => {
            let units = raw.bytes.as_chunks::<4>().0.iter().take(chars);
            units.map(|unit| character(u32::from_le_bytes(*unit))).collect()
        }
        _ => return None,
    };
    if text.chars().count() < chars {
        text.push('…');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPACT_ASCII: u32 = 1 << KIND_SHIFT | COMPACT | 1 << 6;

    #[test]
    fn strings_of_every_width_are_read() {
        let two: Vec<u8> = "Größe→".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let four: Vec<u8> = "é🐍".chars().flat_map(|c| (c as u32).to_le_bytes()).collect();
        for (state, chars, bytes, expected) in [
            (COMPACT_ASCII, 6, &b"app.py\0"[..], Some("app.py")),
            (COMPACT_ASCII, 9, b"app.py", Some("app.py…")),
            (COMPACT | 1 << KIND_SHIFT, 3, b"k\xe9y", Some("kéy")),
            (COMPACT | 2 << KIND_SHIFT, 6, &two, Some("Größe→")),
            (COMPACT | 4 << KIND_SHIFT, 2, &four, Some("é🐍")),
            (COMPACT | 2 << KIND_SHIFT, 1, b"\x00\xd8", Some("\u{fffd}")),
            // Not in the object itself.
            (1 << KIND_SHIFT, 3, b"abc", None),
            (COMPACT, 3, b"abc", None),
            (COMPACT | 7 << KIND_SHIFT, 3, b"abc", None),
        ] {
            assert_eq!(decode(RawText { state, chars, bytes }).as_deref(), expected);
        }
    }
}
