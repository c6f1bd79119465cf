//! From offsets and filters to attached programs: tries the rungs from the best one down.

use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use aya::programs::ProgramError;
use aya::{Btf, Ebpf, EbpfLoader};
use aya_obj::generated::bpf_func_id;
use portwatch_common::config::{Config, Offsets, filter, gate, pid_flags};
use portwatch_common::limits::{
    PYTHON_CODES_MAX, PYTHON_PROGRAMS_MAX, ROWS_MAX, SNAPSHOT_PLACES_MAX, SPACES_MAX, STACKS_PER_AUDIT,
};
use portwatch_common::python::{Program, ProgramKey, Python};
use portwatch_common::wire::{self, kind};
use zerocopy::IntoBytes;

use crate::kernel::host::names;
use crate::kernel::offsets::Missing;

use super::attach::{Link, attach, load as load_hook};
use super::counters::{CountersMap, NotRun, Totals};
use super::object::{StackWalk, has};
use super::programs::{Hook, Need, PROCESSES, Protocols, Rung, STATE_NESTED, hooks};
use super::reader::Reader;
use super::settings::{KernelFilters, Sizes};

/// What to load.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Only this rung, or the best that works.
    pub rung: Option<Rung>,
    pub offsets: Offsets,
    /// Members that this kernel lacks.
    pub missing: &'a [Missing],
    pub filters: &'a KernelFilters,
    pub protocols: Protocols,
    pub sizes: Sizes,
    /// Bit per [`kind`]: what is wanted.
    pub kinds: u32,
    pub accepted: bool,
    pub stacks: bool,
    /// Kernel stacks, too.
    pub kernel_stacks: bool,
    /// Only this way, or the best that works.
    pub stack_walk: Option<StackWalk>,
    pub verbose: bool,
    /// Inode of portwatch's PID namespace; `None` when it is the initial one.
    pub pid_namespace: Option<u32>,
}

/// A hook that is not attached, and what is not seen without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disabled {
    pub hook: &'static str,
    pub reason: String,
    pub effect: &'static str,
}

/// No rung works. One reason per rung that was tried.
#[derive(Debug)]
pub struct LoadError {
    pub reasons: Vec<(Rung, anyhow::Error)>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reasons.as_slice() {
            [(rung, _)] => write!(f, "cannot trace on rung `{rung}`")?,
            _ => write!(f, "cannot trace on any rung")?,
        }
        for (rung, reason) in &self.reasons {
            write!(f, "\n  {rung}: {}", one_line(reason))?;
        }
        let hint = "`portwatch doctor` says what is missing here and how to get it";
        match nix::unistd::geteuid().is_root() {
            true => write!(f, "\n  next: {hint}"),
            false => write!(f, "\n  next: run it as root; {hint}"),
        }
    }
}

impl std::error::Error for LoadError {}

/// An error and its causes; the verifier's log, if there is one, only in its last lines.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // The verifier's statistics come last, its reason before them.
        let is_telling = |line: &&str| {
            !line.trim().is_empty()
                && !["verification time", "stack depth", "processed "]
                    .iter()
                    .any(|head| line.starts_with(head))
        };
        let lines: Vec<&str> = text.lines().filter(is_telling).collect();
        let text = match lines.len() {
            0..=3 => lines.join(" "),
            n => format!("{} … {}", lines[0], lines[n - 3..].join(" ")),
        };
        // aya announces the verifier's log even where the kernel refused before it came to verifying.
        let text = text.trim_end().trim_end_matches(" Verifier output:").to_owned();
        if !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Attached programs and their maps. Dropping it detaches them.
