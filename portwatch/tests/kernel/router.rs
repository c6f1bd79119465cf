//! A router on the way to the peer, who can say that there is no way: with raw sockets, in a namespace of our own.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::wait::PATIENCE;

/// Length of an IPv4 header without options.
const IP_HEADER: usize = 20;
/// What an ICMP error quotes of the packet that it answers: its IP header and 8 bytes.
const QUOTED: usize = IP_HEADER + 8;

pub struct Router {
    tcp: OwnedFd,
    icmp: OwnedFd,
}

impl Router {
    /// Sees every TCP packet from now on.
    pub fn new() -> Router {
        let raw = |protocol| {
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(protocol))
                .expect("a raw socket in a namespace of our own")
        };
        let router = Router { tcp: raw(SockProtocol::Tcp), icmp: raw(SockProtocol::Icmp) };
        let patience = TimeVal::new(Duration::as_secs(&PATIENCE) as i64, 0);
        setsockopt(&router.tcp, sockopt::ReceiveTimeout, &patience).expect("SO_RCVTIMEO");
        router
    }

    /// Waits for a SYN to 127.0.0.1:`port` that nobody has answered, and answers that there is no such host.
    pub fn answer_host_unreachable(&self, port: u16) {
        let mut packet = [0; 4096];
        let quoted = loop {
            let length = recv(self.tcp.as_raw_fd(), &mut packet, MsgFlags::empty()).expect("a SYN");
            const SYN: u8 = 2;
            let is_meant = length >= IP_HEADER + 20
                && packet[IP_HEADER + 2..IP_HEADER + 4] == port.to_be_bytes()
                && packet[IP_HEADER + 13] == SYN;
            if is_meant {
                break &packet[..QUOTED];
            }
        };
        let (destination_unreachable, host_unreachable) = (3, 1);
        let mut message = vec![destination_unreachable, host_unreachable, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(quoted);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        sendto(self.icmp.as_raw_fd(), &message, &SockaddrIn::new(127, 0, 0, 1, 0), MsgFlags::empty())
            .expect("an ICMP message");
    }
}

/// Source: RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words =
        message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
