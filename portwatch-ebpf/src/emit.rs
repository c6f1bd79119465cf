//! The only writer of the ring buffer, and the only place that counts events.
//!
//! No record wakes the reader, which drains on a timer, but for failures and new stacks, and those not more
//! often than [`WAKE_INTERVAL_NS`] per CPU: a wake-up costs twenty times what a record does.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use portwatch_common::config::gate;
use portwatch_common::counters::miss;
use portwatch_common::limits::{KERNEL_FRAMES_MAX, PYTHON_FRAMES_MAX, STACK_FRAMES_MAX};
use portwatch_common::python::{Layout, Python, common};
use portwatch_common::wire::{self, EVENT_KINDS, Header, WIRE_VERSION, confidence, kind};
use zerocopy::{Immutable, IntoBytes};

use crate::counters;
use crate::maps::{EVENTS, GATE, LAST_WAKE};
use crate::python::PythonScratch;
use crate::read::user;
use crate::settings::setting;
use crate::slot::{Slot, flags};
use crate::stack::{self, Walk};

const NO_WAKEUP: u64 = aya_ebpf::bindings::BPF_RB_NO_WAKEUP as u64;
const FORCE_WAKEUP: u64 = aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP as u64;

/// See the module's text.
const WAKE_INTERVAL_NS: u64 = 10_000_000;

/// The flags for a record that is worth a wake-up, if there was none lately.
#[inline(always)]
fn wake_sometimes(now_ns: u64) -> u64 {
    let Some(last) = LAST_WAKE.get_ptr_mut(0) else { return NO_WAKEUP };
    // SAFETY: this CPU's map value. A race costs a wake-up, or saves one.
    unsafe {
        if now_ns.wrapping_sub(last.read()) < WAKE_INTERVAL_NS {
            return NO_WAKEUP;
        }
        last.write(now_ns);
    }
    FORCE_WAKEUP
}

/// Writes one record. The bound keeps padding, and with it stale kernel bytes, out of the buffer.
#[inline(always)]
fn write<R: IntoBytes + Immutable + 'static>(wake: u64, fill: impl FnOnce(*mut R)) -> bool {
    let Some(mut entry) = EVENTS.reserve::<R>(0) else { return false };
    fill(MaybeUninit::as_mut_ptr(&mut entry));
    entry.submit(wake);
    true
}

#[inline(always)]
fn header<R>(kind: u16, now_ns: u64) -> Header {
    Header { version: WIRE_VERSION, kind, size: size_of::<R>() as u32, time_mono_ns: now_ns }
}

#[inline(always)]
fn is_wanted(kind: u16) -> bool {
    setting!(kinds) & (1 << kind) != 0 && is_open()
}

/// Whether all hooks are there.
#[inline(always)]
pub fn is_open() -> bool {
    GATE.get(0).copied().unwrap_or(gate::CLOSED) != gate::CLOSED
}

/// Tells a hold whose event nobody wants, while the sockets that were open before are being listed.
#[inline(always)]
fn announce_while_listing(slot: &mut Slot, now_ns: u64) {
    if GATE.get(0).copied() == Some(gate::LISTING) && slot.flags & flags::ANNOUNCED == 0 {
        // Lost to a full ring, it is listed as open before. That is the lesser evil.
        let _ = send_hold(slot, kind::HOLD, now_ns);
    }
}

/// Sends the slot's `Hold` under the given kind. The caller sees to the counting.
#[inline(always)]
fn send_hold(slot: &mut Slot, kind: u16, now_ns: u64) -> bool {
    slot.hold.header = header::<wire::Hold>(kind, now_ns);
    let source = &raw const slot.hold;
    // SAFETY: both are whole `Hold`s, and the ring buffer entry is fresh memory.
    let is_sent = write::<wire::Hold>(NO_WAKEUP, |to| unsafe { copy_hold(source, to) });
    if is_sent {
        slot.flags |= flags::ANNOUNCED;
    }
    is_sent
}

/// # Safety
/// Both must be valid for a whole `Hold`.
#[inline(always)]
unsafe fn copy_hold(from: *const wire::Hold, to: *mut wire::Hold) {
    // SAFETY: the caller's.
    unsafe {
        core::ptr::copy_nonoverlapping(from.cast::<u64>(), to.cast::<u64>(), size_of::<wire::Hold>() / 8)
    }
}

