//! Mappings of all processes as they are made, from the kernel's performance events.
//!
//! A dummy event per CPU counts nothing but reports every executable mapping, exec, fork and exit on that CPU
//! (`PERF_RECORD_MMAP2`, `_COMM`, `_FORK`, `_EXIT`). So the code of a process is known even if the process is gone when
//! its stack is read. Records are put in order by their time and applied to [`ProcessMaps`]. Numbers in them are those
//! of portwatch's own PID namespace; a process that has none there is left out.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::mapping::{FileId, Mapping};
use super::process_maps::ProcessMaps;

/// Buffer per CPU. The start of a program takes about 1.5 KiB of records, so this is some 170 of them on one CPU
/// between two drains; hosts with very many CPUs get less each, as each has less to tell.
const RING_BYTES: usize = 256 << 10;
const RING_BYTES_MANY_CPUS: usize = 64 << 10;
const MANY_CPUS: usize = 128;

/// How often the list of CPUs is looked at for new ones.
const CPUS_CHECK_NS: u64 = 5_000_000_000;

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Record types and flags, `linux/perf_event.h`.
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_EXIT: u32 = 4;
const PERF_RECORD_FORK: u32 = 7;
const PERF_RECORD_MMAP2: u32 = 10;
const PERF_RECORD_MISC_COMM_EXEC: u16 = 1 << 13;

/// The open buffers.
pub struct Sideband {
    rings: Vec<(usize, Sampler)>,
    cpus_checked_ns: u64,
    /// Read, but made after the drain began: an earlier one of another CPU may still be missing.
    pending: Vec<(u64, Record)>,
    counters: Counters,
}

/// What was received and what was not, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub records: u64,
    /// Records that the kernel had no room for.
    pub lost: u64,
    /// Records of a shape that is not known.
    pub malformed: u64,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    Mapped { tgid: u32, mapping: Mapping },
    Executed { tgid: u32 },
    Forked { tgid: u32, parent: u32 },
    Exited { tgid: u32 },
    Lost { count: u64 },
}

