//! Facts about this host that decide what portwatch can do on it. Reads files; loads, changes and mounts
//! nothing that anybody else would see. What the facts mean is for [`doctor`](crate::cli) to say.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit};

use super::cgroups::Cgroups;
use super::private_mount;

const SECURITYFS: &str = "/sys/kernel/security";

/// Capabilities that make a difference, with their numbers (`linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    DacReadSearch = 2,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    pub const ALL: [Capability; 7] = [
        Capability::Bpf,
        Capability::Perfmon,
        Capability::DacReadSearch,
        Capability::SysAdmin,
        Capability::NetAdmin,
        Capability::SysPtrace,
        Capability::SysResource,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Capability::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Capability::Bpf => "CAP_BPF",
            Capability::Perfmon => "CAP_PERFMON",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::SysPtrace => "CAP_SYS_PTRACE",
            Capability::SysResource => "CAP_SYS_RESOURCE",
        }
    }
}

/// The effective capabilities of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Of the calling thread.
    pub fn effective() -> Result<Capabilities> {
        let path = "/proc/thread-self/status";
        let status = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        Capabilities::parse(&status).with_context(|| format!("no capabilities in `{path}`"))
    }

    fn parse(status: &str) -> Option<Capabilities> {
        status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim().parse().ok()
    }

    /// CAP_SYS_ADMIN serves for CAP_BPF and CAP_PERFMON too (`bpf_capable`, `perfmon_capable`).
    pub fn has(self, capability: Capability) -> bool {
        let is_set = |capability: Capability| self.0 >> capability as u32 & 1 != 0;
        match capability {
            Capability::Bpf | Capability::Perfmon => is_set(capability) || is_set(Capability::SysAdmin),
            _ => is_set(capability),
        }
    }
}

/// As /proc shows them: bits in hexadecimal.
impl FromStr for Capabilities {
    type Err = ParseIntError;

    fn from_str(bits: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(bits, 16).map(Capabilities)
    }
}

/// How far the kernel is locked against its own root user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    None,
    Integrity,
    Confidentiality,
}

impl Lockdown {
    /// `None`: the kernel does not say, because it has no lockdown or because we may not look.
    pub fn of_running_kernel() -> Option<Lockdown> {
        let dir = Path::new(SECURITYFS);
        let read = || fs::read_to_string(dir.join("lockdown")).ok();
        let text = read().or_else(|| {
            // Nobody mounted securityfs; where it is mounted, there is nothing more to learn.
            let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
            is_empty.then(|| private_mount::with("securityfs", dir, || Ok(read())).ok().flatten()).flatten()
        });
        Lockdown::parse(&text?)
    }

    /// `none [integrity] confidentiality`
    fn parse(text: &str) -> Option<Lockdown> {
        let (_, rest) = text.split_once('[')?;
        match rest.split_once(']')?.0 {
            "none" => Some(Lockdown::None),
            "integrity" => Some(Lockdown::Integrity),
            "confidentiality" => Some(Lockdown::Confidentiality),
            _ => None,
        }
    }
}

impl fmt::Display for Lockdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lockdown::None => "none",
            Lockdown::Integrity => "integrity",
            Lockdown::Confidentiality => "confidentiality",
        })
    }
}

/// Which cgroup hierarchies are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Version 2 alone.
    Unified(PathBuf),
    /// Version 2 beside version 1, which may hold the processes.
    Hybrid(PathBuf),
    Version1,
    None,
}

impl CgroupLayout {
    pub fn of_this_host() -> CgroupLayout {
        let mounts = super::mountinfo::read(Path::new("/proc/thread-self/mountinfo")).unwrap_or_default();
        let has_version1 = mounts.iter().any(|mount| mount.fs_type == "cgroup");
        match (Cgroups::find(), has_version1) {
            (Ok(cgroups), false) => CgroupLayout::Unified(cgroups.mount_point().to_owned()),
            (Ok(cgroups), true) => CgroupLayout::Hybrid(cgroups.mount_point().to_owned()),
            (Err(_), true) => CgroupLayout::Version1,
            (Err(_), false) => CgroupLayout::None,
        }
    }
}

/// Kernel settings about tracing; `None` where the kernel has no such setting or does not show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub unprivileged_bpf_disabled: Option<i32>,
    pub perf_event_paranoid: Option<i32>,
    pub kptr_restrict: Option<i32>,
    pub bpf_jit_enable: Option<i32>,
}

impl Settings {
    pub fn of_running_kernel() -> Settings {
        Settings {
            unprivileged_bpf_disabled: setting("kernel/unprivileged_bpf_disabled"),
            perf_event_paranoid: setting("kernel/perf_event_paranoid"),
            kptr_restrict: setting("kernel/kptr_restrict"),
            bpf_jit_enable: setting("net/core/bpf_jit_enable"),
        }
    }
}

fn setting(name: &str) -> Option<i32> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

/// Whether kprobes can be made: the kernel shows a perf event source for them where it has them.
pub fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

/// Bytes that this process may lock, `None` for no limit. Kernels before 5.11 count maps against it.
pub fn memlock_bytes() -> Result<Option<u64>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).context("cannot read the limit of locked memory")?;
    Ok((soft != nix::sys::resource::RLIM_INFINITY).then_some(soft))
}

/// Major and minor number of a kernel release, `6.12.107+deb13-amd64`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        use Capability::{Bpf, DacReadSearch, NetAdmin, Perfmon, SysAdmin, SysPtrace, SysResource};
        let table: [(&str, &[Capability]); 5] = [
            ("000001ffffffffff", &Capability::ALL),
            ("0000000000000000", &[]),
            ("000000c000080000", &[Bpf, Perfmon, SysPtrace]),
            ("0000000000200000", &[Bpf, Perfmon, SysAdmin]),
            ("0000000001001004", &[DacReadSearch, NetAdmin, SysResource]),
        ];
        for (bits, expected) in table {
            let capabilities =
                Capabilities::parse(&format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{bits}\n")).unwrap();
            let held: Vec<_> = Capability::ALL.into_iter().filter(|it| capabilities.has(*it)).collect();
            assert_eq!(held, expected, "{bits}");
        }
        assert_eq!(Capabilities::parse("Name:\tx\n"), None);
        assert_eq!(Capabilities::parse("CapEff:\tzz\n"), None);
        Capabilities::effective().unwrap();
    }

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        let table = [
            ("[none] integrity confidentiality\n", Some(Lockdown::None)),
            ("none [integrity] confidentiality\n", Some(Lockdown::Integrity)),
            ("none integrity [confidentiality]\n", Some(Lockdown::Confidentiality)),
            ("none integrity", None),
            ("[", None),
            ("[later]", None),
        ];
        for (text, expected) in table {
            assert_eq!(Lockdown::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn version_is_the_first_two_numbers() {
        assert_eq!(version("6.12.107+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("7.2-rc1"), Some((7, 2)));
        assert_eq!(version("5"), None);
        assert_eq!(version("x.y"), None);
    }

    #[test]
    fn asking_for_lockdown_leaves_no_mount() {
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let first = Lockdown::of_running_kernel();
        assert_eq!(Lockdown::of_running_kernel(), first);
        assert_eq!(mounts().contains("securityfs"), before.contains("securityfs"));
    }
}