/// Sends one event of a slot, its `Hold` first if user space does not have it yet; counts it either way.
#[inline(always)]
fn event<R: IntoBytes + Immutable + 'static>(
    slot: &mut Slot,
    kind: u16,
    is_inferred: bool,
    wake: u64,
    now_ns: u64,
    fill: impl FnOnce(*mut R, Header, u64),
) -> bool {
    let id = slot.hold.socket_id;
    let fill = |to| fill(to, header::<R>(kind, now_ns), id);
    let is_sent = if slot.flags & flags::ANNOUNCED != 0 {
        write::<R>(wake, fill)
    } else {
        write_with_hold::<R>(slot, wake, now_ns, fill)
    };
    count(kind, is_inferred, is_sent, miss::RING_FULL);
    is_sent
}

/// Sends a `Hold` and its first event, or neither: user space would remember a hold of which it hears no more.
#[inline(always)]
fn write_with_hold<R: IntoBytes + Immutable + 'static>(
    slot: &mut Slot,
    wake: u64,
    now_ns: u64,
    fill: impl FnOnce(*mut R),
) -> bool {
    slot.hold.header = header::<wire::Hold>(kind::HOLD, now_ns);
    let Some(mut hold) = EVENTS.reserve::<wire::Hold>(0) else { return false };
    let Some(mut entry) = EVENTS.reserve::<R>(0) else {
        hold.discard(NO_WAKEUP);
        return false;
    };
    // SAFETY: both are whole `Hold`s, and the ring buffer entry is fresh memory.
    unsafe { copy_hold(&raw const slot.hold, MaybeUninit::as_mut_ptr(&mut hold)) };
    fill(MaybeUninit::as_mut_ptr(&mut entry));
    hold.submit(NO_WAKEUP);
    entry.submit(wake);
    slot.flags |= flags::ANNOUNCED;
    true
}

/// An event that was deduced stands outside of happened = sent + missed, unless it was missed.
#[inline(always)]
fn count(kind: u16, is_inferred: bool, is_sent: bool, reason: usize) {
    counters::happened(kind, is_inferred && is_sent);
    if !is_sent {
        counters::missed(kind, reason);
    }
}

/// Events of this slot go nowhere.
#[inline(always)]
fn is_silent(slot: &Slot) -> bool {
    slot.flags & (flags::IS_SELF | flags::AWAITS_PEER) != 0
}

/// The slot got its port.
#[inline(always)]
pub fn port_allocated(slot: &mut Slot, now_ns: u64) {
    if is_silent(slot) || slot.flags & flags::ALLOCATION_TOLD != 0 {
        return;
    }
    slot.flags |= flags::ALLOCATION_TOLD;
    if !is_wanted(kind::PORT_ALLOCATED) {
        announce_while_listing(slot, now_ns);
        return;
    }
    let is_sent = send_hold(slot, kind::PORT_ALLOCATED, now_ns);
    count(kind::PORT_ALLOCATED, slot.hold.confidence != confidence::EXACT, is_sent, miss::RING_FULL);
}

/// A connect, bind or listen of the slot failed. `kind` is `CONNECT_FAILED` or `BIND_FAILED`.
#[inline(always)]
pub fn failed(slot: &mut Slot, kind: u16, errno: u32, failed_flags: u32, now_ns: u64) {
    if is_silent(slot) || !is_wanted(kind) {
        return;
    }
    let endpoints = &raw const slot.hold.endpoints;
    let is_inferred = failed_flags & wire::failed_flags::INFERRED != 0;
    event::<wire::Failed>(slot, kind, is_inferred, wake_sometimes(now_ns), now_ns, |to, header, id| {
        // SAFETY: fresh memory of the ring buffer; `endpoints` is a part of the slot.
        unsafe {
            (&raw mut (*to).header).write(header);
            (&raw mut (*to).socket_id).write(id);
            (&raw mut (*to).errno).write(errno);
            (&raw mut (*to).flags).write(failed_flags);
            copy_endpoints(endpoints, &raw mut (*to).endpoints);
        }
    });
}

#[inline(always)]
pub fn established(slot: &mut Slot, now_ns: u64) {
    if is_silent(slot) {
        return;
    }
    if !is_wanted(kind::ESTABLISHED) {
        announce_while_listing(slot, now_ns);
        return;
    }
    let endpoints = &raw const slot.hold.endpoints;
    let connect_ns = slot.connect_ns;
    event::<wire::Established>(slot, kind::ESTABLISHED, false, NO_WAKEUP, now_ns, |to, header, id| {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*to).header).write(header);
            (&raw mut (*to).socket_id).write(id);
            (&raw mut (*to).connect_ns).write(connect_ns);
            copy_endpoints(endpoints, &raw mut (*to).endpoints);
        }
    });
}

