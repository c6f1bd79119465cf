//! What really happened, told by the processes that did it. portwatch is judged against this.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::sockets::{Family, Protocol};

/// Everything one scenario did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Truth {
    /// Why the scenario could not run here.
    pub skip: Option<String>,
    pub stories: Vec<Story>,
    /// TIME_WAITs of accepted sockets: they count in the namespace, and hold no port of ours.
    pub server_time_waits: u64,
    /// `TCPTimeWaitOverflow` that the scenario saw.
    pub overflows: u64,
    /// `TWRecycled` that the scenario saw.
    pub recycled: u64,
    /// Who acts in this thread.
    #[serde(skip)]
    me: Option<Task>,
}

/// One hold of a port, or one attempt to get one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Story {
    pub owner: Task,
    pub how: How,
    pub family: Family,
    pub protocol: Protocol,
    /// Address at the allocation; `None`: the program cannot know.
    pub local: Option<IpAddr>,
    /// `None`: no port was got, or none was asked for.
    pub port: Option<u16>,
    pub peer: Option<SocketAddr>,
    /// The call that got the port, or failed to: `CLOCK_MONOTONIC` before and after it.
    pub call_ns: (u64, u64),
    pub listens: bool,
    /// A filter by peer holds the line of a bind back until the socket connects.
    pub told_at_connect: bool,
    /// It lasts so long that every rung must have listed it.
    pub is_long: bool,
    pub events: Vec<Happened>,
}

/// A task, in the numbers of the harness's own PID namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub pid: u32,
    pub tid: u32,
    pub ppid: u32,
    /// The process's number in its own PID namespace, where that differs.
    pub ns_pid: Option<u32>,
    pub comm: String,
    pub uid: u32,
    /// Start of the process in clock ticks since boot, as in /proc/PID/stat.
    pub start_ticks: u64,
    /// Path in the version 2 hierarchy.
    pub cgroup: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    Connect,
    Bind,
    Listen,
    /// By the first datagram.
    Autobind,
}

impl How {
    pub fn name(self) -> &'static str {
        match self {
            How::Connect => "connect",
            How::Bind => "bind",
            How::Listen => "listen",
            How::Autobind => "autobind",
        }
    }
}

/// One line that the log owes us, in the order of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Happened {
    Allocated,
    ConnectFailed(Failure),
    BindFailed(Failure),
    Established,
    TimeWait { closer: Closer, substate: Option<Substate> },
    Closed { closer: Closer },
    Released { reason: Vec<Reason> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Number of the error.
    Errno(i32),
    /// Closed before anything was decided.
    Abandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Closer {
    Local,
    Remote,
    Both,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Substate {
    FinWait2,
    TimeWait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Closed,
    TwExpired,
    TwReused,
    TwReset,
    TwOverflow,
    NetnsExit,
    Disconnected,
}

/// Name of a plain enum in the event log.
pub fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => panic!("not a plain enum: {other:?}"),
    }
}

/// Which type of line tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    PortAllocated,
    ConnectFailed,
    BindFailed,
    Established,
    TimeWait,
    Closed,
    PortReleased,
}

impl Kind {
    pub const ALL: [(Kind, &'static str); 7] = [
        (Kind::PortAllocated, "port_allocated"),
        (Kind::ConnectFailed, "connect_failed"),
        (Kind::BindFailed, "bind_failed"),
        (Kind::Established, "established"),
        (Kind::TimeWait, "time_wait"),
        (Kind::Closed, "closed"),
        (Kind::PortReleased, "port_released"),
    ];

    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).expect("the table is whole").1
    }

    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl Happened {
    pub fn kind(&self) -> Kind {
        match self {
            Happened::Allocated => Kind::PortAllocated,
            Happened::ConnectFailed(_) => Kind::ConnectFailed,
            Happened::BindFailed(_) => Kind::BindFailed,
            Happened::Established => Kind::Established,
            Happened::TimeWait { .. } => Kind::TimeWait,
            Happened::Closed { .. } => Kind::Closed,
            Happened::Released { .. } => Kind::PortReleased,
        }
    }
}

impl Story {
    pub fn has(&self, kind: Kind) -> bool {
        self.events.iter().any(|event| event.kind() == kind)
    }

    /// Connects that sent a SYN: what the kernel counts as `ActiveOpens`.
    pub fn active_opens(&self) -> u64 {
        if self.port.is_none() || self.protocol == Protocol::Udp {
            return 0;
        }
        let is_open = |event: &&Happened| matches!(event.kind(), Kind::Established | Kind::ConnectFailed);
        self.events.iter().filter(is_open).count() as u64
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Story { owner, how, port, peer, events, .. } = self;
        write!(f, "{} of {}/{} `{}`", how.name(), owner.pid, owner.tid, owner.comm)?;
        write!(f, " port {port:?} peer {peer:?}: {events:?}")
    }
}

impl Task {
    /// The calling thread.
    pub fn current() -> Task {
        // /proc answers in the numbers of its own PID namespace, which is the harness's.
        let link = std::fs::read_link("/proc/thread-self").expect("/proc is mounted");
        let mut numbers = link.to_str().expect("ASCII").split("/task/").map(|n| n.parse().expect("a number"));
        let (pid, tid) = (numbers.next().expect("a process"), numbers.next().expect("a thread"));
        let stat = read("/proc/self/stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a comm").1.split(' ').collect();
        let own_pid = std::process::id();
        Task {
            pid,
            tid,
            ppid: fields[1].parse().expect("a parent"),
            ns_pid: (own_pid != pid).then_some(own_pid),
            comm: read("/proc/thread-self/comm").trim_end_matches('\n').to_owned(),
            uid: nix::unistd::getuid().as_raw(),
            start_ticks: fields[19].parse().expect("a start time"),
            cgroup: read("/proc/self/cgroup")
                .lines()
                .find_map(|line| line.strip_prefix("0::").map(str::to_owned)),
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read `{path}`: {error}"))
}

pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock exists");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Names a story within its [`Truth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

impl Truth {
    /// An empty truth of the calling thread.
    pub fn new() -> Truth {
        Truth { me: Some(Task::current()), ..Truth::nobody() }
    }

    fn nobody() -> Truth {
        Truth { skip: None, stories: Vec::new(), server_time_waits: 0, overflows: 0, recycled: 0, me: None }
    }

    /// Adds what another thread or process did.
    pub fn extend(&mut self, other: Truth) {
        self.skip = self.skip.take().or(other.skip);
        self.stories.extend(other.stories);
        self.server_time_waits += other.server_time_waits;
        self.overflows += other.overflows;
        self.recycled += other.recycled;
    }

    pub fn me(&self) -> &Task {
        self.me.as_ref().expect("made by the thread that acts")
    }

    /// What happened next to a hold.
    pub fn then(&mut self, id: Id, events: impl IntoIterator<Item = Happened>) {
        self.stories[id.0].events.extend(events);
    }

    pub fn story(&mut self, id: Id) -> &mut Story {
        &mut self.stories[id.0]
    }

    pub fn add(&mut self, story: Story) -> Id {
        self.stories.push(story);
        Id(self.stories.len() - 1)
    }
}
