//! Bytes of the ring buffer → [`Record`]s. Total: any bytes give records or errors, never a panic.

use std::fmt;
use std::net::Ipv6Addr;

use portwatch_common::wire::{self, WIRE_VERSION, kind};
use zerocopy::FromBytes;

use super::{
    Closer, Comm, Confidence, Direction, Endpoints, Errno, Family, Hold, How, Owner, Protocol, PythonFrame,
    PythonState, RawPythonCode, RawPythonStack, RawSnapshot, RawStack, Reason, SocketId, StackGap, StackId,
    StackState, TimeWaitState, Traffic,
};

/// One record of the kernel side.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// `CLOCK_MONOTONIC`
    pub mono_ns: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A new hold, or one whose description is sent again. `is_event`: it is `port_allocated` too.
    Hold {
        hold: Box<Hold>,
        is_event: bool,
    },
    ConnectFailed {
        socket: SocketId,
        failure: Failure,
    },
    BindFailed {
        socket: SocketId,
        failure: Failure,
    },
    Established {
        socket: SocketId,
        connect_ns: Option<u64>,
        endpoints: Endpoints,
    },
    TimeWait {
        socket: SocketId,
        closer: Option<Closer>,
        traffic: Traffic,
        substate: TimeWaitState,
        confidence: Confidence,
    },
    Closed {
        socket: SocketId,
        closer: Option<Closer>,
        traffic: Traffic,
        held_ns: Option<u64>,
        closed_by: Option<u32>,
    },
    /// `is_silent`: nobody asked for the event, the socket is only to be forgotten.
    Released {
        socket: SocketId,
        reason: Reason,
        held_ns: Option<u64>,
        was_listening: bool,
        is_silent: bool,
    },
    /// `kernel`: kernel addresses above the system call, innermost first.
    Stack {
        user: RawStack,
        kernel: Vec<u64>,
    },
    Snapshot(Box<RawSnapshot>),
    /// A stack that the kernel side walked to its end, and what it was walked from: `addresses` is all of it, the
    /// registers are its innermost frame's.
    Audit(Box<RawSnapshot>),
    PythonStack(RawPythonStack),
    PythonCode(Box<RawPythonCode>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `None`: nobody saw an error, the attempt was abandoned.
    pub errno: Option<Errno>,
    pub is_abandoned: bool,
    pub is_inferred: bool,
    /// No port is held: nothing more comes for this socket.
    pub is_final: bool,
    pub endpoints: Endpoints,
}

/// What is wrong with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The kernel side speaks another version.
    Version { got: u16, known: u16 },
    /// A record of a known kind has another size, or the batch ends inside a record.
    Size { kind: u16, got: usize, known: usize },
    /// A record of a kind that this version does not know; it is skipped.
    Kind(u16),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Version { got, known } => {
                write!(f, "record of wire version {got}, this portwatch knows version {known}")
            }
            DecodeError::Size { kind, got, known } => {
                write!(f, "record of kind {kind} has {got} bytes instead of {known}")
            }
            DecodeError::Kind(kind) => write!(f, "record of unknown kind {kind}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The records of a batch. After an error that leaves no way to find the next record, it ends.
pub fn records(batch: &[u8]) -> impl Iterator<Item = Result<Record, DecodeError>> + '_ {
    let mut rest = batch;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (record, used) = next(rest);
        rest = rest.get(used..).unwrap_or_default();
        Some(record)
    })
}

/// The snapshots of a batch, found without reading the other records.
pub fn snapshots(batch: &[u8]) -> impl Iterator<Item = (u64, RawSnapshot)> + '_ {
    let mut rest = batch;
    std::iter::from_fn(move || {
        loop {
            let (header, _) = wire::Header::read_from_prefix(rest).ok()?;
            let size = header.size as usize;
            if size < size_of::<wire::Header>() {
                return None;
            }
            let (bytes, behind) = rest.split_at_checked(size)?;
            rest = behind;
            if (header.version, header.kind) == (WIRE_VERSION, kind::SNAPSHOT)
                && let Ok(wire) = read(header.kind, bytes)
            {
                return Some((header.time_mono_ns, snapshot(&wire)));
            }
        }
    })
}

/// The first record and how many bytes it takes: all of them where that cannot be known.
fn next(bytes: &[u8]) -> (Result<Record, DecodeError>, usize) {
    let Ok((header, _)) = wire::Header::read_from_prefix(bytes) else {
        let known = size_of::<wire::Header>();
        return (Err(DecodeError::Size { kind: u16::MAX, got: bytes.len(), known }), bytes.len());
    };
    if header.version != WIRE_VERSION {
        return (Err(DecodeError::Version { got: header.version, known: WIRE_VERSION }), bytes.len());
    }
    let size = header.size as usize;
    if size < size_of::<wire::Header>() || size > bytes.len() {
        return (Err(DecodeError::Size { kind: header.kind, got: bytes.len(), known: size }), bytes.len());
    }
    let body = body(header.kind, &bytes[..size]);
    (body.map(|body| Record { mono_ns: header.time_mono_ns, body }), size)
}

