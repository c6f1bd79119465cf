//! What happened, in owned and checked form, without wire types.
//!
//! An [`Event`] belongs to a [`Hold`]: one hold of one port by one socket, from its allocation over its
//! connection and its TIME_WAIT to its release. Nothing here is serialisable: the event log has structs of
//! its own ([`crate::output::json`]), and these stay free to change.

pub mod decode;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Names one hold of a port within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u64);

/// Names one distinct user stack within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// Something that happened to a hold. All times are `CLOCK_MONOTONIC`, nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub mono_ns: u64,
    pub socket: SocketId,
    pub what: What,
    pub confidence: Confidence,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A connect, bind or listen got a local port.
    PortAllocated,
    /// A connect ended without a connection.
    ConnectFailed {
        errno: Option<Errno>,
        is_abandoned: bool,
    },
    /// A bind or listen did not get what it asked for.
    BindFailed {
        errno: Errno,
    },
    Established {
        connect_ns: Option<u64>,
    },
    /// A time-wait entry holds the port from now on.
    TimeWait {
        closer: Option<Closer>,
        traffic: Traffic,
        substate: TimeWaitState,
    },
    /// The full socket left an established state.
    Closed {
        closer: Option<Closer>,
        traffic: Traffic,
        held_ns: Option<u64>,
        closed_by: Option<u32>,
    },
    PortReleased {
        reason: Reason,
        held_ns: Option<u64>,
    },
}

impl What {
    /// Name in the event log.
    pub fn name(&self) -> &'static str {
        match self {
            What::PortAllocated => "port_allocated",
            What::ConnectFailed { .. } => "connect_failed",
            What::BindFailed { .. } => "bind_failed",
            What::Established { .. } => "established",
            What::TimeWait { .. } => "time_wait",
            What::Closed { .. } => "closed",
            What::PortReleased { .. } => "port_released",
        }
    }

    /// Whether this is a connect or bind that failed.
    pub fn is_failure(&self) -> bool {
        matches!(self, What::ConnectFailed { .. } | What::BindFailed { .. })
    }
}

/// Substate of a time-wait entry when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitState {
    /// The peer has not closed yet: the ordinary case when this side closes first.
    FinWait2,
    TimeWait,
    /// The kernel's entry was not seen, only that there must be one.
    Unknown,
}

/// Payload of a connection, retransmissions not counted; `None` where the kernel did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes_sent: Option<u64>,
    pub bytes_received: Option<u64>,
    /// From the start of the connect to the established state.
    pub connect_ns: Option<u64>,
}

/// Which side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    Local,
    Remote,
    Both,
    Reset,
}

impl Closer {
    pub fn name(self) -> &'static str {
        match self {
            Closer::Local => "local",
            Closer::Remote => "remote",
            Closer::Both => "both",
            Closer::Reset => "reset",
        }
    }
}

/// Why a port was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Closed,
    TimeWaitExpired,
    TimeWaitReused,
    TimeWaitReset,
    TimeWaitOverflow,
    NetnsExit,
    Disconnected,
    Unknown,
}

impl Reason {
    /// Name in the event log.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::TimeWaitExpired => "tw_expired",
            Reason::TimeWaitReused => "tw_reused",
            Reason::TimeWaitReset => "tw_reset",
            Reason::TimeWaitOverflow => "tw_overflow",
            Reason::NetnsExit => "netns_exit",
            Reason::Disconnected => "disconnected",
            Reason::Unknown => "unknown",
        }
    }
}

/// How a fact is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// A hook saw it.
    Exact,
    /// Deduced, say from a state change.
    Inferred,
    Unknown,
}

impl Confidence {
    pub fn name(self) -> &'static str {
        match self {
            Confidence::Exact => "exact",
            Confidence::Inferred => "inferred",
            Confidence::Unknown => "unknown",
        }
    }
}

/// One hold of a port, or one attempt to get one.
#[derive(Clone, Debug, PartialEq)]
pub struct Hold {
    pub socket: SocketId,
    /// The task that asked for the port; `None` when nobody is known.
    pub owner: Option<Owner>,
    pub endpoints: Endpoints,
    pub how: How,
    pub direction: Direction,
    pub confidence: Confidence,
    /// When the attempt or hold began, `CLOCK_MONOTONIC`.
    pub begun_mono_ns: u64,
    /// Time in the kernel's search for a port.
    pub search_ns: Option<u64>,
    pub stack: Option<StackId>,
    pub stack_state: StackState,
    /// The port was learned after it was allocated; `begun_mono_ns` says when that was.
    pub is_late: bool,
}

