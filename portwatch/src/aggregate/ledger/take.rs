//! One line after the other into the ledger.

use std::sync::Arc;

use super::{
    FRAMES_MAX, HOLDS_MAX, Hold, Ledger, Member, NAMESPACES_MAX, Phase, PoolId, STACKS_MAX, SiteId, Task,
    hash,
};
use crate::aggregate::pool::{Pool, PoolKey};
use crate::aggregate::site::{Peer, Program, Site, SiteKey};
use crate::recording::format::{Direction, Event, EventType, How, Line, Proto, Reason, Substate};

impl Ledger {
    pub fn line(&mut self, line: &Line) {
        match line {
            Line::Event(event) | Line::Preexisting(event) => self.event(event),
            Line::Netns(netns) => {
                self.advance(self.offset_ns.saturating_add(netns.mono_ns));
                let key = (self.host, netns.netns);
                if self.namespaces.len() < NAMESPACES_MAX || self.namespaces.contains_key(&key) {
                    self.namespaces.entry(key).or_default().settings = Some(netns.clone());
                }
            }
            Line::Stack(stack) => {
                if self.stacks.len() >= STACKS_MAX {
                    self.evicted.stacks += 1;
                    return;
                }
                let id = self.names.get(&stack.stack);
                let frames = stack.frames.iter().take(FRAMES_MAX).cloned().collect();
                self.stacks.insert(id, frames);
            }
            Line::Process(process) => {
                let task = Task {
                    comm: self.names.maybe(process.comm.as_deref()),
                    exe: self.names.maybe(process.exe.as_deref()),
                    ppid: process.ppid,
                };
                self.tasks.insert((self.host, process.pid), task);
            }
            Line::Summary(summary) => self.summary(summary),
        }
    }

    fn event(&mut self, event: &Event) {
        let at_ns = self.offset_ns.saturating_add(event.mono_ns);
        self.advance(at_ns);
        if event.r#type != EventType::Preexisting {
            *self.events.entry(name(event.r#type)).or_default() += 1;
        }
        // Accepted connections use the listener's port, which costs the range nothing.
        if event.direction == Direction::In && event.raddr.is_some() {
            return;
        }
        let id = id(&event.socket);
        if self.ended.peek(&id).is_some() {
            return;
        }
        match event.r#type {
            EventType::PortAllocated => {
                if !self.holds.contains_key(&id) {
                    let since_ns = event.since_ns.map_or(at_ns, |since| self.offset_ns.saturating_add(since));
                    self.open(id, event, at_ns, Some(since_ns.min(at_ns)));
                }
            }
            EventType::Preexisting => {
                if !self.holds.contains_key(&id) {
                    self.open(id, event, at_ns, None);
                }
            }
            EventType::ConnectFailed | EventType::BindFailed => self.failed(id, event, at_ns),
            EventType::Established => {
                if !self.holds.contains_key(&id) {
                    self.open(id, event, at_ns, Some(at_ns));
                }
                self.connected(id, event, at_ns);
            }
            EventType::TimeWait => {
                self.known(id, event, at_ns);
                self.connected(id, event, at_ns);
                self.time_wait(id, event, at_ns);
            }
            EventType::Closed => {
                self.known(id, event, at_ns);
                self.connected(id, event, at_ns);
                self.closed(id, event, at_ns);
            }
            EventType::PortReleased => {
                self.released(id, event);
                self.release(id, at_ns);
                self.ended.insert(id, ());
            }
        }
    }

    /// Makes good for a lost allocation: a connection that ends now began within the log if it was held no longer.
    fn known(&mut self, id: u64, event: &Event, at_ns: i64) {
        if self.holds.contains_key(&id) {
            return;
        }
        let held_ns = event.held_ns.and_then(|held| i64::try_from(held).ok());
        let begun_ns = held_ns.map(|held| at_ns - held).filter(|&begun| begun >= self.log_start_ns);
        self.open(id, event, at_ns, begun_ns);
    }

