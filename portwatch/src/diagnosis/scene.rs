//! Logs made in memory, for tests: clients that behave well and badly, second by second.

use std::net::{IpAddr, Ipv4Addr};

use crate::aggregate::ledger::Ledger;
use crate::recording::format::{
    Closer, Confidence, Direction, Event, EventType, Family, Header, How, Line, Netns, Process, Proto,
    Reason, StackShares, Substate, Summary,
};

pub const MS: i64 = 1_000_000;
pub const S: i64 = 1_000 * MS;
const NETNS: u32 = 4_026_531_840;

/// A process as the log names it.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub pid: u32,
    pub ppid: u32,
    pub exe: &'static str,
    pub call_site: &'static str,
}

pub const CLIENT: Client =
    Client { pid: 4711, ppid: 4700, exe: "/usr/bin/python3.11", call_site: "fetch (client.py:42)" };

/// Writes lines in any order of time; they are read in the order of their times.
pub struct Scene {
    pub lines: Vec<(i64, Line)>,
    pub next: u64,
    pub laddr: IpAddr,
    pub server: (IpAddr, u16),
    pub settings: Netns,
    pub has_time_wait: bool,
    pub proto: Proto,
}

impl Default for Scene {
    fn default() -> Self {
        Scene {
            lines: Vec::new(),
            next: 1,
            laddr: Ipv4Addr::new(10, 0, 0, 5).into(),
            server: (Ipv4Addr::new(10, 0, 0, 9).into(), 5432),
            settings: Netns {
                time: None,
                mono_ns: 0,
                netns: NETNS,
                port_range: Some((32_768, 60_999)),
                reserved: Some(Vec::new()),
                tcp_tw_reuse: Some(2),
                tcp_tw_reuse_delay_ms: Some(1000),
                tcp_timestamps: Some(1),
                tcp_max_tw_buckets: Some(65_536),
                step_width: None,
                bind_ports: Some(Vec::new()),
            },
            has_time_wait: true,
            proto: Proto::Tcp,
        }
    }
}

impl Scene {
    pub fn event(&self, kind: EventType, at_ns: i64, socket: u64, client: Client) -> Event {
        let port = 32_768 + (socket % 28_232) as u16;
        Event {
            r#type: kind,
            time: String::new(),
            mono_ns: at_ns,
            socket: socket.to_string(),
            direction: Direction::Out,
            pid: Some(client.pid),
            ns_pid: None,
            tid: Some(client.pid),
            ppid: Some(client.ppid),
            comm: client.exe.rsplit('/').next().map(str::to_owned),
            uid: Some(1000),
            start_ns: Some(u64::from(client.pid) * 1_000),
            exe: Some(client.exe.to_owned()),
            cmdline: None,
            cgroup: Some("/app".to_owned()),
            container: None,
            netns: NETNS,
            proto: self.proto,
            family: Family::Ipv4,
            mapped: false,
            laddr: self.laddr,
            lport: Some(port),
            raddr: Some(self.server.0),
            rport: Some(self.server.1),
            how: None,
            alloc_ns: None,
            since_ns: None,
            errno: None,
            abandoned: false,
            closer: None,
            closed_by: None,
            substate: None,
            reason: None,
            held_ns: None,
            bytes_sent: None,
            bytes_received: None,
            connect_ns: None,
            state: None,
            stack: None,
            stack_gap: None,
            call_site: Some(client.call_site.to_owned()),
            confidence: Confidence::Exact,
        }
    }

    pub fn push(&mut self, event: Event) {
        self.lines.push((event.mono_ns, Line::Event(Box::new(event))));
    }

    pub fn parent(&mut self, pid: u32, ppid: u32, exe: &str) {
        let process = Process {
            time: None,
            mono_ns: 0,
            pid,
            ppid: Some(ppid),
            comm: exe.rsplit('/').next().map(str::to_owned),
            exe: Some(exe.to_owned()),
        };
        self.lines.push((0, Line::Process(process)));
    }

    /// A connection from its port on; `life_ns` of `None` stays open.
    pub fn connection(&mut self, client: Client, at_ns: i64, life_ns: Option<i64>) -> u64 {
        self.connection_sending(client, at_ns, life_ns, 200)
    }

