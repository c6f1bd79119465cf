//! UDP on the tracepoint rung: bind() and connect() tell of a port at their end.
//!
//! Nothing tells there when a UDP socket ends, so none is tracked: user space finds the ends in its listings of sockets.
//! All that is kept is what was told of, so that the connect() of a bound socket is not told as an allocation.
//! Datagrams pass no program at all: the end of every sendto() is too dear a place to wait for the first one.

use portwatch_common::counters::hook;
use portwatch_common::wire::{confidence, failed_flags, how, kind};

use crate::life;
use crate::maps::{PREEXISTING, UDP_TOLD, scratch};
use crate::read::user;
use crate::settings::setting;
use crate::slot::{Slot, UdpTold, flags};
use crate::sock::{Sock, Sockaddr};
use crate::{counters, emit, owner};

/// A bind() told of its port.
#[inline(always)]
pub fn told(inode: u64, slot: &Slot) {
    // Until it connects, nobody knows whether it is wanted.
    if slot.flags & flags::AWAITS_PEER == 0 {
        let port = slot.hold.endpoints.port_local as u32;
        let told = UdpTold { socket_id: slot.hold.socket_id, port, flags: slot.flags & flags::ANNOUNCED };
        let _ = UDP_TOLD.insert(inode, told, 0);
    }
}

/// connect() ended with this result.
#[inline(always)]
pub fn connected(sk: Sock, inode: u64, address: u64, ret: i32, now_ns: u64) -> Option<()> {
    const AF_UNSPEC: u16 = 0;
    if owner::current_ids().0 == setting!(self_tgid) {
        counters::self_test_hit(hook::EXIT_CONNECT);
    }
    let port = sk.num();
    if user::<u16>(address, 0)? == AF_UNSPEC {
        if port == 0 {
            let _ = UDP_TOLD.remove(inode);
        }
        return None;
    }
    // SAFETY: a copy of plain numbers.
    let before =
        unsafe { UDP_TOLD.get(inode) }.copied().unwrap_or(UdpTold { socket_id: 0, port: 0, flags: 0 });
    // A socket that was disconnected may have another port now.
    let is_told = before.socket_id != 0 && before.port == port as u32;
    let is_old = !is_told && is_preexisting(sk);
    if ret == 0 && (is_told || is_old || port == 0) {
        return None;
    }
    let peer = Sockaddr::from_user(address)?;
    let slot = life::describe(sk, scratch::CONNECT_FAILED, how::CONNECT, Some(&peer), now_ns)?;
    if ret == 0 {
        // An address that means this host has become one of it.
        sk.read_endpoints(&mut slot.hold.endpoints)?;
    }
    if !life::wants_addresses(&slot.hold.endpoints) {
        return None;
    }
    slot.hold.confidence = confidence::EXACT;
    if is_told {
        slot.hold.socket_id = before.socket_id;
        slot.flags |= before.flags;
    } else if port != 0 && !is_old {
        slot.flags |= flags::HAS_PORT;
        emit::port_allocated(slot, now_ns);
    }
    if ret != 0 {
        let last = if port == 0 || is_old { failed_flags::FINAL } else { 0 };
        emit::failed(slot, kind::CONNECT_FAILED, ret.unsigned_abs(), last, now_ns);
    }
    if port != 0 && !is_old {
        told(inode, slot);
    }
    Some(())
}

/// Whether user space has listed it as open before the start, or found it since.
#[inline(always)]
fn is_preexisting(sk: Sock) -> bool {
    let cookie = sk.cookie();
    // SAFETY: only asked whether it is there.
    cookie != 0 && unsafe { PREEXISTING.get(cookie) }.is_some()
}