/// How well the user stack behind a hold is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StackState {
    /// Nobody asked for it, or nobody asked for the port.
    #[default]
    Unasked,
    /// From the call to the start of the thread.
    Whole,
    /// Right as far as it goes, but not known to reach the start of the thread.
    Part(StackGap),
    Missing(StackGap),
}

impl StackState {
    /// Why the stack is not whole.
    pub fn gap(self) -> Option<StackGap> {
        match self {
            StackState::Unasked | StackState::Whole => None,
            StackState::Part(gap) | StackState::Missing(gap) => Some(gap),
        }
    }
}

/// Why a stack is not known, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StackGap {
    /// A kernel thread or io_uring worker has no user stack.
    KernelTask,
    /// 32-bit code is not walked.
    Compat,
    /// The process met too many unknown instructions in one second.
    RateLimited,
    /// The ring had no room for the stack.
    RingFull,
    /// The saved registers could not be read.
    Unreadable,
    /// The process is not in portwatch's PID namespace.
    OtherPidNamespace,
    /// More frames than are walked.
    TooDeep,
    /// More bytes than were copied of it, or pages of it that could not be read.
    NotCopied,
    /// A return address that is not in code.
    NotCode,
    /// The stack leads back into itself.
    NoProgress,
    /// Code on the way had just been replaced by other code.
    Replaced,
    /// The unwind table cannot be followed.
    NoRule,
    /// The mapping or program file could not be had.
    NoFile,
}

impl StackGap {
    /// Name in the event log.
    pub fn name(self) -> &'static str {
        match self {
            StackGap::KernelTask => "kernel_task",
            StackGap::Compat => "32bit",
            StackGap::RateLimited => "rate_limited",
            StackGap::RingFull => "ring_full",
            StackGap::Unreadable => "unreadable",
            StackGap::OtherPidNamespace => "other_pid_namespace",
            StackGap::TooDeep => "too_deep",
            StackGap::NotCopied => "not_copied",
            StackGap::NotCode => "not_code",
            StackGap::NoProgress => "no_progress",
            StackGap::Replaced => "replaced",
            StackGap::NoRule => "no_rule",
            StackGap::NoFile => "no_file",
        }
    }

    /// The same for people.
    pub fn text(self) -> &'static str {
        match self {
            StackGap::KernelTask => "kernel or io_uring worker",
            StackGap::Compat => "32-bit code",
            StackGap::RateLimited => "rate-limited",
            StackGap::RingFull => "no room in the ring",
            StackGap::Unreadable => "registers unreadable",
            StackGap::OtherPidNamespace => "other PID namespace",
            StackGap::TooDeep => "too many frames",
            StackGap::NotCopied => "too long to copy",
            StackGap::NotCode => "return address not in code",
            StackGap::NoProgress => "leads back into itself",
            StackGap::Replaced => "code just replaced",
            StackGap::NoRule => "no usable unwind rule",
            StackGap::NoFile => "program file not to be had",
        }
    }
}

/// Which call asked for the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Connect,
    Bind,
    Listen,
    Autobind,
    /// Nobody asked: accepted from a listener, or open before the start.
    None,
}

impl How {
    /// Name in the event log; `None` is absent there.
    pub fn name(self) -> Option<&'static str> {
        match self {
            How::Connect => Some("connect"),
            How::Bind => Some("bind"),
            How::Listen => Some("listen"),
            How::Autobind => Some("autobind"),
            How::None => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Out,
    In,
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
        }
    }
}

/// The task that asked for the port. Numbers are those of portwatch's own PID namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `None` when the process has no number in portwatch's PID namespace.
    pub tgid: Option<u32>,
    pub tid: Option<u32>,
    pub ppid: Option<u32>,
    pub uid: u32,
    /// The process's number in its own PID namespace, when it differs.
    pub ns_tgid: Option<u32>,
    /// Start of the process, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    /// Id in the cgroup version 2 hierarchy; 0 when not known.
    pub cgroup_id: u64,
    pub comm: Comm,
    /// A kernel thread or io_uring worker: there is no user stack.
    pub is_kernel: bool,
}

/// Name of a task: untrusted bytes, NUL-terminated. `Display` gives valid UTF-8 but escapes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    pub fn bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.bytes()))
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Both ends of a socket, as its owner sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Inode number of the network namespace.
    pub netns: u32,
    pub family: Family,
    pub protocol: Protocol,
    /// IPv4 addresses are IPv4-mapped here, whatever the family.
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    /// `None`: no port.
    pub local_port: Option<u16>,
    /// `None`: no peer, and then `remote` means nothing.
    pub remote_port: Option<u16>,
}

