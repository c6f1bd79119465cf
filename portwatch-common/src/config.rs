//! What the loader tells the kernel programs before they run, as read-only globals.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "This kernel has no such member": the hook that needs it is not loaded, or does without.
pub const ABSENT: u32 = u32::MAX;

/// Whether events are wanted: what the map `GATE` says.
pub mod gate {
    pub const CLOSED: u32 = 0;
    pub const OPEN: u32 = 1;
    /// Open, and user space is listing the sockets that were open before: it must hear of every new hold, also where
    /// nobody wants to see its allocation, or it would take it for an old one.
    pub const LISTING: u32 = 2;
}

/// Byte offsets of kernel structure members, from the running kernel's BTF. [`ABSENT`] where there is none.
///
/// The loader refuses to load a program whose members are absent; no offset is ever 0 by default.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Offsets {
    // struct sock_common, also the head of every time-wait socket.
    pub skc_daddr: u32,
    pub skc_rcv_saddr: u32,
    pub skc_dport: u32,
    pub skc_num: u32,
    pub skc_family: u32,
    pub skc_state: u32,
    pub skc_net: u32,
    pub skc_v6_daddr: u32,
    pub skc_v6_rcv_saddr: u32,
    pub skc_cookie: u32,
    // struct sock
    pub sk_protocol: u32,
    pub sk_err: u32,
    pub sk_shutdown: u32,
    // struct inet_sock
    pub inet_sport: u32,
    // struct tcp_sock
    pub tcp_bytes_sent: u32,
    pub tcp_bytes_retrans: u32,
    pub tcp_bytes_received: u32,
    // struct inet_timewait_sock
    pub tw_substate: u32,
    /// `tw_timer.expires`
    pub tw_timer_expires: u32,
    // struct net
    pub net_inum: u32,
    /// Reference count of the namespace: 0 when it is being torn down.
    pub net_count: u32,
    /// `ipv4.tcp_death_row`, embedded; [`ABSENT`] where it is a pointer.
    pub net_death_row: u32,
    pub death_row_count: u32,
    pub death_row_max: u32,
    /// What an empty table counts as: 1 where the count is a reference count.
    pub death_row_bias: u32,
    // struct socket
    pub socket_sk: u32,
    // struct task_struct
    pub task_group_leader: u32,
    pub task_real_parent: u32,
    pub task_tgid: u32,
    pub task_thread_pid: u32,
    pub task_start_boottime: u32,
    pub task_flags: u32,
    pub task_files: u32,
    pub task_stack: u32,
    pub task_cgroups: u32,
    pub task_mm: u32,
    /// `struct mm_struct`, `exe_file`, and where the program's code begins.
    pub mm_exe_file: u32,
    pub mm_start_code: u32,
    pub task_signal: u32,
    /// `thread.fsbase`: where a thread's local storage is, which is also what its C library calls it.
    pub task_fsbase: u32,
    /// `struct signal_struct`, `live`: threads that have not exited.
    pub signal_live: u32,
    // struct pid
    pub pid_level: u32,
    pub pid_numbers: u32,
    // struct upid
    pub upid_nr: u32,
    pub upid_ns: u32,
    pub upid_size: u32,
    /// `struct pid_namespace`, `ns.inum`
    pub pid_ns_inum: u32,
    // struct files_struct, struct fdtable, struct file
    pub files_fdt: u32,
    pub fdt_fd: u32,
    pub fdt_max_fds: u32,
    pub file_private_data: u32,
    /// `struct file`, `f_inode`
    pub file_inode: u32,
    /// `struct inode`, `i_mode`
    pub inode_mode: u32,
    /// `struct inode`, `i_ino`
    pub inode_ino: u32,
    pub inode_sb: u32,
    /// `struct super_block`, `s_dev`
    pub sb_dev: u32,
    // struct css_set, struct cgroup
    pub css_set_dfl_cgrp: u32,
    pub cgroup_level: u32,
    /// `cgroup.ancestors` (array of pointers) where it exists.
    pub cgroup_ancestors: u32,
    /// `cgroup.ancestor_ids` (array of ids) on older kernels.
    pub cgroup_ancestor_ids: u32,
    pub cgroup_kn: u32,
    /// `struct kernfs_node`, `id`
    pub kernfs_node_id: u32,
}

