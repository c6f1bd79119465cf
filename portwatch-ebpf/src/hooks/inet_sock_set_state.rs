//! `sock:inet_sock_set_state`, `tcp:tcp_destroy_sock`: state changes of TCP sockets, on every rung.
//!
//! The state change has two programs. From 6.1 on the kernel does not run a program again on a CPU on which it is
//! running already, and a softirq that interrupts it in process context changes states, too: two in a thousand on a
//! busy machine. Where tracepoints can be preempted (7.2) a connect may fall into another one's program, too. The second
//! program takes those: the first one says when it is running. Where programs are preempted it may say so while it
//! runs for another task; what it has dealt with already must change nothing when it is seen again.
//!
//! Only the change to SYN_SENT is sure to run in the task that connects; every other one may run in whatever
//! task, softirq or idle loop received a packet, and looks at the socket alone. TIME_WAIT never appears here:
//! the full socket goes to CLOSE and an entry of another kind lives on.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use portwatch_common::config::{ABSENT, rung};
use portwatch_common::counters::hook;
use portwatch_common::wire::{closer, confidence, failed_flags, how, reason};

use super::{inet_hash_connect, now};
use crate::maps::{STATE_RUNNING, TABLES_AT_LIMIT, scratch};
use crate::read::kernel;
use crate::settings::{offset, setting};
use crate::slot::{Slot, flags};
use crate::sock::{Sock, state};
use crate::{counters, emit, kernel_stack, life};

const EADDRNOTAVAIL: u32 = 99;
const ETIMEDOUT: u32 = 110;
const EHOSTUNREACH: u32 = 113;

/// Raw arguments: socket, old state, new state.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    set_running(1);
    let (sk, old, new) = arguments(&ctx);
    if new == state::SYN_SENT && old == state::CLOSE {
        kernel_stack::note(&ctx, scratch::CONNECT);
        connecting(sk, scratch::CONNECT);
    } else if is_of_interest(old, new) {
        changed(sk, old, new, scratch::ADOPT);
    }
    set_running(0);
    0
}

/// The same for what interrupts the other one: a softirq, and on kernels whose tracepoints can be preempted any task.
///
/// Must be attached after the other one, so that on kernels that do run programs again it finds that done.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state_nested(ctx: RawTracePointContext) -> i32 {
    let is_running = STATE_RUNNING.get(0).copied() == Some(1);
    if !is_running && setting!(is_preemptible) == 0 {
        return 0;
    }
    let (sk, old, new) = arguments(&ctx);
    let is_new = if new == state::SYN_SENT && old == state::CLOSE {
        let is_new = !is_connecting(sk);
        if is_new {
            kernel_stack::note(&ctx, scratch::CONNECT_NESTED);
            connecting(sk, scratch::CONNECT_NESTED);
        }
        is_new && is_connecting(sk)
    } else {
        let told = told(sk, new);
        if is_of_interest(old, new) && told != Some(true) {
            changed(sk, old, new, scratch::ADOPT_NESTED);
        }
        told == Some(false)
    };
    if is_running || is_new {
        counters::nested_run();
    }
    0
}

#[inline(always)]
fn arguments(ctx: &RawTracePointContext) -> (Sock, u8, u8) {
    (Sock(ctx.arg(0)), ctx.arg::<u32>(1) as u8, ctx.arg::<u32>(2) as u8)
}

#[inline(always)]
fn is_of_interest(old: u8, new: u8) -> bool {
    old != new && new != state::SYN_SENT && new != state::SYN_RECV
}

#[inline(always)]
fn set_running(value: u32) {
    if let Some(running) = STATE_RUNNING.get_ptr_mut(0) {
        // SAFETY: this CPU's map value. Volatile: the interrupt that reads it is none of the compiler's business.
        unsafe { running.write_volatile(value) }
    }
}

/// Raw argument: socket. Only on the tracepoint rung: the others see the port itself being put.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    let sk = Sock(ctx.arg(0));
    if let Some(slot) = life::slot_of(sk) {
        if slot.flags & flags::IS_SELF != 0 {
            counters::self_test_hit(hook::DESTROY_SOCK);
        }
        let now_ns = now();
        settle(sk, slot, now_ns);
        slot.flags &= !(flags::IN_CONNECT | flags::MAY_BE_COLLECTED);
        life::released(sk, slot, reason::CLOSED, now_ns);
    }
    0
}

