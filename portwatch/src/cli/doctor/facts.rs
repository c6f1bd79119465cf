//! Asks the host. Every answer may be an error, which is then what is shown.

use anyhow::Result;

use crate::bpf::probe::{self, Attempt, ProgramSupport};
use crate::event::Protocol;
use crate::kernel::btf::Btf;
use crate::kernel::features::{self, Capabilities, CgroupLayout, Lockdown, Settings};
use crate::kernel::sock_diag::{Permit, Refusal};
use crate::kernel::{host, offsets, tracefs};

/// What is known of the host.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Major and minor number of the kernel's version.
    pub version: Option<(u32, u32)>,
    pub types: Result<Types, String>,
    pub lockdown: Option<Lockdown>,
    pub tracefs: Result<Tracefs, String>,
    pub capabilities: Capabilities,
    pub settings: Settings,
    /// Bytes that may be locked; `None` for no limit.
    pub memlock_bytes: Option<u64>,
    pub cgroups: CgroupLayout,
    /// `None` in the initial PID namespace.
    pub pid_namespace: Option<u32>,
    pub tcp_diag: Result<(), String>,
    pub udp_diag: Result<(), String>,
    pub has_kprobes: bool,
    pub programs: Vec<ProgramSupport>,
    pub attempts: Vec<Attempt>,
}

/// What the kernel's type information has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Types {
    pub count: usize,
    /// Members that are read and not there, each with its reason.
    pub missing: Vec<String>,
    /// Functions that are hooked.
    pub functions: usize,
    /// Those of them that are not there.
    pub functions_missing: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracefs {
    /// By the host.
    Mounted,
    /// For the moment it is needed, where nobody else sees it.
    Private,
}

pub(super) fn gather(release: &str) -> Result<Facts> {
    let pid_namespace = host::pid_namespace()?;
    let btf = Btf::from_running_kernel();
    let (types, attempts) = match &btf {
        Ok(btf) => {
            let resolved = offsets::resolve(btf);
            let functions: Vec<_> = probe::functions().collect();
            let types = Types {
                count: btf.type_count(),
                missing: resolved.missing.iter().map(ToString::to_string).collect(),
                functions: functions.len(),
                functions_missing: functions.into_iter().filter(|name| !btf.has_func(name)).collect(),
            };
            (Ok(types), probe::rungs(&resolved, pid_namespace))
        }
        Err(error) => (Err(format!("{error:#}")), Vec::new()),
    };
    let was_mounted = tracefs::mounted().is_some();
    let tracefs = tracefs::with(|dir| Ok(std::fs::metadata(dir.join("events/sock/inet_sock_set_state"))?));
    // What to do about it is said in a place of its own.
    let why = |refusal: Refusal| refusal.to_string().split(';').next().unwrap_or_default().to_owned();
    let permit = |protocol| Permit::obtain(protocol).map(drop).map_err(why);
    Ok(Facts {
        version: features::version(release),
        types,
        lockdown: Lockdown::of_running_kernel(),
        tracefs: match tracefs {
            Ok(_) => Ok(if was_mounted { Tracefs::Mounted } else { Tracefs::Private }),
            Err(error) => Err(first_lines(&error)),
        },
        capabilities: Capabilities::effective()?,
        settings: Settings::of_running_kernel(),
        memlock_bytes: features::memlock_bytes()?,
        cgroups: CgroupLayout::of_this_host(),
        pid_namespace,
        tcp_diag: permit(Protocol::Tcp),
        udp_diag: permit(Protocol::Udp),
        has_kprobes: features::has_kprobes(),
        programs: probe::program_types(),
        attempts,
    })
}

/// An error and its causes without the hints, for which the checks have a place of their own.
fn first_lines(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| cause.to_string());
    causes.map(|cause| cause.lines().next().unwrap_or_default().to_owned()).collect::<Vec<_>>().join(": ")
}

/// A host where everything is as it should be.
#[cfg(test)]
pub(super) fn healthy() -> Facts {
    use crate::bpf::{Rung, StackWalk};
    let load = |name| ProgramSupport { name, result: Ok(true) };
    Facts {
        version: Some((6, 12)),
        types: Ok(Types { count: 100_000, functions: 14, ..Types::default() }),
        lockdown: Some(Lockdown::None),
        tracefs: Ok(Tracefs::Mounted),
        capabilities: "1ffffffffff".parse().unwrap(),
        settings: Settings { bpf_jit_enable: Some(1), ..Settings::default() },
        memlock_bytes: None,
        cgroups: CgroupLayout::Unified("/sys/fs/cgroup".into()),
        pid_namespace: None,
        tcp_diag: Ok(()),
        udp_diag: Ok(()),
        has_kprobes: true,
        programs: ["tracing", "kprobe", "raw_tracepoint", "tracepoint"].map(load).to_vec(),
        attempts: Rung::ALL
            .map(|rung| Attempt { rung, stack_walk: Some(StackWalk::Loop), result: Ok(Vec::new()) })
            .to_vec(),
    }
}
