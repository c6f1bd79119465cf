//! What follows from listings of sockets: which of them are holds that are known, which are new, which holds are over.
//!
//! For what no hook tells of. A socket is known by its identity from the first listing on that shows it; before that a
//! hold and a socket belong together when they have the same port, and rather when they have the same address, too.
//! Listings and holds must be of one protocol, or of all.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;

use crate::event::{Endpoints, Protocol, SocketId};

/// A socket for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub netns: u32,
    /// Its cookie, or its inode where listings show no cookie.
    pub number: u64,
}

/// One socket of a listing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sighting {
    pub identity: Identity,
    pub endpoints: Endpoints,
}

/// A hold that is alive as far as is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alive {
    pub socket: SocketId,
    pub endpoints: Endpoints,
    pub begun_mono_ns: u64,
}

/// What a listing says beyond what was known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Places in the listing. Each is either to be [`Sightings::pair`]ed with a hold or to be [`Sightings::ignore`]d.
    pub appeared: Vec<usize>,
    /// Holds whose socket is gone, and its identity where it was ever seen.
    pub gone: Vec<(SocketId, Option<Identity>)>,
}

/// The sockets that were seen last.
#[derive(Debug, Default)]
pub struct Sightings {
    known: HashMap<Identity, SocketId>,
    /// Seen, and nobody's: open before the start, or not wanted.
    ignored: HashSet<Identity>,
    is_begun: bool,
}

type Place = (Protocol, u32, Option<u16>);

fn place(endpoints: &Endpoints) -> Place {
    (endpoints.protocol, endpoints.netns, endpoints.local_port)
}

impl Sightings {
    /// Takes in a listing that was begun at `begun_ns` and whose end every known hold began before. The first one only
    /// says what there is: nothing of it has appeared.
    pub fn compare(&mut self, listing: &[Sighting], begun_ns: u64, alive: &[Alive]) -> Changes {
        let mut changes = Changes::default();
        let living: HashMap<SocketId, Place> =
            alive.iter().map(|hold| (hold.socket, place(&hold.endpoints))).collect();
        let present: HashMap<Identity, Place> =
            listing.iter().map(|sighting| (sighting.identity, place(&sighting.endpoints))).collect();
        self.known.retain(|identity, socket| {
            let Some(port) = living.get(socket) else { return false };
            // A socket that was disconnected comes back with another port, which is another hold.
            let is_held = present.get(identity) == Some(port);
            if !is_held {
                changes.gone.push((*socket, Some(*identity)));
            }
            is_held
        });
        self.ignored.retain(|identity| present.contains_key(identity));

        let mut free: HashMap<Place, Vec<&Sighting>> = HashMap::new();
        for sighting in listing.iter().filter(|sighting| !self.known.contains_key(&sighting.identity)) {
            free.entry(place(&sighting.endpoints)).or_default().push(sighting);
        }
        let seen: HashSet<SocketId> =
            self.known.values().copied().chain(changes.gone.iter().map(|(socket, _)| *socket)).collect();
        for hold in alive.iter().filter(|hold| !seen.contains(&hold.socket)) {
            let candidates = free.get_mut(&place(&hold.endpoints));
            match candidates.and_then(|sightings| take_nearest(sightings, hold.endpoints.local)) {
                Some(identity) => self.pair(identity, hold.socket),
                None if hold.begun_mono_ns < begun_ns => changes.gone.push((hold.socket, None)),
                // Begun since: it need not be in the listing.
                None => {}
            }
        }
        for (at, sighting) in listing.iter().enumerate() {
            let identity = sighting.identity;
            if self.known.contains_key(&identity) || self.ignored.contains(&identity) {
                continue;
            }
            if self.is_begun && sighting.endpoints.local_port.is_some() {
                changes.appeared.push(at);
            } else {
                self.ignore(identity);
            }
        }
        self.is_begun = true;
        changes
    }

    /// This socket is this hold's.
    pub fn pair(&mut self, identity: Identity, socket: SocketId) {
        self.ignored.remove(&identity);
        self.known.insert(identity, socket);
    }

    /// This socket is nobody's.
    pub fn ignore(&mut self, identity: Identity) {
        self.ignored.insert(identity);
    }
}