/// Whether the other program has dealt with a change. Nothing: it does not show, and does no harm twice.
#[inline(always)]
fn told(sk: Sock, new: u8) -> Option<bool> {
    let slot = life::slot_of(sk)?;
    match new {
        state::ESTABLISHED => Some(slot.flags & flags::WAS_ESTABLISHED != 0),
        state::CLOSE => Some(slot.flags & (flags::END_TOLD | flags::FAILURE_TOLD) != 0),
        _ => None,
    }
}

/// Whether the other program has seen the connect begin.
#[inline(always)]
fn is_connecting(sk: Sock) -> bool {
    life::slot_of(sk).is_some_and(|slot| slot.flags & flags::IN_CONNECT != 0)
}

/// A connect begins, in the task that asks for it. Source and destination are known, the port is not yet.
#[inline(always)]
fn connecting(sk: Sock, place: u32) {
    if !sk.is_tcp() {
        return;
    }
    inet_hash_connect::search_begins(sk);
    let now_ns = now();
    if let Some(slot) = life::slot_of(sk) {
        if slot.flags & flags::HAS_PORT == 0 {
            settle(sk, slot, now_ns);
        } else if slot.hold.endpoints.port_local == sk.num() {
            connecting_bound(sk, slot, now_ns);
            return;
        } else {
            life::end_stale(sk, slot, now_ns);
        }
    }
    let Some(slot) = life::describe(sk, place, how::CONNECT, None, now_ns) else { return };
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::STATE_SYN_SENT);
    }
    // The local port is judged when it is known.
    slot.hold.endpoints.port_local = 0;
    if !life::wants_addresses(&slot.hold.endpoints) {
        life::forget(sk);
        return;
    }
    slot.flags |= flags::IN_CONNECT;
    slot.stale_sport = sk.sport();
    life::track(sk, slot);
}

/// A bound socket connects. It keeps its hold, and it is now known whether its peer is a wanted one.
#[inline(always)]
fn connecting_bound(sk: Sock, slot: &mut Slot, now_ns: u64) {
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::STATE_SYN_SENT);
    }
    let port = slot.hold.endpoints.port_local;
    let _ = sk.read_endpoints(&mut slot.hold.endpoints);
    slot.hold.endpoints.port_local = port;
    slot.attempt_ns = now_ns;
    slot.hold.search_ns = 0;
    slot.flags &= !(flags::FAILURE_TOLD | flags::END_TOLD);
    slot.flags |= flags::IN_CONNECT;
    slot.stale_sport = sk.sport();
    if slot.flags & flags::AWAITS_PEER != 0 {
        if !life::wants_addresses(&slot.hold.endpoints) {
            life::forget(sk);
            return;
        }
        slot.flags &= !flags::AWAITS_PEER;
        slot.hold.flags |= portwatch_common::wire::hold_flags::LATE;
        emit::port_allocated(slot, now_ns);
    }
}

/// Every other change.
#[inline(always)]
fn changed(sk: Sock, old: u8, new: u8, place: u32) {
    let Some(slot) = life::slot_of(sk) else {
        unknown_changed(sk, old, new, place);
        return;
    };
    let now_ns = now();
    match new {
        state::ESTABLISHED => established(sk, slot, now_ns),
        state::LISTEN => slot.flags |= flags::IS_LISTENING,
        state::CLOSE => {
            if slot.flags & flags::IS_SELF != 0 {
                counters::self_test_hit(hook::STATE_CLOSE);
            }
            match old {
                state::SYN_SENT => connect_ended(sk, slot, now_ns),
                state::LISTEN => leave(sk, slot, now_ns),
                _ => connection_ended(sk, slot, old, now_ns),
            }
        }
        // The first FIN decides who closed; a FIN that crosses it makes it both.
        state::FIN_WAIT1 => slot.closer = closer::LOCAL,
        state::CLOSE_WAIT => slot.closer = closer::REMOTE,
        state::CLOSING => slot.closer = closer::BOTH,
        _ => {}
    }
}

