//! What this kernel lets this process load: found out by doing it, and undone at once.

use aya::programs::{ProgramError, ProgramType};
use aya::sys::is_program_supported;

use crate::kernel::offsets::Resolved;
use crate::kernel::tracefs;

use super::load::{LoadError, one_line};
use super::programs::{Door, hooks};
use super::{Disabled, KernelFilters, Plan, Protocols, Rung, Sizes, StackWalk, load};

/// What came of trying one rung.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub rung: Rung,
    /// How stacks are walked there; `None` where the rung is not possible.
    pub stack_walk: Option<StackWalk>,
    /// Hooks that could not be attached, or why the rung is not possible at all.
    pub result: Result<Vec<Disabled>, String>,
}

/// Loads and attaches each rung as `trace` would, with small tables, and takes it away again.
pub fn rungs(resolved: &Resolved, pid_namespace: Option<u32>) -> Vec<Attempt> {
    let filters = KernelFilters::default();
    let sizes = Sizes { ring_bytes: 64 << 10, sockets: 64, time_waits: 64, preexisting: 64 };
    let attempt = |rung| {
        let plan = Plan {
            rung: Some(rung),
            offsets: resolved.offsets,
            missing: &resolved.missing,
            filters: &filters,
            protocols: Protocols::ALL,
            sizes,
            kinds: u32::MAX,
            accepted: false,
            stacks: true,
            kernel_stacks: true,
            stack_walk: None,
            verbose: false,
            pid_namespace,
        };
        let loaded = load(&plan);
        let stack_walk = loaded.as_ref().ok().map(|(tracing, _)| tracing.stack_walk);
        let result = loaded.map(|(tracing, _)| tracing.disabled.clone()).map_err(|error| reason(&error));
        Attempt { rung, stack_walk, result }
    };
    let all = || Rung::ALL.map(attempt).to_vec();
    // Without tracefs the other rungs may still do.
    tracefs::with(|_| Ok(all())).unwrap_or_else(|_| all())
}

fn reason(error: &LoadError) -> String {
    error.reasons.iter().map(|(_, reason)| one_line(reason)).collect::<Vec<_>>().join("; ")
}

/// A type of program, and what the kernel says to the smallest one of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSupport {
    pub name: &'static str,
    /// `Ok(false)`: the kernel does not know the type.
    pub result: Result<bool, String>,
}

/// Loads a program of two instructions of each type that a rung needs.
pub fn program_types() -> Vec<ProgramSupport> {
    [
        ("tracing", ProgramType::Tracing),
        ("kprobe", ProgramType::KProbe),
        ("raw_tracepoint", ProgramType::RawTracePoint),
        ("tracepoint", ProgramType::TracePoint),
    ]
    .map(|(name, program_type)| {
        let result = is_program_supported(program_type).map_err(|error| match error {
            ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
            error => one_line(&error.into()),
        });
        ProgramSupport { name, result }
    })
    .to_vec()
}

/// The kernel functions that the rungs `fentry` and `kprobe` hook.
pub fn functions() -> impl Iterator<Item = &'static str> {
    hooks(Rung::Fentry, Protocols::ALL).into_iter().flat_map(|hook| hook.programs).filter_map(|(_, door)| {
        match door {
            Door::Fentry(function) | Door::Fexit(function) => Some(*function),
            _ => None,
        }
    })
}
