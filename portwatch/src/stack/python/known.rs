//! Which processes have an interpreter, and where in their memory its state is.
//!
//! A program file is looked into once; what is known of it serves all processes that run it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{major, minor};
use portwatch_common::python::{Program, ProgramKey, Python};

use super::interpreter::{self, Interpreter, Refused};
use crate::stack::elf::Unreadable;
use crate::stack::elf_open;
use crate::stack::mapping::{Backing, FileId, Mapping};
use crate::stack::opener::Opener;

/// Program files remembered. A host has a handful of interpreters; containers have their own.
const FILES_MAX: usize = 1024;

/// Processes whose refusal is remembered.
const REFUSED_MAX: usize = 8192;

/// Interpreters by program file.
#[derive(Debug)]
pub struct Interpreters {
    files: HashMap<FileId, Known>,
    /// Why a process has no Python frames.
    refused: HashMap<u32, Refused>,
    /// Programs that were found to be an interpreter since that was asked for.
    programs: Vec<(ProgramKey, Program)>,
    opener: Opener,
}

#[derive(Clone, Debug)]
struct Known {
    stamp: Stamp,
    found: Result<Option<Interpreter>, Refused>,
}

/// Size and time of change: tells two files apart that had an inode number one after the other.
type Stamp = (u64, i64, i64);

impl Interpreters {
    pub fn new(opener: Opener) -> Interpreters {
        Interpreters { files: HashMap::new(), refused: HashMap::new(), programs: Vec::new(), opener }
    }

    /// What the kernel side is to know of process `tgid`, which has mapped code that may be an interpreter's.
    pub fn of_process(&mut self, tgid: u32, mapping: &Mapping) -> Option<Python> {
        let Backing::File { id, path, .. } = &mapping.backing else { return None };
        let known = self.look_into(tgid, mapping, *id, path);
        match known {
            Ok(found) => {
                self.refused.remove(&tgid);
                found.map(|interpreter| placed(&interpreter, mapping))
            }
            Err(refused) => {
                if self.refused.len() >= REFUSED_MAX {
                    self.refused.clear();
                }
                self.refused.insert(tgid, refused);
                None
            }
        }
    }

    /// Programs that were found to be an interpreter since the last time this was asked.
    pub fn take_programs(&mut self) -> Vec<(ProgramKey, Program)> {
        std::mem::take(&mut self.programs)
    }

    /// Looks into the interpreters that are installed where most are, so that the first script that one of them runs
    /// finds it known.
    pub fn find_installed(&mut self) {
        const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/opt/venv/bin"];
        let look = || {
            let entries = DIRECTORIES.iter().filter_map(|directory| fs::read_dir(directory).ok());
            let mut found = HashMap::new();
            for path in entries.flatten().flatten().map(|entry| entry.path()) {
                if !interpreter::may_be(&path) || found.len() >= FILES_MAX / 2 {
                    continue;
                }
                // The file itself, where it is a link.
                let Ok(path) = fs::canonicalize(&path) else { continue };
                let Ok(file) = File::open(&path) else { continue };
                let Ok(metadata) = file.metadata() else { continue };
                if !metadata.file_type().is_file() {
                    continue;
                }
                let device = metadata.dev();
                let id = FileId {
                    major: major(device) as u32,
                    minor: minor(device) as u32,
                    inode: metadata.ino(),
                };
                let Ok(stamp) = stamp_of(&file) else { continue };
                found.insert(id, Known { stamp, found: interpreter::in_file(&file, &path) });
            }
            found
        };
        for (id, known) in self.opener.run(look).unwrap_or_default() {
            self.remember(id, known);
        }
    }

    fn remember(&mut self, id: FileId, known: Known) {
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        if let Ok(Some(interpreter)) = &known.found {
            let key = ProgramKey { device: u64::from(id.major) << 20 | u64::from(id.minor), inode: id.inode };
            let python = at(interpreter, 0);
            self.programs.push((key, Program { python, code_start: interpreter.code_start }));
        }
        self.files.insert(id, known);
    }

    /// Why the process has no Python frames, where that is known.
    pub fn why_not(&self, tgid: u32) -> Option<&Refused> {
        self.refused.get(&tgid)
    }

    fn look_into(
        &mut self,
        tgid: u32,
        mapping: &Mapping,
        id: FileId,
        path: &Arc<Path>,
    ) -> Result<Option<Interpreter>, Refused> {
        let stamp = self.files.get(&id).map(|known| known.stamp);
        let (path, mapping) = (Arc::clone(path), mapping.clone());
        let read = self.opener.run(move || -> Result<Option<Known>, Refused> {
            let file = elf_open::open(tgid, None, &mapping, id, &path)?;
            let now = stamp_of(&file)?;
            if Some(now) == stamp {
                return Ok(None);
            }
            Ok(Some(Known { stamp: now, found: interpreter::in_file(&file, &path) }))
        });
        match (read.unwrap_or(Err(Refused::Unreadable(Unreadable::Stalled))), self.files.get(&id)) {
            (Ok(Some(known)), _) => {
                let found = known.found.clone();
                self.remember(id, known);
                found
            }
            (Ok(None), Some(known)) => known.found.clone(),
            (Ok(None), None) => Ok(None),
            // Nobody can say any more which file it was: guesses are worse than nothing.
            (Err(refused), _) => Err(refused),
        }
    }
}

fn stamp_of(file: &File) -> Result<Stamp, Refused> {
    let metadata = file.metadata().map_err(|error| {
        Refused::Unreadable(Unreadable::Failed("inspect", error.raw_os_error().unwrap_or(0)))
    })?;
    Ok((metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

/// The interpreter as it is in a process that maps its code at `mapping`.
fn placed(interpreter: &Interpreter, mapping: &Mapping) -> Python {
    // Where the file's own addresses begin in the process.
    at(interpreter, mapping.start.wrapping_sub(mapping.offset).wrapping_sub(interpreter.code_bias))
}

/// The interpreter loaded so far from its own addresses.
fn at(interpreter: &Interpreter, bias: u64) -> Python {
    Python {
        runtime: bias.wrapping_add(interpreter.runtime),
        code_type: bias.wrapping_add(interpreter.code_type),
        layout: interpreter.version.layout,
        minor: interpreter.minor,
        reserved: 0,
    }
}
