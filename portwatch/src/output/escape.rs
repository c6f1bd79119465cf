//! The one place where untrusted text becomes printable.
//!
//! Names of tasks, paths and symbols come from whoever runs on the host. Printed as they are, they could move
//! the cursor, change the terminal's title, forge lines, or read one thing and mean another. Which characters
//! may be printed is the standard library's table ([`char::escape_debug`]): control and format characters, so
//! escape sequences and bidirectional overrides too, separators, marks that combine with what stands before
//! them, and everything unassigned are shown as `\u{…}`; bytes that are not UTF-8 as `\x…`.

/// Appends `bytes` in printable form: one line, no control characters, unambiguous.
pub fn push(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            // Quotes harm nobody here, and symbols are full of them.
            if matches!(character, '\'' | '"') {
                out.push(character);
            } else {
                out.extend(character.escape_debug());
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
}

/// `bytes` in printable form, see [`push`].
pub fn printable(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut out = String::with_capacity(bytes.len());
    push(&mut out, bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_stay_as_they_are() {
        for name in [
            "nginx: worker",
            "python3.11",
            "kworker/0:1-events",
            "/srv/müller/日本語/привет.py",
            "std::vec::Vec<T>::push(&mut self, 'a')",
            "operator\"\"_s",
            "caf\u{e9} 🦀",
        ] {
            assert_eq!(printable(name), name);
        }
    }

    #[test]
    fn hostile_names_do_nothing_to_a_terminal() {
        let cases: [(&[u8], &str); 15] = [
            (b"\x1b[2J\x1b]0;owned\x07", "\\u{1b}[2J\\u{1b}]0;owned\\u{7}"),
            (b"a\nb\rc\td", "a\\nb\\rc\\td"),
            (b"a\0b", "a\\0b"),
            (b"back\\slash", "back\\\\slash"),
            (b"\x7f\x08", "\\u{7f}\\u{8}"),
            // C1 control characters, which some terminals obey, as UTF-8 and as a lone byte.
            ("\u{9b}2J".as_bytes(), "\\u{9b}2J"),
            (b"\x9b2J", "\\x9b2J"),
            ("cod\u{202e}exe.fdp".as_bytes(), "cod\\u{202e}exe.fdp"),
            ("\u{2066}\u{2069}\u{200f}\u{61c}".as_bytes(), "\\u{2066}\\u{2069}\\u{200f}\\u{61c}"),
            ("ng\u{200b}inx\u{feff}".as_bytes(), "ng\\u{200b}inx\\u{feff}"),
            ("a\u{2028}b\u{2029}c\u{85}".as_bytes(), "a\\u{2028}b\\u{2029}c\\u{85}"),
            ("a\u{301}\u{301}".as_bytes(), "a\\u{301}\\u{301}"),
            ("\u{e0041}\u{e000}".as_bytes(), "\\u{e0041}\\u{e000}"),
            (b"\xff\xfe\xc3(", "\\xff\\xfe\\xc3("),
            (b"cut\xe6\x97", "cut\\xe6\\x97"),
        ];
        for (hostile, expected) in cases {
            assert_eq!(printable(hostile), expected);
        }
    }

    #[test]
    fn no_byte_and_no_character_gets_through_as_a_control() {
        for byte in 0..=u8::MAX {
            let shown = printable([byte]);
            assert!(shown.chars().all(|c| !c.is_control()), "{byte:#x}: {shown:?}");
        }
        for character in '\0'..=char::MAX {
            let shown = printable(character.to_string());
            assert!(!shown.is_empty() && shown.chars().all(|c| !c.is_control()), "{character:?}");
            // Whatever turns the direction of text, by Unicode's Bidi_Control property.
            let is_bidi_control = matches!(character,
                '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            assert!(!is_bidi_control || shown.is_ascii(), "{character:?}");
        }
    }
}
