//! What a run tells its output, as the lines that a reader of its log would see, without writing one.
//!
//! [`super::Reader`] on the log and this on the run give the same lines: a test plays both.

use anyhow::Result;

use super::format::{self, Line};
use crate::event::{
    self, Closer, Comm, Confidence, Direction, Family, Hold, How, Protocol, Reason, TimeWaitState, What,
};
use crate::output::json::clock::Clock;
use crate::output::json::{VERSION, how_of_failure};
use crate::output::{self, Ancestor, Output, Process, errno};

/// Whoever takes the lines of a log.
pub trait Lines: Send {
    fn header(&mut self, header: &format::Header);
    fn line(&mut self, line: &Line);
}

/// An [`Output`] that hands lines on.
pub struct Live<L> {
    lines: L,
    clock: Clock,
}

impl<L: Lines> Live<L> {
    pub fn new(lines: L) -> Self {
        Live { lines, clock: Clock::new(0, 0) }
    }

    fn hold(&self, mono_ns: u64, hold: &Hold, process: &Process) -> format::Event {
        let owner = hold.owner.as_ref();
        let endpoints = &hold.endpoints;
        let tgid = owner.and_then(|owner| owner.tgid);
        format::Event {
            r#type: format::EventType::Preexisting,
            // The ledger counts in monotonic time; the text would cost more than all the rest.
            time: String::new(),
            mono_ns: self.clock.relative(mono_ns),
            socket: hold.socket.0.to_string(),
            direction: match hold.direction {
                Direction::Out => format::Direction::Out,
                Direction::In => format::Direction::In,
            },
            pid: tgid,
            ns_pid: owner.and_then(|owner| owner.ns_tgid).filter(|&ns_tgid| Some(ns_tgid) != tgid),
            tid: owner.and_then(|owner| owner.tid),
            ppid: owner.and_then(|owner| owner.ppid),
            comm: owner.map(|owner| comm(owner.comm)),
            uid: owner.map(|owner| owner.uid),
            start_ns: owner.map(|owner| owner.start_boot_ns).filter(|&start| start != 0),
            exe: process.exe.clone(),
            cmdline: process.cmdline.clone(),
            cgroup: process.cgroup.clone(),
            container: process.container.clone(),
            netns: endpoints.netns,
            proto: match endpoints.protocol {
                Protocol::Tcp => format::Proto::Tcp,
                Protocol::Udp => format::Proto::Udp,
            },
            family: match endpoints.family {
                Family::Ipv4 => format::Family::Ipv4,
                Family::Ipv6 => format::Family::Ipv6,
            },
            mapped: endpoints.is_mapped(),
            laddr: endpoints.local_ip(),
            lport: endpoints.local_port,
            raddr: endpoints.remote_ip(),
            rport: endpoints.remote_port,
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
            stack: hold.stack.map(|stack| stack.0.to_string()),
            stack_gap: hold.stack_state.gap().map(|gap| gap.name().to_owned()),
            call_site: None,
            confidence: confidence(hold.confidence),
        }
    }

    /// What only this type of event has.
    fn what(&self, line: &mut format::Event, what: &What, hold: &Hold) {
        let traffic = |line: &mut format::Event, traffic: &event::Traffic| {
            line.bytes_sent = traffic.bytes_sent;
            line.bytes_received = traffic.bytes_received;
            line.connect_ns = traffic.connect_ns;
        };
        line.r#type = match what {
            What::PortAllocated => {
                line.how = how(hold.how);
                line.alloc_ns = hold.search_ns;
                line.since_ns = hold.is_late.then(|| self.clock.relative(hold.begun_mono_ns));
                format::EventType::PortAllocated
            }
            What::ConnectFailed { errno, is_abandoned } => {
                line.how = how(how_of_failure(hold.how));
                line.errno = errno.map(|errno| errno::name(errno).into_owned());
                line.abandoned = *is_abandoned;
                line.alloc_ns = hold.search_ns.filter(|_| hold.endpoints.local_port.is_none());
                format::EventType::ConnectFailed
            }
            What::BindFailed { errno } => {
                line.how = how(hold.how);
                line.errno = Some(errno::name(*errno).into_owned());
                line.alloc_ns = hold.search_ns;
                format::EventType::BindFailed
            }
            What::Established { connect_ns } => {
                line.connect_ns = *connect_ns;
                format::EventType::Established
            }
            What::TimeWait { closer: by, traffic: moved, substate } => {
                line.closer = closer(*by);
                line.substate = match substate {
                    TimeWaitState::FinWait2 => Some(format::Substate::FinWait2),
                    TimeWaitState::TimeWait => Some(format::Substate::TimeWait),
                    TimeWaitState::Unknown => None,
                };
                traffic(line, moved);
                format::EventType::TimeWait
            }
            What::Closed { closer: by, traffic: moved, held_ns, closed_by } => {
                line.closer = closer(*by);
                line.closed_by = closed_by.filter(|&pid| Some(pid) != line.pid);
                line.held_ns = *held_ns;
                traffic(line, moved);
                format::EventType::Closed
            }
            What::PortReleased { reason, held_ns } => {
                line.reason = Some(self::reason(*reason));
                line.held_ns = *held_ns;
                format::EventType::PortReleased
            }
        };
    }
}

