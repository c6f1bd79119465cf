//! The half of [`super::Stacks`] that must be quick: what is mapped where, and how its frames are walked.
//!
//! Until a walk is taught to the kernel side, every stack that takes the same way costs a snapshot. Naming a stack may
//! take as long as reading the debug information of a large program; so walking is done in a thread ahead of that, and
//! the two share this. Names are the other half's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portwatch_common::python::{Program, ProgramKey, Python};

use super::elf::{self, Modules, Unreadable};
use super::mapping::{Backing, Mapping};
use super::opener::Opener;
use super::process_maps::{self, Missing, ProcessMaps, Space};
use super::python::known::Interpreters;
use super::rows::{Row, Rows};
use super::sideband::{self, Sideband};
use super::unwind::{self, Outcome, Position, Unwound, Why};
use super::{MODULE_BYTES_MAX, MODULES_MAX, PROCESSES_MAX, Snapshot};

/// How long the mappings of processes from before the start are read at most. Those that are left are read when they are
/// first met. A thousand processes take about 0.2 s.
const READ_ALL_LIMIT: Duration = Duration::from_secs(1);

/// A handle; clones share what is known.
#[derive(Clone)]
pub struct Walks {
    inner: Arc<Mutex<Known>>,
    opener: Opener,
    note: Option<Arc<str>>,
}

struct Known {
    maps: ProcessMaps,
    sideband: Option<Sideband>,
    modules: Modules,
    rows: Rows,
    interpreters: Interpreters,
    /// Copies that are no longer used, until the other half was told.
    dropped: Vec<Arc<elf::Module>>,
    /// Processes that had code replaced lately, in order of time.
    replaced: HashMap<u32, VecDeque<Replaced>>,
}

/// Code of a process was replaced, and for a while the kernel side went on to walk by the rows of what stood there before.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    at_mono_ns: u64,
    unlearned_mono_ns: u64,
}

impl Replaced {
    fn covers(&self, mono_ns: u64) -> bool {
        (self.at_mono_ns..=self.unlearned_mono_ns).contains(&mono_ns)
    }
}

/// What was refused or given up so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub maps: process_maps::Counters,
    pub records: sideband::Counters,
    pub modules: elf::Counters,
    pub tables_malformed: u64,
}

/// Interpreters, as the kernel side is to know them.
pub struct Pythons {
    pub processes: Vec<(u32, Python)>,
    /// What they run.
    pub programs: Vec<(ProgramKey, Program)>,
}

/// An address of a stack, and what it is the address of.
pub(super) struct Placed {
    /// Of the call; the address on the stack is that of the instruction behind it.
    pub call: u64,
    pub place: Place,
    pub row: Option<Row>,
}

pub(super) enum Place {
    /// In code of a file, or of the vdso.
    Code { mapping: Mapping, module: Result<Arc<elf::Module>, Unreadable> },
    /// Compiled at run time.
    Anonymous,
    /// In no mapping.
    Nowhere,
    /// Nothing is known of the process.
    Missing(Missing),
}

impl Walks {
    /// With `is_followed` the kernel's records of all processes' mappings are read; [`Walks::note`] says if they cannot.
    pub fn new(is_followed: bool) -> Walks {
        let opener = Opener::default();
        let mut maps = ProcessMaps::new(PROCESSES_MAX, opener.clone());
        let (sideband, note) = match is_followed.then(Sideband::open) {
            None => (None, None),
            Some(Ok(sideband)) => (Some(sideband), None),
            Some(Err(error)) => {
                let note = format!("processes that end at once have no call sites: {error:#}");
                (None, Some(note.into()))
            }
        };
        maps.set_followed(sideband.is_some());
        if sideband.is_some() {
            maps.read_all(Instant::now() + READ_ALL_LIMIT);
        }
        let mut interpreters = Interpreters::new(opener.clone());
        if sideband.is_some() {
            interpreters.find_installed();
        }
        let modules = Modules::new(MODULES_MAX, MODULE_BYTES_MAX, opener.clone());
        let known = Known {
            maps,
            sideband,
            modules,
            rows: Rows::default(),
            interpreters,
            dropped: Vec::new(),
            replaced: HashMap::new(),
        };
        Walks { inner: Arc::new(Mutex::new(known)), opener, note }
    }

    /// What the user should know of how well processes can be followed; `None` when all is well.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Takes in what the kernel told of mappings until now. To be called with the events of a batch in hand and before
    /// any of their stacks is walked, so that whatever was mapped when they happened is known.
    ///
    /// Gives back the processes whose rows are no longer those that were taught: other code stands in their place. When
    /// the kernel side has forgotten them, [`Walks::unlearned`] is to be told.
    pub fn drain_sideband(&self) -> Vec<u32> {
        let mut known = self.lock();
        let Known { sideband, maps, replaced, .. } = &mut *known;
        if let Some(sideband) = sideband {
            sideband.drain(maps);
        }
        let mut processes = Vec::new();
        for (tgid, at_mono_ns) in maps.take_replaced() {
            let lately = replaced.entry(tgid).or_default();
            // Of several changes the first one counts until the kernel side has forgotten.
            if lately.back().is_none_or(|last| last.unlearned_mono_ns != u64::MAX) {
                lately.push_back(Replaced { at_mono_ns, unlearned_mono_ns: u64::MAX });
                if lately.len() > process_maps::FORMERS_MAX {
                    lately.pop_front();
                }
            }
            if !processes.contains(&tgid) {
                processes.push(tgid);
            }
        }
        processes
    }

