//! The lines of an event log as readers see them: version 1, every field typed.
//!
//! What a log may leave out or set to `null` is an `Option`. Fields that this portwatch does not know are
//! ignored, and words that it does not know become `Unknown`, so that logs of newer minor versions are read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line after the header.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    Event(Box<Event>),
    /// A socket that was open before the start: an event in form only.
    Preexisting(Box<Event>),
    Netns(Netns),
    Stack(Stack),
    Process(Process),
    Summary(Summary),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub schema: String,
    pub version: u64,
    pub portwatch: String,
    pub host: String,
    pub kernel: String,
    pub arch: String,
    pub rung: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// `CLOCK_MONOTONIC` at the start.
    #[serde(with = "u64_in_string")]
    pub mono_ns: u64,
    pub command: Vec<String>,
    pub filters: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub coverage: BTreeMap<String, String>,
    #[serde(default)]
    pub stack_method: Option<String>,
}

/// Type of an event line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    PortAllocated,
    ConnectFailed,
    BindFailed,
    Established,
    TimeWait,
    Closed,
    PortReleased,
    /// Not an event: open before the start.
    Preexisting,
}

/// An event, or a socket that was open before the start. `docs/events` says which type has which fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub r#type: EventType,
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// Since the header's `mono_ns`.
    pub mono_ns: i64,
    pub socket: String,
    pub direction: Direction,
    pub pid: Option<u32>,
    pub ns_pid: Option<u32>,
    pub tid: Option<u32>,
    pub ppid: Option<u32>,
    pub comm: Option<String>,
    pub uid: Option<u32>,
    /// Start of the process, `CLOCK_BOOTTIME`.
    #[serde(default, with = "optional_u64_in_string")]
    pub start_ns: Option<u64>,
    pub exe: Option<String>,
    pub cmdline: Option<Vec<String>>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub netns: u32,
    pub proto: Proto,
    pub family: Family,
    #[serde(default)]
    pub mapped: bool,
    pub laddr: std::net::IpAddr,
    pub lport: Option<u16>,
    pub raddr: Option<std::net::IpAddr>,
    pub rport: Option<u16>,
    pub how: Option<How>,
    pub alloc_ns: Option<u64>,
    /// When the port was taken, where that was learned late; counted like `mono_ns`.
    pub since_ns: Option<i64>,
    pub errno: Option<String>,
    #[serde(default)]
    pub abandoned: bool,
    pub closer: Option<Closer>,
    pub closed_by: Option<u32>,
    pub substate: Option<Substate>,
    pub reason: Option<Reason>,
    pub held_ns: Option<u64>,
    pub bytes_sent: Option<u64>,
    pub bytes_received: Option<u64>,
    pub connect_ns: Option<u64>,
    /// TCP state, of a socket that was open before the start.
    pub state: Option<String>,
    pub stack: Option<String>,
    /// Why there is no stack, or only a part.
    pub stack_gap: Option<String>,
    pub call_site: Option<String>,
    pub confidence: Confidence,
}

/// A closed set of words, open to words of later versions.
macro_rules! words {
    ($($name:ident { $($word:ident),* $(,)? })*) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($word,)*
            #[serde(other)]
            Unknown,
        }
    )*};
}

words! {
    Direction { Out, In }
    Proto { Tcp, Udp }
    Family { Ipv4, Ipv6 }
    How { Connect, Bind, Listen, Autobind }
    Closer { Local, Remote, Both, Reset }
    Substate { FinWait2, TimeWait }
    Reason { Closed, TwExpired, TwReused, TwReset, TwOverflow, NetnsExit, Disconnected }
    Confidence { Exact, Inferred }
    FrameKind { Native, Python, Jit, Kernel }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Netns {
    pub time: Option<String>,
    pub mono_ns: i64,
    pub netns: u32,
    pub port_range: Option<(u16, u16)>,
    pub reserved: Option<Vec<(u16, u16)>>,
    pub tcp_tw_reuse: Option<u32>,
    pub tcp_tw_reuse_delay_ms: Option<u32>,
    pub tcp_timestamps: Option<u32>,
    pub tcp_max_tw_buckets: Option<u32>,
    pub step_width: Option<u32>,
    pub bind_ports: Option<Vec<u16>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    pub stack: String,
    /// Innermost first.
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub module: Option<String>,
    pub build_id: Option<String>,
    pub offset: Option<u64>,
    pub kind: FrameKind,
    #[serde(default)]
    pub inlined: bool,
    pub reason: Option<String>,
}

/// A process that asked for no port itself: the parent of one that did, or a parent of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub time: Option<String>,
    pub mono_ns: i64,
    pub pid: u32,
    pub ppid: Option<u32>,
    pub comm: Option<String>,
    pub exe: Option<String>,
}

type Counts = BTreeMap<String, u64>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub events: Counts,
    pub lost: BTreeMap<String, Counts>,
    pub kernel_totals: Counts,
    #[serde(default)]
    pub lower_bound: bool,
    #[serde(default)]
    pub inferred: Counts,
    #[serde(default)]
    pub filtered: Counts,
    pub stacks: StackShares,
    pub duration_ns: u64,
    pub ended_by: String,
    pub complete: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackShares {
    pub complete: u64,
    pub partial: u64,
    pub none: u64,
    #[serde(default)]
    pub gaps: Counts,
    pub walked: Option<u64>,
    pub snapshots: Option<u64>,
    pub rate_limited: Option<u64>,
    /// How often the kernel side's stacks were checked, and with what result.
    pub audit: Option<Counts>,
}

mod u64_in_string {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

mod optional_u64_in_string {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => serializer.collect_str(number),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}
