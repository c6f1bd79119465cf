//! Which members of which kernel structures the programs read, and where they lie on this kernel.
//!
//! Each row of [`ROWS`] also says what the programs take the member for. A member that is there but has
//! become something else, say a pointer or a wider integer, is as missing as one that is gone: a wrong value
//! in a report is worse than none.

use std::fmt;

use portwatch_common::config::{ABSENT, Offsets};

use super::btf::{self, Btf, MemberKind};

/// The offsets on one kernel, and what could not be found.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub offsets: Offsets,
    pub missing: Vec<Missing>,
}

impl Resolved {
    /// Why a field of [`Offsets`] is [`ABSENT`]; `None` when it is known.
    pub fn why_missing(&self, field: &str) -> Option<&Missing> {
        self.missing.iter().find(|missing| missing.field == field)
    }
}

/// A member that this kernel does not have in the form the programs need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The field of [`Offsets`] that is [`ABSENT`] for it.
    pub field: &'static str,
    /// As the kernel would call it: `task_struct.stack`.
    pub member: String,
    pub reason: Reason,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.member, self.reason)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Absent(btf::Absent),
    /// It is there, as something else.
    Unexpected {
        expected: Expect,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Absent(absent) => absent.fmt(f),
            Reason::Unexpected { expected } => write!(f, "it is no longer {expected}"),
        }
    }
}

/// What the programs take a member for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Plain bytes of this size: an integer, or a structure used as one.
    Bytes(u32),
    Pointer,
    /// A structure inside the structure.
    Embedded,
    Array,
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Bytes(size) => write!(f, "{size} bytes wide"),
            Expect::Pointer => f.write_str("a pointer"),
            Expect::Embedded => f.write_str("an embedded structure"),
            Expect::Array => f.write_str("an array"),
        }
    }
}

impl Expect {
    fn accepts(self, member: &btf::Member) -> bool {
        match self {
            Expect::Bytes(size) => {
                matches!(member.kind, MemberKind::Scalar | MemberKind::Composite) && member.size == Some(size)
            }
            Expect::Pointer => member.kind == MemberKind::Pointer,
            Expect::Embedded => member.kind == MemberKind::Composite,
            Expect::Array => member.kind == MemberKind::Array,
        }
    }
}

/// One field of [`Offsets`], and the member it is for.
pub struct Row {
    pub field: &'static str,
    slot: fn(&mut Offsets) -> &mut u32,
    pub structure: &'static str,
    /// Names the member had over time, newest first; the first one found counts.
    pub paths: &'static [&'static str],
    expect: Expect,
    /// A field that serves instead: not reported while that one is known.
    instead: Option<&'static str>,
}

impl Row {
    /// The value of this field.
    pub fn offset(&self, offsets: &Offsets) -> u32 {
        *(self.slot)(&mut { *offsets })
    }
}

macro_rules! row {
    ($field:ident = $structure:literal [$($path:literal),+] $expect:expr $(, or $instead:ident)?) => {
        Row {
            field: stringify!($field),
            slot: |offsets| &mut offsets.$field,
            structure: $structure,
            paths: &[$($path),+],
            expect: $expect,
            instead: row!(@instead $($instead)?),
        }
    };
    (@instead) => { None };
    (@instead $instead:ident) => { Some(stringify!($instead)) };
}

use Expect::{Array, Bytes, Embedded, Pointer};

