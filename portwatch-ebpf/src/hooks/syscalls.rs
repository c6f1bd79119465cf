//! `syscalls:sys_exit_{connect,bind,listen}`: what the tracepoint rung knows of the calls themselves.
//!
//! The arguments are read from the task's saved registers, which still hold them at exit: so one program a call is
//! enough, and there is no map of calls under way. The port is read from the socket behind the descriptor.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use portwatch_common::counters::hook;
use portwatch_common::wire::{failed_flags, how, kind, reason};

use super::{now, udp_syscalls};
use crate::life::{self, Asked};
use crate::maps::scratch;
use crate::owner::current_task;
use crate::read::{kernel, kernel_pointer};
use crate::settings::{offset, setting};
use crate::slot::flags;
use crate::sock::{Sock, Sockaddr, state};
use crate::{counters, emit, filter, kernel_stack, owner, registers};

const EINTR: i32 = 4;
const EALREADY: i32 = 114;
const EINPROGRESS: i32 = 115;
const EISCONN: i32 = 106;
/// Never seen by programs: the call is restarted, or ends as EINTR.
const ERESTARTSYS: i32 = 512;

const S_IFMT: u16 = 0o170000;
const S_IFSOCK: u16 = 0o140000;

/// Offset of the return value in the tracepoint's record. Source: `format` of every `syscalls:sys_exit_*`, 5.10 to 7.2.
const RET: usize = 16;

#[tracepoint]
pub fn sys_exit_connect(ctx: TracePointContext) -> u32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    super::done(connect(&ctx))
}

#[tracepoint]
pub fn sys_exit_bind(ctx: TracePointContext) -> u32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    super::done(bind(&ctx))
}

#[tracepoint]
pub fn sys_exit_listen(ctx: TracePointContext) -> u32 {
    kernel_stack::note(&ctx, scratch::CONNECT_FAILED);
    super::done(listen(&ctx))
}

/// First two arguments of the system call that the running task is leaving, and its result.
#[inline(always)]
fn call(ctx: &TracePointContext) -> Option<(u32, u64, i32)> {
    let ret: i64 = kernel(ctx.as_ptr() as u64, RET as u32)?;
    let registers = registers::saved()?;
    Some((kernel(registers, registers::ARG0)?, kernel(registers, registers::ARG1)?, ret as i32))
}

/// A socket of a wanted protocol, and the number of its file: unique while it lives, and long after.
#[derive(Clone, Copy)]
struct Opened {
    sk: Sock,
    inode: u64,
}

/// The socket behind a descriptor of the running task, if its protocol is wanted.
#[inline(always)]
fn wanted_sock(fd: u32) -> Option<Opened> {
    let files = kernel_pointer(current_task(), offset!(task_files))?;
    let table = kernel_pointer(files, offset!(files_fdt))?;
    if fd >= kernel(table, offset!(fdt_max_fds))? {
        return None;
    }
    let array = kernel_pointer(table, offset!(fdt_fd))?;
    let file = kernel_pointer(array + fd as u64 * 8, 0)?;
    let inode = kernel_pointer(file, offset!(file_inode))?;
    if kernel::<u16>(inode, offset!(inode_mode))? & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket = kernel_pointer(file, offset!(file_private_data))?;
    let sk = Sock(kernel_pointer(socket, offset!(socket_sk))?);
    if !filter::wants_protocol(sk) {
        return None;
    }
    Some(Opened { sk, inode: kernel(inode, offset!(inode_ino))? })
}

#[inline(always)]
fn connect(ctx: &TracePointContext) -> Option<()> {
    let (fd, address, ret) = call(ctx)?;
    let Opened { sk, inode } = wanted_sock(fd)?;
    let now_ns = now();
    if sk.is_udp() {
        return udp_syscalls::connected(sk, inode, address, ret, now_ns);
    }
    if let Some(slot) = life::slot_of(sk) {
        if slot.flags & flags::IS_SELF != 0 {
            counters::self_test_hit(hook::EXIT_CONNECT);
        }
        if slot.flags & flags::IN_CONNECT != 0 {
            slot.flags &= !flags::IN_CONNECT;
            if is_failure(ret) {
                if slot.flags & flags::FAILURE_TOLD == 0 {
                    failed_inside(sk, slot, -ret as u32, now_ns);
                }
                if slot.flags & flags::HAS_PORT == 0 {
                    life::forget(sk);
                } else if slot.flags & flags::PORT_PUT != 0 {
                    life::released(sk, slot, reason::CLOSED, now_ns);
                }
            } else if slot.flags & flags::HAS_PORT == 0 {
                match sk.num() {
                    0 => life::forget(sk),
                    port => life::allocated_late(sk, slot, port, now_ns),
                }
            }
            return Some(());
        }
        if slot.flags & flags::MAY_BE_COLLECTED != 0 {
            slot.flags &= !flags::MAY_BE_COLLECTED;
            if slot.flags & flags::HAS_PORT == 0 {
                life::forget(sk);
            }
            return None;
        }
        // A further connect() that only collects the result of the first: that was told already.
        if !is_failure(ret) || slot.flags & (flags::FAILURE_TOLD | flags::AWAITS_PEER) != 0 {
            return None;
        }
    }
    if is_failure(ret) && !needs_peer(-ret) && sk.state() == Some(state::CLOSE) && sk.error() == 0 {
        failed_early(sk, address, -ret as u32, now_ns);
    }
    Some(())
}

