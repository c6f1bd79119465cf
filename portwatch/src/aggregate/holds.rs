//! Joins what the kernel side sends: records of a socket with the hold that they belong to.
//!
//! Where no hook sees the end of TIME_WAIT, it is deduced here: the same 4-tuple is used again, or the time is over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::event::decode::{Body, Failure, Record};
use crate::event::{Confidence, Direction, Event, Hold, Protocol, Reason, SocketId, Tuple, What};

/// How long a time-wait entry lives: `TCP_TIMEWAIT_LEN`, and up to two seconds more until its coarse timer fires.
const TIME_WAIT_NS: u64 = 61_000_000_000;

/// Deduced time-wait entries remembered at once: the largest default of `tcp_max_tw_buckets`.
const WAITING_MAX: usize = 262_144;

/// The holds that are alive. It is as large as the kernel side's tables and shrinks with them: every hold that was
/// announced is released, if only silently.
#[derive(Debug, Default)]
pub struct Holds {
    alive: HashMap<SocketId, Arc<Hold>>,
    /// Holds in a deduced TIME_WAIT whose full socket is still to be closed.
    entering: HashMap<SocketId, u64>,
    /// Deduced TIME_WAITs, oldest first. Those that ended early are still here and skipped.
    waiting: VecDeque<(u64, Tuple, SocketId)>,
    waiting_by_tuple: HashMap<Tuple, (u64, Arc<Hold>)>,
}

/// What a record turns into.
#[derive(Clone, Debug, PartialEq)]
pub enum Joined {
    Event(Event, Arc<Hold>),
    /// Nothing to tell.
    Nothing,
    /// An event, by name, of a hold that is not known. It has no owner, so it is counted and not told.
    Orphan(&'static str),
}

impl Holds {
    /// Takes in a hold that is known otherwise: one that was open before the start.
    pub fn insert(&mut self, hold: Arc<Hold>) {
        self.alive.insert(hold.socket, hold);
    }

    /// Takes in a time-wait entry whose end no hook will see and that has `left_ns` to live.
    pub fn insert_waiting(&mut self, hold: Arc<Hold>, mono_ns: u64, left_ns: u64) {
        let since_ns = (mono_ns + left_ns).saturating_sub(TIME_WAIT_NS);
        let tuple = hold.endpoints.tuple();
        let at = self.waiting.partition_point(|(other, ..)| *other <= since_ns);
        self.waiting.insert(at, (since_ns, tuple, hold.socket));
        self.waiting_by_tuple.insert(tuple, (since_ns, hold));
    }

    /// The UDP holds that are alive.
    pub fn udp(&self) -> impl Iterator<Item = &Arc<Hold>> {
        self.alive.values().filter(|hold| hold.endpoints.protocol == Protocol::Udp)
    }

    /// Ends a hold of whose end no hook told: listings do not show its socket any more. How long it lasted is known
    /// about if one of them did show it, and else not at all.
    pub fn end_unseen(
        &mut self,
        socket: SocketId,
        mono_ns: u64,
        was_seen: bool,
    ) -> Option<(Event, Arc<Hold>)> {
        let hold = self.alive.remove(&socket)?;
        let held_ns = was_seen.then(|| mono_ns.saturating_sub(hold.begun_mono_ns));
        let what = What::PortReleased { reason: Reason::Closed, held_ns };
        Some((Event { mono_ns, socket, what, confidence: Confidence::Inferred }, hold))
    }