pub struct Tracing {
    ebpf: Ebpf,
    links: Vec<Link>,
    counters: CountersMap,
    attached: Vec<(&'static str, u16)>,
    /// Rows that the kernel side has, oldest first.
    taught: VecDeque<[u64; 2]>,
    pub rung: Rung,
    pub stack_walk: StackWalk,
    pub disabled: Vec<Disabled>,
}

/// Loads and attaches. For the tracepoint rung it must run where tracefs is mounted.
///
/// # Errors
/// When no rung that the plan allows works.
pub fn load(plan: &Plan<'_>) -> Result<(Tracing, Reader), LoadError> {
    let mut reasons = Vec::new();
    let walks = plan.stack_walk.map_or(StackWalk::possible().to_vec(), |walk| vec![walk]);
    for rung in plan.rung.map_or(Rung::ALL.to_vec(), |rung| vec![rung]) {
        for &walk in &walks {
            match load_rung(plan, rung, walk) {
                Ok(tracing) => return Ok(tracing),
                Err(reason) => {
                    let may_go_otherwise = is_verdict(&reason);
                    reasons.push((rung, reason));
                    if !may_go_otherwise {
                        break;
                    }
                }
            }
        }
    }
    Err(LoadError { reasons })
}

/// Whether the verifier itself refused a program: it may like another form of it.
fn is_verdict(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<ProgramError>()).any(|error| match error {
        ProgramError::LoadError { verifier_log, .. } => !verifier_log.to_string().trim().is_empty(),
        _ => false,
    })
}

fn load_rung(plan: &Plan<'_>, rung: Rung, walk: StackWalk) -> Result<(Tracing, Reader)> {
    if rung == Rung::Kprobe && !Path::new(KPROBES).exists() {
        // Said before the programs are verified, which takes its time.
        anyhow::bail!("this kernel has no kprobes: there is no `{KPROBES}`");
    }
    let btf = match rung {
        Rung::Fentry => Some(Btf::from_sys_fs().context("cannot read the kernel's type information")?),
        Rung::Kprobe | Rung::Tracepoint => None,
    };
    let mut wanted = hooks(rung, plan.protocols);
    if plan.filters.selects_processes() || plan.stacks {
        wanted.insert(0, PROCESSES);
    }
    let mut disabled = Vec::new();
    let mut usable = Vec::new();
    for hook in wanted {
        match lacking(&hook, plan.missing) {
            None => usable.push(hook),
            Some(missing) => {
                disable(&mut disabled, &hook, format!("this kernel has no `{}`", missing.member))?
            }
        }
    }

    let mut ebpf = create(plan, rung, walk)?;
    plan.filters.fill(&mut ebpf)?;
    // Everything is loaded before anything is attached: a rung that fails leaves no trace.
    let mut loaded = Vec::new();
    for hook in usable {
        match load_hook(&mut ebpf, &hook, btf.as_ref()) {
            Ok(()) => loaded.push(hook),
            Err(error) => {
                let error = anyhow::Error::from(error)
                    .context(format!("cannot load the programs for `{}`", hook.name));
                disable(&mut disabled, &hook, one_line(&error)).map_err(|_| error)?;
            }
        }
    }
    let mut links = Vec::new();
    let mut attached = Vec::new();
    for hook in loaded {
        match attach(&mut ebpf, &hook) {
            Ok(more) => {
                links.extend(more);
                let programs = hook.programs.iter().map(|(program, _)| (*program, hook.kind));
                attached.extend(programs.filter(|(program, _)| *program != STATE_NESTED));
            }
            Err(error) => {
                let error = anyhow::Error::from(error).context(format!("cannot attach to `{}`", hook.name));
                disable(&mut disabled, &hook, one_line(&error)).map_err(|_| error)?;
            }
        }
    }
    set_gate(&mut ebpf, gate::LISTING)?;
    let events = ebpf.take_map("EVENTS").context("the kernel programs have no map `EVENTS`")?;
    let counters = ebpf.take_map("COUNTERS").context("the kernel programs have no map `COUNTERS`")?;
    let reader = Reader::new(RingBuf::try_from(events)?);
    let counters = CountersMap::try_from(counters)?;
    let taught = VecDeque::new();
    Ok((Tracing { ebpf, links, counters, attached, taught, rung, stack_walk: walk, disabled }, reader))
}

/// Where kernels with kprobes say how to ask for one.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Says whether the programs are to tell anything.
fn set_gate(ebpf: &mut Ebpf, value: u32) -> Result<()> {
    let map = ebpf.map_mut("GATE").context("the kernel programs have no map `GATE`")?;
    let mut gate: Array<&mut MapData, u32> = Array::try_from(map)?;
    gate.set(0, value, 0).context("cannot start or stop the kernel programs")
}

