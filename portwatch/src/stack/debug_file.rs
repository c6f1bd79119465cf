//! Finds the separate debug file of a stripped program.
//!
//! Names in a program file are written by strangers, so they never lead anywhere by themselves: a debug link is a bare
//! name below known directories, looked up inside the process's root like the program itself, and what is found is
//! copied like a program too. By build id first, which also works when the process is gone.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::elf::Module;
use super::elf_open;
use super::opener::Opener;

const DEBUG_ROOT: &str = "/usr/lib/debug";

/// Bytes of a debug file that are read for its checksum; a longer one does not fit.
const CHECKSUM_BYTES_MAX: u64 = 1 << 30;

/// Debug files by the program they belong to.
#[derive(Debug)]
pub(super) struct DebugFiles {
    found: HashMap<u64, Option<Arc<Module>>>,
    opener: Opener,
}

impl DebugFiles {
    pub(super) fn new(opener: Opener) -> DebugFiles {
        DebugFiles { found: HashMap::new(), opener }
    }

    /// The debug file of `module`, which process `tgid` sees at `path`.
    pub(super) fn get(&mut self, module: &Arc<Module>, tgid: u32, path: &Path) -> Option<Arc<Module>> {
        let find = || {
            if module.section(".debug_info").is_some() {
                return None;
            }
            let (module, path) = (Arc::clone(module), path.to_path_buf());
            self.opener.run(move || find(&module, tgid, &path))?.map(Arc::new)
        };
        self.found.entry(module.serial).or_insert_with(find).clone()
    }

    pub(super) fn forget(&mut self, module: &Module) {
        self.found.remove(&module.serial);
    }
}

fn find(module: &Module, tgid: u32, path: &Path) -> Option<Module> {
    let roots = [PathBuf::from("/"), PathBuf::from(format!("/proc/{tgid}/root"))];
    let open = |root: &Path, path: &Path| elf_open::any_regular(elf_open::open_below(root, path).ok()?).ok();
    // A number of its own is not needed: answers are kept under the program's.
    let copy = |file: &File| Module::copy(file, module.serial).ok();
    if let Some(name) = module.build_id.as_deref().and_then(build_id_path) {
        let fits = |debug: &Module| debug.build_id == module.build_id;
        let found = roots.iter().find_map(|root| copy(&open(root, &name)?).filter(fits));
        if found.is_some() {
            return found;
        }
    }
    let (name, checksum) = debug_link(module)?;
    let directory = path.parent()?;
    let below = directory.strip_prefix("/").ok()?;
    let places = [
        directory.join(&name),
        directory.join(".debug").join(&name),
        Path::new(DEBUG_ROOT).join(below).join(&name),
    ];
    places
        .iter()
        .filter(|place| *place != path)
        .flat_map(|place| roots.iter().map(move |root| (root, place)))
        .find_map(|(root, place)| {
            let file = open(root, place)?;
            let debug = copy(&file)?;
            let fits = match (&debug.build_id, &module.build_id) {
                (Some(debug), Some(program)) => debug == program,
                _ => checksum_of(&file) == Some(checksum),
            };
            fits.then_some(debug)
        })
}

fn build_id_path(id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = id.split_first()?;
    let mut name = format!("{DEBUG_ROOT}/.build-id/{first:02x}/");
    for byte in rest {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".debug");
    Some(PathBuf::from(name))
}

/// Section `.gnu_debuglink`: a name, its NUL, padding to four bytes, a checksum.
fn debug_link(module: &Module) -> Option<(PathBuf, u32)> {
    let (offset, bytes) = module.layout.debug_link?;
    let bytes = module.bytes(offset, bytes.min(4096))?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let name = &bytes[..end];
    if name.is_empty() || name.contains(&b'/') || name == b".." || name == b"." {
        return None;
    }
    let checksum = bytes.get((end + 4) & !3..)?.first_chunk::<4>()?;
    Some((PathBuf::from(OsStr::from_bytes(name)), u32::from_le_bytes(*checksum)))
}

/// The checksum that a debug link carries: CRC-32 of the whole file.
fn checksum_of(file: &File) -> Option<u32> {
    let mut reader = BufReader::with_capacity(1 << 16, file.take(CHECKSUM_BYTES_MAX));
    let mut crc = !0u32;
    loop {
        let bytes = reader.fill_buf().ok()?;
        if bytes.is_empty() {
            return Some(!crc);
        }
        for &byte in bytes {
            crc = CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
        }
        let length = bytes.len();
        reader.consume(length);
    }
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
