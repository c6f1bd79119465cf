//! The life of a slot: begun, allocated, failed, ended. The hooks decide when, this decides what follows.

use portwatch_common::config::rung;
use portwatch_common::counters::miss;
use portwatch_common::wire::{self, Endpoints, confidence, failed_flags, how, kind, reason};

use crate::hooks::udp_syscalls;
use crate::maps::{PREEXISTING, SLOT_SCRATCH, SOCKETS};
use crate::settings::setting;
use crate::slot::{Slot, flags};
use crate::sock::{IPPROTO_UDP, Sock};
use crate::{counters, emit, filter, owner, stack};

/// The slot of a socket, if it is tracked.
#[inline(always)]
pub fn slot_of(sk: Sock) -> Option<&'static mut Slot> {
    // SAFETY: state changes of one socket are serialised by its lock; the entry is removed only at its end.
    SOCKETS.get_ptr_mut(sk.0).map(|slot| unsafe { &mut *slot })
}

/// Forgets a socket.
#[inline(always)]
pub fn forget(sk: Sock) {
    let _ = SOCKETS.remove(sk.0);
}

/// A name for a hold: unique, because two programs never read the same nanosecond on the same CPU.
#[inline(always)]
fn next_id(now_ns: u64) -> u64 {
    // SAFETY: no arguments.
    let cpu = unsafe { aya_ebpf::helpers::generated::bpf_get_smp_processor_id() };
    (now_ns << 10) | (cpu as u64 & 1023)
}

/// Describes a new attempt of the running task in the scratch slot of `place`: owner, addresses, stack.
/// Nothing: this run does not want it.
#[inline(always)]
pub fn describe(
    sk: Sock,
    place: u32,
    how: u8,
    peer: Option<&crate::sock::Sockaddr>,
    now_ns: u64,
) -> Option<&'static mut Slot> {
    if !emit::is_open() {
        return None;
    }
    // SAFETY: the scratch entry belongs to this program on this CPU, see `SLOT_SCRATCH`.
    let slot = unsafe { &mut *SLOT_SCRATCH.get_ptr_mut(place)? };
    clear(slot);
    sk.read_endpoints(&mut slot.hold.endpoints)?;
    if let Some(peer) = peer {
        slot.hold.endpoints.port_remote = peer.port;
        slot.hold.endpoints.addr_remote = peer.address;
    }
    owner::describe_current(&mut slot.hold.owner);
    slot.hold.socket_id = next_id(now_ns);
    slot.hold.how = how;
    slot.hold.begun_mono_ns = now_ns;
    slot.attempt_ns = now_ns;
    if slot.hold.owner.tgid == setting!(self_tgid) && slot.hold.owner.tgid != 0 {
        slot.flags = flags::IS_SELF;
        return Some(slot);
    }
    if !filter::wants_owner(&slot.hold.owner, slot.hold.endpoints.netns) {
        return None;
    }
    let taken = stack::take(place, &slot.hold.owner, now_ns);
    slot.hold.stack_id = taken.id;
    slot.hold.stack_state = taken.state;
    Some(slot)
}

/// Zeroes a slot, word by word: `memset` would be a call per byte.
#[inline(always)]
fn clear(slot: &mut Slot) {
    let words = (slot as *mut Slot).cast::<u64>();
    for at in 0..size_of::<Slot>() / 8 {
        // SAFETY: inside the slot; all-zero bytes are a valid slot.
        unsafe { words.add(at).write_volatile(0) }
    }
}

/// Judges a slot by its addresses. A bound socket may have to wait for its peer.
#[inline(always)]
pub fn wants_addresses(endpoints: &Endpoints) -> bool {
    filter::wants_peer(endpoints) && wants_addresses_but_peer(endpoints)
}

#[inline(always)]
pub fn wants_addresses_but_peer(endpoints: &Endpoints) -> bool {
    filter::wants_family(endpoints) && (endpoints.port_local == 0 || filter::wants_local(endpoints))
}

