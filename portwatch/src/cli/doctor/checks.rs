//! What the facts mean, one line each: a value, what it would unlock if it were better, and how to get there.

use serde::Serialize;

use crate::kernel::features::{Capability, CgroupLayout, Lockdown};

use super::facts::{Facts, Tracefs};

pub(super) const GET_PRIVILEGE: &str = "run it as root (`sudo portwatch …`), or `setcap \
     cap_bpf,cap_perfmon,cap_dac_read_search,cap_sys_admin,cap_sys_ptrace+ep` on the program";
pub(super) const GET_TYPES: &str = "use a kernel built with `CONFIG_DEBUG_INFO_BTF`, as distributions do; `ls /sys/kernel/btf/vmlinux` shows it";
pub(super) const MOUNT_TRACEFS: &str = "`mount -t tracefs tracefs /sys/kernel/tracing`, or run as root";

/// How good a thing is for portwatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    /// Something is not seen or costs more.
    Limited,
    Missing,
    /// It cannot be told from here.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// `kernel`, `privileges` or `surroundings`.
    pub section: &'static str,
    /// Stable: programs may look for it.
    pub name: &'static str,
    pub state: State,
    /// As found, for people.
    pub value: String,
    /// What a better value would make possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlocks: Option<&'static str>,
    /// How to get there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Check {
    fn ok(section: &'static str, name: &'static str, value: impl Into<String>) -> Check {
        Check { section, name, state: State::Ok, value: value.into(), unlocks: None, next: None }
    }

    fn with(self, state: State, unlocks: &'static str, next: impl Into<String>) -> Check {
        Check { state, unlocks: Some(unlocks), next: Some(next.into()), ..self }
    }
}

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks = kernel(facts);
    checks.extend(privileges(facts));
    checks.extend(surroundings(facts));
    checks
}

fn kernel(facts: &Facts) -> Vec<Check> {
    let ok = |name, value: String| Check::ok("kernel", name, value);
    let mut checks = Vec::new();
    match &facts.types {
        Ok(types) => {
            checks.push(ok("type information", format!("{} types", types.count)));
            if !types.missing.is_empty() {
                checks.push(ok("structure members", format!("missing: {}", types.missing.join("; "))).with(
                    State::Limited,
                    "the hooks that read them",
                    "please report it with the output of `uname -r`",
                ));
            }
            let functions =
                format!("{} of {}", types.functions - types.functions_missing.len(), types.functions);
            checks.push(match types.functions_missing.as_slice() {
                [] => ok("hooked functions", functions),
                missing => ok("hooked functions", format!("{functions}; missing: {}", missing.join(", ")))
                    .with(
                        State::Limited,
                        "what these functions would show",
                        "nothing to do: this build of the kernel inlines or lacks them",
                    ),
            });
        }
        Err(error) => {
            checks.push(ok("type information", error.clone()).with(State::Missing, "all tracing", GET_TYPES));
        }
    }
    checks.push(match facts.lockdown {
        Some(Lockdown::None) => ok("lockdown", "none".to_owned()),
        Some(lockdown) => ok("lockdown", lockdown.to_string()).with(
            State::Limited,
            "fentry and kprobes, where the kernel refuses them for it",
            "boot without `lockdown=` and, where that switches it on, without Secure Boot",
        ),
        None => Check { state: State::Unknown, ..ok("lockdown", "the kernel does not say".to_owned()) },
    });
    for program in &facts.programs {
        let name = match program.name {
            "tracing" => "fentry programs",
            "kprobe" => "kprobe programs",
            "raw_tracepoint" => "raw tracepoint programs",
            _ => "tracepoint programs",
        };
        checks.push(match &program.result {
            Ok(true) => ok(name, "load".to_owned()),
            Ok(false) => Check { state: State::Missing, ..ok(name, "not known to this kernel".to_owned()) },
            Err(error) => Check { state: State::Missing, ..ok(name, error.clone()) },
        });
    }
    checks.push(if facts.has_kprobes {
        ok("kprobes", "yes".to_owned())
    } else {
        Check { state: State::Missing, ..ok("kprobes", "this kernel has none".to_owned()) }
    });
    checks.push(match &facts.tracefs {
        Ok(Tracefs::Mounted) => ok("tracefs", "mounted".to_owned()),
        Ok(Tracefs::Private) => {
            ok("tracefs", "not mounted; portwatch mounts it for itself alone, for a moment".to_owned())
        }
        Err(error) => ok("tracefs", error.clone()).with(State::Missing, "rung `tracepoint`", MOUNT_TRACEFS),
    });
    checks.push(match facts.settings.bpf_jit_enable {
        Some(0) => ok("bpf_jit_enable", "0".to_owned()).with(
            State::Limited,
            "several times cheaper events",
            "`sysctl net.core.bpf_jit_enable=1`",
        ),
        Some(value) => ok("bpf_jit_enable", value.to_string()),
        None => Check { state: State::Unknown, ..ok("bpf_jit_enable", "not shown".to_owned()) },
    });
    checks
}