impl Endpoints {
    /// The local address in its natural form.
    pub fn local_ip(&self) -> IpAddr {
        self.local.to_canonical()
    }

    /// What the kernel tells sockets apart by: the same whatever the family a mapped address was written in.
    pub fn tuple(&self) -> Tuple {
        // Where there is no peer, `remote` says nothing.
        let remote = self.remote_port.map(|port| (self.remote, port));
        let local = (self.local, self.local_port);
        Tuple { netns: self.netns, protocol: self.protocol, local, remote }
    }

    /// The peer's address in its natural form; `None` without a peer.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.remote_port.map(|_| self.remote.to_canonical())
    }

    /// An IPv6 socket that talks IPv4.
    pub fn is_mapped(&self) -> bool {
        self.family == Family::Ipv6
            && (self.local.to_ipv4_mapped().is_some()
                || (self.remote_port.is_some() && self.remote.to_ipv4_mapped().is_some()))
    }
}

/// Both ends of a socket, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    netns: u32,
    protocol: Protocol,
    local: (Ipv6Addr, Option<u16>),
    remote: Option<(Ipv6Addr, u16)>,
}

impl Tuple {
    /// What the same socket was before it had a peer: bound to its address, or to all of them.
    pub fn before_connect(self) -> [Tuple; 2] {
        let all = if self.local.0.to_ipv4_mapped().is_some() {
            std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
        } else {
            Ipv6Addr::UNSPECIFIED
        };
        [self.local.0, all].map(|address| Tuple { local: (address, self.local.1), remote: None, ..self })
    }

    /// The other end of the same connection, where both are on this host.
    pub fn peer(self) -> Option<Tuple> {
        let (address, port) = self.remote?;
        Some(Tuple {
            netns: self.netns,
            protocol: self.protocol,
            local: (address, Some(port)),
            remote: Some((self.local.0, self.local.1?)),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A positive error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub u32);

/// A user stack as the kernel side took it: return addresses, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    pub id: StackId,
    /// Process whose address space it is.
    pub tgid: u32,
    /// Its start, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    pub addresses: Vec<u64>,
}

/// The Python frames of a stack, sent before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawPythonStack {
    /// What the stack that follows is called.
    pub id: StackId,
    /// Names the address space to the kernel side.
    pub generation: u64,
    /// To be mixed into the id of the whole stack.
    pub hash: u64,
    pub state: PythonState,
    /// Innermost first.
    pub frames: Vec<PythonFrame>,
}

/// How far the Python frames of a thread are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonState {
    Whole,
    /// Only the innermost ones.
    Cut,
    /// The interpreter does not know the thread, or has too many.
    NoThread,
    Unreadable,
}

/// One Python frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonFrame {
    /// Names a [`RawPythonCode`].
    pub code_id: u64,
    /// Where in the code, as the version counts it.
    pub at: i32,
    /// It is the outermost of one run of the evaluator.
    pub is_entry: bool,
}

/// A Python code object, sent before the first stack that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawPythonCode {
    /// Names the address space to the kernel side.
    pub generation: u64,
    /// Names the code within it.
    pub code_id: u64,
    /// Version of Python 3.
    pub minor: u32,
    pub first_line: u32,
    /// Strings: state word, characters, and the bytes that were read.
    pub file: (u32, u32, Vec<u8>),
    pub name: (u32, u32, Vec<u8>),
    /// The table of lines, or its beginning, and how long it is.
    pub table: Vec<u8>,
    pub table_bytes: u32,
}

/// A user stack that the kernel side could not walk to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSnapshot {
    /// What holds call it until the whole stack is known.
    pub id: StackId,
    pub tgid: u32,
    /// Start of the process, `CLOCK_BOOTTIME`.
    pub start_boot_ns: u64,
    /// Names the address space to the kernel side.
    pub generation: u64,
    /// Registers where the walk stopped.
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    /// Addresses up to there, innermost first; the last one is `ip`.
    pub addresses: Vec<u64>,
    /// Kernel addresses above the system call, innermost first.
    pub kernel: Vec<u64>,
    /// The stack from `sp` on.
    pub bytes: Vec<u8>,
    /// Bit n: page n, counted from the one that `sp` is in, could be read.
    pub pages_valid: u32,
}
