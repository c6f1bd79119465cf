//! Reading `/proc/self/mountinfo`, for what must be found by its mount.

/// Octal escapes of a mountinfo field (`\040` for a space) → the text itself.
pub fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_are_undone() {
        for (field, text) in
            [("/a\\040b\\134", "/a b\\"), ("/plain", "/plain"), ("\\04", "\\04"), ("\\9999", "\\9999")]
        {
            assert_eq!(unescape(field), text);
        }
    }
}
