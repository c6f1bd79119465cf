//! JSON Lines, version 1: the event log that other programs rely on.
//!
//! Field names and meanings are fixed by `docs/schema/log.v1.json`. Where a consumer must be able to tell
//! "there is none" from "this portwatch does not say", the field is `null`; other fields are left out when
//! nothing is known. The order of lines is the caller's business, compression the [`Sink`]'s.

#[cfg(test)]
mod bench;
pub(crate) mod clock;
mod lines;
mod object;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::clock::Clock;
pub use self::lines::VERSION;
use self::object::Object;
use super::{Ancestor, Header, Netns, Output, Process, Stack, Summary, errno};
use crate::event::{Comm, Confidence, Endpoints, Event, Hold, How, Owner, TimeWaitState, Traffic, What};
use crate::recording::Sink;

/// Bytes gathered before they go to the sink: large enough that system calls do not count, small enough to
/// stay in the cache.
const BLOCK_BYTES: usize = 64 * 1024;

/// Writes the event log into a [`Sink`], a block of whole lines at a time.
pub struct JsonLines<S> {
    sink: S,
    /// Whole lines that the sink has not got yet.
    block: Vec<u8>,
    /// A write failed. Going on would leave a hole in the log, and perhaps a summary behind it.
    is_broken: bool,
    clock: Clock,
}

impl<S: Sink> JsonLines<S> {
    pub fn new(sink: S) -> Self {
        JsonLines {
            sink,
            block: Vec::with_capacity(BLOCK_BYTES + 4096),
            is_broken: false,
            clock: Clock::new(0, 0),
        }
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let whole_bytes = self.block.len();
        if let Err(error) = serde_json::to_writer(&mut self.block, line) {
            self.block.truncate(whole_bytes);
            return Err(error).context("cannot write a line of the event log as JSON");
        }
        self.block.push(b'\n');
        self.write_when_full()
    }

    fn write_when_full(&mut self) -> Result<()> {
        if self.block.len() >= BLOCK_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        self.try_sink(|sink, block| sink.write_all(block))?;
        self.block.clear();
        Ok(())
    }

    /// Anything that reaches the sink, unless it is broken.
    fn try_sink(&mut self, act: impl FnOnce(&mut S, &[u8]) -> std::io::Result<()>) -> Result<()> {
        if self.is_broken {
            self.block.clear();
            bail!("the event log to {} broke off earlier", self.sink.name());
        }
        act(&mut self.sink, &self.block).map_err(|error| {
            self.is_broken = true;
            self.block.clear();
            let name = self.sink.name();
            anyhow::Error::new(error)
                .context(format!("cannot write the event log to {name}; what it has so far can be read"))
        })
    }
}

impl<S: Sink> Output for JsonLines<S> {
    fn header(&mut self, header: &Header) -> Result<()> {
        self.clock = Clock::new(header.mono_ns, header.started_wall_ns);
        let started = self.clock.text(header.mono_ns);
        self.line(&lines::Header::new(header, started))
    }

    fn netns(&mut self, netns: &Netns) -> Result<()> {
        let time = self.clock.text(netns.mono_ns);
        let mono_ns = self.clock.relative(netns.mono_ns);
        self.line(&lines::Netns::new(netns, time, mono_ns))
    }

    fn stack(&mut self, stack: &Stack) -> Result<()> {
        self.line(&lines::Stack::new(stack))
    }

    fn process(&mut self, ancestor: &Ancestor) -> Result<()> {
        let mut line = Object::begin(&mut self.block, "process");
        line.quoted("time", |line| self.clock.push(line, ancestor.mono_ns));
        line.number("mono_ns", self.clock.relative(ancestor.mono_ns));
        line.number("pid", ancestor.pid);
        line.number_if_known("ppid", ancestor.ppid);
        if let Some(comm) = ancestor.comm {
            put_comm(&mut line, comm);
        }
        line.text_if_known("exe", ancestor.exe.as_deref());
        line.end();
        self.write_when_full()
    }

    fn preexisting(&mut self, mono_ns: u64, hold: &Hold, process: &Process, state: &str) -> Result<()> {
        let mut line = Object::begin(&mut self.block, "preexisting");
        put_hold(&mut line, &mut self.clock, mono_ns, hold, process);
        line.text("state", state);
        put_end(line, hold, hold.confidence, None);
        self.write_when_full()
    }

    fn event(
        &mut self,
        event: &Event,
        hold: &Hold,
        process: &Process,
        call_site: Option<&str>,
    ) -> Result<()> {
        let mut line = Object::begin(&mut self.block, event.what.name());
        put_hold(&mut line, &mut self.clock, event.mono_ns, hold, process);
        put_what(&mut line, &self.clock, &event.what, hold);
        put_end(line, hold, event.confidence, call_site);
        self.write_when_full()
    }

    fn summary(&mut self, summary: &Summary) -> Result<()> {
        self.line(&lines::Summary::new(summary))?;
        self.write()?;
        self.try_sink(|sink, _| sink.end())
    }

    fn flush(&mut self) -> Result<()> {
        self.write()?;
        self.try_sink(|sink, _| sink.flush())
    }
}