impl Sideband {
    /// Opens a buffer on every CPU.
    ///
    /// # Errors
    /// Without CAP_PERFMON or CAP_SYS_ADMIN, or where the kernel has no performance events.
    pub fn open() -> Result<Sideband> {
        let mut sideband = Sideband {
            rings: Vec::new(),
            cpus_checked_ns: 0,
            pending: Vec::new(),
            counters: Counters::default(),
        };
        let cpus = online()?;
        let bytes = ring_bytes(cpus.len());
        for cpu in cpus {
            let ring = ring(cpu, bytes).with_context(|| {
                format!("cannot follow mappings on CPU {cpu}; grant CAP_PERFMON, `portwatch doctor` says what is missing")
            })?;
            sideband.rings.push((cpu, ring));
        }
        if sideband.rings.is_empty() {
            bail!("cannot follow mappings: `{ONLINE}` names no CPU");
        }
        sideband.cpus_checked_ns = now_ns(ClockId::CLOCK_MONOTONIC);
        Ok(sideband)
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Applies all records that were made before the call.
    pub fn drain(&mut self, maps: &mut ProcessMaps) {
        // Whoever saw an event happen before this saw its records written; those made meanwhile may be incomplete.
        let now_mono_ns = now_ns(ClockId::CLOCK_MONOTONIC);
        let boot_ahead_ns = now_ns(ClockId::CLOCK_BOOTTIME).saturating_sub(now_mono_ns);
        for (_, ring) in &mut self.rings {
            while let Some(record) = ring.next_record() {
                self.counters.records += 1;
                match parse(record.ty(), record.misc(), &record.to_contiguous()) {
                    Some((time, Some(record))) => self.pending.push((time, record)),
                    Some((_, None)) => {}
                    None => self.counters.malformed += 1,
                }
            }
        }
        // Stable: of one CPU they come in order.
        self.pending.sort_by_key(|(time, _)| *time);
        let ready = self.pending.partition_point(|(time, _)| *time <= now_mono_ns);
        let mut lost = 0;
        for (time, record) in self.pending.drain(..ready) {
            match record {
                Record::Mapped { tgid, mapping } => maps.mapped(tgid, mapping, time),
                Record::Executed { tgid } => maps.executed(tgid, time),
                Record::Forked { tgid, parent } => maps.forked(tgid, parent, time + boot_ahead_ns, time),
                Record::Exited { tgid } => maps.exited(tgid, time),
                Record::Lost { count } => lost += count,
            }
        }
        if lost > 0 {
            self.counters.lost += lost;
            maps.distrust();
        }
        self.follow_new_cpus(now_mono_ns, maps);
    }

    /// A CPU that came later has told nothing until now.
    fn follow_new_cpus(&mut self, now_mono_ns: u64, maps: &mut ProcessMaps) {
        if now_mono_ns.saturating_sub(self.cpus_checked_ns) < CPUS_CHECK_NS {
            return;
        }
        self.cpus_checked_ns = now_mono_ns;
        let Ok(cpus) = online() else { return };
        let bytes = ring_bytes(cpus.len());
        for cpu in cpus {
            if self.rings.iter().any(|(known, _)| *known == cpu) {
                continue;
            }
            match ring(cpu, bytes) {
                Ok(ring) => self.rings.push((cpu, ring)),
                Err(error) => log::debug!("cannot follow mappings on CPU {cpu}: {error}"),
            }
            maps.distrust();
        }
    }
}

fn ring(cpu: usize, bytes: usize) -> std::io::Result<Sampler> {
    let counter = Builder::new(Software::DUMMY)
        .any_pid()
        .one_cpu(cpu)
        .mmap(true)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .task(true)
        .sample_id_all(true)
        .sample(SampleFlag::TIME)
        .clockid(Clock::MONOTONIC)
        .build()?;
    let mut ring = counter.sampled(bytes)?;
    // Only now: what is reported before there is a buffer is dropped without a word.
    ring.enable()?;
    Ok(ring)
}

fn ring_bytes(cpus: usize) -> usize {
    if cpus > MANY_CPUS { RING_BYTES_MANY_CPUS } else { RING_BYTES }
}

fn online() -> Result<Vec<usize>> {
    let text = fs::read_to_string(ONLINE).with_context(|| format!("cannot read `{ONLINE}`"))?;
    parse_cpus(text.trim()).with_context(|| format!("`{ONLINE}` is not a list of CPUs"))
}

/// A list such as `0-3,7`.
fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last.checked_sub(first)? > 65_536 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn now_ns(clock: ClockId) -> u64 {
    // These clocks exist on every kernel this runs on, and neither field is negative.
    clock_gettime(clock).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Whether a record can be read, for whoever tries.
pub(super) fn parse_any(kind: u32, misc: u16, record: &[u8]) -> bool {
    parse(kind, misc, record).is_some()
}

/// Time and meaning of a record; the meaning is `None` when it is of no interest. The time is its last word, as the
/// buffers were asked for it and for nothing else.
fn parse(kind: u32, misc: u16, record: &[u8]) -> Option<(u64, Option<Record>)> {
    let (body, time) = record.split_last_chunk::<8>()?;
    let time = u64::from_ne_bytes(*time);
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*body.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(*body.get(at..)?.first_chunk()?));
    let meaning = match kind {
        PERF_RECORD_MMAP2 => {
            let (tgid, start, length) = (u32_at(0)?, u64_at(8)?, u64_at(16)?);
            let id = FileId { major: u32_at(32)?, minor: u32_at(36)?, inode: u64_at(40)? };
            let name = body.get(64..)?;
            let name = &name[..name.iter().position(|&byte| byte == 0)?];
            let file = (id, u64_at(48)?);
            let mapping = Mapping::new(start, start.checked_add(length)?, u64_at(24)?, file, name);
            mapping.map(|mapping| Record::Mapped { tgid, mapping })
        }
        PERF_RECORD_COMM => {
            let tgid = u32_at(0)?;
            (misc & PERF_RECORD_MISC_COMM_EXEC != 0).then_some(Record::Executed { tgid })
        }
        PERF_RECORD_FORK => {
            let (tgid, parent) = (u32_at(0)?, u32_at(4)?);
            // A new thread has its process's number as that of the parent.
            (tgid != parent).then_some(Record::Forked { tgid, parent })
        }
        PERF_RECORD_EXIT => {
            let (tgid, tid) = (u32_at(0)?, u32_at(8)?);
            (tgid == tid).then_some(Record::Exited { tgid })
        }
        PERF_RECORD_LOST => Some(Record::Lost { count: u64_at(8)? }),
        _ => None,
    };
    let is_known = |record: &Record| match record {
        Record::Mapped { tgid, .. }
        | Record::Executed { tgid }
        | Record::Forked { tgid, .. }
        // 0 and -1 stand for a process without a number in this PID namespace.
        | Record::Exited { tgid } => !matches!(*tgid, 0 | u32::MAX),
        Record::Lost { .. } => true,
    };
    Some((time, meaning.filter(is_known)))
}

#[cfg(test)]
#[path = "sideband_tests.rs"]
mod tests;