fn read<T: FromBytes>(kind: u16, bytes: &[u8]) -> Result<T, DecodeError> {
    T::read_from_bytes(bytes).map_err(|_| DecodeError::Size { kind, got: bytes.len(), known: size_of::<T>() })
}

fn body(kind: u16, bytes: &[u8]) -> Result<Body, DecodeError> {
    Ok(match kind {
        kind::PORT_ALLOCATED | kind::HOLD => {
            let wire: wire::Hold = read(kind, bytes)?;
            Body::Hold { hold: Box::new(hold(&wire)), is_event: kind == kind::PORT_ALLOCATED }
        }
        kind::CONNECT_FAILED | kind::BIND_FAILED => {
            let wire: wire::Failed = read(kind, bytes)?;
            let socket = SocketId(wire.socket_id);
            let failure = failure(&wire);
            if kind == kind::CONNECT_FAILED {
                Body::ConnectFailed { socket, failure }
            } else {
                Body::BindFailed { socket, failure }
            }
        }
        kind::ESTABLISHED => {
            let wire: wire::Established = read(kind, bytes)?;
            Body::Established {
                socket: SocketId(wire.socket_id),
                connect_ns: known(wire.connect_ns),
                endpoints: endpoints(&wire.endpoints),
            }
        }
        kind::TIME_WAIT => {
            let wire: wire::TimeWait = read(kind, bytes)?;
            Body::TimeWait {
                socket: SocketId(wire.socket_id),
                closer: closer(wire.closer),
                traffic: Traffic {
                    bytes_sent: Some(wire.bytes_sent),
                    bytes_received: Some(wire.bytes_received),
                    connect_ns: known(wire.connect_ns),
                },
                substate: match wire.substate {
                    5 => TimeWaitState::FinWait2,
                    6 => TimeWaitState::TimeWait,
                    _ => TimeWaitState::Unknown,
                },
                confidence: confidence(wire.confidence),
            }
        }
        kind::CLOSED => {
            let wire: wire::Closed = read(kind, bytes)?;
            Body::Closed {
                socket: SocketId(wire.socket_id),
                closer: closer(wire.closer),
                traffic: Traffic {
                    bytes_sent: Some(wire.bytes_sent),
                    bytes_received: Some(wire.bytes_received),
                    connect_ns: known(wire.connect_ns),
                },
                held_ns: known(wire.held_ns),
                closed_by: (wire.closed_by_tgid != 0).then_some(wire.closed_by_tgid),
            }
        }
        kind::PORT_RELEASED => {
            let wire: wire::PortReleased = read(kind, bytes)?;
            Body::Released {
                socket: SocketId(wire.socket_id),
                reason: reason(wire.reason),
                held_ns: known(wire.held_ns),
                was_listening: wire.was_listening != 0,
                is_silent: wire.is_silent != 0,
            }
        }
        kind::STACK => {
            let wire: wire::Stack = read(kind, bytes)?;
            let user = RawStack {
                id: StackId(wire.stack_id),
                tgid: wire.tgid,
                start_boot_ns: wire.start_boot_ns,
                addresses: first(&wire.addresses, wire.count.into()),
            };
            Body::Stack { user, kernel: first(&wire.kernel, wire.kernel_count) }
        }
        kind::SNAPSHOT => Body::Snapshot(Box::new(snapshot(&read(kind, bytes)?))),
        kind::AUDIT => Body::Audit(Box::new(snapshot(&read(kind, bytes)?))),
        kind::PYTHON_STACK => Body::PythonStack(python_stack(&read(kind, bytes)?)),
        kind::PYTHON_CODE => Body::PythonCode(Box::new(python_code(&read(kind, bytes)?))),
        kind => return Err(DecodeError::Kind(kind)),
    })
}

fn first(addresses: &[u64], count: u64) -> Vec<u64> {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(addresses.len());
    addresses[..count].to_vec()
}

fn snapshot(wire: &wire::Snapshot) -> RawSnapshot {
    // The copy begins within its first page.
    let skipped = (wire.sp % 4096) as usize;
    RawSnapshot {
        id: StackId(wire.stack_id),
        tgid: wire.tgid,
        start_boot_ns: wire.start_boot_ns,
        generation: wire.generation,
        ip: wire.ip,
        sp: wire.sp,
        bp: wire.bp,
        addresses: first(&wire.addresses, wire.count.into()),
        kernel: first(&wire.kernel, wire.kernel_count.into()),
        bytes: wire.bytes.get(skipped..).unwrap_or_default().to_vec(),
        pages_valid: wire.pages_valid,
    }
}