impl<L: Lines> Output for Live<L> {
    fn header(&mut self, header: &output::Header) -> Result<()> {
        self.clock = Clock::new(header.mono_ns, header.started_wall_ns);
        let texts = |of: &std::collections::BTreeMap<&'static str, &'static str>| {
            of.iter().map(|(name, how)| ((*name).to_owned(), (*how).to_owned())).collect()
        };
        self.lines.header(&format::Header {
            schema: "portwatch".to_owned(),
            version: VERSION.into(),
            portwatch: env!("CARGO_PKG_VERSION").to_owned(),
            host: header.host.clone(),
            kernel: header.kernel.clone(),
            arch: header.arch.to_owned(),
            rung: header.rung.to_owned(),
            started: self.clock.text(header.mono_ns),
            mono_ns: header.mono_ns,
            command: header.command.clone(),
            filters: header.filters.clone(),
            coverage: texts(&header.coverage),
            stack_method: Some(header.stack_method.to_owned()),
        });
        Ok(())
    }

    fn netns(&mut self, netns: &output::Netns) -> Result<()> {
        let line = format::Netns {
            time: None,
            mono_ns: self.clock.relative(netns.mono_ns),
            netns: netns.inode,
            port_range: netns.port_range,
            reserved: netns.reserved.clone(),
            tcp_tw_reuse: netns.tcp_tw_reuse,
            tcp_tw_reuse_delay_ms: netns.tcp_tw_reuse_delay_ms,
            tcp_timestamps: netns.tcp_timestamps,
            tcp_max_tw_buckets: netns.tcp_max_tw_buckets,
            step_width: netns.step_width,
            bind_ports: netns.bind_ports.clone(),
        };
        self.lines.line(&Line::Netns(line));
        Ok(())
    }

    fn stack(&mut self, stack: &output::Stack) -> Result<()> {
        let frame = |frame: &output::Frame| format::Frame {
            function: frame.function.clone(),
            file: frame.file.clone(),
            line: frame.line,
            module: frame.module.clone(),
            build_id: frame.build_id.clone(),
            offset: frame.offset,
            kind: match frame.kind {
                output::FrameKind::Native => format::FrameKind::Native,
                output::FrameKind::Python => format::FrameKind::Python,
                output::FrameKind::Jit => format::FrameKind::Jit,
                output::FrameKind::Kernel => format::FrameKind::Kernel,
                output::FrameKind::Unknown => format::FrameKind::Unknown,
            },
            inlined: frame.is_inlined,
            reason: frame.reason.clone(),
        };
        let frames = stack.frames.iter().map(frame).collect();
        self.lines.line(&Line::Stack(format::Stack { stack: stack.id.0.to_string(), frames }));
        Ok(())
    }

    fn process(&mut self, ancestor: &Ancestor) -> Result<()> {
        self.lines.line(&Line::Process(format::Process {
            time: None,
            mono_ns: self.clock.relative(ancestor.mono_ns),
            pid: ancestor.pid,
            ppid: ancestor.ppid,
            comm: ancestor.comm.map(comm),
            exe: ancestor.exe.clone(),
        }));
        Ok(())
    }

    fn preexisting(&mut self, mono_ns: u64, hold: &Hold, process: &Process, state: &str) -> Result<()> {
        let mut line = self.hold(mono_ns, hold, process);
        line.state = Some(state.to_owned());
        self.lines.line(&Line::Preexisting(Box::new(line)));
        Ok(())
    }

    fn event(
        &mut self,
        event: &event::Event,
        hold: &Hold,
        process: &Process,
        call_site: Option<&str>,
    ) -> Result<()> {
        let mut line = self.hold(event.mono_ns, hold, process);
        self.what(&mut line, &event.what, hold);
        line.call_site = call_site.map(str::to_owned);
        line.confidence = confidence(event.confidence);
        self.lines.line(&Line::Event(Box::new(line)));
        Ok(())
    }