    /// A port is held from now on. `begun_ns` is `None` for what is older than the log.
    fn open(&mut self, id: u64, event: &Event, at_ns: i64, begun_ns: Option<i64>) {
        let tuple = tuple(self.host, event);
        // The kernel gives a port out again only when it is free.
        if let Some(old) = tuple.and_then(|tuple| self.tuples.get(&tuple).copied())
            && old != id
        {
            self.release(old, at_ns);
            self.ended.insert(old, ());
        }
        let is_new = begun_ns.is_some();
        let is_bound = matches!(event.how, Some(How::Bind | How::Listen))
            || (event.r#type == EventType::Preexisting && event.raddr.is_none());
        let bound = event.lport.filter(|_| is_bound);
        let key = self.site_key(event);
        let site = self.site_id(key);
        if is_new {
            self.count_port(site, event, at_ns, bound.is_some());
        }
        if self.holds.len() >= HOLDS_MAX {
            self.evicted.holds += 1;
            return;
        }
        let hold = Hold {
            site,
            pool: self.pool_of(event),
            member: self.member_key(event),
            tuple,
            begun_ns,
            since_ns: at_ns,
            phase: if event.state.as_deref() == Some("time_wait") { Phase::Waiting } else { Phase::Live },
            // What is older than the log is nobody's connection in it.
            has_connection: !is_new || event.proto == Proto::Udp,
            has_ended: false,
            failed_ns: None,
            bound,
            is_in_range: self.is_in_range(event),
        };
        self.enter(id, &hold, event, at_ns);
        let member = hold.member;
        if let Some(tuple) = tuple {
            self.tuples.insert(tuple, id);
        }
        self.holds.insert(id, hold);
        if event.proto == Proto::Udp && is_new && bound.is_none() {
            self.connection(site, member, event, at_ns);
        }
    }

    /// Counts a new hold wherever it belongs.
    fn enter(&mut self, id: u64, hold: &Hold, event: &Event, at_ns: i64) {
        let is_waiting = hold.phase == Phase::Waiting;
        if let Some(port) = hold.bound {
            let namespace = self.namespaces.entry((self.host, event.netns)).or_default();
            *namespace.bound.entry((event.proto, port)).or_default() += 1;
        }
        if let Some(pool) = self.pool_mut(hold.pool) {
            if is_waiting {
                pool.waiting += 1;
                pool.seen(at_ns);
            } else if hold.begun_ns.is_some() {
                pool.take(at_ns);
            } else {
                pool.open(at_ns);
            }
        }
        if let Some((_, row)) = self.sites.get_mut(&hold.site) {
            row.open_holds += 1;
            let level = if is_waiting { &mut row.waiting } else { &mut row.live };
            level.up(at_ns);
            if hold.bound.is_some() && hold.is_in_range {
                row.bound_any.up(at_ns);
            }
            match hold.begun_ns {
                Some(_) => row.timeline.open(at_ns),
                None => row.preexisting += u64::from(!is_waiting),
            }
        }
        if is_waiting {
            self.waits.push_back((at_ns, id));
            self.waiting_all.up(at_ns);
        }
        self.member(hold.site, hold.member, event, at_ns, |member| {
            member.live += u64::from(!is_waiting);
            member.live_peak = member.live_peak.max(member.live);
        });
    }

    fn is_in_range(&self, event: &Event) -> bool {
        let namespace = self.namespaces.get(&(self.host, event.netns));
        event.lport.zip(namespace).is_some_and(|(port, namespace)| namespace.is_in_range(port))
    }

    fn pool_mut(&mut self, id: Option<PoolId>) -> Option<&mut Pool> {
        Some(&mut self.pools.get_mut(&id?)?.1)
    }

    fn count_port(&mut self, site: SiteId, event: &Event, at_ns: i64, is_bound: bool) {
        self.describe(site, event, at_ns);
        if let Some((_, row)) = self.sites.get_mut(&site) {
            row.ports += 1;
            if is_bound {
                row.binds += 1;
                row.last_bind_ns = Some(at_ns);
            }
        }
    }

    /// What a row says of itself, from the first event that knows.
    fn describe(&mut self, site: SiteId, event: &Event, at_ns: i64) {
        let comm = self.names.maybe(event.comm.as_deref());
        let stack = self.names.maybe(event.stack.as_deref());
        if let Some((_, row)) = self.sites.get_mut(&site) {
            row.seen(at_ns);
            row.comm = row.comm.take().or(comm);
            row.uid = row.uid.or(event.uid);
            row.stack = row.stack.take().or(stack);
        }
    }

    fn connection(&mut self, site: SiteId, member: u64, event: &Event, at_ns: i64) {
        if let Some((_, row)) = self.sites.get_mut(&site) {
            row.connections += 1;
            row.seen(at_ns);
            row.last_success_ns = Some(at_ns);
        }
        self.member(site, member, event, at_ns, |member| member.connections += 1);
    }

    /// The connection stands, or stood: only what stood can end. Counted once.
    fn connected(&mut self, id: u64, event: &Event, at_ns: i64) {
        self.move_to_peer(id, event, at_ns);
        let Some(hold) = self.holds.get_mut(&id) else { return };
        if !std::mem::replace(&mut hold.has_connection, true) {
            let (site, member) = (hold.site, hold.member);
            self.connection(site, member, event, at_ns);
        }
    }

    /// bind, then connect: the hold moves to the row of its peer.
    fn move_to_peer(&mut self, id: u64, event: &Event, at_ns: i64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let (from, member, is_bound) = (hold.site, hold.member, hold.bound.is_some() && hold.is_in_range);
        let is_new = hold.begun_ns.is_some();
        let Some((old, _)) = self.sites.get(&from).filter(|(key, _)| key.peer == Peer::None) else { return };
        let Some(peer) = peer(event) else { return };
        // The program is that of the first call, whoever went on with the socket.
        let to = SiteKey { peer, ..old.clone() };
        let to = self.site_id(to);
        if let Some((_, row)) = self.sites.get_mut(&from) {
            row.open_holds = row.open_holds.saturating_sub(1);
            row.live.down(at_ns);
            row.ports = row.ports.saturating_sub(u64::from(is_new));
            row.timeline.end(at_ns);
            if is_bound {
                row.bound_any.down(at_ns);
            }
        }
        if let Some((_, row)) = self.sites.get_mut(&to) {
            row.open_holds += 1;
            row.live.up(at_ns);
            row.timeline.open(at_ns);
            if is_bound {
                row.bound_any.up(at_ns);
            }
        }
        if is_new {
            self.count_port(to, event, at_ns, true);
        }
        if let Some(member) = self.members.get_mut(&(from, member)) {
            member.live = member.live.saturating_sub(1);
        }
        self.member(to, member, event, at_ns, |member| {
            member.live += 1;
            member.live_peak = member.live_peak.max(member.live);
        });
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.site = to;
        }
    }