fn python_stack(wire: &wire::PythonStack) -> RawPythonStack {
    use portwatch_common::wire::{python_flags, python_state as code};
    let frames = wire.frames[..(wire.count as usize).min(wire.frames.len())].iter();
    RawPythonStack {
        id: StackId(wire.stack_id),
        generation: wire.generation,
        hash: wire.hash,
        state: match wire.state {
            code::WHOLE => PythonState::Whole,
            code::CUT => PythonState::Cut,
            code::NO_THREAD => PythonState::NoThread,
            _ => PythonState::Unreadable,
        },
        frames: frames
            .map(|frame| PythonFrame {
                code_id: frame.code_id,
                at: frame.at,
                is_entry: frame.flags & python_flags::ENTRY != 0,
            })
            .collect(),
    }
}

fn python_code(wire: &wire::PythonCode) -> RawPythonCode {
    let kept = |bytes: &[u8], kept: u32| bytes[..(kept as usize).min(bytes.len())].to_vec();
    RawPythonCode {
        generation: wire.generation,
        code_id: wire.code_id,
        minor: wire.minor,
        first_line: wire.first_line,
        file: (wire.file_state, wire.file_chars, kept(&wire.file, wire.file_kept)),
        name: (wire.name_state, wire.name_chars, kept(&wire.name, wire.name_kept)),
        table: kept(&wire.table, wire.table_kept),
        table_bytes: wire.table_bytes,
    }
}

/// What the kernel side says of a stack. One that it took may still turn out not to be whole.
fn stack_state(wire: &wire::Hold) -> StackState {
    use portwatch_common::wire::stack_state as code;
    let gap = match wire.stack_state {
        code::UNASKED => return StackState::Unasked,
        code::TAKEN => return StackState::Whole,
        code::KERNEL_TASK => StackGap::KernelTask,
        code::COMPAT => StackGap::Compat,
        code::RATE_LIMITED => StackGap::RateLimited,
        code::RING_FULL => StackGap::RingFull,
        code::TOO_DEEP => StackGap::TooDeep,
        code::OTHER_PID_NAMESPACE => StackGap::OtherPidNamespace,
        _ => StackGap::Unreadable,
    };
    if wire.stack_id == 0 { StackState::Missing(gap) } else { StackState::Part(gap) }
}