/// A structure member that the hook needs and this kernel lacks.
fn lacking<'a>(hook: &Hook, missing: &'a [Missing]) -> Option<&'a Missing> {
    missing.iter().find(|missing| hook.members.contains(&missing.field))
}

/// Does without a hook, or fails when the rung is nothing without it.
fn disable(disabled: &mut Vec<Disabled>, hook: &Hook, reason: String) -> Result<()> {
    match hook.need {
        Need::Required => Err(anyhow::anyhow!("hook `{}` is not possible: {reason}", hook.name)),
        Need::Wanted(effect) => {
            disabled.push(Disabled { hook: hook.name, reason, effect });
            Ok(())
        }
    }
}

/// Creates the maps, with the read-only settings filled in.
fn create(plan: &Plan<'_>, rung: Rung, walk: StackWalk) -> Result<Ebpf> {
    let config = Config {
        cgroup_id: plan.filters.cgroup.map_or(0, |(id, _)| id),
        comm_glob: plan.filters.comm_glob(),
        rung: rung.number(),
        filters: plan.filters.bits() | protocol_bits(plan.protocols),
        kinds: plan.kinds,
        pid_ns_inum: plan.pid_namespace.unwrap_or(0),
        cgroup_level: plan.filters.cgroup.map_or(0, |(_, level)| level),
        accepted: plan.accepted.into(),
        stacks: plan.stacks.into(),
        verbose: plan.verbose.into(),
        has_task_pt_regs: has(bpf_func_id::BPF_FUNC_task_pt_regs).into(),
        is_preemptible: has_preemptible_tracepoints().into(),
        self_tgid: std::process::id(),
        stacks_per_audit: STACKS_PER_AUDIT,
        kernel_stacks: plan.kernel_stacks.into(),
        reserved: 0,
    };
    let log_level = if plan.verbose { log::Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated against the kernel's types: offsets arrive as settings.
    loader
        .btf(None)
        .override_global("OFFSETS", plan.offsets.as_bytes(), true)
        .override_global("CONFIG", config.as_bytes(), true)
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .map_max_entries("EVENTS", plan.sizes.ring_bytes)
        .map_max_entries("SOCKETS", plan.sizes.sockets)
        .map_max_entries("TIME_WAITS", if rung == Rung::Tracepoint { 1 } else { plan.sizes.time_waits })
        .map_max_entries("PREEXISTING", plan.sizes.preexisting)
        .map_max_entries("IN_CALL", calls_max(rung))
        .map_max_entries("UDP_TOLD", if rung == Rung::Tracepoint { UDP_TOLD_MAX } else { 1 })
        .map_max_entries("STACKS_SEEN", if plan.stacks { STACKS_MAX } else { 1 })
        .map_max_entries("SPACES", if plan.stacks { SPACES_MAX } else { 1 })
        .map_max_entries("SNAPSHOT_BUDGETS", if plan.stacks { SPACES_MAX } else { 1 })
        .map_max_entries("SNAPSHOT_PLACES", if plan.stacks { SNAPSHOT_PLACES_MAX } else { 1 })
        .map_max_entries("PYTHONS", if plan.stacks { SPACES_MAX } else { 1 })
        .map_max_entries("PYTHON_PROGRAMS", if plan.stacks { PYTHON_PROGRAMS_MAX } else { 1 })
        .map_max_entries("PYTHON_THREADS", if plan.stacks { SPACES_MAX } else { 1 })
        .map_max_entries("PYTHON_CODES", if plan.stacks { PYTHON_CODES_MAX } else { 1 })
        .map_max_entries("ROWS", if plan.stacks { ROWS_MAX } else { 1 });
    for (map, entries) in plan.filters.sizes() {
        loader.map_max_entries(map, entries);
    }
    loader.load(walk.object()).context("cannot create the kernel side's maps")
}

/// Calls of probed functions under way at once, one per thread and function. Past this, a call is not seen.
fn calls_max(rung: Rung) -> u32 {
    match rung {
        Rung::Kprobe => 16_384,
        // Those of UDP alone, none of which waits for anything.
        Rung::Fentry => 1_024,
        Rung::Tracepoint => 1,
    }
}

/// Bits of [`filter`] for what is not wanted.
fn protocol_bits(protocols: Protocols) -> u32 {
    let no_tcp = if protocols.tcp { 0 } else { filter::NO_TCP };
    let no_udp = if protocols.udp { 0 } else { filter::NO_UDP };
    no_tcp | no_udp
}

/// UDP sockets that the kernel side remembers as told of, where it does not follow them.
const UDP_TOLD_MAX: u32 = 16_384;

/// Stacks that the kernel side remembers as sent.
const STACKS_MAX: u32 = 16_384;

/// Whether a task can be preempted inside of a raw tracepoint's program. From 7.0 on; nothing in BTF tells. Where it is
/// wrong, more is missed, and counted.
fn has_preemptible_tracepoints() -> bool {
    names().is_ok_and(|host| {
        host.kernel
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok())
            .is_some_and(|major| major >= 7)
    })
}

