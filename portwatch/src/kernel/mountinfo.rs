//! Reading `/proc/self/mountinfo`, for what must be found by its mount.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub fs_type: String,
    /// Options of the file system itself, separated by commas.
    pub super_options: String,
}

/// Reads a mountinfo file; lines that are none are left out.
pub fn read(path: &Path) -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string(path)?.lines().filter_map(mount).collect())
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn mount(line: &str) -> Option<Mount> {
    let (mount, fs) = line.split_once(" - ")?;
    let point = PathBuf::from(unescape(mount.split(' ').nth(4)?));
    let mut fs = fs.split(' ');
    Some(Mount {
        point,
        fs_type: fs.next()?.to_owned(),
        super_options: fs.nth(1).unwrap_or_default().to_owned(),
    })
}

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
    fn mounts_are_read_with_type_and_options() {
        let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 shared:2 - tracefs none rw,gid=7";
        let expected = Mount {
            point: PathBuf::from("/a b"),
            fs_type: "tracefs".to_owned(),
            super_options: "rw,gid=7".to_owned(),
        };
        assert_eq!(mount(line), Some(expected));
        for line in ["", "36 35 98:0 / /", "36 35 - x"] {
            assert_eq!(mount(line), None, "{line}");
        }
    }

    #[test]
    fn octal_escapes_are_undone() {
        for (field, text) in
            [("/a\\040b\\134", "/a b\\"), ("/plain", "/plain"), ("\\04", "\\04"), ("\\9999", "\\9999")]
        {
            assert_eq!(unescape(field), text);
        }
    }
}