    fn summary(&mut self, summary: &output::Summary) -> Result<()> {
        let counts = |of: &std::collections::BTreeMap<&'static str, u64>| {
            of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        self.lines.line(&Line::Summary(format::Summary {
            events: counts(&summary.events),
            lost: summary.lost.iter().map(|(kind, why)| ((*kind).to_owned(), counts(why))).collect(),
            kernel_totals: counts(&summary.kernel_totals),
            lower_bound: summary.is_lower_bound,
            inferred: counts(&summary.inferred),
            filtered: counts(&summary.filtered),
            stacks: stacks(&summary.stacks),
            duration_ns: summary.duration_ns,
            ended_by: summary.ended_by.to_owned(),
            complete: true,
        }));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn stacks(shares: &output::StackShares) -> format::StackShares {
    let audit = &shares.audit;
    let audit = [
        ("checked", audit.checked()),
        ("matched", audit.matched + audit.matched_in_part),
        ("matched_in_part", audit.matched_in_part),
        ("mismatched", audit.mismatched),
        ("unknown", audit.unknown),
        ("missed", audit.missed),
    ];
    format::StackShares {
        complete: shares.complete,
        partial: shares.partial,
        none: shares.none,
        gaps: shares.gaps.iter().map(|(gap, &count)| (gap.name().to_owned(), count)).collect(),
        walked: Some(shares.walked),
        snapshots: Some(shares.snapshots),
        rate_limited: Some(shares.rate_limited),
        audit: Some(audit.map(|(name, count)| (name.to_owned(), count)).into()),
    }
}

fn comm(comm: Comm) -> String {
    comm.to_string()
}

fn how(how: How) -> Option<format::How> {
    match how {
        How::Connect => Some(format::How::Connect),
        How::Bind => Some(format::How::Bind),
        How::Listen => Some(format::How::Listen),
        How::Autobind => Some(format::How::Autobind),
        How::None => None,
    }
}

fn closer(closer: Option<Closer>) -> Option<format::Closer> {
    closer.map(|closer| match closer {
        Closer::Local => format::Closer::Local,
        Closer::Remote => format::Closer::Remote,
        Closer::Both => format::Closer::Both,
        Closer::Reset => format::Closer::Reset,
    })
}

fn reason(reason: Reason) -> format::Reason {
    match reason {
        Reason::Closed => format::Reason::Closed,
        Reason::TimeWaitExpired => format::Reason::TwExpired,
        Reason::TimeWaitReused => format::Reason::TwReused,
        Reason::TimeWaitReset => format::Reason::TwReset,
        Reason::TimeWaitOverflow => format::Reason::TwOverflow,
        Reason::NetnsExit => format::Reason::NetnsExit,
        Reason::Disconnected => format::Reason::Disconnected,
        Reason::Unknown => format::Reason::Unknown,
    }
}

fn confidence(confidence: Confidence) -> format::Confidence {
    match confidence {
        Confidence::Exact => format::Confidence::Exact,
        Confidence::Inferred => format::Confidence::Inferred,
        Confidence::Unknown => format::Confidence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::JsonLines;
    use crate::output::scene;
    use crate::recording::Reader;

    #[derive(Default)]
    struct Gathered(Option<format::Header>, Vec<Line>);

    impl Lines for &mut Gathered {
        fn header(&mut self, header: &format::Header) {
            self.0 = Some(header.clone());
        }

        fn line(&mut self, line: &Line) {
            self.1.push(line.clone());
        }
    }

    /// Wall clock times are left out live.
    fn without_time(mut line: Line) -> Line {
        match &mut line {
            Line::Event(event) | Line::Preexisting(event) => event.time.clear(),
            Line::Netns(netns) => netns.time = None,
            Line::Process(process) => process.time = None,
            Line::Stack(_) | Line::Summary(_) => {}
        }
        line
    }

    #[test]
    fn a_run_and_its_log_give_the_same_lines() {
        let mut live = Gathered::default();
        scene::play(&mut Live::new(&mut live)).unwrap();
        let mut written = Vec::new();
        scene::play(&mut JsonLines::new(&mut written)).unwrap();
        let reader = Reader::new("memory", std::io::Cursor::new(written)).unwrap();
        assert_eq!(live.0.as_ref(), Some(reader.header()));
        let read: Vec<Line> = reader.map(|line| without_time(line.unwrap())).collect();
        assert_eq!(live.1.len(), read.len());
        for (live, read) in live.1.into_iter().zip(read) {
            assert_eq!(live, read);
        }
    }
}
