//! Which program goes where on which rung.

use std::fmt;
use std::str::FromStr;

use portwatch_common::config::rung;

/// A way of observing. Each sees less than the one before and needs less of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// fentry and fexit programs.
    Fentry,
    /// kprobes and kretprobes.
    Kprobe,
    /// Tracepoints alone, for kernels that are locked down.
    Tracepoint,
}

impl Rung {
    /// In the order they are tried.
    pub const ALL: [Rung; 3] = [Rung::Fentry, Rung::Kprobe, Rung::Tracepoint];

    pub fn name(self) -> &'static str {
        match self {
            Rung::Fentry => "fentry",
            Rung::Kprobe => "kprobe",
            Rung::Tracepoint => "tracepoint",
        }
    }

    pub(super) fn number(self) -> u32 {
        match self {
            Rung::Fentry => rung::FENTRY,
            Rung::Kprobe => rung::KPROBE,
            Rung::Tracepoint => rung::TRACEPOINT,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rung {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Rung::ALL
            .into_iter()
            .find(|rung| rung.name() == text)
            .ok_or_else(|| format!("unknown rung `{text}`; there are `fentry`, `kprobe` and `tracepoint`"))
    }
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The entry of a kernel function.
    Fentry(&'static str),
    /// Its return.
    Fexit(&'static str),
    /// The entry of a kernel function, through a kprobe.
    Kprobe(&'static str),
    /// Its return, through a kretprobe.
    Kretprobe(&'static str),
    RawTracepoint(&'static str),
    Tracepoint(&'static str, &'static str),
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Door::Fentry(function) | Door::Kprobe(function) => write!(f, "entry of `{function}`"),
            Door::Fexit(function) | Door::Kretprobe(function) => write!(f, "return of `{function}`"),
            Door::RawTracepoint(name) => write!(f, "tracepoint `{name}`"),
            Door::Tracepoint(category, name) => write!(f, "tracepoint `{category}:{name}`"),
        }
    }
}

/// How much a rung needs a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Without it the rung is not possible.
    Required,
    /// Without it something is not seen, which is said at the start.
    Wanted(&'static str),
}

/// A hook: the programs that are attached together, or not at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub name: &'static str,
    pub programs: &'static [(&'static str, Door)],
    pub need: Need,
    /// Number of the event kind that is lost when a program does not run.
    pub kind: u16,
    /// Structure members without which it cannot work: fields of [`portwatch_common::config::Offsets`].
    pub members: &'static [&'static str],
}

use Need::{Required, Wanted};
use portwatch_common::wire::kind;

const SOCK: &[&str] = &[
    "skc_daddr",
    "skc_rcv_saddr",
    "skc_dport",
    "skc_num",
    "skc_family",
    "skc_state",
    "skc_net",
    "skc_v6_daddr",
    "skc_v6_rcv_saddr",
    "sk_protocol",
    "sk_err",
    "inet_sport",
    "net_inum",
    "task_group_leader",
    "task_real_parent",
    "task_tgid",
    "task_thread_pid",
];

const SOCKET: &[&str] = &["socket_sk"];

const FILES: &[&str] = &[
    "socket_sk",
    "task_files",
    "files_fdt",
    "fdt_fd",
    "fdt_max_fds",
    "file_private_data",
    "file_inode",
    "inode_mode",
    "inode_ino",
];

/// Takes what the kernel does not run the first program for; its own misses mean nothing.
pub(super) const STATE_NESTED: &str = "inet_sock_set_state_nested";

/// The state tracepoint serves every rung: raw, because that costs a sixth of an ordinary one.
const STATE: Hook = Hook {
    name: "sock:inet_sock_set_state",
    programs: &[
        ("inet_sock_set_state", Door::RawTracepoint("inet_sock_set_state")),
        (STATE_NESTED, Door::RawTracepoint("inet_sock_set_state")),
    ],
    need: Required,
    kind: kind::CLOSED,
    members: SOCK,
};

/// Processes come and go: for `-p`, for `-f`, and for what is known of their address spaces.
pub(super) const PROCESSES: Hook = Hook {
    name: "sched:sched_process_fork, sched_process_exec, sched_process_exit",
    programs: &[
        ("sched_process_fork", Door::RawTracepoint("sched_process_fork")),
        ("sched_process_exec", Door::RawTracepoint("sched_process_exec")),
        ("sched_process_exit", Door::RawTracepoint("sched_process_exit")),
    ],
    need: Required,
    kind: kind::PORT_ALLOCATED,
    members: &["task_signal", "signal_live"],
};