    fn time_wait(&mut self, id: u64, event: &Event, at_ns: i64) {
        let Some(hold) = self.holds.get_mut(&id).filter(|hold| hold.phase == Phase::Live) else { return };
        hold.phase = Phase::Waiting;
        hold.since_ns = at_ns;
        let (site, member, begun_ns, pool) = (hold.site, hold.member, hold.begun_ns, hold.pool);
        self.waits.push_back((at_ns, id));
        self.waiting_all.up(at_ns);
        if let Some((_, row)) = self.sites.get_mut(&site) {
            row.live.down(at_ns);
            row.waiting.up(at_ns);
            row.time_waits += 1;
            row.timeline.end(at_ns);
        }
        if let Some(member) = self.members.get_mut(&(site, member)) {
            member.live = member.live.saturating_sub(1);
        }
        if let Some(pool) = self.pool_mut(pool) {
            pool.wait(at_ns, begun_ns, event.substate == Some(Substate::FinWait2));
        }
    }

    fn closed(&mut self, id: u64, event: &Event, at_ns: i64) {
        let Some(hold) = self.holds.get_mut(&id) else { return };
        if std::mem::replace(&mut hold.has_ended, true) {
            return;
        }
        let (site, begun_ns) = (hold.site, hold.begun_ns);
        let Some((_, row)) = self.sites.get_mut(&site) else { return };
        row.closed += 1;
        row.closers.count(event.closer);
        let held_ns = event.held_ns.or_else(|| begun_ns.map(|begun| (at_ns - begun).max(0) as u64));
        if let Some(held_ns) = held_ns {
            row.lifetimes.add(held_ns);
        }
        if let (Some(sent), Some(received)) = (event.bytes_sent, event.bytes_received) {
            row.traffic_known += 1;
            row.bytes_sent = row.bytes_sent.saturating_add(sent);
            row.bytes_received = row.bytes_received.saturating_add(received);
        }
    }

