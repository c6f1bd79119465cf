//! Copies of program files, out of the reach of those who own them.
//!
//! Whoever runs a program also controls its file: it may be replaced, truncated, a pipe or a device, or lead out of
//! a container. So a file is opened without following links out of the process's root, must be a regular one, and
//! what is needed of it is copied into a sealed memory file. Parsers read that copy, which also outlives the process.
//! Code and data are left out of the copy as holes; they cost nothing. Meaning is left to [`super::rows`] and
//! [`super::symbolize`].

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::elf_copy::{self, Layout, Section};
use super::elf_open;
use super::mapping::{Backing, FileId, Mapping};
use super::opener::Opener;

/// For how long a file of known generation is taken to be unchanged. Comparing it for each of a thousand processes a
/// second that run it would cost more than all the rest.
const RECENT: Duration = Duration::from_millis(100);

/// Why a module cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Neither the process nor its file system view is there any more.
    Gone,
    /// The file at the path is not the one that is mapped.
    Replaced,
    NotRegular,
    /// Reading took so long that it was given up.
    Stalled,
    TooLarge,
    /// Text says in which way.
    Malformed(&'static str),
    /// An operation failed: (what, error number).
    Failed(&'static str, i32),
    /// The mapping has no file.
    Anonymous,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Gone => f.write_str("the process ended before its program file was read"),
            Unreadable::Replaced => f.write_str("the program file was replaced on disk"),
            Unreadable::NotRegular => f.write_str("the program file is not a regular file"),
            Unreadable::Stalled => f.write_str("reading the program file took too long"),
            Unreadable::TooLarge => f.write_str("the program file is too large"),
            Unreadable::Malformed(what) => write!(f, "the program file is malformed: {what}"),
            Unreadable::Failed(what, errno) => {
                write!(f, "cannot {what} the program file: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Unreadable::Anonymous => f.write_str("no file is behind this code"),
        }
    }
}

/// A copied program file.
#[derive(Debug)]
pub struct Module {
    /// Distinct for every copy in this run.
    pub serial: u64,
    pub build_id: Option<Vec<u8>>,
    pub(super) layout: Layout,
    memory: File,
    memory_bytes: u64,
    copied_bytes: u64,
    stamp: Stamp,
}

/// Tells two files apart that had the same inode number one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed: (i64, i64),
}

impl Module {
    /// Copies what is needed of `file`.
    ///
    /// # Errors
    /// When it is not an ELF file, is too large, or cannot be read.
    pub fn copy(file: &File, serial: u64) -> Result<Module, Unreadable> {
        let metadata = file.metadata().map_err(|error| failed("inspect", &error))?;
        if !metadata.file_type().is_file() {
            return Err(Unreadable::NotRegular);
        }
        let found = elf_copy::layout(file, metadata.len())?;
        let (memory, copied_bytes) = elf_copy::copy(file, metadata.len(), &found)?;
        let memory_bytes = memory.metadata().map_err(|error| failed("inspect", &error))?.len();
        let mut layout = elf_copy::layout(&memory, memory_bytes)?;
        if layout.has_links() {
            return Err(Unreadable::Malformed("it changed while it was read"));
        }
        layout.debug_link = found.debug_link;
        let mut module = Module {
            serial,
            build_id: None,
            layout,
            memory,
            memory_bytes,
            copied_bytes,
            stamp: Stamp { size: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) },
        };
        module.build_id = elf_copy::build_id(&module.layout, |offset, bytes| module.bytes(offset, bytes));
        Ok(module)
    }

    /// The build id of a program file in hexadecimal, and whether it has debug information; nothing is copied.
    pub fn identify(file: &File) -> Option<(String, bool)> {
        let bytes = file.metadata().ok()?.len();
        let layout = elf_copy::layout(file, bytes).ok()?;
        let read = |offset: u64, length: u64| {
            let mut bytes = vec![0; usize::try_from(length).ok()?];
            file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
        };
        let id = elf_copy::build_id(&layout, read)?;
        let has_debug = layout.sections.iter().any(|section| section.name == ".debug_info");
        Some((super::hex(&id), has_debug))
    }

    /// Where parsers that want a path find the copy.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.memory.as_raw_fd()))
    }

    /// Address in the ELF file's own terms of byte `offset` of the file, if that is code.
    ///
    /// Taken from the executable segment that covers it: with some linkers a read-only segment shares the page.
    pub fn code_address(&self, offset: u64) -> Option<u64> {
        let segment = self.layout.segments.iter().find(|segment| {
            segment.is_executable && offset >= segment.offset && offset - segment.offset < segment.file_bytes
        })?;
        (offset - segment.offset).checked_add(segment.address)
    }

    /// As [`Module::code_address`], for an address of a process.
    pub fn address_in(&self, mapping: &Mapping, address: u64) -> Option<u64> {
        self.code_address(address.checked_sub(mapping.start)?.checked_add(mapping.offset)?)
    }

    /// A section by its name.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.layout.sections.iter().find(|section| section.name == name)
    }

    /// Bytes `[offset, offset + length)` of the copy.
    pub(super) fn bytes(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        if offset.checked_add(length)? > self.memory_bytes {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.memory.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

pub(super) fn failed(what: &'static str, error: &std::io::Error) -> Unreadable {
    Unreadable::Failed(what, error.raw_os_error().unwrap_or(0))
}

/// What was refused or given up, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub opened: u64,
    /// Copies dropped to make room.
    pub evicted: u64,
    pub unreadable: u64,
}

/// Copies by file, bounded in number and in bytes.
#[derive(Debug)]
pub struct Modules {
    by_file: HashMap<FileId, Entry>,
    vdso: Option<Result<Arc<Module>, Unreadable>>,
    vdso_bytes: u64,
    files_max: usize,
    bytes_max: u64,
    bytes: u64,
    uses: u64,
    serial: u64,
    /// Copies dropped since last asked, so that caches of what was made from them follow.
    dropped: Vec<Arc<Module>>,
    opener: Opener,
    counters: Counters,
}

#[derive(Debug)]
struct Entry {
    module: Arc<Module>,
    used: u64,
    /// What this copy was last compared for, and when.
    checked: Checked,
    checked_at: Instant,
}

/// An address space: that of process `tgid`, which `parent` made, in this generation.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    pub tgid: u32,
    pub parent: Option<u32>,
    pub generation: u64,
}