#[inline(always)]
pub fn time_wait(slot: &mut Slot, substate: u8, confidence: u8, traffic: (u64, u64), now_ns: u64) {
    if is_silent(slot) || !is_wanted(kind::TIME_WAIT) {
        return;
    }
    let (connect_ns, closer) = (slot.connect_ns, slot.closer);
    let is_inferred = confidence != confidence::EXACT;
    event::<wire::TimeWait>(
        slot,
        kind::TIME_WAIT,
        is_inferred,
        NO_WAKEUP,
        now_ns,
        |to, header, socket_id| {
            let record = wire::TimeWait {
                header,
                socket_id,
                bytes_sent: traffic.0,
                bytes_received: traffic.1,
                connect_ns,
                substate,
                closer,
                confidence,
                reserved: [0; 5],
            };
            // SAFETY: as above.
            unsafe { to.write(record) }
        },
    );
}

#[inline(always)]
pub fn closed(slot: &mut Slot, state_before: u8, traffic: (u64, u64), now_ns: u64) {
    if is_silent(slot) || !is_wanted(kind::CLOSED) {
        return;
    }
    let (connect_ns, closer, closed_by_tgid) = (slot.connect_ns, slot.closer, slot.closed_by_tgid);
    let held_ns = held(slot.allocated_ns, now_ns);
    event::<wire::Closed>(slot, kind::CLOSED, false, NO_WAKEUP, now_ns, |to, header, socket_id| {
        let record = wire::Closed {
            header,
            socket_id,
            held_ns,
            bytes_sent: traffic.0,
            bytes_received: traffic.1,
            connect_ns,
            closed_by_tgid,
            closer,
            state_before,
            reserved: 0,
        };
        // SAFETY: as above.
        unsafe { to.write(record) }
    });
}

/// The slot's port is free; ends the hold.
#[inline(always)]
pub fn port_released(slot: &mut Slot, reason: u8, now_ns: u64) {
    slot.flags &= !(flags::HAS_PORT | flags::PORT_PUT);
    if is_silent(slot) {
        return;
    }
    let is_wanted = is_wanted(kind::PORT_RELEASED);
    let is_announced = slot.flags & flags::ANNOUNCED != 0;
    // Whoever knows the hold must hear of its end, or would remember it for ever.
    if is_announced || (is_wanted && send_hold(slot, kind::HOLD, now_ns)) {
        let held_ns = held(slot.allocated_ns, now_ns);
        let was_listening = slot.flags & flags::IS_LISTENING != 0;
        let end = End { socket_id: slot.hold.socket_id, held_ns, reason, was_listening };
        release(end, is_wanted, miss::RING_FULL, now_ns);
    } else if is_wanted {
        count(kind::PORT_RELEASED, false, false, miss::RING_FULL);
    }
    slot.flags &= !(flags::ANNOUNCED | flags::ALLOCATION_TOLD);
}

/// How a hold ended.
pub struct End {
    pub socket_id: u64,
    pub held_ns: u64,
    /// One of [`wire::reason`].
    pub reason: u8,
    pub was_listening: bool,
}

/// Tells the end of a hold that user space knows, or need not know, by its id alone.
#[inline(always)]
pub fn release(end: End, is_wanted: bool, miss_reason: usize, now_ns: u64) {
    let is_sent = write::<wire::PortReleased>(NO_WAKEUP, |to| {
        let record = wire::PortReleased {
            header: header::<wire::PortReleased>(kind::PORT_RELEASED, now_ns),
            socket_id: end.socket_id,
            held_ns: end.held_ns,
            reason: end.reason,
            confidence: confidence::EXACT,
            is_silent: !is_wanted as u8,
            was_listening: end.was_listening as u8,
            reserved: [0; 4],
        };
        // SAFETY: as above.
        unsafe { to.write(record) }
    });
    if is_wanted {
        count(kind::PORT_RELEASED, false, is_sent, miss_reason);
    }
}

/// Whether `port_released` is wanted.
#[inline(always)]
pub fn wants_releases() -> bool {
    is_wanted(kind::PORT_RELEASED)
}