    fn failed(&mut self, id: u64, event: &Event, at_ns: i64) {
        if let Some(hold) = self.holds.get_mut(&id)
            && hold.failed_ns.replace(at_ns) == Some(at_ns)
        {
            return;
        }
        let key = self.site_key(event);
        let site = self.site_id(key);
        let member = self.member_key(event);
        let errno = event.errno.as_deref().unwrap_or(if event.abandoned { "abandoned" } else { "unknown" });
        let errno = self.names.get(errno);
        let is_bind = event.r#type == EventType::BindFailed;
        let has_run_out = event.lport.is_none() && has_run_out(event, &errno);
        self.describe(site, event, at_ns);
        if let Some((_, row)) = self.sites.get_mut(&site) {
            *row.failures.entry(Arc::clone(&errno)).or_default() += 1;
            row.failed.open(at_ns);
            row.portless += u64::from(event.lport.is_none());
            row.searched += u64::from(has_run_out);
            // A port that was asked for by number, or bound before: another socket has it.
            let is_taken = &*errno == "EADDRINUSE" || (!is_bind && &*errno == "EADDRNOTAVAIL");
            if let Some(port) = event.lport.filter(|_| is_taken) {
                row.conflict(port, at_ns);
            }
        }
        self.member(site, member, event, at_ns, |member| member.failures += 1);
        if has_run_out && !is_bind {
            let pool = self.pool_of(event);
            let namespace = self.namespaces.get(&(self.host, event.netns));
            if let Some((_, pool)) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
                pool.fail(at_ns, || namespace.map_or(0, |namespace| namespace.bound(event.proto).0));
            }
        }
        // An attempt without a port is over with its failure.
        if event.lport.is_none() && !self.holds.contains_key(&id) {
            self.ended.insert(id, ());
        }
    }

    /// What the end of a hold tells beside that it ended.
    fn released(&mut self, id: u64, event: &Event) {
        let Some(hold) = self.holds.get(&id) else { return };
        let (site, pool) = (hold.site, hold.pool);
        if event.reason == Some(Reason::TwReused)
            && let Some(pool) = self.pool_mut(pool)
        {
            pool.reused += 1;
        }
        if let (Proto::Udp, Some(held_ns)) = (event.proto, event.held_ns)
            && let Some((_, row)) = self.sites.get_mut(&site)
        {
            row.lifetimes.add(held_ns);
        }
    }

    /// The port is free of this hold.
    pub(super) fn release(&mut self, id: u64, at_ns: i64) {
        let Some(hold) = self.holds.remove(&id) else { return };
        if let Some(tuple) = hold.tuple
            && self.tuples.get(&tuple) == Some(&id)
        {
            self.tuples.remove(&tuple);
        }
        let is_live = hold.phase == Phase::Live;
        let Some((key, row)) = self.sites.get_mut(&hold.site) else { return };
        let (netns, proto) = (key.netns, key.proto);
        row.open_holds = row.open_holds.saturating_sub(1);
        if is_live {
            row.live.down(at_ns);
            row.timeline.end(at_ns);
        } else {
            row.waiting.down(at_ns);
            self.waiting_all.down(at_ns);
        }
        if hold.bound.is_some() && hold.is_in_range {
            row.bound_any.down(at_ns);
        }
        if let Some(member) = self.members.get_mut(&(hold.site, hold.member))
            && is_live
        {
            member.live = member.live.saturating_sub(1);
        }
        if let Some(pool) = self.pool_mut(hold.pool) {
            pool.free(at_ns, is_live.then_some(hold.begun_ns).flatten(), is_live);
        }
        if let Some(port) = hold.bound
            && let Some(namespace) = self.namespaces.get_mut(&(self.host, netns))
            && let Some(holders) = namespace.bound.get_mut(&(proto, port))
        {
            *holders -= 1;
            if *holders == 0 {
                namespace.bound.remove(&(proto, port));
            }
        }
    }

    fn site_key(&mut self, event: &Event) -> SiteKey {
        let comm = self.names.maybe(event.comm.as_deref());
        let mut exe = self.names.maybe(event.exe.as_deref());
        if let Some(pid) = event.pid {
            let key = (self.host, pid);
            let known = self.tasks.get_mut(&key);
            exe = exe.or_else(|| known.as_ref().filter(|task| task.comm == comm)?.exe.clone());
            let task = Task { comm: comm.clone(), exe: exe.clone(), ppid: event.ppid };
            if known.as_deref() != Some(&task) {
                self.tasks.insert(key, task);
            }
        }
        // The parents of a crowd must stay known while their children come.
        let mut ancestor = event.ppid;
        for _ in 0..2 {
            let known = ancestor.and_then(|pid| self.tasks.get_mut(&(self.host, pid)));
            ancestor = known.and_then(|task| task.ppid);
        }
        let program = Program {
            comm: if exe.is_some() { None } else { comm },
            exe,
            cgroup: self.names.maybe(event.cgroup.as_deref()),
            container: self.names.maybe(event.container.as_deref()),
            ppid: event.ppid,
        };
        SiteKey {
            host: self.host,
            netns: event.netns,
            program: Arc::new(program),
            call_site: self.names.maybe(event.call_site.as_deref()),
            proto: event.proto,
            peer: peer(event).unwrap_or(Peer::None),
        }
    }

    fn member_key(&self, event: &Event) -> u64 {
        hash((self.host, event.pid, event.ns_pid, event.start_ns))
    }

    fn member(
        &mut self,
        site: SiteId,
        key: u64,
        event: &Event,
        at_ns: i64,
        change: impl FnOnce(&mut Member),
    ) {
        if self.members.get_mut(&(site, key)).is_none() {
            let (pid, ns_pid, ppid) = (event.pid, event.ns_pid, event.ppid);
            let member = Member { pid, ns_pid, ppid, first_ns: at_ns, ..Member::default() };
            self.members.insert((site, key), member);
            if let Some((_, row)) = self.sites.get_mut(&site) {
                row.processes += 1;
            }
        }
        if let Some(member) = self.members.get_mut(&(site, key)) {
            member.last_ns = at_ns;
            change(member);
        }
    }

    /// The pool that a connect chose its port from, or tried to.
    fn pool_of(&mut self, event: &Event) -> Option<PoolId> {
        let is_connect = match event.r#type {
            EventType::Preexisting => {
                let namespace = self.namespaces.get(&(self.host, event.netns));
                let is_automatic = event.lport.zip(namespace).is_none_or(|(port, namespace)| {
                    let listed = namespace.settings.as_ref().and_then(|it| it.bind_ports.as_deref());
                    namespace.is_in_range(port) && !listed.is_some_and(|ports| ports.contains(&port))
                });
                event.raddr.is_some() && is_automatic
            }
            // Without the allocation nobody knows; most are made by connect.
            EventType::Established | EventType::TimeWait | EventType::Closed => event.raddr.is_some(),
            _ => matches!(event.how, Some(How::Connect | How::Autobind)),
        };
        if !is_connect {
            return None;
        }
        let remote = match event.proto {
            Proto::Udp => None,
            Proto::Tcp | Proto::Unknown => Some((event.raddr?, event.rport?)),
        };
        let (host, netns, proto, laddr) = (self.host, event.netns, event.proto, event.laddr);
        Some(self.pool_id(PoolKey { host, netns, proto, laddr, remote }))
    }
}

