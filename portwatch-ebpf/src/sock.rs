//! A typed view of `struct sock` and of the time-wait entry that shares its head, on top of [`crate::read`].

use portwatch_common::wire::Endpoints;

use crate::read::{kernel, kernel_pointer};
use crate::settings::offset;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_UDP: u16 = 17;

/// TCP states, as the kernel numbers them.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Address of a `struct sock`, `struct request_sock` or `struct inet_timewait_sock`.
#[derive(Clone, Copy)]
pub struct Sock(pub u64);

impl Sock {
    #[inline(always)]
    pub fn family(self) -> Option<u16> {
        kernel(self.0, offset!(skc_family))
    }

    #[inline(always)]
    pub fn state(self) -> Option<u8> {
        kernel(self.0, offset!(skc_state))
    }

    /// An IPv4 or IPv6 TCP socket. MPTCP masters (262) and SCTP are not.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        self.protocol() == IPPROTO_TCP && matches!(self.family(), Some(AF_INET | AF_INET6))
    }

    /// An IPv4 or IPv6 UDP socket.
    #[inline(always)]
    pub fn is_udp(self) -> bool {
        self.protocol() == IPPROTO_UDP && matches!(self.family(), Some(AF_INET | AF_INET6))
    }

    /// `IPPROTO_*`; 0 where it cannot be read.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        // Two bytes from 5.8 on; earlier kernels are not supported.
        kernel(self.0, offset!(sk_protocol)).unwrap_or(0)
    }

    /// The local port as the kernel's tables have it; 0 once it is put.
    #[inline(always)]
    pub fn num(self) -> u16 {
        kernel(self.0, offset!(skc_num)).unwrap_or(0)
    }

    /// The local port as getsockname() shows it; keeps showing a port that was put.
    #[inline(always)]
    pub fn sport(self) -> u16 {
        u16::from_be(kernel(self.0, offset!(inet_sport)).unwrap_or(0))
    }

    /// The error that the next call on the socket will return, as a positive number.
    #[inline(always)]
    pub fn error(self) -> u32 {
        kernel::<u32>(self.0, offset!(sk_err)).unwrap_or(0)
    }

    /// Whether the last close() is under way: it shuts both directions down before it does anything else.
    #[inline(always)]
    pub fn is_closing(self) -> bool {
        const SHUTDOWN_MASK: u8 = 3;
        kernel(self.0, offset!(sk_shutdown)) == Some(SHUTDOWN_MASK)
    }

    /// `struct net *`
    #[inline(always)]
    pub fn net(self) -> Option<u64> {
        kernel_pointer(self.0, offset!(skc_net))
    }

    /// The socket's cookie; 0 until somebody asked the kernel for it.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        kernel(self.0, offset!(skc_cookie)).unwrap_or(0)
    }

    /// Payload bytes sent, retransmissions not counted, and received.
    #[inline(always)]
    pub fn traffic(self) -> (u64, u64) {
        let sent: u64 = kernel(self.0, offset!(tcp_bytes_sent)).unwrap_or(0);
        let again: u64 = kernel(self.0, offset!(tcp_bytes_retrans)).unwrap_or(0);
        let received: u64 = kernel(self.0, offset!(tcp_bytes_received)).unwrap_or(0);
        (sent.wrapping_sub(again), received)
    }

    /// Whether its peer is this one.
    #[inline(always)]
    pub fn is_towards(self, address: [u8; 16], port: u16) -> bool {
        let own: [u8; 16] = if self.family() == Some(AF_INET6) {
            kernel(self.0, offset!(skc_v6_daddr)).unwrap_or([0; 16])
        } else {
            mapped(kernel(self.0, offset!(skc_daddr)).unwrap_or([0; 4]))
        };
        u128::from_ne_bytes(own) == u128::from_ne_bytes(address)
            && kernel::<u16>(self.0, offset!(skc_dport)) == Some(port.to_be())
    }

    /// Fills in both ends. `port_local` is the port the kernel's tables have.
    #[inline(always)]
    pub fn read_endpoints(self, endpoints: &mut Endpoints) -> Option<()> {
        let family = self.family()?;
        endpoints.family = family;
        endpoints.protocol = self.protocol();
        endpoints.netns = kernel(self.net()?, offset!(net_inum))?;
        endpoints.port_local = self.num();
        endpoints.port_remote = u16::from_be(kernel(self.0, offset!(skc_dport))?);
        if family == AF_INET6 {
            endpoints.addr_local = kernel(self.0, offset!(skc_v6_rcv_saddr))?;
            endpoints.addr_remote = kernel(self.0, offset!(skc_v6_daddr))?;
        } else {
            endpoints.addr_local = mapped(kernel(self.0, offset!(skc_rcv_saddr))?);
            endpoints.addr_remote = mapped(kernel(self.0, offset!(skc_daddr))?);
        }
        Some(())
    }
}

/// An IPv4 address in IPv4-mapped form.
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// Whether an address is IPv4 in IPv4-mapped form.
#[inline(always)]
pub fn is_mapped(address: &[u8; 16]) -> bool {
    let head = u64::from_ne_bytes([
        address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7],
    ]);
    head == 0 && address[8] == 0 && address[9] == 0 && address[10] == 0xff && address[11] == 0xff
}

/// An IPv4 or IPv6 `struct sockaddr`.
#[derive(Clone, Copy)]
pub struct Sockaddr {
    pub port: u16,
    /// IPv4-mapped for IPv4.
    pub address: [u8; 16],
}

impl Sockaddr {
    /// From kernel memory.
    #[inline(always)]
    pub fn from_kernel(at: u64) -> Option<Self> {
        let family: u16 = kernel(at, 0)?;
        let port = u16::from_be(kernel(at, 2)?);
        let address = match family {
            AF_INET => mapped(kernel(at, 4)?),
            AF_INET6 => kernel(at, 8)?,
            _ => return None,
        };
        Some(Sockaddr { port, address })
    }

    /// From the memory of the current process.
    #[inline(always)]
    pub fn from_user(at: u64) -> Option<Self> {
        use crate::read::user;
        let family: u16 = user(at, 0)?;
        let port = u16::from_be(user(at, 2)?);
        let address = match family {
            AF_INET => mapped(user(at, 4)?),
            AF_INET6 => user(at, 8)?,
            _ => return None,
        };
        Some(Sockaddr { port, address })
    }
}