/// Which way of observing the programs were loaded for.
pub mod rung {
    pub const FENTRY: u32 = 0;
    pub const KPROBE: u32 = 1;
    pub const TRACEPOINT: u32 = 2;
}

/// Bits of [`Config::filters`]: which filters are on.
pub mod filter {
    /// Only tasks in the map of processes.
    pub const PIDS: u32 = 1 << 0;
    /// Children of those tasks too.
    pub const FOLLOW: u32 = 1 << 1;
    pub const COMM: u32 = 1 << 2;
    pub const UID: u32 = 1 << 3;
    pub const CGROUP: u32 = 1 << 4;
    pub const NETNS: u32 = 1 << 5;
    pub const PORT_REMOTE: u32 = 1 << 6;
    pub const PORT_LOCAL: u32 = 1 << 7;
    /// Remote addresses in the longest-prefix map.
    pub const ADDR_REMOTE: u32 = 1 << 8;
    /// Local addresses in the longest-prefix map.
    pub const ADDR_LOCAL: u32 = 1 << 9;
    /// Only IPv4 addresses, IPv4-mapped ones included.
    pub const IPV4: u32 = 1 << 10;
    /// Only IPv6 addresses.
    pub const IPV6: u32 = 1 << 11;
    /// No TCP.
    pub const NO_TCP: u32 = 1 << 12;
    /// No UDP.
    pub const NO_UDP: u32 = 1 << 13;

    /// Filters that can be judged only when the peer is known.
    pub const NEEDS_PEER: u32 = PORT_REMOTE | ADDR_REMOTE;
}

/// Values of the map of selected processes.
pub mod pid_flags {
    /// Its own sockets are wanted.
    pub const SELECTED: u32 = 1 << 0;
    /// Its children are wanted, from their birth.
    pub const CHILDREN: u32 = 1 << 1;
}

/// Read-only settings of the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    pub cgroup_id: u64,
    /// `--comm` patterns as a shift-and automaton, see [`CommGlob`].
    pub comm_glob: CommGlob,
    /// One of [`rung`].
    pub rung: u32,
    /// Any of [`filter`].
    pub filters: u32,
    /// Bit per [`crate::wire::kind`]: event kinds that are wanted.
    pub kinds: u32,
    /// Inode of portwatch's PID namespace; 0 when it is the initial one.
    pub pid_ns_inum: u32,
    /// Level of the cgroup that `filter::CGROUP` names, in its hierarchy.
    pub cgroup_level: u32,
    /// Non-zero: log accepted connections too.
    pub accepted: u32,
    /// Non-zero: take user stacks.
    pub stacks: u32,
    /// Non-zero: kernel-side diagnostics are wanted.
    pub verbose: u32,
    /// Non-zero: `bpf_task_pt_regs` exists.
    pub has_task_pt_regs: u32,
    /// Non-zero: a task can be preempted inside of a program, and no other task's event runs that program on that CPU
    /// until it goes on.
    pub is_preemptible: u32,
    /// portwatch itself, whose sockets are in no log: in its own PID namespace's numbering.
    pub self_tgid: u32,
    /// One of so many stacks is audited; a power of two, 0 for none.
    pub stacks_per_audit: u32,
    /// Non-zero: take kernel stacks, too.
    pub kernel_stacks: u32,
    /// Zero.
    pub reserved: u32,
}

/// `--comm` patterns, compiled to a bit-parallel automaton: bit *i* says that the first *i* elements of
/// the pattern text are matched. For every byte `c`, `states = ((states & accepts[c]) << 1) | (states & stars)`,
/// so sixteen steps without a branch judge any number of patterns.
/// `accepts` does not fit into a read-only global that older verifiers follow well, so it lives in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommGlob {
    /// Bits that start set: the first element of each pattern.
    pub start: u64,
    /// Bits that survive any byte: a `*` stands before that element.
    pub stars: u64,
    /// Bits that mean a whole pattern matched.
    pub accept: u64,
}
