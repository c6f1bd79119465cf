//! Which holds are wanted. Judged once per hold: the owner at allocation, the addresses when they are known.

use portwatch_common::config::{filter, pid_flags};
use portwatch_common::limits::COMM_LEN;
use portwatch_common::wire::{Endpoints, Owner};

use aya_ebpf::maps::Array;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};

use crate::maps::{ADDRS_LOCAL, ADDRS_REMOTE, COMM_ACCEPTS, NETNSES, PIDS, PORTS_LOCAL, PORTS_REMOTE, UIDS};
use crate::owner::current_task;
use crate::read::{kernel, kernel_pointer};
use crate::settings::{offset, setting};
use crate::sock::{IPPROTO_TCP, IPPROTO_UDP, Sock, is_mapped};

/// Filters that can be judged without an owner. The others never pass an accepted connection.
pub const WITHOUT_OWNER: u32 = filter::NEEDS_PEER
    | filter::PORT_LOCAL
    | filter::ADDR_LOCAL
    | filter::IPV4
    | filter::IPV6
    | filter::NO_TCP
    | filter::NO_UDP
    | filter::FOLLOW;

/// Whether this run wants a socket of this kind: TCP or UDP over IP.
#[inline(always)]
pub fn wants_protocol(sk: Sock) -> bool {
    let filters = setting!(filters);
    match sk.protocol() {
        IPPROTO_TCP => filters & filter::NO_TCP == 0 && sk.is_tcp(),
        IPPROTO_UDP => filters & filter::NO_UDP == 0 && sk.is_udp(),
        _ => false,
    }
}

/// Whether this run filters by what is known only once there is a peer.
#[inline(always)]
pub fn needs_peer() -> bool {
    setting!(filters) & filter::NEEDS_PEER != 0
}

/// Judges the task that asks for the port, which must be the running one, and its network namespace.
#[inline(always)]
pub fn wants_owner(owner: &Owner, netns: u32) -> bool {
    let filters = setting!(filters);
    if filters & filter::PIDS != 0 {
        // SAFETY: a copy of a plain number.
        let flags = unsafe { PIDS.get(owner.tgid) }.copied().unwrap_or(0);
        if flags & pid_flags::SELECTED == 0 || owner.tgid == 0 {
            return false;
        }
    }
    // SAFETY: only asked whether it is there.
    if filters & filter::UID != 0 && unsafe { UIDS.get(owner.uid) }.is_none() {
        return false;
    }
    // SAFETY: likewise.
    if filters & filter::NETNS != 0 && unsafe { NETNSES.get(netns) }.is_none() {
        return false;
    }
    if filters & filter::COMM != 0 && !comm_matches(&owner.comm) {
        return false;
    }
    if filters & filter::CGROUP != 0 && !is_in_cgroup() {
        return false;
    }
    true
}

/// Runs the patterns over the name; see [`portwatch_common::config::CommGlob`].
#[inline(always)]
fn comm_matches(comm: &[u8; COMM_LEN]) -> bool {
    let stars = setting!(comm_glob.stars);
    let mut states = setting!(comm_glob.start);
    let mut is_over = false;
    let mut at = 0;
    while at < COMM_LEN {
        let byte = comm[at];
        is_over |= byte == 0;
        if !is_over {
            let accepts = COMM_ACCEPTS.get(byte as u32).copied().unwrap_or(0);
            states = ((states & accepts) << 1) | (states & stars);
        }
        at += 1;
    }
    states & setting!(comm_glob.accept) != 0
}

/// Whether the running task is in the wanted cgroup or below it: the cgroup's ancestor at the wanted level is the wanted one.
#[inline(always)]
fn is_in_cgroup() -> bool {
    ancestor_id().is_some_and(|id| id == setting!(cgroup_id))
}

#[inline(always)]
fn ancestor_id() -> Option<u64> {
    let css_set = kernel_pointer(current_task(), offset!(task_cgroups))?;
    let cgroup = kernel_pointer(css_set, offset!(css_set_dfl_cgrp))?;
    let wanted = setting!(cgroup_level);
    let level: u32 = kernel(cgroup, offset!(cgroup_level))?;
    if level < wanted {
        return None;
    }
    if offset!(cgroup_ancestors) != portwatch_common::config::ABSENT {
        let ancestor = kernel_pointer(cgroup, offset!(cgroup_ancestors) + wanted * 8)?;
        let node = kernel_pointer(ancestor, offset!(cgroup_kn))?;
        kernel(node, offset!(kernfs_node_id))
    } else {
        kernel(cgroup, offset!(cgroup_ancestor_ids) + wanted * 8)
    }
}

/// Judges the local end.
#[inline(always)]
pub fn wants_local(endpoints: &Endpoints) -> bool {
    let filters = setting!(filters);
    if filters & filter::PORT_LOCAL != 0 && !has_port(&PORTS_LOCAL, endpoints.port_local) {
        return false;
    }
    if filters & filter::ADDR_LOCAL != 0 && !has_address(&ADDRS_LOCAL, &endpoints.addr_local) {
        return false;
    }
    true
}

/// Judges the peer.
#[inline(always)]
pub fn wants_peer(endpoints: &Endpoints) -> bool {
    let filters = setting!(filters);
    if filters & filter::PORT_REMOTE != 0 && !has_port(&PORTS_REMOTE, endpoints.port_remote) {
        return false;
    }
    if filters & filter::ADDR_REMOTE != 0 && !has_address(&ADDRS_REMOTE, &endpoints.addr_remote) {
        return false;
    }
    true
}

/// Judges the kind of address, the peer's where there is one.
#[inline(always)]
pub fn wants_family(endpoints: &Endpoints) -> bool {
    let filters = setting!(filters);
    if filters & (filter::IPV4 | filter::IPV6) == 0 {
        return true;
    }
    let address = if endpoints.port_remote != 0 { &endpoints.addr_remote } else { &endpoints.addr_local };
    let wanted = if is_mapped(address) { filter::IPV4 } else { filter::IPV6 };
    filters & wanted != 0
}

#[inline(always)]
fn has_port(ports: &Array<u64>, port: u16) -> bool {
    ports.get(port as u32 / 64).is_some_and(|word| word & (1 << (port % 64)) != 0)
}

#[inline(always)]
fn has_address(trie: &LpmTrie<[u8; 16], u32>, address: &[u8; 16]) -> bool {
    trie.get(Key::new(128, *address)).is_some()
}
