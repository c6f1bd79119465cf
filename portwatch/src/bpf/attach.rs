//! Loading one program and putting it in its place; taking it out again by dropping the link.

use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::kprobe::KProbeLink;
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::trace_point::TracePointLink;
use aya::programs::{FEntry, FExit, KProbe, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf};

use super::programs::{Door, Hook};

/// An attached program; dropping it detaches.
#[expect(dead_code, reason = "held for its drop")]
#[derive(Debug)]
pub(super) enum Link {
    Fentry(FEntryLink),
    Fexit(FExitLink),
    Kprobe(KProbeLink),
    RawTracepoint(RawTracePointLink),
    Tracepoint(TracePointLink),
}

/// Loads the programs of a hook into the kernel, which verifies them.
pub(super) fn load(ebpf: &mut Ebpf, hook: &Hook, btf: Option<&Btf>) -> Result<(), ProgramError> {
    for (name, door) in hook.programs {
        let program = program(ebpf, name);
        match (door, btf) {
            (Door::Fentry(function), Some(btf)) => <&mut FEntry>::try_from(program)?.load(function, btf)?,
            (Door::Fexit(function), Some(btf)) => <&mut FExit>::try_from(program)?.load(function, btf)?,
            (Door::Fentry(_) | Door::Fexit(_), None) => {
                unreachable!("the fentry rung is tried only with the kernel's BTF")
            }
            (Door::Kprobe(_) | Door::Kretprobe(_), _) => <&mut KProbe>::try_from(program)?.load()?,
            (Door::RawTracepoint(_), _) => <&mut RawTracePoint>::try_from(program)?.load()?,
            (Door::Tracepoint(..), _) => <&mut TracePoint>::try_from(program)?.load()?,
        }
    }
    Ok(())
}

/// Attaches the programs of a hook, all or none.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &Hook) -> Result<Vec<Link>, ProgramError> {
    hook.programs.iter().map(|(name, door)| attach_one(ebpf, name, *door)).collect()
}

fn attach_one(ebpf: &mut Ebpf, name: &str, door: Door) -> Result<Link, ProgramError> {
    let program = program(ebpf, name);
    Ok(match door {
        Door::Fentry(_) => {
            let program = <&mut FEntry>::try_from(program)?;
            let id = program.attach()?;
            Link::Fentry(program.take_link(id)?)
        }
        Door::Fexit(_) => {
            let program = <&mut FExit>::try_from(program)?;
            let id = program.attach()?;
            Link::Fexit(program.take_link(id)?)
        }
        Door::Kprobe(function) | Door::Kretprobe(function) => {
            let program = <&mut KProbe>::try_from(program)?;
            let id = program.attach(function, 0)?;
            Link::Kprobe(program.take_link(id)?)
        }
        Door::RawTracepoint(tracepoint) => {
            let program = <&mut RawTracePoint>::try_from(program)?;
            let id = program.attach(tracepoint)?;
            Link::RawTracepoint(program.take_link(id)?)
        }
        Door::Tracepoint(category, tracepoint) => {
            let program = <&mut TracePoint>::try_from(program)?;
            let id = program.attach(category, tracepoint)?;
            Link::Tracepoint(program.take_link(id)?)
        }
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut aya::programs::Program {
    ebpf.program_mut(name).expect("the embedded object has every program that the table of hooks names")
}