fn privileges(facts: &Facts) -> Vec<Check> {
    let mut checks: Vec<_> = Capability::ALL.iter().map(|capability| held(*capability, facts)).collect();
    let number = |value: Option<i32>| value.map_or("not shown".to_owned(), |value| value.to_string());
    let settings = &facts.settings;
    // These stop unprivileged processes alone, and portwatch is never one: shown because people ask.
    for (name, value) in [
        ("unprivileged_bpf_disabled", settings.unprivileged_bpf_disabled),
        ("perf_event_paranoid", settings.perf_event_paranoid),
        ("kptr_restrict", settings.kptr_restrict),
    ] {
        checks.push(Check::ok("privileges", name, number(value)));
    }
    // Maps are counted against the limit before 5.11 only.
    if facts.version.is_none_or(|version| version < (5, 11)) {
        let check = |value: String| Check::ok("privileges", "memlock", value);
        checks.push(match facts.memlock_bytes {
            None => check("unlimited".to_owned()),
            Some(bytes) if facts.capabilities.has(Capability::SysResource) => {
                check(format!("{bytes} bytes, which portwatch may raise"))
            }
            Some(bytes) => check(format!("{bytes} bytes")).with(
                State::Limited,
                "room for the tables on kernels before 5.11",
                "`ulimit -l unlimited` before the start, or grant CAP_SYS_RESOURCE",
            ),
        });
    }
    checks
}

fn held(capability: Capability, facts: &Facts) -> Check {
    let check = |value: &str| Check::ok("privileges", capability.name(), value);
    if facts.capabilities.has(capability) {
        return check("yes");
    }
    let missing = |unlocks| check("no").with(State::Missing, unlocks, GET_PRIVILEGE);
    let limited = |unlocks| check("no").with(State::Limited, unlocks, GET_PRIVILEGE);
    match capability {
        Capability::Bpf => missing("loading programs: every rung"),
        Capability::Perfmon => missing("attaching programs to the kernel: every rung"),
        Capability::DacReadSearch => limited("reading tracefs as another user than root: rung `tracepoint`"),
        Capability::SysAdmin => {
            limited("looking into other network namespaces, a private tracefs, the self-test")
        }
        Capability::NetAdmin => limited("the self-test in a network namespace of its own"),
        Capability::SysPtrace => limited("programs, owners and call sites of other users' processes"),
        Capability::SysResource if facts.version.is_some_and(|version| version >= (5, 11)) => {
            check("no, and not needed on this kernel")
        }
        Capability::SysResource => {
            limited("raising the limit of locked memory, which kernels before 5.11 need")
        }
    }
}

