//! Names for frames of a log that was written elsewhere: from a directory of debug files.
//!
//! A frame has the build id of its module and an address in that file's own terms, which is all it takes. Where in the
//! directory the right file lies, and under which name, does not matter; it is known by its build id.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::elf::Module;
use super::opener::Opener;
use super::symbolize::{Symbol, SymbolTable};

/// Files and directories that are looked at.
const ENTRIES_MAX: usize = 100_000;

/// Addresses whose names are kept.
const SYMBOLS_MAX: usize = 65_536;

/// Debug files, or whole programs, by build id. Not `Send`.
pub struct SymbolDirectory {
    files: HashMap<String, PathBuf>,
    modules: HashMap<String, Option<Arc<Module>>>,
    symbols: SymbolTable,
}

impl SymbolDirectory {
    /// Looks through `directory` and all below it. Of two files with one build id the one with debug information counts.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn open(directory: &Path) -> Result<SymbolDirectory> {
        let mut files: HashMap<String, (bool, PathBuf)> = HashMap::new();
        let entries = fs::read_dir(directory)
            .with_context(|| format!("cannot read the directory of symbols `{}`", directory.display()))?;
        let mut waiting: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let mut seen = 0;
        while let Some(path) = waiting.pop() {
            seen += 1;
            if seen > ENTRIES_MAX {
                log::debug!("`{}` has more than {ENTRIES_MAX} files", directory.display());
                break;
            }
            // A link to a file is followed, one to a directory may lead round in circles.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let is_link = path.is_symlink();
            if metadata.is_dir() && !is_link {
                let below = fs::read_dir(&path).into_iter().flatten().flatten();
                waiting.extend(below.map(|entry| entry.path()));
            } else if metadata.is_file()
                && let Some((id, has_debug)) = File::open(&path).ok().and_then(|file| Module::identify(&file))
            {
                let known = files.get(&id);
                if known.is_none_or(|(known_has_debug, _)| has_debug && !known_has_debug) {
                    files.insert(id, (has_debug, path));
                }
            }
        }
        Ok(SymbolDirectory {
            files: files.into_iter().map(|(id, (_, path))| (id, path)).collect(),
            modules: HashMap::new(),
            symbols: SymbolTable::new(SYMBOLS_MAX, Opener::default()),
        })
    }

    /// How many files it has found.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The functions at `offset` of the file with this build id (lower-case hexadecimal), innermost first. Nothing: the
    /// directory does not have the file, or cannot say.
    pub fn symbolize(&mut self, build_id: &str, offset: u64) -> Option<Arc<[Symbol]>> {
        let path = self.files.get(build_id)?;
        let read = || Some(Arc::new(Module::copy(&File::open(path).ok()?, 0).ok()?));
        if !self.modules.contains_key(build_id) {
            let mut module = read();
            if let Some(module) = module.as_mut().and_then(Arc::get_mut) {
                // What is remembered of it is kept under this.
                module.serial = self.modules.len() as u64 + 1;
            }
            self.modules.insert(build_id.to_owned(), module);
        }
        let module = self.modules.get(build_id)?.as_ref()?;
        // No process has this number, so that its debug file is looked for on this host alone.
        let symbols = self.symbols.at(module, offset, u32::MAX, path);
        symbols.iter().any(|symbol| symbol.function.is_some()).then_some(symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Stacks};
    use super::*;
    use crate::event::{RawStack, StackId};
    use crate::output::Frame;

    #[inline(never)]
    fn somewhere() -> u64 {
        std::hint::black_box(7)
    }

    fn own_frame() -> Frame {
        let addresses = vec![somewhere as fn() -> u64 as usize as u64 + 1];
        let raw = RawStack { id: StackId(1), tgid: std::process::id(), start_boot_ns: 0, addresses };
        let resolved = Stacks::new(Options::default()).resolve_at(&raw, 0, u64::MAX);
        resolved.stack.frames.last().unwrap().clone()
    }

    #[test]
    fn build_id_and_offset_of_a_log_are_named_from_files_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("deep/er");
        fs::create_dir_all(&below).unwrap();
        std::os::unix::fs::symlink("/proc/self/exe", below.join("some-name")).unwrap();
        std::os::unix::fs::symlink(directory.path(), below.join("loop")).unwrap();
        fs::write(below.join("text"), "no program").unwrap();
        let frame = own_frame();
        let (id, offset) = (frame.build_id.unwrap(), frame.offset.unwrap());
        let mut symbols = SymbolDirectory::open(directory.path()).unwrap();
        assert_eq!(symbols.len(), 1);
        let found = symbols.symbolize(&id, offset).unwrap();
        let found = found.last().unwrap();
        assert_eq!((&found.function, &found.file, found.line), (&frame.function, &frame.file, frame.line));
        assert!(found.function.as_ref().unwrap().contains("somewhere"));
        assert_eq!(symbols.symbolize("00", offset), None);
        assert_eq!(symbols.symbolize(&id, u64::MAX), None);
    }

    #[test]
    fn directory_that_is_not_there_is_an_error_and_an_empty_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert!(SymbolDirectory::open(directory.path()).unwrap().is_empty());
        let error = SymbolDirectory::open(&directory.path().join("not")).err().unwrap();
        assert!(format!("{error:#}").contains("cannot read the directory of symbols"), "{error:#}");
    }
}
