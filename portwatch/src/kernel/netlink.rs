//! Requests to the kernel over netlink and the framing of its answers, for [`super::sock_diag`] and
//! [`super::self_net`]. What the messages mean is left to them.
//!
//! The general netlink crates decode every row into owned enums and vectors; a dump of tens of thousands of
//! sockets wants a reused buffer and three fixed structs, so framing is done here.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The kernel fills at most 32 KiB per datagram of a dump, and only if the reader offers as much.
const BUFFER_BYTES: usize = 64 << 10;

/// The kernel answers from its own memory; longer than this means that something is badly wrong.
const ANSWER_SECONDS_MAX: i64 = 5;

// From `linux/netlink.h`.
pub const NLM_F_REQUEST: u16 = 0x01;
pub const NLM_F_ACK: u16 = 0x04;
pub const NLM_F_DUMP_INTR: u16 = 0x10;
pub const NLM_F_DUMP: u16 = 0x300;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `struct nlmsghdr`
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
}

/// What the end of an answer says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The kernel's table changed under the dump, which may have left something out.
    pub is_torn: bool,
}

/// One message of an answer, checked against the bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message<'a> {
    Payload {
        kind: u16,
        flags: u16,
        seq: u32,
        bytes: &'a [u8],
    },
    /// The answer is complete; `errno` is 0 unless the request failed.
    End {
        seq: u32,
        flags: u16,
        errno: i32,
    },
}

/// A netlink socket in the network namespace of the thread that opens it.
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    seq: u32,
}

impl Socket {
    pub fn open(protocol: SockProtocol) -> Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("cannot open a netlink socket")?;
        // A connected netlink socket takes messages from its peer alone: here the kernel, port 0.
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("cannot connect a netlink socket")?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS_MAX, 0))
            .context("cannot set the time limit of a netlink socket")?;
        Ok(Socket { fd, buffer: vec![0; BUFFER_BYTES], seq: 0 })
    }

    /// Sends one request and hands each message of the answer to `on_payload` as (kind, bytes).
    ///
    /// An error number in the answer comes back as the [`Errno`] in the error's chain.
    pub fn ask<P: IntoBytes + Immutable>(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &P,
        mut on_payload: impl FnMut(u16, &[u8]),
    ) -> Result<Answer> {
        self.seq += 1;
        let len = size_of::<Header>() + size_of::<P>();
        let header = Header {
            len: u32::try_from(len).context("netlink request too long")?,
            kind,
            flags: NLM_F_REQUEST | flags,
            seq: self.seq,
            pid: 0,
        };
        let request = [header.as_bytes(), payload.as_bytes()].concat();
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty()).context("cannot send a netlink request")?;

        let mut answer = Answer::default();
        loop {
            let received = self.receive()?;
            for message in messages(&self.buffer[..received]) {
                match message? {
                    Message::Payload { seq, .. } | Message::End { seq, .. } if seq != self.seq => {}
                    Message::Payload { kind, flags, bytes, .. } => {
                        answer.is_torn |= flags & NLM_F_DUMP_INTR != 0;
                        on_payload(kind, bytes);
                    }
                    Message::End { flags, errno, .. } => {
                        answer.is_torn |= flags & NLM_F_DUMP_INTR != 0;
                        return match errno {
                            0 => Ok(answer),
                            errno => Err(Errno::from_raw(errno)).context("the kernel refused"),
                        };
                    }
                }
            }
        }
    }

    fn receive(&mut self) -> Result<usize> {
        loop {
            // With MSG_TRUNC the length is that of the datagram, whether it fitted or not.
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(0) => bail!("the kernel closed the netlink socket"),
                Ok(len) if len > self.buffer.len() => {
                    bail!("netlink datagram of {len} bytes does not fit into {}", self.buffer.len())
                }
                Ok(len) => return Ok(len),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => bail!("no answer from the kernel within {ANSWER_SECONDS_MAX} s"),
                Err(errno) => return Err(errno).context("cannot read from a netlink socket"),
            }
        }
    }
}

/// Splits a datagram into messages. Ends at the first one that is not whole, with an error.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = Result<Message<'_>>> {
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let (message, after) = match split_message(rest) {
                Ok(split) => split,
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            };
            rest = after;
            if let Some(message) = message {
                return Some(Ok(message));
            }
        }
    })
}

fn split_message(bytes: &[u8]) -> Result<(Option<Message<'_>>, &[u8])> {
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        bail!("netlink message of {} bytes is shorter than its header", bytes.len());
    };
    let len = header.len as usize;
    let Some(payload) = bytes.get(size_of::<Header>()..len) else {
        bail!("netlink message says {len} bytes, {} are there", bytes.len());
    };
    let after = bytes.get(aligned(len)..).unwrap_or(&[]);
    let (seq, flags) = (header.seq, header.flags);
    let message = match header.kind {
        NLMSG_NOOP => None,
        // Both start with a negated error number; a DONE without one is success.
        NLMSG_ERROR | NLMSG_DONE => {
            let errno = i32::read_from_prefix(payload).map_or(0, |(number, _)| number.saturating_neg());
            Some(Message::End { seq, flags, errno })
        }
        kind => Some(Message::Payload { kind, flags, seq, bytes: payload }),
    };
    Ok((message, after))
}

/// Splits the attributes that follow a message's fixed part into (type, value); ends at the first broken one.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const NLA_TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let ([len, kind], _) = <[u16; 2]>::read_from_prefix(rest).ok()?;
        let value = rest.get(4..usize::from(len))?;
        rest = rest.get(aligned(usize::from(len))..).unwrap_or(&[]);
        Some((kind & NLA_TYPE_MASK, value))
    })
}

fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, len: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { len, kind, flags: 0, seq: 7, pid: 0 };
        let mut bytes = [header.as_bytes(), payload].concat();
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn datagram_splits_into_its_messages() {
        let datagram =
            [message(20, 19, &[1, 2, 3]), message(NLMSG_NOOP, 16, &[]), message(NLMSG_DONE, 20, &[0; 4])]
                .concat();
        let found: Vec<_> = messages(&datagram).collect::<Result<_>>().unwrap();
        assert_eq!(
            found,
            [
                Message::Payload { kind: 20, flags: 0, seq: 7, bytes: &[1, 2, 3] },
                Message::End { seq: 7, flags: 0, errno: 0 },
            ]
        );
    }

    #[test]
    fn error_message_carries_its_number() {
        let datagram = message(NLMSG_ERROR, 20, &(-2i32).to_ne_bytes());
        let found: Vec<_> = messages(&datagram).collect::<Result<_>>().unwrap();
        assert_eq!(found, [Message::End { seq: 7, flags: 0, errno: 2 }]);
    }

    #[test]
    fn broken_lengths_end_with_an_error() {
        for (len, available) in [(0, 16), (15, 16), (17, 16), (u32::MAX, 32), (16, 8)] {
            let mut datagram = message(20, len, &[0; 16]);
            datagram.truncate(available);
            let found: Vec<_> = messages(&datagram).collect();
            assert_eq!(found.len(), 1, "len {len} of {available}");
            assert!(found[0].is_err(), "len {len} of {available}");
        }
    }

    #[test]
    fn attributes_end_at_the_first_broken_one() {
        let mut bytes = vec![5, 0, 11, 0, 1, 0, 0, 0, 12, 0, 21, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let whole: Vec<_> = attributes(&bytes).collect();
        assert_eq!(whole, [(11, &[1][..]), (21, &[1, 2, 3, 4, 5, 6, 7, 8][..])]);
        bytes.pop();
        assert_eq!(attributes(&bytes).count(), 1);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[]).count(), 0);
    }
}