/// Every member that is looked up.
pub const ROWS: &[Row] = &[
    row!(skc_daddr = "sock_common" ["skc_daddr"] Bytes(4)),
    row!(skc_rcv_saddr = "sock_common" ["skc_rcv_saddr"] Bytes(4)),
    row!(skc_dport = "sock_common" ["skc_dport"] Bytes(2)),
    row!(skc_num = "sock_common" ["skc_num"] Bytes(2)),
    row!(skc_family = "sock_common" ["skc_family"] Bytes(2)),
    row!(skc_state = "sock_common" ["skc_state"] Bytes(1)),
    row!(skc_net = "sock_common" ["skc_net"] Bytes(8)),
    row!(skc_v6_daddr = "sock_common" ["skc_v6_daddr"] Bytes(16)),
    row!(skc_v6_rcv_saddr = "sock_common" ["skc_v6_rcv_saddr"] Bytes(16)),
    row!(skc_cookie = "sock_common" ["skc_cookie"] Bytes(8)),
    row!(sk_protocol = "sock" ["sk_protocol"] Bytes(2)),
    row!(sk_err = "sock" ["sk_err"] Bytes(4)),
    row!(sk_shutdown = "sock" ["sk_shutdown"] Bytes(1)),
    row!(inet_sport = "inet_sock" ["inet_sport"] Bytes(2)),
    row!(tcp_bytes_sent = "tcp_sock" ["bytes_sent"] Bytes(8)),
    row!(tcp_bytes_retrans = "tcp_sock" ["bytes_retrans"] Bytes(8)),
    row!(tcp_bytes_received = "tcp_sock" ["bytes_received"] Bytes(8)),
    row!(tw_substate = "inet_timewait_sock" ["tw_substate"] Bytes(1)),
    row!(tw_timer_expires = "inet_timewait_sock" ["tw_timer.expires"] Bytes(8)),
    row!(net_inum = "net" ["ns.inum"] Bytes(4)),
    row!(net_count = "net" ["ns.__ns_ref", "ns.count", "count"] Bytes(4)),
    // A pointer from 5.18 to 6.0, embedded before and since.
    row!(net_death_row = "net" ["ipv4.tcp_death_row"] Embedded),
    row!(death_row_count = "inet_timewait_death_row" ["tw_refcount", "tw_count"] Bytes(4)),
    row!(death_row_max = "inet_timewait_death_row" ["sysctl_max_tw_buckets"] Bytes(4)),
    row!(socket_sk = "socket" ["sk"] Pointer),
    row!(task_group_leader = "task_struct" ["group_leader"] Pointer),
    row!(task_real_parent = "task_struct" ["real_parent"] Pointer),
    row!(task_tgid = "task_struct" ["tgid"] Bytes(4)),
    row!(task_thread_pid = "task_struct" ["thread_pid"] Pointer),
    row!(task_start_boottime = "task_struct" ["start_boottime"] Bytes(8)),
    row!(task_flags = "task_struct" ["flags"] Bytes(4)),
    row!(task_files = "task_struct" ["files"] Pointer),
    row!(task_stack = "task_struct" ["stack"] Pointer),
    row!(task_cgroups = "task_struct" ["cgroups"] Pointer),
    row!(task_mm = "task_struct" ["mm"] Pointer),
    row!(mm_exe_file = "mm_struct" ["exe_file"] Pointer),
    row!(mm_start_code = "mm_struct" ["start_code"] Bytes(8)),
    row!(task_fsbase = "task_struct" ["thread.fsbase"] Bytes(8)),
    row!(task_signal = "task_struct" ["signal"] Pointer),
    row!(signal_live = "signal_struct" ["live"] Bytes(4)),
    row!(pid_level = "pid" ["level"] Bytes(4)),
    row!(pid_numbers = "pid" ["numbers"] Array),
    row!(upid_nr = "upid" ["nr"] Bytes(4)),
    row!(upid_ns = "upid" ["ns"] Pointer),
    row!(pid_ns_inum = "pid_namespace" ["ns.inum"] Bytes(4)),
    row!(files_fdt = "files_struct" ["fdt"] Pointer),
    row!(fdt_fd = "fdtable" ["fd"] Pointer),
    row!(fdt_max_fds = "fdtable" ["max_fds"] Bytes(4)),
    row!(file_private_data = "file" ["private_data"] Pointer),
    row!(file_inode = "file" ["f_inode"] Pointer),
    row!(inode_mode = "inode" ["i_mode"] Bytes(2)),
    row!(inode_ino = "inode" ["i_ino"] Bytes(8)),
    row!(inode_sb = "inode" ["i_sb"] Pointer),
    row!(sb_dev = "super_block" ["s_dev"] Bytes(4)),
    row!(css_set_dfl_cgrp = "css_set" ["dfl_cgrp"] Pointer),
    row!(cgroup_level = "cgroup" ["level"] Bytes(4)),
    // Ids up to 6.0, pointers from 6.1.
    row!(cgroup_ancestors = "cgroup" ["ancestors"] Array, or cgroup_ancestor_ids),
    row!(cgroup_ancestor_ids = "cgroup" ["ancestor_ids"] Array, or cgroup_ancestors),
    row!(cgroup_kn = "cgroup" ["kn"] Pointer),
    row!(kernfs_node_id = "kernfs_node" ["id"] Bytes(8)),
];

/// Reads the running kernel's types and looks every member up.
pub fn of_running_kernel() -> anyhow::Result<Resolved> {
    Ok(resolve(&Btf::from_running_kernel()?))
}

/// Looks every member up.
pub fn resolve(btf: &Btf) -> Resolved {
    let mut offsets = all_absent();
    let mut missing = Vec::new();
    for row in ROWS {
        match find(btf, row) {
            Ok(offset) => *(row.slot)(&mut offsets) = offset,
            Err(why) => missing.push(why),
        }
    }
    let is_found = |field: &str| !missing.iter().any(|missing: &Missing| missing.field == field);
    let replaced: Vec<_> =
        ROWS.iter().filter(|row| row.instead.is_some_and(is_found)).map(|row| row.field).collect();
    missing.retain(|missing| !replaced.contains(&missing.field));

    // `inet_twsk_alloc` compares a plain count, or a reference count that starts at one.
    offsets.death_row_bias = match offsets.death_row_count {
        ABSENT => ABSENT,
        _ => btf.member("inet_timewait_death_row", "tw_refcount").is_ok().into(),
    };
    match btf.struct_size("upid") {
        Some(size) => offsets.upid_size = size,
        None => missing.push(Missing {
            field: "upid_size",
            member: "upid".to_owned(),
            reason: Reason::Absent(btf::Absent::NoStruct),
        }),
    }
    Resolved { offsets, missing }
}

/// Every field is a `u32`, and [`ABSENT`] is all ones.
fn all_absent() -> Offsets {
    const _: () = assert!(ABSENT == u32::MAX);
    zerocopy::transmute!([ABSENT; size_of::<Offsets>() / size_of::<u32>()])
}

fn find(btf: &Btf, row: &Row) -> Result<u32, Missing> {
    // The first name is reported unless another one exists and is of the wrong kind.
    let mut why = None;
    for path in row.paths {
        let result = match btf.member(row.structure, path) {
            Ok(member) if row.expect.accepts(&member) => {
                btf.byte_offset(row.structure, path).map_err(Reason::Absent)
            }
            Ok(_) => Err(Reason::Unexpected { expected: row.expect }),
            Err(absent) => Err(Reason::Absent(absent)),
        };
        match result {
            Ok(offset) => return Ok(offset),
            Err(reason) if why.is_none() || matches!(reason, Reason::Unexpected { .. }) => {
                why = Some(Missing { field: row.field, member: format!("{}.{path}", row.structure), reason });
            }
            Err(_) => {}
        }
    }
    Err(why.expect("every row names at least one path"))
}