/// Removing what is not there is no error. aya has `KeyNotFound` for that, and does not say it here.
fn unless_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A [`Python`] as the map has it.
type PythonBytes = [u8; size_of::<Python>()];

impl Tracing {
    /// What the kernel side counted up to now.
    pub fn totals(&self) -> Result<Totals> {
        Totals::read(&self.counters)
    }

    /// Calls for which the kernel did not run the programs.
    pub fn not_run(&self, totals: &Totals) -> NotRun {
        let mut not_run = NotRun::default();
        for (name, kind) in &self.attached {
            let fd = self.ebpf.program(name).and_then(|program| program.fd().ok());
            match fd {
                Some(fd) => not_run.add(fd, *kind),
                None => not_run.is_unknown = true,
            }
        }
        // How often a kretprobe found no room to remember a call stands where programs cannot look.
        not_run.is_unknown |= self.rung == Rung::Kprobe;
        not_run.made_up(kind::CLOSED, totals.nested_runs);
        not_run
    }

    /// Tells the kernel side of a socket that was open before the start: its cookie, and the id it goes by.
    pub fn add_preexisting(&mut self, cookie: u64, socket_id: u64) -> Result<()> {
        let map = self.ebpf.map_mut("PREEXISTING").context("no map `PREEXISTING`")?;
        let mut sockets: HashMap<&mut MapData, u64, u64> = HashMap::try_from(map)?;
        sockets.insert(cookie, socket_id, 0).context("the table of sockets open before the start is full")
    }

    /// Makes the kernel side forget such a socket, where it does not see its end.
    pub fn remove_preexisting(&mut self, cookie: u64) -> Result<()> {
        let map = self.ebpf.map_mut("PREEXISTING").context("no map `PREEXISTING`")?;
        let mut sockets: HashMap<&mut MapData, u64, u64> = HashMap::try_from(map)?;
        unless_missing(sockets.remove(&cookie))
            .context("cannot change the table of sockets open before the start")
    }

