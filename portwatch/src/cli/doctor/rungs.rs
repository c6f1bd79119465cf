//! The ways of observing: which work, why others do not, and what they would give.

use serde::Serialize;

use crate::bpf::probe::Attempt;
use crate::bpf::{Rung, StackWalk};
use crate::kernel::features::{Capability, Lockdown};

use super::checks::{GET_PRIVILEGE, GET_TYPES, MOUNT_TRACEFS};
use super::facts::Facts;

/// One way of observing.
#[derive(Debug, Serialize)]
pub(super) struct RungReport {
    /// `fentry`, `kprobe`, `tracepoint` or `poll`.
    pub rung: &'static str,
    pub possible: bool,
    /// Whether `trace` and `record` can use it.
    pub traces: bool,
    /// Why it is not possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it shows.
    pub gives: &'static str,
    /// Hooks that could not be attached although the rung as a whole works.
    pub unseen: Vec<Unseen>,
    /// How stacks are walked in the kernel: `loop` or `plain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_walk: Option<&'static str>,
    /// What to do to make it possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A hook that is missing.
#[derive(Debug, Serialize)]
pub(super) struct Unseen {
    pub hook: &'static str,
    pub reason: String,
    /// What is not seen without it.
    pub effect: &'static str,
}

pub(super) fn report(facts: &Facts) -> Vec<RungReport> {
    let mut rungs: Vec<_> = Rung::ALL.iter().map(|rung| tracing(*rung, facts)).collect();
    rungs.push(poll(facts));
    rungs
}

fn tracing(rung: Rung, facts: &Facts) -> RungReport {
    let attempt = facts.attempts.iter().find(|attempt| attempt.rung == rung);
    let (unseen, reason) = match attempt {
        Some(Attempt { result: Ok(disabled), .. }) => (disabled.clone(), None),
        Some(Attempt { result: Err(reason), .. }) => (Vec::new(), Some(reason.clone())),
        None => (Vec::new(), Some("the kernel's type information is needed for every one".to_owned())),
    };
    RungReport {
        rung: rung.name(),
        possible: reason.is_none(),
        traces: true,
        next: reason.is_some().then(|| next(rung, facts)),
        reason,
        gives: gives(rung),
        stack_walk: attempt.and_then(|attempt| attempt.stack_walk).map(StackWalk::name),
        unseen: unseen
            .into_iter()
            .map(|it| Unseen { hook: it.hook, reason: it.reason, effect: it.effect })
            .collect(),
    }
}

fn gives(rung: Rung) -> &'static str {
    match rung {
        Rung::Fentry => {
            "every allocation, failure, TIME_WAIT and release, exactly, by any caller; cheapest per event"
        }
        Rung::Kprobe => "the same as fentry at a higher cost per event",
        Rung::Tracepoint => {
            "connects, failures and closes of ordinary system calls; TIME_WAIT and its end are inferred"
        }
    }
}

/// What stands in the way, the most likely first.
fn next(rung: Rung, facts: &Facts) -> String {
    let has = |capability| facts.capabilities.has(capability);
    if !has(Capability::Bpf) || !has(Capability::Perfmon) {
        return GET_PRIVILEGE.to_owned();
    }
    if facts.types.is_err() {
        return GET_TYPES.to_owned();
    }
    let program_type = match rung {
        Rung::Fentry => "tracing",
        Rung::Kprobe => "kprobe",
        Rung::Tracepoint => "tracepoint",
    };
    let support = facts.programs.iter().find(|program| program.name == program_type).map(|it| &it.result);
    let is_locked = facts.lockdown.is_some_and(|lockdown| lockdown != Lockdown::None);
    match (rung, support) {
        (Rung::Kprobe, _) if !facts.has_kprobes => {
            "use a kernel built with `CONFIG_KPROBES` and `CONFIG_KPROBE_EVENTS`".to_owned()
        }
        (Rung::Tracepoint, _) if facts.tracefs.is_err() && !has(Capability::DacReadSearch) => {
            GET_PRIVILEGE.to_owned()
        }
        (Rung::Tracepoint, _) if facts.tracefs.is_err() => MOUNT_TRACEFS.to_owned(),
        (_, Some(Err(_))) if is_locked => {
            "the kernel is locked down: boot without `lockdown=` and, where that switches it on, Secure Boot"
                .to_owned()
        }
        (_, Some(Err(_))) => format!(
            "the kernel refuses {program_type} programs to a privileged process: ask who configures it, or \
             the security modules in /sys/kernel/security/lsm"
        ),
        (Rung::Fentry, Some(Ok(false))) => {
            "use a kernel of 5.10 or later (arm64: 6.4) with `CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS`"
                .to_owned()
        }
        _ => format!("`portwatch trace -v --rung {rung}` shows where it stops; please report it"),
    }
}