impl Site {
    fn conflict(&mut self, port: u16, at_ns: i64) {
        const PORTS_MAX: usize = 64;
        self.last_conflict_ns = Some(at_ns);
        if self.conflicts.len() < PORTS_MAX || self.conflicts.contains_key(&port) {
            *self.conflicts.entry(port).or_default() += 1;
        }
    }
}

fn peer(event: &Event) -> Option<Peer> {
    Some(Peer::To(event.raddr?, event.rport?))
}

/// Whether a failure without a port says that there was none left.
fn has_run_out(event: &Event, errno: &str) -> bool {
    match (event.r#type, event.proto) {
        // Port 0 was asked for: any.
        (EventType::BindFailed, _) => errno == "EADDRINUSE",
        (_, Proto::Udp) => errno == "EAGAIN",
        // Without a search it may be that there is no source address: IPv6 says so by the same number.
        _ => errno == "EADDRNOTAVAIL" && (event.alloc_ns.is_some() || event.laddr.is_ipv4()),
    }
}

/// A hold's number; what another writer may call it is hashed.
fn id(socket: &str) -> u64 {
    match socket.parse::<u64>() {
        Ok(number) if !socket.starts_with(['+', '0']) || socket == "0" => number,
        _ => hash(socket),
    }
}

/// What cannot be held twice, where the kernel chose the port.
fn tuple(host: u32, event: &Event) -> Option<u64> {
    let port = event.lport?;
    match event.proto {
        Proto::Udp => {
            let is_chosen = matches!(event.how, Some(How::Connect | How::Autobind));
            is_chosen.then(|| hash((host, event.netns, 17, event.laddr, port)))
        }
        Proto::Tcp | Proto::Unknown => {
            let peer = (event.raddr?, event.rport?);
            Some(hash((host, event.netns, 6, event.laddr, port, peer)))
        }
    }
}

fn name(kind: EventType) -> &'static str {
    match kind {
        EventType::PortAllocated => "port_allocated",
        EventType::ConnectFailed => "connect_failed",
        EventType::BindFailed => "bind_failed",
        EventType::Established => "established",
        EventType::TimeWait => "time_wait",
        EventType::Closed => "closed",
        EventType::PortReleased => "port_released",
        EventType::Preexisting => "preexisting",
    }
}