    /// Teaches the kernel side how to get from these instructions of an address space to their callers. What finds no
    /// room is sent as snapshots on and on.
    pub fn learn(&mut self, generation: u64, rows: impl Iterator<Item = (u64, wire::Row)>) -> Result<()> {
        let map = self.ebpf.map_mut("ROWS").context("no map `ROWS`")?;
        let mut map: HashMap<&mut MapData, [u64; 2], [u8; 8]> = HashMap::try_from(map)?;
        for (address, row) in rows {
            let key = [generation, address];
            let row: [u8; 8] = zerocopy::transmute!(row);
            match map.insert(key, row, 0) {
                Ok(()) => self.taught.push_back(key),
                Err(_) => {
                    // Full: the oldest half goes, and whoever still needs it asks again.
                    for old in self.taught.drain(..self.taught.len() / 2) {
                        let _ = map.remove(&old);
                    }
                    if map.insert(key, row, 0).is_ok() {
                        self.taught.push_back(key);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the kernel side forget what it knows of a process's address space.
    pub fn unlearn(&mut self, pid: u32) -> Result<()> {
        let map = self.ebpf.map_mut("SPACES").context("no map `SPACES`")?;
        let mut spaces: HashMap<&mut MapData, u32, u64> = HashMap::try_from(map)?;
        unless_missing(spaces.remove(&pid)).context("cannot change the table of address spaces")
    }

    /// Tells the kernel side of a process's Python interpreter. What finds no room has no Python frames.
    pub fn add_python(&mut self, pid: u32, python: &Python) -> Result<()> {
        let map = self.ebpf.map_mut("PYTHONS").context("no map `PYTHONS`")?;
        let mut pythons: HashMap<&mut MapData, u32, PythonBytes> = HashMap::try_from(map)?;
        let bytes: PythonBytes = zerocopy::transmute!(*python);
        if pythons.insert(pid, bytes, 0).is_err() {
            return Ok(());
        }
        let map = self.ebpf.map_mut("PYTHON_ANY").context("no map `PYTHON_ANY`")?;
        let mut any: Array<&mut MapData, u32> = Array::try_from(map)?;
        any.set(0, 1, 0).context("cannot tell the kernel side of Python")
    }

    /// Tells the kernel side of a program that is an interpreter: processes have it from their exec on.
    pub fn add_python_program(&mut self, key: &ProgramKey, program: &Program) -> Result<()> {
        let map = self.ebpf.map_mut("PYTHON_PROGRAMS").context("no map `PYTHON_PROGRAMS`")?;
        let mut programs: HashMap<&mut MapData, [u64; 2], [u8; size_of::<Program>()]> =
            HashMap::try_from(map)?;
        let bytes: [u8; size_of::<Program>()] = zerocopy::transmute!(*program);
        // Full: those that come late are learned of as their code is mapped.
        let _ = programs.insert([key.device, key.inode], bytes, 0);
        Ok(())
    }

    /// Takes back what [`Tracing::add_python`] said: the process was gone by then.
    pub fn remove_python(&mut self, pid: u32) -> Result<()> {
        let map = self.ebpf.map_mut("PYTHONS").context("no map `PYTHONS`")?;
        let mut pythons: HashMap<&mut MapData, u32, PythonBytes> = HashMap::try_from(map)?;
        unless_missing(pythons.remove(&pid)).context("cannot change the table of interpreters")
    }

    /// Selects one more process.
    pub fn select(&mut self, pid: u32, follow: bool) -> Result<()> {
        let map = self.ebpf.map_mut("PIDS").context("no map `PIDS`")?;
        let mut pids: HashMap<&mut MapData, u32, u32> = HashMap::try_from(map)?;
        let flags = if follow { pid_flags::SELECTED | pid_flags::CHILDREN } else { pid_flags::SELECTED };
        pids.insert(pid, flags, 0).context("the table of processes is full")
    }

    /// Stops selecting a process or its children.
    pub fn deselect(&mut self, pid: u32) -> Result<()> {
        let map = self.ebpf.map_mut("PIDS").context("no map `PIDS`")?;
        let mut pids: HashMap<&mut MapData, u32, u32> = HashMap::try_from(map)?;
        unless_missing(pids.remove(&pid)).context("cannot change the table of processes")
    }

    /// Processes that are selected now.
    pub fn selected(&self) -> Result<Vec<u32>> {
        let map = self.ebpf.map("PIDS").context("no map `PIDS`")?;
        let pids: HashMap<&MapData, u32, u32> = HashMap::try_from(map)?;
        Ok(pids
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, flags)| flags & pid_flags::SELECTED != 0)
            .map(|(pid, _)| pid)
            .collect())
    }

    /// Shows what the kernel programs log, on standard error.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).context("cannot read the kernel programs' log")
    }

    /// The sockets that were open before the start are listed, or nobody asks for them.
    pub fn end_listing(&mut self) -> Result<()> {
        set_gate(&mut self.ebpf, gate::OPEN)
    }

    /// Ends tracing at one moment, and takes the programs out of the kernel. Counters stay readable.
    pub fn detach(&mut self) -> Result<()> {
        set_gate(&mut self.ebpf, gate::CLOSED)?;
        self.links.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::sys::SyscallError;
    use std::io;

    #[test]
    fn what_is_not_there_counts_as_removed() {
        let failed = |errno| {
            Err(MapError::from(SyscallError {
                call: "bpf_map_delete_elem",
                io_error: io::Error::from_raw_os_error(errno),
            }))
        };
        assert!(unless_missing(failed(libc::ENOENT)).is_ok());
        assert!(unless_missing(Err(MapError::KeyNotFound)).is_ok());
        assert!(unless_missing(failed(libc::EPERM)).is_err());
    }
}
