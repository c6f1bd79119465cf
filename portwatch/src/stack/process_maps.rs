//! Which code is mapped where, per process, remembered for as long as a stack of it may still arrive.
//!
//! Knowledge comes from two places: `/proc/PID/maps`, read when a process is asked for, and the records of
//! [`super::sideband`], which also cover processes that are gone before anybody could look. Only executable
//! mappings are kept. A process is named by its number and its start, so that a reused number is another process.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::elf::Whose;
use super::mapping::{Backing, Mapping, is_extension, overlay, parse, replaces, tidy};
use super::opener::Opener;
use super::python::interpreter;
use super::start_time;
use crate::aggregate::recent::Recent;

/// Bytes of one `/proc/PID/maps` that are read. A line is about 100 bytes, and `vm.max_map_count` is 65530 by default.
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// How far apart two statements about the start of one process may lie: `/proc` counts in steps of 10 ms, and a
/// fork record is made a little after the start time was taken.
const START_SLACK_NS: u64 = 1_000_000_000;

/// Former states of the address spaces of one process that are kept: one that replaces its code all the time must not
/// push out everybody else's.
pub(super) const FORMERS_MAX: usize = 64;

/// How long the mappings of a process that exited stay, for events that are still in a queue.
pub(super) const KEEP_AFTER_EXIT_NS: u64 = 10_000_000_000;

/// One generation of a process's address space: it lasts until exec, and changes its number when a mapping is
/// replaced by another file's.
#[derive(Clone, Debug)]
pub struct Space {
    /// Names this state of the address space within a run. A fork without exec inherits it.
    pub generation: u64,
    /// Sorted by `start`, without overlaps.
    mappings: Arc<Vec<Mapping>>,
    /// Everything that was mapped at some point is known, not only what records told.
    is_complete: bool,
    /// Start of the process, `CLOCK_BOOTTIME`; `None` when not known.
    start_boot_ns: Option<u64>,
    /// When this program began to run, `CLOCK_MONOTONIC`; 0 when it was there before anybody looked.
    since_mono_ns: u64,
    /// What was there before `since_mono_ns` is forgotten.
    is_cut: bool,
    /// When the process ended or replaced its program.
    until_mono_ns: Option<u64>,
    /// Value of the use counter when it was last asked for.
    used: u64,
    /// The process that made it, where that was followed: it may have the same files in reach for longer.
    parent: Option<u32>,
    /// The program itself, where its exec was followed: the first file whose code was mapped.
    program: Option<Arc<Path>>,
}

impl Space {
    fn new(generation: u64, start_boot_ns: Option<u64>, since_mono_ns: u64, used: u64) -> Space {
        Space {
            generation,
            mappings: Arc::default(),
            is_complete: false,
            start_boot_ns,
            since_mono_ns,
            is_cut: false,
            until_mono_ns: None,
            used,
            parent: None,
            program: None,
        }
    }

    /// To find its files.
    pub fn whose(&self, tgid: u32) -> Whose {
        Whose { tgid, parent: self.parent, generation: self.generation }
    }

    /// The mapping that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        let mapping = &self.mappings[after.checked_sub(1)?];
        (address < mapping.end).then_some(mapping)
    }

    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
}

/// Why nothing is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It ended before its mappings could be read.
    Gone,
    /// Its number is another process's now.
    Reused,
    /// Its code was replaced more often since then than is remembered.
    Forgotten,
    NotPermitted,
    Stalled,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Gone => "the process ended before its mappings were read",
            Missing::Reused => "the process ended and its number was used again",
            Missing::Forgotten => "the code of the process was replaced too often meanwhile",
            Missing::NotPermitted => "the mappings of the process may not be read",
            Missing::Stalled => "reading the mappings of the process took too long",
        })
    }
}

/// What was refused or given up, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Address spaces forgotten to make room.
    pub evicted: u64,
    /// Mappings not kept because a process has too many.
    pub mappings_dropped: u64,
    /// Times that the mappings of a process could not be had.
    pub missing: u64,
}

/// Address spaces by process.
#[derive(Debug)]
pub struct ProcessMaps {
    /// Several per number: one was reused, and stacks of the former may still arrive.
    spaces: HashMap<u32, Vec<Space>>,
    capacity: usize,
    count: usize,
    generation: u64,
    uses: u64,
    /// Processes that exited, in order, until they are forgotten: (time, number).
    exits: VecDeque<(u64, u32)>,
    /// Records keep what is known up to date. Without, `/proc` is read anew for every stack.
    is_followed: bool,
    /// Processes in which other code came to stand where code was.
    replaced: Vec<(u32, u64)>,
    /// Code of Python interpreters that was mapped since it was asked for.
    pythons: Vec<(u32, Mapping)>,
    /// Who made whom: a wrapper is gone before anybody could ask.
    parents: Recent<u32, u32>,
    opener: Opener,
    counters: Counters,
}

