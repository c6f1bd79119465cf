//! The log against what clients and servers counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::log::{Line, Log};
use crate::namespace::Counters;
use crate::stage::{self, Stage};
use crate::tracer::{Ended, Tracer};
use crate::wait::{self, PATIENCE};
use crate::{Stopped, whole};

/// Connections of one program to one address.
pub struct Expected {
    /// Of the tasks that connected.
    pub comm: String,
    pub to: SocketAddr,
    /// Connections that were begun, per process.
    pub begun: BTreeMap<u32, usize>,
    pub outcome: Outcome,
}

/// What came of all of them.
pub enum Outcome {
    /// The clients' ends as the server saw them, where it tells.
    Accepted(Option<Vec<SocketAddr>>),
    Refused,
}

/// `portwatch record` at work.
pub struct Traced<'a> {
    stage: &'a Stage,
    tracer: Tracer,
    /// `ActiveOpens` of the namespace.
    active_opens: u64,
}

impl<'a> Traced<'a> {
    /// Runs a command and traces it.
    pub fn command(stage: &'a Stage, command: &[String]) -> Result<Traced<'a>, Stopped> {
        let active_opens = Counters::read().active_opens;
        Ok(Traced { stage, tracer: stage.record(command)?, active_opens })
    }

    /// Traces the whole namespace.
    pub fn everything(stage: &'a Stage) -> Result<Traced<'a>, Stopped> {
        let tracer = stage.record_all()?;
        Ok(Traced { stage, tracer, active_opens: Counters::read().active_opens })
    }

    /// Waits until it ends with its command.
    pub fn wait(self) -> Result<Run<'a>, String> {
        let (tracer_pid, ended) = (self.tracer.pid(), self.tracer.wait()?);
        Ok(Run {
            stage: self.stage,
            tracer_pid,
            ended,
            ended_by: "exit",
            active_opens: begun_since(self.active_opens),
        })
    }

    /// Ends a command that would go on, by a signal to the tracer, once it has begun so many connections.
    pub fn interrupt_after(self, connections: u64) -> Result<Run<'a>, String> {
        let begun = || begun_since(self.active_opens);
        if wait::until(PATIENCE, || (begun() >= connections).then_some(())).is_none() {
            return Err(format!("the command began {} connections, not {connections}", begun()));
        }
        let (tracer_pid, ended) = (self.tracer.pid(), self.tracer.stop(Signal::SIGTERM)?);
        Ok(Run {
            stage: self.stage,
            tracer_pid,
            ended,
            ended_by: "exit",
            active_opens: begun_since(self.active_opens),
        })
    }

    /// Ends the tracing of everything once every connection that was made is closed.
    pub fn stop(self) -> Result<Run<'a>, String> {
        if wait::until(PATIENCE, || stage::open_connections().is_empty().then_some(())).is_none() {
            return Err(format!("connections stay open: {:?}", stage::open_connections()));
        }
        let (tracer_pid, ended) = (self.tracer.pid(), self.tracer.stop(Signal::SIGTERM)?);
        Ok(Run {
            stage: self.stage,
            tracer_pid,
            ended,
            ended_by: "signal",
            active_opens: begun_since(self.active_opens),
        })
    }
}

fn begun_since(active_opens: u64) -> u64 {
    Counters::read().active_opens - active_opens
}

/// A traced run that is over.
pub struct Run<'a> {
    pub stage: &'a Stage,
    tracer_pid: u32,
    ended: Ended,
    ended_by: &'static str,
    /// Connections that were begun in the namespace meanwhile, as the kernel counts them.
    active_opens: u64,
}

