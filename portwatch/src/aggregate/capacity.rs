//! How many ports an automatic choice can come to, from the settings of a network namespace.

use std::collections::BTreeSet;

use crate::event::Protocol;
use crate::output::Netns;

/// The ports of one namespace that an automatic choice comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Automatic {
    /// First and last of the range.
    range: (u16, u16),
    /// Reserved ones within the range.
    reserved: BTreeSet<u16>,
    /// One more than the range's last port that is ever tried.
    end: u32,
}

impl Automatic {
    /// Nothing: the namespace's range is not known.
    pub fn of(settings: &Netns, protocol: Protocol) -> Option<Automatic> {
        let (first, last) = settings.port_range?;
        let within = |port: &u16| (first..=last).contains(port);
        let reserved = settings.reserved.iter().flatten();
        let reserved = reserved.flat_map(|&(first, last)| first..=last).filter(within).collect();
        let size = (u32::from(last) + 1).saturating_sub(u32::from(first));
        // TCP goes through the range in steps of two, twice, so it tries an even number (`__inet_hash_connect`).
        let tried = if protocol == Protocol::Tcp && size > 1 { size & !1 } else { size };
        Some(Automatic { range: (first, last), reserved, end: u32::from(first) + tried })
    }

    /// Whether an automatic choice may be this port.
    pub fn has(&self, port: u16) -> bool {
        port >= self.range.0 && u32::from(port) < self.end && !self.reserved.contains(&port)
    }

    /// First and last port of the range, reserved ones included.
    pub fn range(&self) -> (u16, u16) {
        self.range
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        let reserved = self.reserved.iter().filter(|&&port| u32::from(port) < self.end).count();
        (self.end - u32::from(self.range.0)).saturating_sub(reserved as u32)
    }

    /// How many are left for one destination, or for UDP for one address, when these ports are taken for all of them.
    pub fn capacity(&self, taken: &BTreeSet<u16>) -> u32 {
        self.count() - taken.iter().filter(|&&port| self.has(port)).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(range: (u16, u16), reserved: &[(u16, u16)]) -> Netns {
        Netns { port_range: Some(range), reserved: Some(reserved.to_vec()), ..Netns::default() }
    }

    #[test]
    fn ports_are_counted_as_the_kernel_tries_them() {
        let table: [((u16, u16), &[(u16, u16)], u32, u32); 6] = [
            ((32768, 60999), &[], 28232, 28232),
            ((40000, 40002), &[], 2, 3),
            ((40000, 40000), &[], 1, 1),
            ((40000, 40003), &[(40001, 40001), (40003, 40010), (1, 100)], 2, 2),
            // A reserved port that is not tried anyway.
            ((40000, 40002), &[(40002, 40002)], 2, 2),
            ((1, 65535), &[], 65534, 65535),
        ];
        for (range, reserved, tcp, udp) in table {
            let settings = settings(range, reserved);
            let count = |protocol| Automatic::of(&settings, protocol).unwrap().count();
            assert_eq!((count(Protocol::Tcp), count(Protocol::Udp)), (tcp, udp), "{range:?} {reserved:?}");
        }
        assert_eq!(Automatic::of(&Netns::default(), Protocol::Tcp), None);
    }

    #[test]
    fn what_is_taken_counts_once_and_only_within() {
        let automatic = Automatic::of(&settings((40000, 40009), &[(40001, 40001)]), Protocol::Tcp).unwrap();
        let taken = BTreeSet::from([40001, 40002, 40003, 8080]);
        assert_eq!(automatic.capacity(&taken), 7);
    }
}