/// A change of a socket that is not tracked: open before the start, accepted, or not wanted.
#[inline(always)]
fn unknown_changed(sk: Sock, old: u8, new: u8, place: u32) {
    if new == state::ESTABLISHED {
        if old == state::SYN_RECV && setting!(accepted) != 0 {
            let _ = life::accepted(sk, place, now());
        }
        return;
    }
    if new == state::LISTEN {
        return;
    }
    let now_ns = now();
    let Some(slot) = life::adopt(sk, place, now_ns) else { return };
    match new {
        state::CLOSE if old == state::SYN_SENT => connect_ended(sk, slot, now_ns),
        state::CLOSE if old == state::LISTEN => leave(sk, slot, now_ns),
        state::CLOSE => connection_ended(sk, slot, old, now_ns),
        state::FIN_WAIT1 => slot.closer = closer::LOCAL,
        state::CLOSE_WAIT => slot.closer = closer::REMOTE,
        state::CLOSING => slot.closer = closer::BOTH,
        _ => {}
    }
}

#[inline(always)]
fn established(sk: Sock, slot: &mut Slot, now_ns: u64) {
    if slot.flags & flags::IS_SELF != 0 {
        counters::self_test_hit(hook::STATE_ESTABLISHED);
    }
    if slot.flags & flags::WAS_ESTABLISHED != 0 {
        return;
    }
    if slot.flags & flags::HAS_PORT == 0 {
        // The handshake was faster than the end of connect().
        life::allocated_late(sk, slot, sk.sport(), now_ns);
    } else {
        let _ = sk.read_endpoints(&mut slot.hold.endpoints);
    }
    slot.flags |= flags::WAS_ESTABLISHED;
    slot.connect_ns = if slot.attempt_ns == 0 { 0 } else { now_ns.wrapping_sub(slot.attempt_ns) };
    emit::established(slot, now_ns);
}

/// SYN_SENT to CLOSE: refused, timed out, unreachable, given up, or no port.
#[inline(always)]
fn connect_ended(sk: Sock, slot: &mut Slot, now_ns: u64) {
    let error = sk.error();
    if setting!(rung) == rung::TRACEPOINT && slot.flags & flags::HAS_PORT == 0 {
        let sport = sk.sport();
        if error == 0 && slot.flags & flags::IN_CONNECT != 0 {
            // Only the end of connect() knows why.
            return;
        }
        if sport != 0 {
            life::allocated_late(sk, slot, sport, now_ns);
        }
    }
    if error != 0 {
        if setting!(rung) == rung::TRACEPOINT && slot.flags & flags::IN_CONNECT == 0 {
            slot.flags |= flags::MAY_BE_COLLECTED;
        }
        life::connect_failed(slot, error, 0, now_ns);
    } else if slot.flags & flags::IN_CONNECT != 0 {
        // It failed inside connect(), whose end tells the reason; the port is given back after that.
        if slot.flags & flags::FAILURE_TOLD == 0 {
            if is_port_gone(sk, slot) {
                slot.flags |= flags::PORT_PUT;
            }
            return;
        }
    } else {
        life::connect_failed(slot, 0, failed_flags::ABANDONED, now_ns);
    }
    leave(sk, slot, now_ns);
}

/// An attempt of the tracepoint rung whose end no hook told: not a connect() call, say io_uring.
#[inline(always)]
fn settle(sk: Sock, slot: &mut Slot, now_ns: u64) {
    if setting!(rung) != rung::TRACEPOINT
        || slot.flags & (flags::HAS_PORT | flags::FAILURE_TOLD) != 0
        || slot.flags & flags::IN_CONNECT == 0
    {
        return;
    }
    let sport = sk.sport();
    if sport != 0 && sport != slot.stale_sport {
        life::allocated_late(sk, slot, sport, now_ns);
        life::connect_failed(slot, 0, failed_flags::ABANDONED | failed_flags::INFERRED, now_ns);
    } else {
        life::connect_failed(slot, EADDRNOTAVAIL, failed_flags::INFERRED, now_ns);
    }
}

