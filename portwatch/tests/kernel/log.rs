//! The event log, read as any other program would.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::namespace::Era;
use crate::truth::Kind;

/// A whole log, taken apart.
pub struct Log {
    pub header: Header,
    /// Events, in the order of the log.
    pub lines: Vec<Line>,
    /// `preexisting` lines, whose fields are those of events.
    pub preexisting: Vec<Line>,
    pub summary: Option<Summary>,
    /// Frames by the stack's id.
    pub stacks: HashMap<String, Vec<Value>>,
    /// What is wrong with its form.
    pub defects: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Header {
    pub schema: String,
    pub version: u32,
    pub rung: String,
    /// A string: it may pass 2^53.
    pub mono_ns: String,
}

/// One event.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    #[serde(rename = "type")]
    pub kind: String,
    /// Since the header's.
    pub mono_ns: i64,
    pub since_ns: Option<i64>,
    pub socket: String,
    pub direction: Option<String>,
    pub pid: Option<u32>,
    pub tid: Option<u32>,
    pub ppid: Option<u32>,
    pub ns_pid: Option<u32>,
    pub comm: Option<String>,
    pub exe: Option<String>,
    pub uid: Option<u32>,
    pub start_ns: Option<String>,
    pub cgroup: Option<String>,
    pub netns: Option<u64>,
    pub proto: Option<String>,
    pub family: Option<String>,
    #[serde(default)]
    pub mapped: bool,
    pub laddr: Option<IpAddr>,
    pub lport: Option<u16>,
    pub raddr: Option<IpAddr>,
    pub rport: Option<u16>,
    pub how: Option<String>,
    pub errno: Option<String>,
    #[serde(default)]
    pub abandoned: bool,
    pub closer: Option<String>,
    pub substate: Option<String>,
    pub reason: Option<String>,
    pub held_ns: Option<u64>,
    pub stack: Option<String>,
    #[allow(dead_code, reason = "the tests of clients read it")]
    pub call_site: Option<String>,
    pub stack_gap: Option<String>,
    pub confidence: Option<String>,
}

impl Line {
    pub fn kind(&self) -> Option<Kind> {
        Kind::of_name(&self.kind)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} socket {} at {}", self.kind, self.socket, self.mono_ns)?;
        write!(f, " pid {:?}/{:?} {:?}", self.pid, self.tid, self.comm)?;
        write!(f, " {:?}:{:?}->{:?}:{:?}", self.laddr, self.lport, self.raddr, self.rport)?;
        let details = [&self.how, &self.errno, &self.closer, &self.substate, &self.reason, &self.confidence];
        details.into_iter().flatten().try_for_each(|detail| write!(f, " {detail}"))
    }
}

#[derive(Debug, Default, Deserialize)]
pub struct Summary {
    pub events: BTreeMap<String, u64>,
    pub lost: BTreeMap<String, BTreeMap<String, u64>>,
    pub kernel_totals: BTreeMap<String, u64>,
    #[serde(default)]
    pub lower_bound: bool,
    #[serde(default)]
    pub inferred: BTreeMap<String, u64>,
    #[serde(default)]
    pub filtered: BTreeMap<String, u64>,
    pub ended_by: String,
    #[serde(default)]
    pub complete: bool,
    #[serde(default)]
    pub duration_ns: u64,
    #[serde(default)]
    pub stacks: Value,
}

impl Log {
    pub fn read(path: &Path) -> Result<Log, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the log `{}`: {error}", path.display()))?;
        Ok(Log::parse(&text))
    }

    pub fn parse(text: &str) -> Log {
        let mut log = Log {
            header: Header::default(),
            lines: Vec::new(),
            preexisting: Vec::new(),
            summary: None,
            stacks: HashMap::new(),
            defects: Vec::new(),
        };
        let mut stacks = HashSet::new();
        for (number, text) in text.lines().enumerate() {
            if let Err(defect) = log.take(number, text, &mut stacks) {
                let start: String = text.chars().take(240).collect();
                log.defects.push(format!("line {}: {defect}: `{start}`", number + 1));
            }
        }
        if !text.ends_with('\n') {
            log.defects.push("the last line is cut short".to_owned());
        }
        log
    }

    fn take(&mut self, number: usize, text: &str, stacks: &mut HashSet<String>) -> Result<(), String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON ({error})"))?;
        let kind = value["type"].as_str().ok_or("no `type`")?.to_owned();
        if (kind == "header") != (number == 0) {
            return Err("the header is the first line and no other".to_owned());
        }
        if self.summary.is_some() {
            return Err("a line after the summary".to_owned());
        }
        let malformed = |error: serde_json::Error| error.to_string();
        match kind.as_str() {
            "header" => self.header = serde_json::from_value(value).map_err(malformed)?,
            "summary" => self.summary = Some(serde_json::from_value(value).map_err(malformed)?),
            "preexisting" => self.preexisting.push(serde_json::from_value(value).map_err(malformed)?),
            "stack" => {
                let id = value["stack"].as_str().ok_or("a stack without its id")?;
                if !stacks.insert(id.to_owned()) {
                    return Err("a stack for the second time".to_owned());
                }
                let frames = value["frames"].as_array().ok_or("a stack without frames")?;
                self.stacks.insert(id.to_owned(), frames.clone());
            }
            _ if Kind::of_name(&kind).is_some() => {
                let line: Line = serde_json::from_value(value).map_err(malformed)?;
                // Told once for each stack.
                let is_known = line.stack.as_ref().is_none_or(|id| !stacks.insert(id.clone()));
                self.lines.push(line);
                if !is_known {
                    return Err("names a stack that has not come".to_owned());
                }
            }
            // `netns`, and whatever a later version adds.
            _ => {}
        }
        Ok(())
    }

    /// `CLOCK_MONOTONIC` that event times count from.
    pub fn start_ns(&self) -> i128 {
        self.header.mono_ns.parse().unwrap_or(0)
    }

    /// When a hold or attempt began, by its first line.
    pub fn begun_ns(&self, first: &Line) -> i128 {
        self.start_ns() + i128::from(first.since_ns.unwrap_or(first.mono_ns))
    }

    /// The holds of one namespace, each the lines of one `socket`.
    pub fn holds(&self, era: &Era) -> Vec<Vec<&Line>> {
        let mut holds: HashMap<&str, Vec<&Line>> = HashMap::new();
        for line in &self.lines {
            holds.entry(&line.socket).or_default().push(line);
        }
        // What was found in a listing may have begun, for all that is known, before its namespace.
        let known_ns = |first: &Line| match first.confidence.as_deref() {
            Some("inferred") => self.start_ns() + i128::from(first.mono_ns),
            _ => self.begun_ns(first),
        };
        holds.into_values().filter(|hold| era.has(hold[0].netns, known_ns(hold[0]))).collect()
    }
}