/// Sends a stack. False: there was no room.
#[inline(always)]
pub fn stack(id: u64, addresses: *const u64, walk: &Walk, owner: &wire::Owner, now_ns: u64) -> bool {
    write::<wire::Stack>(wake_sometimes(now_ns), |to| {
        // SAFETY: fresh memory of the ring buffer, written whole.
        unsafe {
            (&raw mut (*to).header).write(header::<wire::Stack>(kind::STACK, now_ns));
            (&raw mut (*to).stack_id).write(id);
            (&raw mut (*to).start_boot_ns).write(owner.start_boot_ns);
            (&raw mut (*to).tgid).write(owner.tgid);
            (&raw mut (*to).count).write(walk.count);
            (&raw mut (*to).kernel_count).write(walk.kernel_count as u64);
            copy_addresses(addresses, &raw mut (*to).addresses);
        }
    })
}

/// Sends the Python frames of the stack that comes next. False: there was no room.
#[inline(always)]
pub fn python_stack(
    scratch: *const PythonScratch,
    hash: u64,
    stack_id: u64,
    generation: u64,
    now_ns: u64,
) -> bool {
    write::<wire::PythonStack>(NO_WAKEUP, |to| {
        // SAFETY: fresh memory of the ring buffer, written whole; entries past `count` are zeroed.
        unsafe {
            (&raw mut (*to).header).write(header::<wire::PythonStack>(kind::PYTHON_STACK, now_ns));
            (&raw mut (*to).stack_id).write(stack_id);
            (&raw mut (*to).generation).write(generation);
            (&raw mut (*to).hash).write(hash);
            (&raw mut (*to).count).write((&raw const (*scratch).walk.count).read_volatile());
            (&raw mut (*to).state).write((&raw const (*scratch).walk.state).read_volatile());
            copy_frames((&raw const (*scratch).frames).cast(), (&raw mut (*to).frames).cast());
        }
    })
}

/// Copies the scratch's frames, those of earlier stacks behind the last one too; it never held anything else.
///
/// # Safety
/// Both must be valid for `PYTHON_FRAMES_MAX` frames.
#[inline(always)]
unsafe fn copy_frames(from: *const wire::PythonFrame, into: *mut wire::PythonFrame) {
    const BYTES: u32 = (PYTHON_FRAMES_MAX * size_of::<wire::PythonFrame>()) as u32;
    // SAFETY: the caller's. As a helper it is one instruction to the verifier.
    unsafe { bpf_probe_read_kernel(into.cast(), BYTES, from.cast()) };
}

/// Sends a code object at `code`. What cannot be read of it is left out. False: there was no room.
#[inline(always)]
pub fn python_code(
    python: &Python,
    code: u64,
    code_id: u64,
    tgid: u32,
    generation: u64,
    now_ns: u64,
) -> bool {
    write::<wire::PythonCode>(NO_WAKEUP, |to| {
        let layout = &python.layout;
        let pointer = |at: u32| user::<u64>(code, at).unwrap_or(0);
        let (file, name, table) =
            (pointer(layout.code_file), pointer(layout.code_name), pointer(layout.code_table));
        // SAFETY: fresh memory of the ring buffer, written whole but for the bytes past those kept: there stands what
        // this ring carried before.
        unsafe {
            (&raw mut (*to).header).write(header::<wire::PythonCode>(kind::PYTHON_CODE, now_ns));
            (&raw mut (*to).generation).write(generation);
            (&raw mut (*to).code_id).write(code_id);
            (&raw mut (*to).tgid).write(tgid);
            (&raw mut (*to).first_line).write(user(code, layout.code_first_line).unwrap_or(0));
            let (state, chars, kept) = copy_text(layout, file, &raw mut (*to).file);
            (&raw mut (*to).file_state).write(state);
            (&raw mut (*to).file_chars).write(chars);
            (&raw mut (*to).file_kept).write(kept);
            let (state, chars, kept) = copy_text(layout, name, &raw mut (*to).name);
            (&raw mut (*to).name_state).write(state);
            (&raw mut (*to).name_chars).write(chars);
            (&raw mut (*to).name_kept).write(kept);
            let bytes = user::<u64>(table, common::BYTES_SIZE).unwrap_or(0) as u32;
            let start = table.wrapping_add(common::BYTES_START as u64);
            (&raw mut (*to).minor).write(python.minor);
            (&raw mut (*to).reserved).write(0);
            (&raw mut (*to).table_bytes).write(bytes);
            (&raw mut (*to).table_kept).write(copy_bytes(start, bytes, &raw mut (*to).table));
        }
    })
}