    /// Interpreters that were met since the last time this was asked.
    pub fn take_pythons(&self) -> Pythons {
        let mut known = self.lock();
        let Known { maps, interpreters, .. } = &mut *known;
        let met = maps.take_pythons();
        let of_process =
            |(tgid, mapping): &(u32, Mapping)| Some((*tgid, interpreters.of_process(*tgid, mapping)?));
        let processes = met.iter().filter_map(of_process).collect();
        Pythons { processes, programs: interpreters.take_programs() }
    }

    /// Why a process has no Python frames, where that is known.
    pub(super) fn why_no_python(&self, tgid: u32) -> Option<String> {
        self.lock().interpreters.why_not(tgid).map(ToString::to_string)
    }

    /// The kernel side walks by no row of a process any more that was taught before `mono_ns`.
    pub fn unlearned(&self, tgid: u32, mono_ns: u64) {
        if let Some(last) = self.lock().replaced.get_mut(&tgid).and_then(VecDeque::back_mut) {
            last.unlearned_mono_ns = mono_ns;
        }
    }

    /// How many of the first `addresses` of a stack, taken at `mono_ns`, can be relied on: all, unless it was walked by
    /// rows of code that was replaced. Where such code has the same rows, the way is the same.
    pub(super) fn reliable(&self, tgid: u32, start_boot_ns: u64, mono_ns: u64, addresses: &[u64]) -> usize {
        let mut known = self.lock();
        known.reliable(tgid, start_boot_ns, mono_ns, addresses)
    }

    /// Whether code of the process was replaced and the kernel side may not have known it at `mono_ns`.
    pub(super) fn is_being_replaced(&self, tgid: u32, mono_ns: u64) -> bool {
        self.lock().change_at(tgid, mono_ns).is_some()
    }

    /// Whether the same addresses meant other code at these two times, and the kernel side may not have known it at the
    /// second: then the number of the address space's generation by now.
    pub(super) fn changed_between(
        &self,
        tgid: u32,
        start_boot_ns: u64,
        first_mono_ns: u64,
        mono_ns: u64,
    ) -> Option<u64> {
        let mut known = self.lock();
        known.change_at(tgid, mono_ns)?;
        let first = known.maps.find(tgid, start_boot_ns, first_mono_ns).ok()?.generation;
        let now = known.maps.find(tgid, start_boot_ns, mono_ns).ok()?.generation;
        (first != now).then_some(now)
    }

    /// Forgets what no stack from `mono_ns` on can need.
    pub fn expire(&self, mono_ns: u64) {
        let mut known = self.lock();
        known.maps.expire(mono_ns);
        if !known.replaced.is_empty() {
            let is_needed = |replaced: &Replaced| {
                replaced.unlearned_mono_ns.saturating_add(process_maps::KEEP_AFTER_EXIT_NS) > mono_ns
            };
            known.replaced.retain(|_, lately| lately.back().is_some_and(is_needed));
        }
    }

    /// Walks a stack that the kernel side could not walk to its end, and gives back the rows that it lacked.
    ///
    /// The registers and the copy are those at the point that it reached, after the addresses of the prefix.
    pub fn unwind(&self, snapshot: &Snapshot<'_>) -> Unwound {
        let Snapshot { tgid, start_boot_ns, mono_ns, registers, stack, prefix } = snapshot;
        let mut known = self.lock();
        let reliable = known.reliable(*tgid, *start_boot_ns, *mono_ns, prefix);
        if reliable < prefix.len() {
            let addresses = prefix[..reliable].to_vec();
            return Unwound { addresses, rows: Vec::new(), outcome: Outcome::Truncated(Why::Replaced) };
        }
        let Known { maps, modules, rows, .. } = &mut *known;
        let mut space = maps.find(*tgid, *start_boot_ns, *mono_ns);
        let mut is_fresh = false;
        let mut row = |ip: u64, position: Position| {
            let address = position.row_address(ip);
            let is_mapped = match &space {
                Ok(space) => space.find(address).is_some(),
                Err(missing) => return Err(Why::Unknown(missing.to_string())),
            };
            if !is_mapped && !is_fresh {
                is_fresh = true;
                space = maps.refresh(*tgid, *start_boot_ns, *mono_ns);
            }
            let space = space.as_ref().map_err(|missing| Why::Unknown(missing.to_string()))?;
            row_at(modules, rows, *tgid, space, address)
        };
        let position = match prefix.last() {
            None => Position::At,
            Some(&last) => match row(last, Position::After) {
                Ok(Row { kind: Row::SIGNAL, .. }) => Position::At,
                _ => Position::After,
            },
        };
        let unwound = unwind::walk(*registers, position, stack, prefix, row);
        known.collect_dropped();
        unwound
    }