fn surroundings(facts: &Facts) -> Vec<Check> {
    let ok = |name, value: String| Check::ok("surroundings", name, value);
    let cgroup_boot = "boot with `systemd.unified_cgroup_hierarchy=1`";
    let cgroups = match &facts.cgroups {
        CgroupLayout::Unified(path) => ok("cgroups", format!("version 2 at {}", path.display())),
        CgroupLayout::Hybrid(path) => {
            ok("cgroups", format!("version 1, with version 2 beside it at {}", path.display())).with(
                State::Limited,
                "`--cgroup` and container names for processes that are in version 1 alone",
                cgroup_boot,
            )
        }
        CgroupLayout::Version1 => {
            ok("cgroups", "version 1 alone".to_owned()).with(State::Limited, "`--cgroup`", cgroup_boot)
        }
        CgroupLayout::None => {
            ok("cgroups", "none mounted".to_owned()).with(State::Limited, "`--cgroup`", cgroup_boot)
        }
    };
    let pids = match facts.pid_namespace {
        None => ok("PID namespace", "initial".to_owned()),
        Some(inode) => ok("PID namespace", inode.to_string()).with(
            State::Limited,
            "process ids and programs of what runs outside of this container",
            "run it in the host's PID namespace (`docker run --pid=host --privileged …`)",
        ),
    };
    let diag = |name, result: &Result<(), String>, module| match result {
        Ok(()) => ok(name, "yes".to_owned()),
        Err(error) => ok(name, error.clone()).with(
            State::Limited,
            "cookies and bound sockets in the list of what is open at the start",
            format!("`modprobe {module}`"),
        ),
    };
    vec![
        cgroups,
        pids,
        diag("TCP socket listing", &facts.tcp_diag, "tcp_diag"),
        diag("UDP socket listing", &facts.udp_diag, "udp_diag"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::facts::{Types, healthy};

    fn check(facts: &Facts, name: &str) -> Check {
        checks(facts).into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn healthy_host_has_nothing_to_complain_about() {
        for check in checks(&healthy()) {
            assert_eq!((check.state, &check.unlocks, &check.next), (State::Ok, &None, &None), "{check:?}");
        }
    }

    #[test]
    fn whatever_is_missing_says_what_it_unlocks_and_what_to_do() {
        use std::path::PathBuf;
        let facts = Facts {
            version: Some((5, 10)),
            types: Ok(Types {
                count: 7,
                missing: vec!["`a.b`: gone".to_owned()],
                functions: 2,
                functions_missing: vec!["inet_twsk_kill"],
            }),
            lockdown: Some(Lockdown::Confidentiality),
            tracefs: Err("not mounted".to_owned()),
            capabilities: "0".parse().unwrap(),
            memlock_bytes: Some(65536),
            cgroups: CgroupLayout::Hybrid(PathBuf::from("/x")),
            pid_namespace: Some(4026532000),
            tcp_diag: Err("not loaded".to_owned()),
            udp_diag: Err("not loaded".to_owned()),
            ..healthy()
        };
        let complaints: Vec<_> = checks(&facts)
            .into_iter()
            .filter(|check| check.state != State::Ok)
            .map(|check| check.name)
            .collect();
        let mut expected = vec!["structure members", "hooked functions", "lockdown", "tracefs"];
        expected.extend(Capability::ALL.map(Capability::name));
        expected.extend(["memlock", "cgroups", "PID namespace", "TCP socket listing", "UDP socket listing"]);
        assert_eq!(complaints, expected);
        for check in checks(&facts).into_iter().filter(|check| check.state != State::Ok) {
            assert!(check.unlocks.is_some() && check.next.is_some(), "{check:?}");
        }
        assert_eq!(check(&facts, "hooked functions").value, "1 of 2; missing: inet_twsk_kill");
    }

    #[test]
    fn limit_of_locked_memory_is_looked_at_on_old_kernels_alone() {
        let facts = |version| Facts { version: Some(version), memlock_bytes: Some(65536), ..healthy() };
        assert!(checks(&facts((5, 11))).iter().all(|check| check.name != "memlock"));
        assert_eq!(check(&facts((5, 10)), "memlock").state, State::Ok, "it may be raised");
        let no_resource = Facts { capabilities: "c000280004".parse().unwrap(), ..facts((5, 10)) };
        assert_eq!(check(&no_resource, "memlock").state, State::Limited);
        assert_eq!(check(&no_resource, "CAP_SYS_RESOURCE").state, State::Limited);
        let newer = Facts { version: Some((6, 1)), ..no_resource };
        assert_eq!(check(&newer, "CAP_SYS_RESOURCE").state, State::Ok);
    }
}