/// 16 bytes each.
const PARENTS_MAX: usize = 65_536;

impl ProcessMaps {
    /// Keeps at most `capacity` address spaces.
    pub fn new(capacity: usize, opener: Opener) -> ProcessMaps {
        ProcessMaps {
            spaces: HashMap::new(),
            capacity: capacity.max(1),
            count: 0,
            generation: 0,
            uses: 0,
            exits: VecDeque::new(),
            is_followed: false,
            replaced: Vec::new(),
            pythons: Vec::new(),
            parents: Recent::new(PARENTS_MAX),
            opener,
            counters: Counters::default(),
        }
    }

    /// Says whether records of [`super::sideband`] arrive.
    pub fn set_followed(&mut self, is_followed: bool) {
        self.is_followed = is_followed;
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The address space at `mono_ns` of process `tgid` that started at `start_boot_ns`, 0 when not known. Reads
    /// `/proc/PID/maps` where the records do not suffice.
    ///
    /// # Errors
    /// When the process is gone and no record told of it.
    pub fn find(&mut self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Result<Space, Missing> {
        let found = self.look_up(tgid, start_boot_ns, mono_ns);
        self.counters.missing += u64::from(found.is_err());
        found
    }

    fn look_up(&mut self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Result<Space, Missing> {
        self.uses += 1;
        let uses = self.uses;
        let is_followed = self.is_followed;
        let known = self.position(tgid, start_boot_ns, mono_ns);
        if let Some(space) = self.slot(tgid, known) {
            if space.is_cut && mono_ns < space.since_mono_ns {
                return Err(Missing::Forgotten);
            }
            space.used = uses;
            if space.until_mono_ns.is_some() || (is_followed && space.is_complete) {
                return Ok(space.clone());
            }
        }
        let read = self.opener.run(move || read_maps(tgid, start_boot_ns));
        match read.unwrap_or(Err(Missing::Stalled)) {
            Ok((mappings, start)) => {
                let (mappings, dropped) = tidy(mappings);
                self.counters.mappings_dropped += dropped;
                let pythons = mappings.iter().filter(|mapping| may_be_python(mapping)).cloned();
                self.pythons.extend(pythons.map(|mapping| (tgid, mapping)));
                let new_generation = self.next_generation();
                let mappings = Arc::new(mappings);
                if let Some(space) = self.slot(tgid, known) {
                    // The same code at the same place keeps its number, and with it the rows that were learned.
                    if !is_extension(&space.mappings, &mappings) {
                        space.generation = new_generation;
                    }
                    (space.mappings, space.is_complete, space.start_boot_ns) = (mappings, true, Some(start));
                    return Ok(space.clone());
                }
                let space =
                    Space { mappings, is_complete: true, ..Space::new(new_generation, Some(start), 0, uses) };
                self.insert(tgid, space.clone());
                Ok(space)
            }
            Err(missing) => {
                // What the records told of it is better than nothing.
                let known = self.slot(tgid, known).filter(|space| !space.mappings.is_empty());
                known.map(|space| space.clone()).ok_or(missing)
            }
        }
    }

    /// Reads the mappings of all processes that there are, until `deadline`: one that was there before the records began
    /// may end as soon as it has connected, or make children that do.
    pub fn read_all(&mut self, deadline: Instant) {
        let Ok(entries) = fs::read_dir("/proc") else { return };
        let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for tgid in processes.take(self.capacity / 2) {
            if Instant::now() >= deadline {
                break;
            }
            // Gone since, at worst.
            let _ = self.look_up(tgid, 0, u64::MAX);
        }
    }

    /// The program that a process ran at `mono_ns`, where its exec was followed.
    pub fn program(&self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Option<&Path> {
        let at = self.position(tgid, start_boot_ns, mono_ns)?;
        self.spaces.get(&tgid)?.get(at)?.program.as_deref()
    }

    /// The process that made a process, where that was followed.
    pub fn parent(&self, tgid: u32) -> Option<u32> {
        self.parents.peek(&tgid).copied()
    }

    /// As [`ProcessMaps::find`], but looks into `/proc` again if it can, because an address was in no known mapping.
    ///
    /// # Errors
    /// As for `find`.
    pub fn refresh(&mut self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Result<Space, Missing> {
        let known = self.position(tgid, start_boot_ns, mono_ns);
        if let Some(space) = self.slot(tgid, known) {
            space.is_complete = false;
        }
        self.find(tgid, start_boot_ns, mono_ns)
    }

    /// A process was made. It has its parent's mappings.
    pub(super) fn forked(&mut self, tgid: u32, parent: u32, start_boot_ns: u64, mono_ns: u64) {
        self.parents.insert(tgid, parent);
        // A parent from before the start is read now: the child may not live long enough to be read itself.
        let from = match self.current(parent) {
            Some(space) if space.is_complete => Some(space.clone()),
            _ => self.look_up(parent, 0, mono_ns).ok(),
        };
        let new = Space::new(0, Some(start_boot_ns), mono_ns, self.uses);
        let space = match from {
            Some(from) => Space {
                generation: from.generation,
                mappings: from.mappings,
                program: from.program,
                is_complete: from.is_complete,
                parent: Some(parent),
                ..new
            },
            None => Space { generation: self.next_generation(), parent: Some(parent), ..new },
        };
        self.insert(tgid, space);
    }

    /// A process replaced its program: whatever is mapped from now on will be told by records.
    pub(super) fn executed(&mut self, tgid: u32, mono_ns: u64) {
        let former = self.spaces.get(&tgid).and_then(|spaces| spaces.last());
        let (start_boot_ns, parent) =
            former.map_or((None, None), |space| (space.start_boot_ns, space.parent));
        self.exited(tgid, mono_ns);
        let generation = self.next_generation();
        let new = Space::new(generation, start_boot_ns, mono_ns, self.uses);
        self.insert(tgid, Space { is_complete: true, parent, ..new });
    }

    /// Code was mapped. Stacks from before `mono_ns` still mean what stood there before.
    pub(super) fn mapped(&mut self, tgid: u32, mapping: Mapping, mono_ns: u64) {
        if self.current(tgid).is_none() {
            // Known from this on, the rest is read when it is asked for.
            let space = Space::new(self.next_generation(), None, 0, self.uses);
            self.insert(tgid, space);
        }
        if may_be_python(&mapping) {
            self.pythons.push((tgid, mapping.clone()));
        }
        let generation = self.generation + 1;
        let Some(space) = self.spaces.get_mut(&tgid).and_then(|spaces| spaces.last_mut()) else { return };
        if let (Backing::File { path, .. }, true, true) =
            (&mapping.backing, space.mappings.is_empty(), space.is_complete)
        {
            space.program = Some(Arc::clone(path));
        }
        let former = replaces(&space.mappings, &mapping).then(|| space.clone());
        let is_dropped = overlay(Arc::make_mut(&mut space.mappings), mapping);
        self.counters.mappings_dropped += u64::from(is_dropped);
        if let Some(former) = former {
            (space.generation, space.since_mono_ns) = (generation, mono_ns);
            self.generation = generation;
            self.replaced.push((tgid, mono_ns));
            self.keep_former(tgid, Space { until_mono_ns: Some(mono_ns), ..former });
        }
    }

    /// Keeps what an address space was before code in it was replaced, for stacks that are still in a queue.
    fn keep_former(&mut self, tgid: u32, former: Space) {
        let ended = former.until_mono_ns.unwrap_or(0);
        let Some(spaces) = self.spaces.get_mut(&tgid) else { return };
        if spaces.len() > FORMERS_MAX {
            spaces.remove(0);
            spaces[0].is_cut = true;
            self.count -= 1;
        }
        spaces.insert(spaces.len() - 1, former);
        self.count += 1;
        self.exits.push_back((ended, tgid));
        if self.count > self.capacity {
            self.evict();
        }
    }

    /// Processes in which, since the last time this was asked, other code came to stand where code was, and when.
    pub fn take_replaced(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.replaced)
    }

    /// Code of Python interpreters, by process, that was met since the last time this was asked.
    pub fn take_pythons(&mut self) -> Vec<(u32, Mapping)> {
        std::mem::take(&mut self.pythons)
    }

    /// A process ended. What is known of it stays for a while.
    pub(super) fn exited(&mut self, tgid: u32, mono_ns: u64) {
        if let Some(space) = self.spaces.get_mut(&tgid).and_then(|spaces| spaces.last_mut())
            && space.until_mono_ns.is_none()
        {
            space.until_mono_ns = Some(mono_ns);
            self.exits.push_back((mono_ns, tgid));
        }
    }

    /// Forgets processes that ended long enough before `mono_ns`.
    pub(super) fn expire(&mut self, mono_ns: u64) {
        while let Some(&(ended, tgid)) = self.exits.front()
            && ended.saturating_add(KEEP_AFTER_EXIT_NS) <= mono_ns
        {
            self.exits.pop_front();
            self.retain(tgid, |space| space.until_mono_ns != Some(ended));
        }
    }

    /// Records were lost: what they would have told is read again where it can be.
    pub(super) fn distrust(&mut self) {
        for space in self.spaces.values_mut().flatten() {
            space.is_complete = false;
        }
    }

    /// Of all that had the number, the nearest in start; of its programs, the one that ran at `mono_ns`.
    fn position(&self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Option<usize> {
        let spaces = self.spaces.get(&tgid)?;
        let distance = |space: &Space| match (start_boot_ns, space.start_boot_ns) {
            (0, _) => 0,
            (wanted, Some(start)) => start.abs_diff(wanted),
            (_, None) => START_SLACK_NS - 1,
        };
        let nearest = spaces.iter().map(distance).min().filter(|&distance| distance < START_SLACK_NS)?;
        let mut candidates = (0..spaces.len()).filter(|&at| distance(&spaces[at]) == nearest);
        candidates.clone().rfind(|&at| spaces[at].since_mono_ns <= mono_ns).or_else(|| candidates.next())
    }

    fn slot(&mut self, tgid: u32, at: Option<usize>) -> Option<&mut Space> {
        self.spaces.get_mut(&tgid)?.get_mut(at?)
    }

    fn current(&self, tgid: u32) -> Option<&Space> {
        self.spaces.get(&tgid)?.last().filter(|space| space.until_mono_ns.is_none())
    }

    fn insert(&mut self, tgid: u32, space: Space) {
        if self.count >= self.capacity {
            self.evict();
        }
        self.count += 1;
        self.spaces.entry(tgid).or_default().push(space);
    }

    /// Makes room for an eighth at once, so that a full table does not scan itself for every process.
    fn evict(&mut self) {
        let mut used: Vec<u64> = self.spaces.values().flatten().map(|space| space.used).collect();
        let cut = used.len() / 8;
        let (_, &mut limit, _) = used.select_nth_unstable(cut);
        let mut excess = cut + 1;
        let before = self.count;
        self.spaces.retain(|_, spaces| {
            spaces.retain(|space| {
                let goes = excess > 0 && space.used <= limit;
                excess -= usize::from(goes);
                !goes
            });
            !spaces.is_empty()
        });
        self.count = self.spaces.values().map(Vec::len).sum();
        self.counters.evicted += (before - self.count) as u64;
    }

    fn retain(&mut self, tgid: u32, keep: impl Fn(&Space) -> bool) {
        if let Some(spaces) = self.spaces.get_mut(&tgid) {
            let before = spaces.len();
            spaces.retain(keep);
            self.count -= before - spaces.len();
            if spaces.is_empty() {
                self.spaces.remove(&tgid);
            }
        }
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }
}

fn may_be_python(mapping: &Mapping) -> bool {
    matches!(&mapping.backing, Backing::File { path, .. } if interpreter::may_be(path))
}

/// Mappings and start of a live process. A `start_boot_ns` other than 0 must be its start.
fn read_maps(tgid: u32, start_boot_ns: u64) -> Result<(Vec<Mapping>, u64), Missing> {
    let mut mappings = read_maps_at(&format!("/proc/{tgid}/maps"))?;
    if mappings.is_empty() {
        // The first thread ended before the others; they still have the address space.
        let tasks = fs::read_dir(format!("/proc/{tgid}/task")).into_iter().flatten().flatten();
        let of_task = |task: fs::DirEntry| read_maps_at(&task.path().join("maps").to_string_lossy()).ok();
        mappings = tasks.filter_map(of_task).find(|mappings| !mappings.is_empty()).ok_or(Missing::Gone)?;
    }
    // Afterwards: the number may have been another process's when it was opened.
    let start = start_time::of_process(tgid).ok_or(Missing::Gone)?;
    if start_boot_ns != 0 && start.abs_diff(start_boot_ns) >= START_SLACK_NS {
        return Err(Missing::Reused);
    }
    Ok((mappings, if start_boot_ns == 0 { start } else { start_boot_ns }))
}

fn read_maps_at(path: &str) -> Result<Vec<Mapping>, Missing> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Missing::NotPermitted,
        _ => Missing::Gone,
    };
    let mut text = Vec::new();
    File::open(path).map_err(missing)?.take(MAPS_BYTES_MAX).read_to_end(&mut text).map_err(missing)?;
    Ok(parse(&text))
}

#[cfg(test)]
#[path = "process_maps_tests.rs"]
mod tests;