    pub fn connection_sending(&mut self, client: Client, at_ns: i64, life_ns: Option<i64>, sent: u64) -> u64 {
        let socket = self.next;
        self.next += 1;
        let begun = self.event(EventType::PortAllocated, at_ns, socket, client);
        self.push(Event { how: Some(How::Connect), alloc_ns: Some(3_000), ..begun });
        if self.proto == Proto::Tcp {
            let stood = self.event(EventType::Established, at_ns + MS / 10, socket, client);
            self.push(Event { connect_ns: Some(100_000), ..stood });
        }
        let Some(life_ns) = life_ns else { return socket };
        let end_ns = at_ns + life_ns;
        let held_ns = Some(life_ns as u64);
        let closer = Some(if self.has_time_wait { Closer::Local } else { Closer::Remote });
        let (bytes_sent, bytes_received) = (Some(sent), Some(2_000));
        if self.proto == Proto::Udp {
            let free = self.event(EventType::PortReleased, end_ns, socket, client);
            self.push(Event { reason: Some(Reason::Closed), held_ns, ..free });
            return socket;
        }
        if self.has_time_wait {
            let wait = self.event(EventType::TimeWait, end_ns, socket, client);
            let substate = Some(Substate::FinWait2);
            self.push(Event { closer, substate, bytes_sent, bytes_received, ..wait });
        }
        let closed = self.event(EventType::Closed, end_ns, socket, client);
        self.push(Event { closer, held_ns, bytes_sent, bytes_received, ..closed });
        let (free_ns, reason) =
            if self.has_time_wait { (end_ns + 60 * S, Reason::TwExpired) } else { (end_ns, Reason::Closed) };
        let free = self.event(EventType::PortReleased, free_ns, socket, client);
        self.push(Event { reason: Some(reason), held_ns: Some((free_ns - at_ns) as u64), ..free });
        socket
    }

    pub fn failure(&mut self, client: Client, at_ns: i64, errno: &str, has_port: bool) {
        let socket = self.next;
        self.next += 1;
        let failed = self.event(EventType::ConnectFailed, at_ns + 1, socket, client);
        let lport = failed.lport.filter(|_| has_port);
        if has_port {
            let begun = self.event(EventType::PortAllocated, at_ns, socket, client);
            self.push(Event { how: Some(How::Connect), ..begun });
        }
        let (how, errno) = (Some(How::Connect), Some(errno.to_owned()));
        self.push(Event { how, errno, lport, alloc_ns: (!has_port).then_some(9_000), ..failed });
        if has_port {
            let free = self.event(EventType::PortReleased, at_ns + 2, socket, client);
            self.push(Event { reason: Some(Reason::Closed), held_ns: Some(2), ..free });
        }
    }

    pub fn header() -> Header {
        Header {
            schema: "portwatch".into(),
            version: 1,
            portwatch: "0.1.0".into(),
            host: "web-3".into(),
            kernel: "6.12.107".into(),
            arch: "x86_64".into(),
            rung: "fentry".into(),
            started: "2026-11-21T09:27:34.500000000Z".into(),
            mono_ns: 8_123_456_000_000_000,
            command: vec!["portwatch".into(), "record".into()],
            filters: Default::default(),
            coverage: Default::default(),
            stack_method: Some("unwind".into()),
        }
    }

    pub fn summary(duration_ns: i64) -> Summary {
        Summary {
            events: Default::default(),
            lost: Default::default(),
            kernel_totals: Default::default(),
            lower_bound: false,
            inferred: Default::default(),
            filtered: Default::default(),
            stacks: StackShares {
                complete: 0,
                partial: 0,
                none: 0,
                gaps: Default::default(),
                walked: None,
                snapshots: None,
                rate_limited: None,
                audit: None,
            },
            duration_ns: duration_ns as u64,
            ended_by: "duration".into(),
            complete: true,
        }
    }

    /// The lines up to a time, in order, without header and summary.
    pub fn lines(&self, until_ns: i64) -> Vec<Line> {
        let mut lines: Vec<(i64, Line)> =
            self.lines.iter().filter(|(at, _)| *at < until_ns).cloned().collect();
        // Stable: what happens at one time was pushed in causal order.
        lines.sort_by_key(|(at, _)| *at);
        std::iter::once(Line::Netns(self.settings.clone()))
            .chain(lines.into_iter().map(|(_, line)| line))
            .collect()
    }

    /// A ledger of a window that ends at a time.
    pub fn ledger(&self, until_ns: i64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.begin(&Scene::header());
        for line in self.lines(until_ns) {
            ledger.line(&line);
        }
        ledger.line(&Line::Summary(Scene::summary(until_ns)));
        ledger.end();
        ledger
    }
}
