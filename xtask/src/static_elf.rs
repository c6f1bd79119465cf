//! Whether a program needs anything but the kernel.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const PT_INTERP: u32 = 3;

/// Fails unless `path` is a 64-bit ELF program without a dynamic loader.
pub fn require(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    match has_interpreter(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("`{}` is linked dynamically, a static program is needed", path.display()),
        None => bail!("`{}` is not a little-endian 64-bit ELF file", path.display()),
    }
}

/// Whether the program names a dynamic loader; `None` if this is no 64-bit little-endian ELF file.
fn has_interpreter(bytes: &[u8]) -> Option<bool> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let (entry_bytes, entries) = (u16_at(54)?, u16_at(56)?);
    for entry in 0..entries {
        let at = table.checked_add(entry * entry_bytes)?;
        if bytes.get(at..at.checked_add(4)?)? == PT_INTERP.to_le_bytes() {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::has_interpreter;

    #[test]
    fn this_test_is_dynamic_and_text_is_no_program() {
        let this = std::fs::read(std::env::current_exe().expect("own path")).expect("own file");
        assert_eq!(has_interpreter(&this), Some(!cfg!(target_feature = "crt-static")));
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
        assert_eq!(has_interpreter(b"\x7fELF\x02\x01"), None);
    }
}