fn take_nearest(sightings: &mut Vec<&Sighting>, local: Ipv6Addr) -> Option<Identity> {
    let at = sightings.iter().position(|sighting| sighting.endpoints.local == local);
    let at = at.or((!sightings.is_empty()).then_some(0))?;
    Some(sightings.swap_remove(at).identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Family;

    fn endpoints(local: u16, port: u16) -> Endpoints {
        Endpoints {
            netns: 1,
            family: Family::Ipv4,
            protocol: Protocol::Udp,
            local: Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, local),
            remote: Ipv6Addr::UNSPECIFIED,
            local_port: Some(port),
            remote_port: None,
        }
    }

    fn seen(number: u64, local: u16, port: u16) -> Sighting {
        Sighting { identity: Identity { netns: 1, number }, endpoints: endpoints(local, port) }
    }

    fn alive(socket: u64, local: u16, port: u16, begun_mono_ns: u64) -> Alive {
        Alive { socket: SocketId(socket), endpoints: endpoints(local, port), begun_mono_ns }
    }

    fn gone(changes: &Changes) -> Vec<u64> {
        changes.gone.iter().map(|(socket, _)| socket.0).collect()
    }

    #[test]
    fn the_first_listing_says_what_there_is() {
        let mut sightings = Sightings::default();
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 100, &[]), Changes::default());
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 200, &[]), Changes::default());
        let changes = sightings.compare(&[seen(1, 1, 53), seen(2, 1, 54)], 300, &[]);
        assert_eq!(changes.appeared, [1]);
    }

    #[test]
    fn a_hold_ends_when_its_socket_is_gone() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        let hold = alive(7, 1, 53, 50);
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 100, &[hold]), Changes::default());
        // The same port again, by another socket: the hold is over, and this one is new.
        let changes = sightings.compare(&[seen(2, 1, 53)], 200, &[hold]);
        assert_eq!((gone(&changes), changes.appeared), (vec![7], vec![0]));
        assert_eq!(sightings.compare(&[], 300, &[]), Changes::default());
    }

    #[test]
    fn a_hold_that_no_listing_ever_showed_is_over_unless_it_is_newer() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        let changes = sightings.compare(&[], 100, &[alive(7, 1, 53, 99), alive(8, 1, 54, 100)]);
        assert_eq!(gone(&changes), [7]);
    }

    #[test]
    fn sockets_that_share_a_port_are_told_apart_by_address() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        let holds = [alive(7, 1, 53, 1), alive(8, 2, 53, 1)];
        sightings.compare(&[seen(20, 2, 53), seen(10, 1, 53)], 100, &holds);
        let changes = sightings.compare(&[seen(20, 2, 53)], 200, &holds);
        assert_eq!(changes.gone, [(SocketId(7), Some(Identity { netns: 1, number: 10 }))]);
    }

    #[test]
    fn a_socket_with_another_port_is_another_hold() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        sightings.compare(&[seen(1, 1, 53)], 100, &[alive(7, 1, 53, 1)]);
        let holds = [alive(7, 1, 53, 1), alive(8, 1, 54, 150)];
        let changes = sightings.compare(&[seen(1, 1, 54)], 200, &holds);
        assert_eq!((gone(&changes), changes.appeared.len()), (vec![7], 0));
    }

    #[test]
    fn a_socket_that_connected_since_is_still_its_hold() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        let changes = sightings.compare(&[seen(1, 9, 53)], 100, &[alive(7, 0, 53, 1)]);
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn what_is_ignored_does_not_appear_again_until_it_went() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 100, &[]).appeared, [0]);
        sightings.ignore(Identity { netns: 1, number: 1 });
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 200, &[]), Changes::default());
        sightings.compare(&[], 300, &[]);
        assert_eq!(sightings.compare(&[seen(1, 1, 53)], 400, &[]).appeared, [0]);
    }

    #[test]
    fn a_hold_that_ended_otherwise_is_not_told_again() {
        let mut sightings = Sightings::default();
        sightings.compare(&[], 0, &[]);
        sightings.compare(&[seen(1, 1, 53)], 100, &[alive(7, 1, 53, 1)]);
        assert_eq!(gone(&sightings.compare(&[], 200, &[])), Vec::<u64>::new());
    }
}