/// 0 on the wire means that the kernel side does not know.
fn known(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn hold(wire: &wire::Hold) -> Hold {
    let how = match wire.how {
        wire::how::CONNECT => How::Connect,
        wire::how::BIND => How::Bind,
        wire::how::LISTEN => How::Listen,
        wire::how::AUTOBIND => How::Autobind,
        _ => How::None,
    };
    Hold {
        socket: SocketId(wire.socket_id),
        owner: owner(&wire.owner, how),
        endpoints: endpoints(&wire.endpoints),
        how,
        direction: match how {
            How::Listen | How::None => Direction::In,
            How::Connect | How::Bind | How::Autobind => Direction::Out,
        },
        confidence: confidence(wire.confidence),
        begun_mono_ns: wire.begun_mono_ns,
        search_ns: known(wire.search_ns),
        stack: (wire.stack_id != 0).then_some(StackId(wire.stack_id)),
        stack_state: stack_state(wire),
        is_late: wire.flags & wire::hold_flags::LATE != 0,
    }
}

/// Accepted connections have none: nobody asked for their port.
fn owner(wire: &wire::Owner, how: How) -> Option<Owner> {
    let number = |number: u32| (number != 0).then_some(number);
    (how != How::None).then(|| Owner {
        tgid: number(wire.tgid),
        tid: number(wire.tid),
        ppid: number(wire.ppid),
        uid: wire.uid,
        ns_tgid: number(wire.ns_tgid).filter(|_| wire.ns_tgid != wire.tgid),
        start_boot_ns: wire.start_boot_ns,
        cgroup_id: wire.cgroup_id,
        comm: Comm(wire.comm),
        is_kernel: wire.is_kernel != 0,
    })
}

fn endpoints(wire: &wire::Endpoints) -> Endpoints {
    let port = |port: u16| (port != 0).then_some(port);
    Endpoints {
        netns: wire.netns,
        family: if wire.family == 10 { Family::Ipv6 } else { Family::Ipv4 },
        protocol: if wire.protocol == 17 { Protocol::Udp } else { Protocol::Tcp },
        local: Ipv6Addr::from(wire.addr_local),
        remote: Ipv6Addr::from(wire.addr_remote),
        local_port: port(wire.port_local),
        remote_port: port(wire.port_remote),
    }
}

fn failure(wire: &wire::Failed) -> Failure {
    let has = |flag: u32| wire.flags & flag != 0;
    Failure {
        errno: (wire.errno != 0).then_some(Errno(wire.errno)),
        is_abandoned: has(wire::failed_flags::ABANDONED),
        is_inferred: has(wire::failed_flags::INFERRED),
        is_final: has(wire::failed_flags::FINAL),
        endpoints: endpoints(&wire.endpoints),
    }
}

fn closer(code: u8) -> Option<Closer> {
    match code {
        wire::closer::LOCAL => Some(Closer::Local),
        wire::closer::REMOTE => Some(Closer::Remote),
        wire::closer::BOTH => Some(Closer::Both),
        wire::closer::RESET => Some(Closer::Reset),
        _ => None,
    }
}

fn reason(code: u8) -> Reason {
    match code {
        wire::reason::CLOSED => Reason::Closed,
        wire::reason::TW_EXPIRED => Reason::TimeWaitExpired,
        wire::reason::TW_REUSED => Reason::TimeWaitReused,
        wire::reason::TW_RESET => Reason::TimeWaitReset,
        wire::reason::TW_OVERFLOW => Reason::TimeWaitOverflow,
        wire::reason::NETNS_EXIT => Reason::NetnsExit,
        wire::reason::DISCONNECTED => Reason::Disconnected,
        _ => Reason::Unknown,
    }
}

fn confidence(code: u8) -> Confidence {
    match code {
        wire::confidence::EXACT => Confidence::Exact,
        wire::confidence::INFERRED => Confidence::Inferred,
        _ => Confidence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn released(socket_id: u64) -> wire::PortReleased {
        let mut record = wire::PortReleased::new_zeroed();
        record.header =
            wire::Header { version: WIRE_VERSION, kind: kind::PORT_RELEASED, size: 40, time_mono_ns: 5 };
        record.socket_id = socket_id;
        record.reason = wire::reason::TW_EXPIRED;
        record
    }

    fn all(batch: &[u8]) -> Vec<Result<Record, DecodeError>> {
        records(batch).collect()
    }

    #[test]
    fn records_are_read_one_after_the_other() {
        let mut batch = released(1).as_bytes().to_vec();
        batch.extend_from_slice(released(2).as_bytes());
        let sockets: Vec<_> = all(&batch)
            .into_iter()
            .map(|record| match record.unwrap().body {
                Body::Released { socket, reason: Reason::TimeWaitExpired, held_ns: None, .. } => socket.0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sockets, [1, 2]);
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let mut record = released(1);
        record.header.version = 9;
        assert_eq!(all(record.as_bytes()), [Err(DecodeError::Version { got: 9, known: WIRE_VERSION })]);
    }

    #[test]
    fn an_unknown_kind_is_skipped() {
        let mut record = released(1);
        record.header.kind = 999;
        let mut batch = record.as_bytes().to_vec();
        batch.extend_from_slice(released(2).as_bytes());
        let records = all(&batch);
        assert_eq!(records[0], Err(DecodeError::Kind(999)));
        assert!(records[1].is_ok());
    }

    #[test]
    fn a_record_of_the_wrong_size_is_refused() {
        let mut record = released(1);
        record.header.kind = kind::CLOSED;
        assert_eq!(
            all(record.as_bytes()),
            [Err(DecodeError::Size { kind: kind::CLOSED, got: 40, known: size_of::<wire::Closed>() })]
        );
    }

    #[test]
    fn snapshots_are_found_among_other_records() {
        let mut taken = wire::Snapshot::new_zeroed();
        let size = size_of::<wire::Snapshot>() as u32;
        taken.header = wire::Header { version: WIRE_VERSION, kind: kind::SNAPSHOT, size, time_mono_ns: 7 };
        taken.stack_id = 3;
        let mut batch = released(1).as_bytes().to_vec();
        batch.extend_from_slice(taken.as_bytes());
        batch.extend_from_slice(released(2).as_bytes());
        taken.stack_id = 4;
        batch.extend_from_slice(taken.as_bytes());
        let found: Vec<_> = snapshots(&batch).map(|(mono_ns, raw)| (mono_ns, raw.id.0)).collect();
        assert_eq!(found, [(7, 3), (7, 4)]);
    }

    /// Every prefix of a good batch, and every single flipped byte of it.
    #[test]
    fn hostile_bytes_never_panic() {
        let mut batch = released(1).as_bytes().to_vec();
        batch.extend_from_slice(released(2).as_bytes());
        for end in 0..batch.len() {
            let _ = all(&batch[..end]);
            assert_eq!(snapshots(&batch[..end]).count(), 0);
        }
        for at in 0..batch.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = batch.clone();
                bytes[at] = value;
                assert!(all(&bytes).len() <= batch.len());
                assert!(snapshots(&bytes).count() <= 2);
            }
        }
    }
}