/// Copies a string object: its state word, its length, and how many bytes were copied.
///
/// # Safety
/// `into` must be valid.
#[inline(always)]
unsafe fn copy_text<const N: usize>(layout: &Layout, text: u64, into: *mut [u8; N]) -> (u32, u32, u32) {
    const IS_ASCII: u32 = 1 << 6;
    let state: u32 = user(text, common::TEXT_STATE).unwrap_or(0);
    let chars = user::<u64>(text, common::TEXT_CHARS).unwrap_or(0) as u32;
    let start = if state & IS_ASCII != 0 { layout.text_ascii } else { layout.text_compact };
    let bytes = chars.wrapping_mul(state >> 2 & 7);
    // SAFETY: the caller's.
    (state, chars, unsafe { copy_bytes(text.wrapping_add(start as u64), bytes, into) })
}

/// Copies `bytes` of the process at `from`, or as many as there is room for but one; returns how many. `N` is a power of two.
///
/// # Safety
/// `into` must be valid.
#[inline(always)]
unsafe fn copy_bytes<const N: usize>(from: u64, bytes: u32, into: *mut [u8; N]) -> u32 {
    let mut bytes = if bytes < N as u32 { bytes } else { N as u32 - 1 };
    // The compiler would drop the mask, which the verifier goes by.
    // SAFETY: a variable of this function; as for `into`, the caller's.
    unsafe {
        let bytes = (&raw mut bytes).read_volatile() & (N as u32 - 1);
        if bpf_probe_read_user(into.cast(), bytes, from as *const _) == 0 { bytes } else { 0 }
    }
}

/// Sends the copy of a stack from `from` on, with the first `count` addresses. `kind` is `SNAPSHOT` or `AUDIT`.
/// False: there was no room.
#[inline(always)]
pub fn snapshot(
    kind: u16,
    id: u64,
    addresses: *const u64,
    count: u32,
    from: &Walk,
    owner: &wire::Owner,
    now_ns: u64,
) -> bool {
    let wake = if kind == kind::SNAPSHOT { FORCE_WAKEUP } else { NO_WAKEUP };
    write::<wire::Snapshot>(wake, |to| {
        // SAFETY: fresh memory of the ring buffer. Written whole but for the bytes of pages that could not be read and
        // those before `sp`: there stands what this ring carried before.
        unsafe {
            (&raw mut (*to).header).write(header::<wire::Snapshot>(kind, now_ns));
            (&raw mut (*to).stack_id).write(id);
            (&raw mut (*to).start_boot_ns).write(owner.start_boot_ns);
            (&raw mut (*to).tgid).write(owner.tgid);
            (&raw mut (*to).count).write(count);
            (&raw mut (*to).generation).write(from.generation);
            (&raw mut (*to).ip).write(from.ip);
            (&raw mut (*to).sp).write(from.sp);
            (&raw mut (*to).bp).write(from.bp);
            copy_addresses(addresses, &raw mut (*to).addresses);
            let valid = stack::copy_pages(from.sp, (&raw mut (*to).bytes).cast());
            (&raw mut (*to).pages_valid).write(valid);
            (&raw mut (*to).kernel_count).write(from.kernel_count);
        }
    })
}

/// Copies the user addresses and, where they were taken, the kernel addresses behind them: whole arrays, in one call.
/// What stands in them behind the valid entries is an older stack's.
///
/// # Safety
/// `from` and `into` must be followed by `KERNEL_FRAMES_MAX` words.
#[inline(always)]
unsafe fn copy_addresses(from: *const u64, into: *mut [u64; STACK_FRAMES_MAX]) {
    let frames =
        if setting!(kernel_stacks) == 0 { STACK_FRAMES_MAX } else { STACK_FRAMES_MAX + KERNEL_FRAMES_MAX };
    // SAFETY: the caller's. The source is a map's memory, which can always be read.
    unsafe {
        bpf_probe_read_kernel(into.cast(), (8 * frames) as u32, from.cast());
    }
}

/// How long a port was held; 0 when it is not known since when.
#[inline(always)]
pub fn held(allocated_ns: u64, now_ns: u64) -> u64 {
    if allocated_ns == 0 { 0 } else { now_ns.wrapping_sub(allocated_ns) }
}

/// # Safety
/// Both must be valid for a whole `Endpoints`.
#[inline(always)]
unsafe fn copy_endpoints(from: *const wire::Endpoints, to: *mut wire::Endpoints) {
    // SAFETY: the caller's.
    unsafe {
        core::ptr::copy_nonoverlapping(from.cast::<u64>(), to.cast::<u64>(), size_of::<wire::Endpoints>() / 8)
    }
}

const _: () = assert!(EVENT_KINDS <= 32);