/// Starts to track a described socket.
#[inline(always)]
pub fn track(sk: Sock, slot: &Slot) -> bool {
    let is_tracked = SOCKETS.insert(sk.0, slot, 0).is_ok();
    if !is_tracked && slot.flags & flags::IS_SELF == 0 {
        // What the socket does from here on is not seen; that it would have been released is certain.
        counters::happened(kind::PORT_RELEASED, false);
        counters::missed(kind::PORT_RELEASED, miss::TABLE_FULL);
    }
    is_tracked
}

/// The slot's socket got a port.
#[inline(always)]
pub fn allocated(sk: Sock, slot: &mut Slot, port: u16, now_ns: u64) {
    let _ = sk.read_endpoints(&mut slot.hold.endpoints);
    slot.hold.endpoints.port_local = port;
    slot.flags |= flags::HAS_PORT;
    slot.allocated_ns = now_ns;
    if !filter::wants_local(&slot.hold.endpoints) {
        slot.flags |= flags::AWAITS_PEER; // Never to be told: nothing clears it but a new attempt.
    }
    emit::port_allocated(slot, now_ns);
}

/// The slot's socket got a port some time ago, and it is learned only now.
#[inline(always)]
pub fn allocated_late(sk: Sock, slot: &mut Slot, port: u16, now_ns: u64) {
    slot.hold.flags |= wire::hold_flags::LATE;
    let begun_ns = slot.attempt_ns;
    allocated(sk, slot, port, now_ns);
    slot.allocated_ns = begun_ns;
}

/// The connect of the slot's socket failed. Tells it once.
#[inline(always)]
pub fn connect_failed(slot: &mut Slot, errno: u32, more: u32, now_ns: u64) {
    if slot.flags & flags::FAILURE_TOLD != 0 {
        return;
    }
    slot.flags |= flags::FAILURE_TOLD;
    let has_port = slot.flags & flags::HAS_PORT != 0;
    let last = if has_port { 0 } else { failed_flags::FINAL };
    emit::failed(slot, kind::CONNECT_FAILED, errno, more | last, now_ns);
    if !has_port {
        slot.flags &= !flags::ANNOUNCED;
    }
}

/// The slot's port is free again, and with it the slot, unless its task is still inside connect() or may come back
/// for the error.
#[inline(always)]
pub fn released(sk: Sock, slot: &mut Slot, fallback: u8, now_ns: u64) {
    if slot.flags & flags::HAS_PORT != 0 {
        let reason = if slot.release_reason != reason::UNKNOWN { slot.release_reason } else { fallback };
        emit::port_released(slot, reason, now_ns);
    }
    if slot.flags & (flags::IN_CONNECT | flags::MAY_BE_COLLECTED) == 0 {
        forget(sk);
    }
}

/// Ends a hold whose end was not seen: its socket's memory serves another socket now. Never must that one inherit the owner.
#[inline(always)]
pub fn end_stale(sk: Sock, slot: &mut Slot, now_ns: u64) {
    slot.flags &= !(flags::IN_CONNECT | flags::MAY_BE_COLLECTED);
    slot.release_reason = reason::UNKNOWN;
    released(sk, slot, reason::UNKNOWN, now_ns);
}

/// What a bind or listen came to.
pub struct Asked {
    pub how: u8,
    /// The address that bind() asked for, where it failed.
    pub requested: Option<crate::sock::Sockaddr>,
    /// Where a UDP socket that is bound by its first datagram sends that.
    pub peer: Option<crate::sock::Sockaddr>,
    /// Number of the socket's file, on the tracepoint rung; else 0.
    pub inode: u64,
    /// 0: the socket has a port.
    pub errno: u32,
}

