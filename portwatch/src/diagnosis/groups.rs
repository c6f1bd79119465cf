//! Rows of the ledger as they are judged: lone children of short-lived shells are put together first.

use std::collections::BTreeMap;

use super::advice::advise;
use super::report::{Finding, Parent, Severity, Worker, destination};
use super::{Context, round};
use crate::aggregate::ledger::{Ledger, Member};
use crate::aggregate::site::{Peer, Site, SiteKey};
use crate::recording::format::Frame;

/// A row with its processes.
#[derive(Debug)]
pub struct Group {
    pub key: SiteKey,
    pub site: Site,
    /// Busiest first. Of a crowd, those that are remembered.
    pub members: Vec<Member>,
}

/// Lone children with the same grandparent that make a crowd.
const CROWD_MIN: usize = 3;
/// A process of a crowd makes no more connections than this.
const PER_CHILD_MAX: f64 = 4.0;
/// Fewer processes are workers, not a crowd.
const CHILDREN_MIN: u64 = 4;

pub fn of(ledger: &Ledger) -> Vec<Group> {
    let mut members = ledger.members();
    let mut groups: BTreeMap<SiteKey, Group> = BTreeMap::new();
    let mut lone: BTreeMap<SiteKey, Vec<Group>> = BTreeMap::new();
    for (id, key, site) in ledger.sites() {
        let group =
            Group { key: key.clone(), site: site.clone(), members: members.remove(&id).unwrap_or_default() };
        match ledger.promoted(key, site) {
            Some(promoted) => lone.entry(promoted).or_default().push(group),
            None => {
                groups.insert(key.clone(), group);
            }
        }
    }
    for (promoted, children) in lone {
        if children.len() < CROWD_MIN && !groups.contains_key(&promoted) {
            groups.extend(children.into_iter().map(|child| (child.key.clone(), child)));
            continue;
        }
        let group = groups.entry(promoted.clone()).or_insert_with(|| Group {
            key: promoted,
            site: Site::default(),
            members: Vec::new(),
        });
        for child in children {
            group.site.merge(&child.site, ledger.now_ns());
            group.members.extend(child.members);
        }
    }
    groups.into_values().collect()
}

impl Group {
    pub fn destination(&self) -> Option<String> {
        match self.key.peer {
            Peer::To(address, port) => Some(destination(address, port)),
            Peer::None | Peer::Others => None,
        }
    }

    pub fn comm(&self) -> Option<String> {
        let comm = self.site.comm.as_deref().or(self.key.program.comm.as_deref());
        comm.map(str::to_owned)
    }

    /// Many processes that make a few connections each.
    pub fn is_crowd(&self) -> bool {
        let attempts = self.site.connections + self.site.failure_count();
        self.site.processes >= CHILDREN_MIN && attempts as f64 <= PER_CHILD_MAX * self.site.processes as f64
    }

    /// The one process, or how many children.
    pub fn process(&self) -> (Option<u32>, Option<u64>) {
        match self.members.as_slice() {
            [only] if self.site.processes <= 1 => (only.pid, None),
            _ if self.is_crowd() => (None, Some(self.site.processes)),
            _ => (None, None),
        }
    }

    pub fn parent(&self, ledger: &Ledger) -> Option<Parent> {
        let pid = self.key.program.ppid?;
        let task = ledger.task(self.key.host, pid).cloned().unwrap_or_default();
        let text = |text: Option<std::sync::Arc<str>>| text.map(|text| text.to_string());
        Some(Parent { pid, comm: text(task.comm), exe: text(task.exe) })
    }

    /// Processes with a real part in what the row is blamed for, by `part`.
    pub fn workers(&self, part: impl Fn(&Member) -> u64) -> Vec<Worker> {
        /// A process with less of it than this has another story.
        const PART_MIN: f64 = 0.02;
        let total: u64 = self.members.iter().map(&part).sum();
        let has_part = |member: &&Member| part(member) as f64 > PART_MIN * total as f64;
        self.members
            .iter()
            .filter(has_part)
            .map(|member| Worker {
                pid: member.pid,
                connections: part(member),
                share: round(part(member) as f64 / total.max(1) as f64),
            })
            .collect()
    }
}

/// Name of the host, where logs of several were read.
pub fn host_name(ledger: &Ledger, host: u32) -> Option<String> {
    let hosts = ledger.hosts();
    (hosts.len() > 1).then(|| hosts.get(host as usize).map(|host| host.name.clone())).flatten()
}

pub fn host(ledger: &Ledger, key: &SiteKey) -> Option<String> {
    host_name(ledger, key.host)
}

/// A finding on a row: who is to blame, and where. `part` says how much of it each process has.
pub fn blame(
    context: &Context,
    group: &Group,
    (verdict, cause): (&'static str, &str),
    severity: Severity,
    evidence: BTreeMap<&'static str, f64>,
    part: impl Fn(&Member) -> u64,
) -> Finding {
    let ledger = context.ledger;
    let is_crowd = group.is_crowd();
    let workers = if is_crowd { Vec::new() } else { group.workers(part) };
    let pid = match workers.as_slice() {
        [only] => only.pid,
        _ => None,
    };
    let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
    let frames = group.site.stack.as_deref().map_or(&[][..], |stack| ledger.frames(stack));
    let finding = Finding {
        verdict,
        severity,
        pid,
        ppid: group.key.program.ppid,
        comm: group.comm(),
        exe: text(&group.key.program.exe),
        cgroup: text(&group.key.program.cgroup),
        container: text(&group.key.program.container),
        host: host(ledger, &group.key),
        netns: group.key.netns,
        proto: group.key.proto,
        parent: if is_crowd { group.parent(ledger) } else { None },
        children: is_crowd.then_some(group.site.processes),
        workers: if workers.len() > 1 { workers } else { Vec::new() },
        destination: group.destination(),
        call_site: text(&group.key.call_site),
        stack: text(&group.site.stack),
        frames: frames.iter().map(frame_text).collect(),
        evidence,
        confidence: 0.0,
        advice: String::new(),
        advice_id: String::new(),
        links: Vec::new(),
        knobs: Vec::new(),
        weight: 0,
    };
    advise(finding, frames, cause)
}

impl Finding {
    pub fn with(self, confidence: f64, weight: u64) -> Finding {
        Finding { confidence: round(confidence.clamp(0.0, 1.0)), weight, ..self }
    }
}

fn frame_text(frame: &Frame) -> String {
    let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let function = frame.function.clone();
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => Some(format!("{}:{line}", base(file))),
        (Some(file), None) => Some(base(file)),
        (None, _) => frame.module.as_deref().map(base),
    };
    match (function, place) {
        (Some(function), Some(place)) => format!("{function} ({place})"),
        (Some(function), None) => function,
        (None, Some(place)) => format!("? ({place})"),
        (None, None) => "?".to_owned(),
    }
}
