//! One socket as the kernel lists it, whichever way it was read.

use std::net::Ipv6Addr;

use crate::event::{Endpoints, Family, Protocol};

/// One row of a socket listing. All numbers are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRow {
    pub protocol: Protocol,
    pub family: Family,
    pub state: State,
    /// IPv4 addresses are IPv4-mapped, whatever the family.
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    /// 0: no port.
    pub local_port: u16,
    /// 0: no peer.
    pub remote_port: u16,
    /// Interface the socket is bound to; 0 when it is bound to none, or not known.
    pub interface: u32,
    /// User id of the socket. Time-wait entries have 0.
    pub uid: u32,
    /// Inode of the socket file; 0 when no file descriptor refers to it any more, or not yet.
    pub inode: u64,
    /// Unique over the uptime, and the same for a connection and the time-wait entry it leaves.
    /// `None` in /proc/net, which does not show it.
    pub cookie: Option<u64>,
    /// Cgroup (version 2) that the socket was made in; `None` for time-wait entries and where it is not shown.
    pub cgroup_id: Option<u64>,
    /// `Some(false)` on an IPv6 socket that also takes IPv4; `None` where it is not shown.
    pub is_v6_only: Option<bool>,
    pub timer: Timer,
    /// Until the timer fires. In TIME_WAIT: until the port is free.
    pub expires_ms: u32,
}

impl SocketRow {
    /// Both ends, in the form that events carry.
    pub fn endpoints(&self, netns: u32) -> Endpoints {
        Endpoints {
            netns,
            family: self.family,
            protocol: self.protocol,
            local: self.local,
            remote: self.remote,
            local_port: (self.local_port != 0).then_some(self.local_port),
            remote_port: (self.remote_port != 0).then_some(self.remote_port),
        }
    }

    /// State as the event log writes it.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            // A closed socket that is listed holds a port: bound UDP, and from Linux 6.8 TCP that is bound only.
            State::Close => "bound",
            state => state.name(),
        }
    }
}

/// State of a socket, as in the kernel's `net/tcp_states.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A request on a listening socket that no full socket stands for yet.
    NewSynReceived,
    /// A number this version does not know.
    Other(u8),
}

impl State {
    /// From the kernel's number.
    pub fn from_number(number: u8) -> State {
        match number {
            1 => State::Established,
            2 => State::SynSent,
            3 => State::SynReceived,
            4 => State::FinWait1,
            5 => State::FinWait2,
            6 => State::TimeWait,
            7 => State::Close,
            8 => State::CloseWait,
            9 => State::LastAck,
            10 => State::Listen,
            11 => State::Closing,
            12 => State::NewSynReceived,
            other => State::Other(other),
        }
    }

    /// Name in the event log.
    pub fn name(self) -> &'static str {
        match self {
            State::Established => "established",
            State::SynSent => "syn_sent",
            State::SynReceived | State::NewSynReceived => "syn_received",
            State::FinWait1 => "fin_wait1",
            State::FinWait2 => "fin_wait2",
            State::TimeWait => "time_wait",
            State::Close => "close",
            State::CloseWait => "close_wait",
            State::LastAck => "last_ack",
            State::Listen => "listen",
            State::Closing => "closing",
            State::Other(_) => "unknown",
        }
    }
}

/// What a socket's timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    None,
    Retransmit,
    /// Keep-alive, and the wait of an orphan in FIN_WAIT2.
    KeepAlive,
    TimeWait,
    ZeroWindowProbe,
    Other(u8),
}

impl Timer {
    /// From the number that sock_diag and /proc/net share.
    pub fn from_number(number: u8) -> Timer {
        match number {
            0 => Timer::None,
            1 => Timer::Retransmit,
            2 => Timer::KeepAlive,
            3 => Timer::TimeWait,
            4 => Timer::ZeroWindowProbe,
            other => Timer::Other(other),
        }
    }
}