fn poll(facts: &Facts) -> RungReport {
    // Both read the same tables; /proc/net is the fallback, and any user may read it.
    let reason = std::fs::File::open("/proc/thread-self/net/tcp")
        .err()
        .filter(|_| facts.tcp_diag.is_err())
        .map(|error| format!("cannot read `/proc/thread-self/net/tcp`: {error}"));
    RungReport {
        rung: "poll",
        possible: reason.is_none(),
        traces: false,
        next: reason.is_some().then(|| "mount /proc, on a kernel with `CONFIG_PROC_FS`".to_owned()),
        reason,
        gives: "which ports are in use now; no failures, nothing short-lived, no call sites",
        stack_walk: None,
        unseen: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::Disabled;
    use crate::bpf::probe::ProgramSupport;
    use crate::cli::doctor::facts::healthy;

    fn refused(rung: Rung, facts: Facts) -> Facts {
        let attempts = facts
            .attempts
            .into_iter()
            .map(|it| {
                if it.rung == rung {
                    Attempt { rung, stack_walk: None, result: Err("refused".to_owned()) }
                } else {
                    it
                }
            })
            .collect();
        Facts { attempts, ..facts }
    }

    fn next_of(rung: Rung, facts: Facts) -> String {
        let rungs = report(&refused(rung, facts));
        let report = rungs.into_iter().find(|report| report.rung == rung.name()).unwrap();
        assert_eq!((report.possible, report.reason.as_deref()), (false, Some("refused")));
        report.next.unwrap()
    }

    #[test]
    fn healthy_host_can_do_everything() {
        let rungs = report(&healthy());
        let names: Vec<_> = rungs.iter().map(|rung| (rung.rung, rung.possible, rung.traces)).collect();
        let expected = [
            ("fentry", true, true),
            ("kprobe", true, true),
            ("tracepoint", true, true),
            ("poll", true, false),
        ];
        assert_eq!(names, expected);
        assert!(
            rungs.iter().all(|rung| rung.reason.is_none() && rung.next.is_none() && rung.unseen.is_empty())
        );
    }

    #[test]
    fn advice_is_for_what_stands_in_the_way() {
        let no_privilege = || Facts { capabilities: "0".parse().unwrap(), ..healthy() };
        for rung in Rung::ALL {
            assert_eq!(next_of(rung, no_privilege()), GET_PRIVILEGE);
        }
        let refusal = Err("EPERM".to_owned());
        let no_tracing = || Facts {
            programs: vec![ProgramSupport { name: "tracing", result: refusal.clone() }],
            ..healthy()
        };
        let locked = Facts { lockdown: Some(Lockdown::Integrity), ..no_tracing() };
        assert!(next_of(Rung::Fentry, locked).contains("boot without `lockdown=`"));
        assert!(next_of(Rung::Fentry, no_tracing()).contains("refuses tracing programs"));
        let no_kprobes = Facts { has_kprobes: false, ..healthy() };
        assert!(next_of(Rung::Kprobe, no_kprobes).contains("CONFIG_KPROBE_EVENTS"));
        let no_tracefs = || Facts { tracefs: Err("not there".to_owned()), ..healthy() };
        assert_eq!(next_of(Rung::Tracepoint, no_tracefs()), MOUNT_TRACEFS);
        // CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, without CAP_DAC_READ_SEARCH.
        let not_root = Facts { capabilities: "c000200000".parse().unwrap(), ..no_tracefs() };
        assert_eq!(next_of(Rung::Tracepoint, not_root), GET_PRIVILEGE);
        assert!(next_of(Rung::Fentry, healthy()).contains("portwatch trace -v --rung fentry"));
    }

    #[test]
    fn without_type_information_nothing_was_tried() {
        let facts = Facts { types: Err("gone".to_owned()), attempts: Vec::new(), ..healthy() };
        for rung in report(&facts).iter().filter(|rung| rung.traces) {
            assert!(!rung.possible && rung.next.as_deref() == Some(GET_TYPES), "{rung:?}");
        }
    }

    #[test]
    fn hooks_that_are_missing_are_listed_and_the_rung_works() {
        let disabled = Disabled { hook: "inet6_bind", reason: "gone".to_owned(), effect: "not seen" };
        let mut facts = healthy();
        facts.attempts[0].result = Ok(vec![disabled]);
        let fentry = &report(&facts)[0];
        assert!(fentry.possible && fentry.unseen[0].hook == "inet6_bind");
    }
}