    /// Holds that are remembered.
    pub fn len(&self) -> usize {
        self.alive.len() + self.waiting_by_tuple.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Releases that follow from the time alone, now that it is `mono_ns`. To be asked before every record.
    pub fn expired(&mut self, mono_ns: u64) -> Option<(Event, Arc<Hold>)> {
        while let Some(&(since_ns, tuple, socket)) = self.waiting.front() {
            let is_due = since_ns + TIME_WAIT_NS <= mono_ns;
            if !is_due && self.waiting.len() <= WAITING_MAX {
                return None;
            }
            self.waiting.pop_front();
            if self.waiting_by_tuple.get(&tuple).is_some_and(|(_, hold)| hold.socket == socket) {
                let reason = if is_due { Reason::TimeWaitExpired } else { Reason::Unknown };
                return self.end_waiting(tuple, reason, mono_ns);
            }
        }
        None
    }

    /// A deduced TIME_WAIT that a record proves over: its 4-tuple is in use again. To be asked before the record is joined.
    pub fn reused(&mut self, record: &Record) -> Option<(Event, Arc<Hold>)> {
        if self.waiting_by_tuple.is_empty() {
            return None;
        }
        let endpoints = match &record.body {
            Body::Hold { hold, .. } => &hold.endpoints,
            Body::Established { endpoints, .. } => endpoints,
            _ => return None,
        };
        self.end_waiting(endpoints.tuple(), Reason::TimeWaitReused, record.mono_ns)
    }

    fn end_waiting(&mut self, tuple: Tuple, reason: Reason, mono_ns: u64) -> Option<(Event, Arc<Hold>)> {
        let (_, hold) = self.waiting_by_tuple.remove(&tuple)?;
        let held_ns = Some(mono_ns.saturating_sub(hold.begun_mono_ns));
        let what = What::PortReleased { reason, held_ns };
        Some((Event { mono_ns, socket: hold.socket, what, confidence: Confidence::Inferred }, hold))
    }

    /// The full socket behind a deduced time-wait entry is gone: from here on only time and tuple tell of it.
    fn wait(&mut self, socket: SocketId, since_ns: u64) {
        if let Some(hold) = self.alive.remove(&socket) {
            let tuple = hold.endpoints.tuple();
            self.waiting.push_back((since_ns, tuple, socket));
            self.waiting_by_tuple.insert(tuple, (since_ns, hold));
        }
    }

    /// Takes in one record other than a stack.
    pub fn join(&mut self, record: Record) -> Joined {
        let mono_ns = record.mono_ns;
        let event = |socket, what, confidence| Event { mono_ns, socket, what, confidence };
        let exact = Confidence::Exact;
        match record.body {
            Body::Hold { hold, is_event } => {
                let hold = Arc::new(*hold);
                self.insert(Arc::clone(&hold));
                if !is_event {
                    return Joined::Nothing;
                }
                Joined::Event(event(hold.socket, What::PortAllocated, hold.confidence), hold)
            }
            Body::ConnectFailed { socket, failure } => {
                let what = What::ConnectFailed { errno: failure.errno, is_abandoned: failure.is_abandoned };
                self.failed(event(socket, what, exact), failure)
            }
            Body::BindFailed { socket, failure } => match failure.errno {
                Some(errno) => self.failed(event(socket, What::BindFailed { errno }, exact), failure),
                None => Joined::Orphan("bind_failed"),
            },
            Body::Established { socket, connect_ns, endpoints } => {
                let Some(hold) = self.alive.get_mut(&socket) else {
                    return Joined::Orphan("established");
                };
                if hold.endpoints != endpoints {
                    Arc::make_mut(hold).endpoints = endpoints;
                }
                Joined::Event(event(socket, What::Established { connect_ns }, exact), Arc::clone(hold))
            }
            Body::TimeWait { socket, closer, traffic, substate, confidence } => {
                if confidence != exact {
                    self.entering.insert(socket, mono_ns);
                }
                self.of(event(socket, What::TimeWait { closer, traffic, substate }, confidence))
            }
            Body::Closed { socket, closer, traffic, held_ns, closed_by } => {
                let joined =
                    self.of(event(socket, What::Closed { closer, traffic, held_ns, closed_by }, exact));
                if let Some(since_ns) = self.entering.remove(&socket) {
                    self.wait(socket, since_ns);
                }
                joined
            }
            Body::Released { socket, reason, held_ns, was_listening, is_silent } => {
                let hold = self.alive.remove(&socket);
                if is_silent {
                    return Joined::Nothing;
                }
                let Some(mut hold) = hold else { return Joined::Orphan("port_released") };
                if was_listening && hold.direction == Direction::Out {
                    Arc::make_mut(&mut hold).direction = Direction::In;
                }
                Joined::Event(event(socket, What::PortReleased { reason, held_ns }, exact), hold)
            }
            Body::Stack { .. }
            | Body::Snapshot(_)
            | Body::Audit(_)
            | Body::PythonStack(_)
            | Body::PythonCode(_) => Joined::Nothing,
        }
    }

    fn of(&self, event: Event) -> Joined {
        match self.alive.get(&event.socket) {
            Some(hold) => {
                let hold = Arc::clone(hold);
                Joined::Event(event, hold)
            }
            None => Joined::Orphan(event.what.name()),
        }
    }

    /// A failure brings the peer of a bound socket with it, and may be the last of its socket.
    fn failed(&mut self, mut event: Event, failure: Failure) -> Joined {
        let Some(hold) = self.alive.get(&event.socket) else {
            return Joined::Orphan(event.what.name());
        };
        let mut hold = Arc::clone(hold);
        if hold.endpoints != failure.endpoints {
            Arc::make_mut(&mut hold).endpoints = failure.endpoints;
        }
        if failure.is_inferred {
            event.confidence = Confidence::Inferred;
        }
        if failure.is_final {
            self.alive.remove(&event.socket);
        }
        Joined::Event(event, hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    use crate::event::{Endpoints, Family, How, Protocol, StackState, TimeWaitState, Traffic};

    fn hold(socket: u64) -> Hold {
        Hold {
            socket: SocketId(socket),
            owner: None,
            endpoints: Endpoints {
                netns: 1,
                family: Family::Ipv4,
                protocol: Protocol::Tcp,
                local: Ipv6Addr::LOCALHOST,
                remote: Ipv6Addr::LOCALHOST,
                local_port: Some(40000),
                remote_port: Some(80),
            },
            how: How::Connect,
            direction: Direction::Out,
            confidence: Confidence::Exact,
            begun_mono_ns: 0,
            search_ns: None,
            stack: None,
            stack_state: StackState::Unasked,
            is_late: false,
        }
    }

    fn allocated(socket: u64, mono_ns: u64) -> Record {
        Record { mono_ns, body: Body::Hold { hold: Box::new(hold(socket)), is_event: true } }
    }

    fn name(joined: &Joined) -> &'static str {
        match joined {
            Joined::Event(event, _) => event.what.name(),
            Joined::Nothing => "nothing",
            Joined::Orphan(_) => "orphan",
        }
    }

    fn close_into_deduced_time_wait(holds: &mut Holds, socket: u64, mono_ns: u64) {
        let traffic = Traffic::default();
        let socket = SocketId(socket);
        let time_wait = Body::TimeWait {
            socket,
            closer: None,
            traffic,
            substate: TimeWaitState::Unknown,
            confidence: Confidence::Inferred,
        };
        assert_eq!(name(&holds.join(Record { mono_ns, body: time_wait })), "time_wait");
        let closed = Body::Closed { socket, closer: None, traffic, held_ns: None, closed_by: None };
        assert_eq!(name(&holds.join(Record { mono_ns, body: closed })), "closed");
    }

    #[test]
    fn a_deduced_time_wait_ends_by_time() {
        let mut holds = Holds::default();
        holds.join(allocated(1, 10));
        close_into_deduced_time_wait(&mut holds, 1, 20);
        assert_eq!(holds.expired(20 + TIME_WAIT_NS - 1), None);
        let (event, hold) = holds.expired(20 + TIME_WAIT_NS).unwrap();
        assert!(matches!(event.what, What::PortReleased { reason: Reason::TimeWaitExpired, .. }));
        assert_eq!((event.confidence, hold.socket), (Confidence::Inferred, SocketId(1)));
        assert!(holds.is_empty());
    }

    #[test]
    fn a_deduced_time_wait_ends_when_its_tuple_is_used_again() {
        let mut holds = Holds::default();
        holds.join(allocated(1, 10));
        close_into_deduced_time_wait(&mut holds, 1, 20);
        let again = allocated(2, 30);
        let (event, hold) = holds.reused(&again).unwrap();
        assert!(matches!(event.what, What::PortReleased { reason: Reason::TimeWaitReused, .. }));
        assert_eq!(hold.socket, SocketId(1));
        holds.join(again);
        assert_eq!(holds.expired(20 + TIME_WAIT_NS), None, "the old hold ended once");
        assert_eq!(holds.len(), 1);
    }

    #[test]
    fn a_silent_release_forgets_the_hold() {
        let mut holds = Holds::default();
        holds.join(allocated(1, 10));
        let release = Body::Released {
            socket: SocketId(1),
            reason: Reason::Closed,
            held_ns: None,
            was_listening: false,
            is_silent: true,
        };
        assert_eq!(name(&holds.join(Record { mono_ns: 20, body: release })), "nothing");
        assert!(holds.is_empty());
    }
}