/// Generations of an address space and of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Checked {
    space: u64,
    file: u64,
}

impl Entry {
    /// Whether the file surely still is what was copied: it was compared for the same address space, or a moment ago for
    /// a file of the same generation.
    fn is_sure(&self, wanted: Checked) -> bool {
        let is_recent = || self.checked_at.elapsed() < RECENT;
        self.checked == wanted || (wanted.file != 0 && self.checked.file == wanted.file && is_recent())
    }
}

impl Modules {
    /// Keeps at most `files_max` copies of together at most `bytes_max`.
    pub fn new(files_max: usize, bytes_max: u64, opener: Opener) -> Modules {
        Modules {
            by_file: HashMap::new(),
            vdso: None,
            vdso_bytes: 0,
            files_max: files_max.max(1),
            bytes_max,
            bytes: 0,
            uses: 0,
            serial: 0,
            dropped: Vec::new(),
            opener,
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Copies dropped since the last call.
    pub fn take_dropped(&mut self) -> Vec<Arc<Module>> {
        std::mem::take(&mut self.dropped)
    }

    /// The module behind `mapping` of an address space.
    ///
    /// # Errors
    /// Why there is none; the caller shows it.
    pub fn get(&mut self, whose: Whose, mapping: &Mapping) -> Result<Arc<Module>, Unreadable> {
        let Whose { tgid, parent, generation } = whose;
        self.uses += 1;
        let (id, path, file) = match &mapping.backing {
            Backing::File { id, path, file_generation, .. } => (*id, path, *file_generation),
            Backing::Vdso => return self.vdso(mapping),
            Backing::Anonymous(_) => return Err(Unreadable::Anonymous),
        };
        let uses = self.uses;
        let wanted = Checked { space: generation, file };
        if let Some(entry) = self.by_file.get_mut(&id).filter(|entry| entry.is_sure(wanted)) {
            entry.used = uses;
            return Ok(Arc::clone(&entry.module));
        }
        let known = self.by_file.get(&id).map(|entry| entry.module.stamp);
        self.serial += 1;
        let read = {
            let (serial, mapping, path) = (self.serial, mapping.clone(), Arc::clone(path));
            move || {
                let file = elf_open::open(tgid, parent, &mapping, id, &path)?;
                let is_known = known.is_some() && Stamp::of(&file) == known;
                if is_known { Ok(None) } else { Module::copy(&file, serial).map(Some) }
            }
        };
        let read = self.opener.run(read).unwrap_or(Err(Unreadable::Stalled));
        // Where nobody can say any more, the number still was this file's when it was last seen.
        if let (Ok(None) | Err(_), Some(entry)) = (&read, self.by_file.get_mut(&id)) {
            (entry.used, entry.checked, entry.checked_at) = (uses, wanted, Instant::now());
            return Ok(Arc::clone(&entry.module));
        }
        self.remove(id);
        match read.and_then(|module| module.ok_or(Unreadable::Gone)) {
            Ok(module) => {
                self.counters.opened += 1;
                Ok(self.insert(id, wanted, module))
            }
            Err(unreadable) => {
                self.counters.unreadable += 1;
                Err(unreadable)
            }
        }
    }

    /// Every 64-bit process has the same vdso, so portwatch's own is read. One of another length is a 32-bit task's.
    fn vdso(&mut self, mapping: &Mapping) -> Result<Arc<Module>, Unreadable> {
        if self.vdso.is_none() {
            self.serial += 1;
            let read = elf_open::own_vdso();
            self.vdso_bytes = read.as_ref().map_or(0, |(_, bytes)| *bytes);
            self.vdso = Some(read.and_then(|(file, _)| Module::copy(&file, self.serial)).map(Arc::new));
        }
        match &self.vdso {
            Some(Ok(module)) if mapping.end - mapping.start == self.vdso_bytes => Ok(Arc::clone(module)),
            Some(Ok(_)) => Err(Unreadable::Malformed("the vdso is not that of a 64-bit process")),
            Some(Err(unreadable)) => Err(unreadable.clone()),
            None => Err(Unreadable::Gone),
        }
    }

    fn insert(&mut self, id: FileId, checked: Checked, module: Module) -> Arc<Module> {
        let module = Arc::new(module);
        self.bytes += module.copied_bytes;
        self.by_file.insert(
            id,
            Entry { module: Arc::clone(&module), used: self.uses, checked, checked_at: Instant::now() },
        );
        while self.by_file.len() > self.files_max || (self.bytes > self.bytes_max && self.by_file.len() > 1) {
            let Some(oldest) = self
                .by_file
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(&id, _)| id)
                .filter(|&o| o != id)
            else {
                break;
            };
            self.remove(oldest);
            self.counters.evicted += 1;
        }
        module
    }

    fn remove(&mut self, id: FileId) {
        if let Some(entry) = self.by_file.remove(&id) {
            self.bytes -= entry.module.copied_bytes;
            self.dropped.push(entry.module);
        }
    }
}

impl Stamp {
    fn of(file: &File) -> Option<Stamp> {
        let metadata = file.metadata().ok()?;
        Some(Stamp { size: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) })
    }
}

/// A module's path as a reader wants it.
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