/// When, which hold, whose, and between which addresses.
fn put_hold(line: &mut Object, clock: &mut Clock, mono_ns: u64, hold: &Hold, process: &Process) {
    line.quoted("time", |line| clock.push(line, mono_ns));
    line.number("mono_ns", clock.relative(mono_ns));
    line.big("socket", hold.socket.0);
    line.name("direction", hold.direction.name());
    match &hold.owner {
        Some(owner) => put_owner(line, owner),
        None => line.null("pid"),
    }
    line.text_if_known("exe", process.exe.as_deref());
    if let Some(cmdline) = &process.cmdline {
        line.texts("cmdline", cmdline);
    }
    line.text_if_known("cgroup", process.cgroup.as_deref());
    line.text_if_known("container", process.container.as_deref());
    put_endpoints(line, &hold.endpoints);
}

fn put_owner(line: &mut Object, owner: &Owner) {
    line.number_or_null("pid", owner.tgid);
    line.number_if_known("ns_pid", owner.ns_tgid.filter(|&ns_tgid| Some(ns_tgid) != owner.tgid));
    line.number_if_known("tid", owner.tid);
    line.number_if_known("ppid", owner.ppid);
    put_comm(line, owner.comm);
    line.number("uid", owner.uid);
    if owner.start_boot_ns != 0 {
        line.big("start_ns", owner.start_boot_ns);
    }
}

fn put_comm(line: &mut Object, comm: Comm) {
    line.text("comm", &String::from_utf8_lossy(comm.bytes()));
}

fn put_endpoints(line: &mut Object, endpoints: &Endpoints) {
    line.number("netns", endpoints.netns);
    line.name("proto", endpoints.protocol.name());
    line.name("family", endpoints.family.name());
    if endpoints.is_mapped() {
        line.yes("mapped");
    }
    line.address("laddr", endpoints.local_ip());
    line.number_or_null("lport", endpoints.local_port);
    match endpoints.remote_ip() {
        Some(address) => line.address("raddr", address),
        None => line.null("raddr"),
    }
    line.number_or_null("rport", endpoints.remote_port);
}

/// The failing call is a connect also where an earlier bind got the port.
pub(crate) fn how_of_failure(how: How) -> How {
    match how {
        How::Bind | How::Listen | How::None => How::Connect,
        how @ (How::Connect | How::Autobind) => how,
    }
}

/// What only this type of event has.
fn put_what(line: &mut Object, clock: &Clock, what: &What, hold: &Hold) {
    match what {
        What::PortAllocated => {
            line.name_or_null("how", hold.how.name());
            line.number_if_known("alloc_ns", hold.search_ns);
            if hold.is_late {
                line.number("since_ns", clock.relative(hold.begun_mono_ns));
            }
        }
        What::ConnectFailed { errno, is_abandoned } => {
            line.name_or_null("how", how_of_failure(hold.how).name());
            match errno {
                Some(errno) => line.text("errno", &errno::name(*errno)),
                None => line.null("errno"),
            }
            if *is_abandoned {
                line.yes("abandoned");
            }
            // A search that found its port is told by `port_allocated`.
            if hold.endpoints.local_port.is_none() {
                line.number_if_known("alloc_ns", hold.search_ns);
            }
        }
        What::BindFailed { errno } => {
            line.name_or_null("how", hold.how.name());
            line.text("errno", &errno::name(*errno));
            line.number_if_known("alloc_ns", hold.search_ns);
        }
        What::Established { connect_ns } => line.number_if_known("connect_ns", *connect_ns),
        What::TimeWait { closer, traffic, substate } => {
            line.name_or_null("closer", closer.map(|closer| closer.name()));
            match substate {
                TimeWaitState::FinWait2 => line.name("substate", "fin_wait2"),
                TimeWaitState::TimeWait => line.name("substate", "time_wait"),
                TimeWaitState::Unknown => {}
            }
            put_traffic(line, traffic);
        }
        What::Closed { closer, traffic, held_ns, closed_by } => {
            line.name_or_null("closer", closer.map(|closer| closer.name()));
            let owner = hold.owner.as_ref().and_then(|owner| owner.tgid);
            if *closed_by != owner {
                line.number_if_known("closed_by", *closed_by);
            }
            line.number_or_null("held_ns", *held_ns);
            put_traffic(line, traffic);
        }
        What::PortReleased { reason, held_ns } => {
            line.name("reason", reason.name());
            line.number_or_null("held_ns", *held_ns);
        }
    }
}

fn put_traffic(line: &mut Object, traffic: &Traffic) {
    line.number_if_known("bytes_sent", traffic.bytes_sent);
    line.number_if_known("bytes_received", traffic.bytes_received);
    line.number_if_known("connect_ns", traffic.connect_ns);
}

/// From which line of code, and how well all this is known.
fn put_end(mut line: Object, hold: &Hold, confidence: Confidence, call_site: Option<&str>) {
    if let Some(stack) = hold.stack {
        line.big("stack", stack.0);
    }
    if let Some(gap) = hold.stack_state.gap() {
        line.name("stack_gap", gap.name());
    }
    line.text_if_known("call_site", call_site);
    line.name("confidence", confidence.name());
    line.end();
}