impl Run<'_> {
    /// Connections of a process, as logged.
    pub fn established(&self, pid: u32) -> usize {
        of_kind(&of_netns(&self.ended.log, self.stage.netns), "established")
            .filter(|line| line.pid == Some(pid))
            .count()
    }

    pub fn log(&self) -> &Log {
        &self.ended.log
    }

    /// What portwatch and its command said.
    pub fn stderr(&self) -> &str {
        &self.ended.stderr
    }

    /// Whether the log tells exactly what is expected, and portwatch ended with `code`.
    pub fn check(&self, code: i32, expected: &[Expected]) -> Result<(), String> {
        let Ended { status, log, stderr } = &self.ended;
        let mut problems = whole::log(log, self.stage.rung, self.tracer_pid);
        if status.code() != Some(code) {
            problems.push(format!("portwatch ended with {status} instead of {code}: {}", stderr.trim()));
        }
        let said = log.summary.as_ref().map(|summary| summary.ended_by.as_str());
        if said != Some(self.ended_by) {
            problems.push(format!("ended by {said:?} instead of `{}`", self.ended_by));
        }
        for expected in expected {
            expected.check(log, self.stage.netns, &mut problems);
        }
        self.check_totals(expected, &mut problems);
        if problems.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 12;
        let shown: Vec<_> = problems.iter().take(SHOWN).map(|problem| format!("- {problem}")).collect();
        Err(format!("{} problems\n{}", problems.len(), shown.join("\n")))
    }

    /// Nothing beside what is expected, and as many connections as the kernel counted.
    fn check_totals(&self, expected: &[Expected], problems: &mut Vec<String>) {
        let log = &self.ended.log;
        let sum = |is_refused: bool| -> usize {
            let expected = expected.iter();
            let meant =
                expected.filter(|expected| matches!(expected.outcome, Outcome::Refused) == is_refused);
            meant.flat_map(|expected| expected.begun.values()).sum()
        };
        let (accepted, refused) = (sum(false), sum(true));
        let lines = of_netns(log, self.stage.netns);
        if lines.len() != log.lines.len() {
            problems.push(format!("{} lines tell of other namespaces", log.lines.len() - lines.len()));
        }
        let count = |kind: &str| lines.iter().filter(|line| line.kind == kind && !is_bound(line)).count();
        let told = "clients and servers tell of";
        let mut facts = vec![
            ("established", accepted, told),
            ("connect_failed", refused, told),
            ("port_allocated", accepted + refused, told),
            ("port_allocated", self.active_opens as usize, "the kernel counts"),
        ];
        if self.ended_by == "signal" {
            // It was waited for; a command's last connections may outlive it by a moment.
            facts.push(("closed", accepted, told));
        }
        for (kind, made, who) in facts {
            if count(kind) != made {
                problems.push(format!("the log has {} `{kind}`, {who} {made}", count(kind)));
            }
        }
    }
}

/// The tracer is younger than the namespace, so here the number means no other.
fn of_netns(log: &Log, inode: u64) -> Vec<&Line> {
    log.lines.iter().filter(|line| line.netns == Some(inode)).collect()
}

/// Of a port that a server asked for.
fn is_bound(line: &Line) -> bool {
    matches!(line.how.as_deref(), Some("bind" | "listen"))
}

impl Expected {
    fn check(&self, log: &Log, netns: u64, problems: &mut Vec<String>) {
        let mut lines = of_netns(log, netns);
        lines.retain(|line| remote(line) == Some(self.to));
        let none = BTreeMap::new();
        let (established, failed) = match &self.outcome {
            Outcome::Accepted(peers) => {
                if let Some(peers) = peers {
                    self.compare_addresses(&lines, peers, problems);
                }
                (&self.begun, &none)
            }
            Outcome::Refused => (&none, &self.begun),
        };
        let told =
            [("port_allocated", &self.begun), ("established", established), ("connect_failed", failed)];
        for (kind, told) in told {
            let (logged, told) = (per_process(&lines, kind), made(told));
            if logged != told {
                problems.push(format!(
                    "`{kind}` to {}, per process: the log has {logged:?}, made were {told:?}",
                    self.to
                ));
            }
        }
        let failures = of_kind(&lines, "connect_failed");
        let other = failures.filter(|line| line.errno.as_deref() != Some("ECONNREFUSED"));
        problems.extend(other.map(|line| format!("not ECONNREFUSED: {line}")));
        problems.extend(lines.into_iter().filter_map(|line| self.defect(line)));
    }

    fn compare_addresses(&self, lines: &[&Line], peers: &[SocketAddr], problems: &mut Vec<String>) {
        let mut logged: Vec<_> = of_kind(lines, "established").filter_map(local).collect();
        let mut peers = peers.to_vec();
        logged.sort();
        peers.sort();
        if logged != peers {
            problems.push(format!("the log has connections from {logged:?}, {} saw {peers:?}", self.to));
        }
    }

    /// What a line says wrong about its owner.
    fn defect(&self, line: &Line) -> Option<String> {
        let is_exact = line.kind == "time_wait" || line.confidence.as_deref() == Some("exact");
        let is_right = line.comm.as_deref() == Some(&self.comm)
            && line.direction.as_deref() == Some("out")
            && line.proto.as_deref() == Some("tcp")
            && line.uid.is_some();
        (!(is_right && is_exact)).then(|| format!("not an exact line of an outgoing `{}`: {line}", self.comm))
    }
}

fn remote(line: &Line) -> Option<SocketAddr> {
    Some(SocketAddr::new(line.raddr?, line.rport?))
}

fn local(line: &Line) -> Option<SocketAddr> {
    Some(SocketAddr::new(line.laddr?, line.lport?))
}

fn of_kind<'a>(lines: &'a [&'a Line], kind: &'a str) -> impl Iterator<Item = &'a Line> {
    lines.iter().copied().filter(move |line| line.kind == kind)
}

fn per_process(lines: &[&Line], kind: &str) -> BTreeMap<Option<u32>, usize> {
    let mut counts = BTreeMap::new();
    for line in of_kind(lines, kind) {
        *counts.entry(line.pid).or_default() += 1;
    }
    counts
}

/// The same of what a client told.
fn made(counts: &BTreeMap<u32, usize>) -> BTreeMap<Option<u32>, usize> {
    counts.iter().filter(|(_, count)| **count > 0).map(|(&pid, &count)| (Some(pid), count)).collect()
}