/// The full socket of a connection is gone. A time-wait entry may live on.
#[inline(always)]
fn connection_ended(sk: Sock, slot: &mut Slot, old: u8, now_ns: u64) {
    if slot.flags & flags::END_TOLD != 0 {
        return;
    }
    slot.flags |= flags::END_TOLD;
    let error = sk.error();
    let traffic = sk.traffic();
    let has_entry = slot.flags & flags::HAS_TIME_WAIT != 0;
    let may_have_entry = old == state::FIN_WAIT2 || old == state::CLOSING;
    let mut is_deduced = false;
    if deduces_time_wait(slot) && may_have_entry && error == 0 && has_room_for_time_wait(sk) {
        emit::time_wait(slot, 0, confidence::INFERRED, traffic, now_ns);
        is_deduced = true;
    }
    let is_orderly = has_entry
        || is_deduced
        || (old == state::LAST_ACK && error == 0)
        || slot.release_reason == reason::TW_OVERFLOW
        || (may_have_entry && error == 0 && setting!(rung) == rung::TRACEPOINT);
    if !is_orderly && !matches!(error, ETIMEDOUT | EHOSTUNREACH) {
        slot.closer = closer::RESET;
    }
    emit::closed(slot, old, traffic, now_ns);
    if has_entry || is_deduced {
        life::forget(sk);
        return;
    }
    if setting!(rung) == rung::TRACEPOINT && error == 0 {
        if may_have_entry {
            slot.release_reason = reason::TW_OVERFLOW;
        } else if offset!(sk_shutdown) != ABSENT && !sk.is_closing() {
            // Without a peer's reset and without a close(): connect(AF_UNSPEC).
            slot.release_reason = reason::DISCONNECTED;
        }
    }
    leave(sk, slot, now_ns);
}

/// Whether an entry that no hook saw may still be there: no rung but the tracepoints' has none, but a kprobe's program
/// does not run where it interrupts another, and one that can be preempted not while another task is inside of it.
#[inline(always)]
fn deduces_time_wait(slot: &Slot) -> bool {
    match setting!(rung) {
        rung::TRACEPOINT => true,
        rung::FENTRY if setting!(is_preemptible) == 0 => false,
        _ => slot.flags & flags::HAS_TIME_WAIT == 0 && slot.release_reason != reason::TW_OVERFLOW,
    }
}

/// The socket is in CLOSE and the hold ends, unless the port was asked for by number: then it stays until the end
/// of the socket.
#[inline(always)]
fn leave(sk: Sock, slot: &mut Slot, now_ns: u64) {
    if slot.flags & flags::HAS_PORT == 0 || is_port_gone(sk, slot) {
        life::released(sk, slot, reason::CLOSED, now_ns);
    } else {
        slot.flags &= !flags::WAS_ESTABLISHED;
    }
}

/// Whether the kernel has put the port: just before it reports CLOSE, unless it was asked for by number.
#[inline(always)]
fn is_port_gone(sk: Sock, slot: &Slot) -> bool {
    slot.flags & flags::PORT_PUT != 0 || sk.num() == 0
}

/// Whether the namespace's time-wait table had room. At its limit, the first that is seen there filled it, and what
/// comes after that found it full.
#[inline(always)]
fn has_room_for_time_wait(sk: Sock) -> bool {
    if offset!(net_death_row) == ABSENT {
        return true;
    }
    let Some(net) = sk.net() else { return true };
    let row = net + offset!(net_death_row) as u64;
    let count: u32 = kernel(row, offset!(death_row_count)).unwrap_or(0);
    let most: u32 = kernel(row, offset!(death_row_max)).unwrap_or(u32::MAX);
    // SAFETY: only asked whether it is there.
    let was_at_limit = unsafe { TABLES_AT_LIMIT.get(net) }.is_some();
    if count.wrapping_sub(offset!(death_row_bias)) < most {
        if was_at_limit {
            let _ = TABLES_AT_LIMIT.remove(net);
        }
        return true;
    }
    if !was_at_limit {
        let _ = TABLES_AT_LIMIT.insert(net, 1, 0);
    }
    !was_at_limit
}
