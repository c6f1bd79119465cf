//! Lists sockets from /proc/net, for hosts where [`super::sock_diag`] would load a module.
//!
//! Slower, and it knows less: [`LOST`] says what. Sockets in transition between the kernel's hash chains can
//! be missing or doubled, since the file is read in pieces without a lock.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use super::socket_row::{SocketRow, State, Timer};
use crate::event::{Family, Protocol};

/// What a listing from /proc/net lacks, in words for a note.
pub const LOST: &str = "socket cookies, cgroups, interfaces and sockets that are bound but neither connected nor listening are not known";

/// Longer than any line the kernel writes (TCP over IPv6 has about 190 bytes).
const LINE_BYTES_MAX: u64 = 1024;

/// Ticks per second in /proc, on every architecture Linux has had (`USER_HZ`).
const MS_PER_TICK: u64 = 10;

/// What a listing says besides its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub rows: usize,
    /// Lines that could not be understood.
    pub refused: usize,
}

/// Hands every socket of one protocol and family in the current thread's network namespace to `on_row`.
///
/// A kernel without the family has no such file: that is an empty listing.
pub fn list(protocol: Protocol, family: Family, on_row: impl FnMut(&SocketRow)) -> Result<Listing> {
    let name = match (protocol, family) {
        (Protocol::Tcp, Family::Ipv4) => "tcp",
        (Protocol::Tcp, Family::Ipv6) => "tcp6",
        (Protocol::Udp, Family::Ipv4) => "udp",
        (Protocol::Udp, Family::Ipv6) => "udp6",
    };
    // /proc/net is that of the process's first thread, whatever namespace this one is in.
    let path = format!("/proc/thread-self/net/{name}");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && family == Family::Ipv6 => {
            return Ok(Listing::default());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open `{path}`")),
    };
    read(BufReader::with_capacity(64 << 10, file), protocol, family, on_row)
        .with_context(|| format!("cannot read `{path}`"))
}

fn read(
    mut reader: impl BufRead,
    protocol: Protocol,
    family: Family,
    mut on_row: impl FnMut(&SocketRow),
) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut line = Vec::with_capacity(256);
    let mut is_heading = true;
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(listing);
        }
        if std::mem::take(&mut is_heading) {
            continue;
        }
        match str::from_utf8(&line).ok().and_then(|line| parse(line, protocol, family)) {
            Some(row) => {
                listing.rows += 1;
                on_row(&row);
            }
            None => listing.refused += 1,
        }
    }
}

/// `sl: local remote st tx:rx tr:when retrnsmt uid timeout inode …`, as `get_tcp4_sock` and its siblings write it.
fn parse(line: &str, protocol: Protocol, family: Family) -> Option<SocketRow> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, local_port) = endpoint(fields.next()?, family)?;
    let (remote, remote_port) = endpoint(fields.next()?, family)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let _queues = fields.next()?;
    let (timer, when) = fields.next()?.split_once(':')?;
    let _retransmits = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let _timeout = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let expires_ms = u64::from_str_radix(when, 16).ok()?.saturating_mul(MS_PER_TICK);
    Some(SocketRow {
        protocol,
        family,
        state: State::from_number(state),
        local,
        remote,
        local_port,
        remote_port,
        interface: 0,
        uid,
        inode,
        cookie: None,
        cgroup_id: None,
        is_v6_only: None,
        timer: Timer::from_number(u8::from_str_radix(timer, 16).ok()?),
        expires_ms: u32::try_from(expires_ms).unwrap_or(u32::MAX),
    })
}

/// `0100007F:1F90`: 32-bit words in the machine's byte order, the port as a number.
fn endpoint(text: &str, family: Family) -> Option<(Ipv6Addr, u16)> {
    let (addr, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let addr = match family {
        Family::Ipv4 if addr.len() == 8 => Ipv4Addr::from(word(addr)?).to_ipv6_mapped(),
        Family::Ipv6 if addr.len() == 32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(addr.get(index * 8..index * 8 + 8)?)?);
            }
            Ipv6Addr::from(bytes)
        }
        _ => return None,
    };
    Some((addr, port))
}

fn word(hex: &str) -> Option<[u8; 4]> {
    Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n\
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20417 1 000000002fb3a1d5 100 0 0 10 0                     \n\
   1: 0100007F:C350 0100007F:1F90 06 00000000:00000000 03:0000176F 00000000     0        0 0 3 00000000a8e2e9ac                                      \n\
   2: 0A00000A:9C42 08080808:01BB 01 00000014:00000000 01:00000019 00000000  1000        0 31415 2 00000000b2f51bd3 24 4 30 10 -1                    \n";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
   0: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 20418 1 000000007b0ff14b 100 0 0 10 0\n\
   1: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 31416 1 00000000c3f2b2d1 20 0 0 10 -1\n";

    fn rows(text: &str, protocol: Protocol, family: Family) -> (Vec<SocketRow>, Listing) {
        let mut rows = Vec::new();
        let listing = read(text.as_bytes(), protocol, family, |row| rows.push(*row)).unwrap();
        (rows, listing)
    }

    #[test]
    fn ipv4_lines_give_both_ends_state_and_timer() {
        let (rows, listing) = rows(TCP, Protocol::Tcp, Family::Ipv4);
        assert_eq!(listing, Listing { rows: 3, refused: 0 });
        let text: Vec<_> = rows
            .iter()
            .map(|row| {
                format!(
                    "{} {}:{} {}:{} uid {} inode {} {:?} {}",
                    row.state_name(),
                    row.local,
                    row.local_port,
                    row.remote,
                    row.remote_port,
                    row.uid,
                    row.inode,
                    row.timer,
                    row.expires_ms
                )
            })
            .collect();
        assert_eq!(
            text,
            [
                "listen ::ffff:127.0.0.1:8080 ::ffff:0.0.0.0:0 uid 0 inode 20417 None 0",
                "time_wait ::ffff:127.0.0.1:50000 ::ffff:127.0.0.1:8080 uid 0 inode 0 TimeWait 59990",
                "established ::ffff:10.0.0.10:40002 ::ffff:8.8.8.8:443 uid 1000 inode 31415 Retransmit 250",
            ]
        );
    }

    #[test]
    fn ipv6_lines_give_plain_and_mapped_addresses() {
        let (rows, listing) = rows(TCP6, Protocol::Tcp, Family::Ipv6);
        assert_eq!(listing, Listing { rows: 2, refused: 0 });
        assert_eq!((rows[0].local, rows[0].local_port), (Ipv6Addr::LOCALHOST, 8081));
        assert_eq!(rows[1].remote, Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        assert!(rows[1].endpoints(1).is_mapped());
    }

    #[test]
    fn broken_lines_are_counted_and_skipped() {
        let line = TCP.lines().nth(3).unwrap();
        for end in 0..line.find("31415").unwrap() {
            assert_eq!(parse(&line[..end], Protocol::Tcp, Family::Ipv4), None, "{}", &line[..end]);
        }
        let text = format!("heading\n{line}\n\u{fffd}\n{}\n{line}\n", "9".repeat(5000));
        let (rows, listing) = rows(&text, Protocol::Tcp, Family::Ipv4);
        assert_eq!(rows.len(), 2);
        assert!(listing.refused >= 2);
        assert_eq!(parse(line, Protocol::Tcp, Family::Ipv6), None);
        assert_eq!(parse(&line.replace("0A00000A", "0A0000é"), Protocol::Tcp, Family::Ipv4), None);
    }
}