/// A bind or listen of the running task ended, or a UDP socket got its port otherwise. One place for success and
/// failure: the walk of the stack is most of what the verifier has to look at.
#[inline(always)]
pub fn asked(sk: Sock, place: u32, asked: &Asked, now_ns: u64) -> Option<()> {
    if asked.errno == 0
        && let Some(slot) = slot_of(sk)
        && slot.flags & flags::HAS_PORT != 0
    {
        if slot.hold.endpoints.port_local == sk.num() {
            return None;
        }
        end_stale(sk, slot, now_ns);
    }
    let slot = describe(sk, place, asked.how, None, now_ns)?;
    slot.hold.endpoints.port_remote = 0;
    slot.hold.endpoints.addr_remote = [0; 16];
    slot.attempt_ns = 0;
    if let Some(requested) = asked.requested {
        slot.hold.endpoints.port_local = requested.port;
        slot.hold.endpoints.addr_local = requested.address;
    }
    if let Some(peer) = asked.peer {
        slot.hold.endpoints.port_remote = peer.port;
        slot.hold.endpoints.addr_remote = peer.address;
    }
    if !wants_addresses_but_peer(&slot.hold.endpoints) {
        return None;
    }
    let is_listen = asked.how == how::LISTEN;
    if asked.errno != 0 {
        if !filter::needs_peer() {
            let listen = if is_listen { failed_flags::LISTEN } else { 0 };
            emit::failed(slot, kind::BIND_FAILED, asked.errno, failed_flags::FINAL | listen, now_ns);
        }
        return Some(());
    }
    slot.allocated_ns = now_ns;
    slot.hold.confidence = confidence::EXACT;
    slot.flags |= flags::HAS_PORT;
    if asked.how == how::CONNECT {
        // The rest of connect() finds the addresses.
        slot.flags |= flags::AWAITS_PEER;
    } else if filter::needs_peer() && !(asked.peer.is_some() && filter::wants_peer(&slot.hold.endpoints)) {
        if is_listen {
            return None;
        }
        slot.flags |= flags::AWAITS_PEER;
    }
    if is_listen {
        slot.flags |= flags::IS_LISTENING;
    }
    emit::port_allocated(slot, now_ns);
    if setting!(rung) == rung::TRACEPOINT && slot.hold.endpoints.protocol == IPPROTO_UDP {
        udp_syscalls::told(asked.inode, slot);
    } else {
        track(sk, slot);
    }
    Some(())
}

/// Takes in a socket that was open before the start, which user space has listed under its cookie.
#[inline(always)]
pub fn adopt(sk: Sock, place: u32, now_ns: u64) -> Option<&'static mut Slot> {
    let cookie = sk.cookie();
    if cookie == 0 {
        return None;
    }
    // SAFETY: written by user space, removed only here.
    let socket_id = unsafe { PREEXISTING.get(cookie) }?.socket_id;
    // SAFETY: see `SLOT_SCRATCH`.
    let slot = unsafe { &mut *SLOT_SCRATCH.get_ptr_mut(place)? };
    clear(slot);
    slot.hold.socket_id = socket_id;
    slot.hold.begun_mono_ns = now_ns;
    slot.flags = flags::HAS_PORT | flags::ANNOUNCED | flags::ALLOCATION_TOLD | flags::WAS_ESTABLISHED;
    sk.read_endpoints(&mut slot.hold.endpoints)?;
    track(sk, slot);
    let _ = PREEXISTING.remove(cookie);
    slot_of(sk)
}

/// A connection was accepted: nobody asked for its port, and the running task has nothing to do with it.
#[inline(always)]
pub fn accepted(sk: Sock, place: u32, now_ns: u64) -> Option<()> {
    if !sk.is_tcp() {
        return None;
    }
    // SAFETY: see `SLOT_SCRATCH`.
    let slot = unsafe { &mut *SLOT_SCRATCH.get_ptr_mut(place)? };
    clear(slot);
    sk.read_endpoints(&mut slot.hold.endpoints)?;
    if setting!(filters) & !filter::WITHOUT_OWNER != 0 || !wants_addresses(&slot.hold.endpoints) {
        return None;
    }
    slot.hold.socket_id = next_id(now_ns);
    slot.hold.how = how::ACCEPT;
    slot.hold.confidence = confidence::EXACT;
    slot.hold.begun_mono_ns = now_ns;
    slot.allocated_ns = now_ns;
    slot.flags = flags::HAS_PORT | flags::ALLOCATION_TOLD | flags::WAS_ESTABLISHED;
    emit::established(slot, now_ns);
    track(sk, slot);
    Some(())
}
