//! Rows of the ledger as they are judged: lone children of short-lived shells are put together first.

use std::collections::BTreeMap;

use super::advice::advise;
use super::knobs;
use super::report::{Finding, Parent, Severity, Worker, destination};
use super::thresholds::KNOBS_LOAD_MIN;
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

/// Several rows as one, say all destinations of a call site.
pub fn merged(context: &Context, key: SiteKey, groups: &[&Group]) -> Group {
    let mut whole = Group { key, site: Site::default(), members: Vec::new() };
    let mut members: BTreeMap<(Option<u32>, Option<u32>), Member> = BTreeMap::new();
    for group in groups {
        whole.site.merge(&group.site, context.ledger.now_ns());
        for member in &group.members {
            let sum = members.entry((member.pid, member.ns_pid)).or_insert_with(|| Member {
                connections: 0,
                failures: 0,
                live: 0,
                live_peak: 0,
                ..member.clone()
            });
            sum.connections += member.connections;
            sum.failures += member.failures;
            sum.live += member.live;
            sum.live_peak += member.live_peak;
            sum.first_ns = sum.first_ns.min(member.first_ns);
            sum.last_ns = sum.last_ns.max(member.last_ns);
        }
    }
    whole.site.processes = members.len() as u64;
    whole.members = members.into_values().collect();
    whole.members.sort_by_key(|member| (std::cmp::Reverse(member.connections + member.failures), member.pid));
    whole
}

/// Lone children with the same grandparent that make a crowd.
const CROWD_MIN: usize = 3;
/// Fewer processes are workers, not a crowd.
const CHILDREN_MIN: u64 = 4;
/// A process of a crowd makes no more connections than this, or is busy for no more than this part of the time.
const PER_CHILD_MAX: f64 = 1.5;
const CHILD_SPAN_MAX: f64 = 0.25;

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
    absorb(ledger, groups.into_values().collect())
}

/// Rows of short-lived children may lack what nobody could read in time, the program's path or the call site: each
/// joins the one row that has it and agrees in all else.
fn absorb(ledger: &Ledger, mut groups: Vec<Group>) -> Vec<Group> {
    for lacks in [lacks_exe, lacks_call_site] {
        let (poor, mut rich): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(|group| {
            // Workers have time to be read: only what was short-lived is put together.
            lacks(&group.key)
        });
        for group in poor {
            let mut fitting = rich.iter_mut().filter(|other| is_same(&group, other, lacks));
            match (fitting.next(), fitting.next()) {
                (Some(other), None) => {
                    other.site.merge(&group.site, ledger.now_ns());
                    other.members.extend(group.members);
                }
                _ => rich.push(group),
            }
        }
        rich.sort_by(|a, b| a.key.cmp(&b.key));
        groups = rich;
    }
    groups
}

fn lacks_exe(key: &SiteKey) -> bool {
    key.program.exe.is_none()
}

fn lacks_call_site(key: &SiteKey) -> bool {
    key.call_site.is_none()
}

fn is_same(poor: &Group, rich: &Group, lacks: fn(&SiteKey) -> bool) -> bool {
    let (a, b) = (&poor.key, &rich.key);
    let place = |key: &SiteKey| (key.host, key.netns, key.proto, key.peer, key.program.ppid);
    let is_call_site_same = a.call_site == b.call_site || a.call_site.is_none();
    let is_program_same = match (&a.program.exe, &b.program.exe) {
        (None, _) => poor.site.comm == rich.site.comm,
        (a, b) => a == b,
    };
    !lacks(b) && place(a) == place(b) && is_call_site_same && is_program_same
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

    /// Many processes that make a connection each, or come and go.
    pub fn is_crowd(&self) -> bool {
        if self.site.processes < CHILDREN_MIN {
            return false;
        }
        if self.site.attempts() as f64 <= PER_CHILD_MAX * self.site.processes as f64 {
            return true;
        }
        let span = |from: i64, to: i64| (to - from).max(0) as f64;
        let whole = span(self.site.first_ns.unwrap_or(self.site.last_ns), self.site.last_ns);
        let busy: f64 = self.members.iter().map(|member| span(member.first_ns, member.last_ns)).sum();
        busy / self.members.len().max(1) as f64 <= CHILD_SPAN_MAX * whole
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
    let is_about_room = matches!(verdict, "connect-per-request" | "exhaustion" | "connection-leak");
    let pool = context
        .pool(group)
        .filter(|pool| is_about_room && (pool.load() >= KNOBS_LOAD_MIN || severity == Severity::Critical));
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
        knobs: pool.map_or_else(Vec::new, knobs::of),
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