macro_rules! at_return {
    ($name:literal, $need:expr, $kind:expr, $members:expr, $fexit:literal, $entry:literal, $return:literal) => {
        (
            Hook {
                name: $name,
                programs: &[($fexit, Door::Fexit($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
            Hook {
                name: $name,
                // The return first: alone it is ignored; an entry alone would stay in the map of calls under way.
                programs: &[($return, Door::Kretprobe($name)), ($entry, Door::Kprobe($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
        )
    };
}

/// An entry and a return that belong together on every rung.
macro_rules! at_both {
    ($name:literal, $need:expr, $kind:expr, $members:expr, $fentry:literal, $fexit:literal, $entry:literal, $return:literal) => {
        (
            Hook {
                name: $name,
                programs: &[($fexit, Door::Fexit($name)), ($fentry, Door::Fentry($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
            Hook {
                name: $name,
                programs: &[($return, Door::Kretprobe($name)), ($entry, Door::Kprobe($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
        )
    };
}

macro_rules! at_entry {
    ($name:literal, $need:expr, $kind:expr, $members:expr, $fentry:literal, $entry:literal) => {
        (
            Hook {
                name: $name,
                programs: &[($fentry, Door::Fentry($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
            Hook {
                name: $name,
                programs: &[($entry, Door::Kprobe($name))],
                need: $need,
                kind: $kind,
                members: $members,
            },
        )
    };
}

/// Hooked functions of TCP, as (fentry, kprobe).
const FUNCTIONS_TCP: &[(Hook, Hook)] = &[
    at_return!(
        "inet_hash_connect",
        Required,
        kind::PORT_ALLOCATED,
        &[],
        "inet_hash_connect_fexit",
        "inet_hash_connect_entry",
        "inet_hash_connect_return"
    ),
    at_return!(
        "inet6_hash_connect",
        Wanted("ports of IPv6 connects are not seen"),
        kind::PORT_ALLOCATED,
        &[],
        "inet6_hash_connect_fexit",
        "inet6_hash_connect_entry",
        "inet6_hash_connect_return"
    ),
    at_return!(
        "inet_csk_get_port",
        Required,
        kind::PORT_ALLOCATED,
        &[],
        "inet_csk_get_port_fexit",
        "inet_csk_get_port_entry",
        "inet_csk_get_port_return"
    ),
    at_return!(
        "inet_twsk_alloc",
        Required,
        kind::TIME_WAIT,
        &[],
        "inet_twsk_alloc_fexit",
        "inet_twsk_alloc_entry",
        "inet_twsk_alloc_return"
    ),
    at_entry!(
        "inet_twsk_kill",
        Wanted("the end of TIME_WAIT is not seen"),
        kind::PORT_RELEASED,
        &["tw_timer_expires"],
        "inet_twsk_kill_fentry",
        "inet_twsk_kill_entry"
    ),
    at_entry!(
        "inet_put_port",
        Required,
        kind::PORT_RELEASED,
        &[],
        "inet_put_port_fentry",
        "inet_put_port_entry"
    ),
    at_entry!(
        "inet_release",
        Wanted("who closed a socket is not known"),
        kind::CLOSED,
        SOCKET,
        "inet_release_fentry",
        "inet_release_entry"
    ),
    at_entry!(
        "tcp_disconnect",
        Wanted("connect(AF_UNSPEC) looks like a reset"),
        kind::PORT_RELEASED,
        &[],
        "tcp_disconnect_fentry",
        "tcp_disconnect_entry"
    ),
    at_return!(
        "tcp_v4_connect",
        Wanted("IPv4 connects that fail before the choice of a port are not seen"),
        kind::CONNECT_FAILED,
        &[],
        "tcp_v4_connect_fexit",
        "tcp_v4_connect_entry",
        "tcp_v4_connect_return"
    ),
    at_return!(
        "tcp_v6_connect",
        Wanted("IPv6 connects that fail before the choice of a port are not seen"),
        kind::CONNECT_FAILED,
        &[],
        "tcp_v6_connect_fexit",
        "tcp_v6_connect_entry",
        "tcp_v6_connect_return"
    ),
    at_return!(
        "inet_listen",
        Wanted("listens that fail are not seen"),
        kind::BIND_FAILED,
        SOCKET,
        "inet_listen_fexit",
        "inet_listen_entry",
        "inet_listen_return"
    ),
];

/// Those that TCP and UDP share.
const FUNCTIONS_SHARED: &[(Hook, Hook)] = &[
    at_entry!(
        "inet_sock_destruct",
        Required,
        kind::PORT_RELEASED,
        &[],
        "inet_sock_destruct_fentry",
        "inet_sock_destruct_entry"
    ),
    at_return!(
        "inet_bind",
        Wanted("IPv4 binds that fail are not seen"),
        kind::BIND_FAILED,
        SOCKET,
        "inet_bind_fexit",
        "inet_bind_entry",
        "inet_bind_return"
    ),
    at_return!(
        "inet6_bind",
        Wanted("IPv6 binds that fail are not seen"),
        kind::BIND_FAILED,
        SOCKET,
        "inet6_bind_fexit",
        "inet6_bind_entry",
        "inet6_bind_return"
    ),
];

/// Those of UDP.
const FUNCTIONS_UDP: &[(Hook, Hook)] = &[
    at_return!(
        "udp_lib_get_port",
        Wanted("ports of UDP are not seen"),
        kind::PORT_ALLOCATED,
        SOCK,
        "udp_lib_get_port_fexit",
        "udp_lib_get_port_entry",
        "udp_lib_get_port_return"
    ),
    at_both!(
        "inet_dgram_connect",
        Wanted("a UDP connect() that fails is not seen, and one that gets a port looks like a datagram"),
        kind::CONNECT_FAILED,
        SOCKET,
        "inet_dgram_connect_fentry",
        "inet_dgram_connect_fexit",
        "inet_dgram_connect_entry",
        "inet_dgram_connect_return"
    ),
    at_both!(
        "inet_autobind",
        Wanted("a UDP socket that its first datagram binds looks like one that bind() did"),
        kind::CONNECT_FAILED,
        SOCK,
        "inet_autobind_fentry",
        "inet_autobind_fexit",
        "inet_autobind_entry",
        "inet_autobind_return"
    ),
    at_entry!(
        "udp_lib_unhash",
        Wanted("the end of a UDP port is seen late"),
        kind::PORT_RELEASED,
        SOCK,
        "udp_lib_unhash_fentry",
        "udp_lib_unhash_entry"
    ),
];

/// Hooks of the tracepoint rung that TCP and UDP share.
const TRACEPOINTS_SHARED: &[Hook] = &[
    Hook {
        name: "syscalls:sys_exit_connect",
        programs: &[("sys_exit_connect", Door::Tracepoint("syscalls", "sys_exit_connect"))],
        need: Required,
        kind: kind::PORT_ALLOCATED,
        members: FILES,
    },
    Hook {
        name: "syscalls:sys_exit_bind",
        programs: &[("sys_exit_bind", Door::Tracepoint("syscalls", "sys_exit_bind"))],
        need: Wanted("bind() is not seen"),
        kind: kind::BIND_FAILED,
        members: FILES,
    },
];

/// Those of TCP.
const TRACEPOINTS_TCP: &[Hook] = &[
    Hook {
        name: "syscalls:sys_exit_listen",
        programs: &[("sys_exit_listen", Door::Tracepoint("syscalls", "sys_exit_listen"))],
        need: Wanted("listen() is not seen"),
        kind: kind::BIND_FAILED,
        members: FILES,
    },
    Hook {
        name: "tcp:tcp_destroy_sock",
        programs: &[("tcp_destroy_sock", Door::RawTracepoint("tcp_destroy_sock"))],
        need: Required,
        kind: kind::PORT_RELEASED,
        members: &[],
    },
];

/// Which protocols are traced. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    pub tcp: bool,
    pub udp: bool,
}

impl Protocols {
    pub const ALL: Protocols = Protocols { tcp: true, udp: true };
}

/// The hooks of a rung. The state change comes last: it begins every story of TCP, and the others must be there to go on
/// with it.
pub(super) fn hooks(rung: Rung, protocols: Protocols) -> Vec<Hook> {
    let functions = || {
        let tcp = FUNCTIONS_TCP.iter().filter(|_| protocols.tcp);
        let udp = FUNCTIONS_UDP.iter().filter(|_| protocols.udp);
        tcp.chain(FUNCTIONS_SHARED).chain(udp)
    };
    let mut hooks: Vec<Hook> = match rung {
        Rung::Fentry => functions().map(|(fentry, _)| *fentry).collect(),
        Rung::Kprobe => functions().map(|(_, kprobe)| *kprobe).collect(),
        Rung::Tracepoint => {
            let tcp = TRACEPOINTS_TCP.iter().filter(|_| protocols.tcp);
            TRACEPOINTS_SHARED.iter().chain(tcp).copied().collect()
        }
    };
    if protocols.tcp {
        hooks.push(STATE);
    }
    hooks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_named_once_per_rung() {
        for rung in Rung::ALL {
            let hooks = hooks(rung, Protocols::ALL);
            let mut names: Vec<_> = hooks
                .iter()
                .chain([&PROCESSES])
                .flat_map(|hook| hook.programs)
                .map(|(name, _)| *name)
                .collect();
            let before = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), before, "{rung}");
        }
    }

    #[test]
    fn rungs_are_read_by_name() {
        for rung in Rung::ALL {
            assert_eq!(rung.name().parse(), Ok(rung));
        }
        assert!("ftrace".parse::<Rung>().is_err());
    }
}