/// connect() failed after SYN_SENT without an error on the socket: no port, or no memory for the SYN.
#[inline(always)]
fn failed_inside(sk: Sock, slot: &mut crate::slot::Slot, errno: u32, now_ns: u64) {
    const EADDRNOTAVAIL: u32 = 99;
    let sport = sk.sport();
    if slot.flags & flags::HAS_PORT == 0 && errno != EADDRNOTAVAIL && sport != 0 && sport != slot.stale_sport
    {
        life::allocated_late(sk, slot, sport, now_ns);
        slot.flags |= flags::PORT_PUT;
    }
    life::connect_failed(slot, errno, 0, now_ns);
}

/// A connect that failed before it reached SYN_SENT.
#[inline(always)]
fn failed_early(sk: Sock, address: u64, errno: u32, now_ns: u64) -> Option<()> {
    let peer = Sockaddr::from_user(address)?;
    let slot = life::describe(sk, scratch::CONNECT_FAILED, how::CONNECT, Some(&peer), now_ns)?;
    if life::wants_addresses(&slot.hold.endpoints) {
        emit::failed(slot, kind::CONNECT_FAILED, errno, failed_flags::FINAL, now_ns);
    }
    Some(())
}

/// Whether an error comes of an answer, or of the lack of one: then SYN_SENT was reached and the failure was told at
/// its end. A further connect() that collects it finds the socket without a hold, and takes the error from the socket.
#[inline(always)]
fn needs_peer(errno: i32) -> bool {
    const ECONNABORTED: i32 = 103;
    const ECONNRESET: i32 = 104;
    const ETIMEDOUT: i32 = 110;
    const ECONNREFUSED: i32 = 111;
    matches!(errno, ECONNABORTED | ECONNRESET | ETIMEDOUT | ECONNREFUSED)
}

#[inline(always)]
fn is_failure(ret: i32) -> bool {
    ret < 0 && !matches!(-ret, EINPROGRESS | EALREADY | EISCONN | EINTR) && -ret < ERESTARTSYS
}

#[inline(always)]
fn bind(ctx: &TracePointContext) -> Option<()> {
    let (fd, address, ret) = call(ctx)?;
    let Opened { sk, inode } = wanted_sock(fd)?;
    if is_self() {
        counters::self_test_hit(hook::EXIT_BIND);
    }
    let errno = if ret < 0 { -ret as u32 } else { 0 };
    let requested = if errno != 0 { Some(Sockaddr::from_user(address)?) } else { None };
    // IP_BIND_ADDRESS_NO_PORT leaves the port to connect().
    if errno == 0 && sk.num() == 0 {
        return None;
    }
    life::asked(sk, scratch::GET_PORT, &Asked { how: how::BIND, requested, peer: None, inode, errno }, now())
}

#[inline(always)]
fn listen(ctx: &TracePointContext) -> Option<()> {
    let (fd, _, ret) = call(ctx)?;
    let Opened { sk, .. } = wanted_sock(fd)?;
    if !sk.is_tcp() {
        return None;
    }
    if is_self() {
        counters::self_test_hit(hook::EXIT_LISTEN);
    }
    let errno = if ret < 0 { -ret as u32 } else { 0 };
    life::asked(
        sk,
        scratch::LISTEN_FAILED,
        &Asked { how: how::LISTEN, requested: None, peer: None, inode: 0, errno },
        now(),
    )
}

#[inline(always)]
fn is_self() -> bool {
    owner::current_ids().0 == setting!(self_tgid)
}