    /// Finds what each of the `addresses` of a stack is the address of, and the generation of the address space.
    pub(super) fn place(
        &self,
        tgid: u32,
        start_boot_ns: u64,
        mono_ns: u64,
        addresses: &[u64],
    ) -> Vec<Placed> {
        let mut known = self.lock();
        let Known { maps, modules, rows, .. } = &mut *known;
        let mut space = maps.find(tgid, start_boot_ns, mono_ns);
        let is_unmapped =
            |space: &Space| addresses.iter().any(|&address| space.find(address.saturating_sub(1)).is_none());
        if space.as_ref().is_ok_and(is_unmapped) {
            space = maps.refresh(tgid, start_boot_ns, mono_ns);
        }
        let mut position = Position::After;
        let mut place = |&address: &u64| {
            // The saved address is that of the instruction after the call, which may be another line or function.
            let call = position.row_address(address);
            position = Position::After;
            let space = match &space {
                Ok(space) => space,
                Err(missing) => return Placed { call, place: Place::Missing(*missing), row: None },
            };
            let Some(mapping) = space.find(call) else {
                return Placed { call, place: Place::Nowhere, row: None };
            };
            let row = row_at(modules, rows, tgid, space, call).ok();
            if row.is_some_and(|row| row.kind == Row::SIGNAL) {
                position = Position::At;
            }
            let place = match &mapping.backing {
                Backing::Anonymous(_) => Place::Anonymous,
                Backing::File { .. } | Backing::Vdso => {
                    Place::Code { mapping: mapping.clone(), module: modules.get(space.whose(tgid), mapping) }
                }
            };
            Placed { call, place, row }
        };
        let placed = addresses.iter().map(&mut place).collect();
        known.collect_dropped();
        placed
    }

    /// The program that a process ran at `mono_ns`, where its exec was followed.
    pub(super) fn program(&self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Option<String> {
        self.lock().maps.program(tgid, start_boot_ns, mono_ns).map(elf::shown)
    }

    /// Who made a process, where that was followed.
    pub(super) fn parent(&self, tgid: u32) -> Option<u32> {
        self.lock().maps.parent(tgid)
    }

    /// Copies that are no longer used, so that what was made of them is let go of.
    pub(super) fn take_dropped(&self) -> Vec<Arc<elf::Module>> {
        std::mem::take(&mut self.lock().dropped)
    }

    pub(super) fn counters(&self) -> Counters {
        let known = self.lock();
        Counters {
            maps: known.maps.counters(),
            records: known.sideband.as_ref().map(Sideband::counters).unwrap_or_default(),
            modules: known.modules.counters(),
            tables_malformed: known.rows.malformed(),
        }
    }

    /// Shares the thread that opens files.
    pub(super) fn opener(&self) -> Opener {
        self.opener.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic in a parser leaves caches behind that are right as far as they go.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// See [`Walks::reliable`].
    fn reliable(&mut self, tgid: u32, start_boot_ns: u64, mono_ns: u64, addresses: &[u64]) -> usize {
        let Some(replaced) = self.change_at(tgid, mono_ns) else { return addresses.len() };
        let Known { maps, modules, rows, .. } = self;
        let former = maps.find(tgid, start_boot_ns, replaced.at_mono_ns.saturating_sub(1));
        let (Ok(former), Ok(current)) = (former, maps.find(tgid, start_boot_ns, mono_ns)) else { return 0 };
        let mut row =
            |space: &Space, address: u64| row_at(modules, rows, tgid, space, address.wrapping_sub(1)).ok();
        let mut is_same =
            |&address: &u64| row(&former, address).is_some_and(|was| row(&current, address) == Some(was));
        // The first one that differs was reached rightly; it is its caller that was not.
        addresses.iter().position(|address| !is_same(address)).map_or(addresses.len(), |at| at + 1)
    }

    /// The change of code that the kernel side may not have known of at `mono_ns`.
    fn change_at(&self, tgid: u32, mono_ns: u64) -> Option<Replaced> {
        self.replaced.get(&tgid)?.iter().rev().find(|replaced| replaced.covers(mono_ns)).copied()
    }

    fn collect_dropped(&mut self) {
        let dropped = self.modules.take_dropped();
        self.rows.forget(&dropped);
        self.dropped.extend(dropped);
    }
}

/// The row for the instruction at `address` of a process.
fn row_at(
    modules: &mut Modules,
    rows: &mut Rows,
    tgid: u32,
    space: &Space,
    address: u64,
) -> Result<Row, Why> {
    let mapping = space.find(address).ok_or(Why::NotCode)?;
    let module = match modules.get(space.whose(tgid), mapping) {
        Ok(module) => module,
        Err(Unreadable::Anonymous) => return Ok(Rows::anonymous()),
        Err(unreadable) => return Err(Why::Unknown(unreadable.to_string())),
    };
    match module.address_in(mapping, address) {
        Some(address) => Ok(rows.at(&module, address)),
        None => Err(Why::NotCode),
    }
}
