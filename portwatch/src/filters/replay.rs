//! The filters of tracing commands, over the lines of a log.

use std::collections::HashSet;

use ipnet::IpNet;

use super::comm::CommPatterns;
use super::ports::PortSet;
use crate::recording::format::{Event, EventType, Line, Proto};

/// What a line must be to count; empty lists let everything pass. Judged as tracing does: once per hold, on its first
/// line, destinations on the first line that has one.
#[derive(Default)]
pub struct Replay {
    pub pids: Vec<u32>,
    /// Children of `pids`, as the log tells them.
    pub follow: bool,
    pub comm: Option<CommPatterns>,
    pub uids: Vec<u32>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub netns: Vec<u32>,
    pub ports_remote: Option<PortSet>,
    pub ports_local: Option<PortSet>,
    pub addrs_remote: Vec<IpNet>,
    pub addrs_local: Vec<IpNet>,
    pub ipv4_only: bool,
    pub ipv6_only: bool,
    pub protos: Vec<Proto>,
    /// Processes selected as descendants.
    pub selected: HashSet<u32>,
}

impl Replay {
    /// Whether a line belongs to what is asked for.
    pub fn wants(&mut self, line: &Line) -> bool {
        match line {
            Line::Event(event) | Line::Preexisting(event) => self.wants_event(event),
            Line::Netns(_) | Line::Stack(_) | Line::Process(_) | Line::Summary(_) => true,
        }
    }

    fn wants_event(&mut self, event: &Event) -> bool {
        if !self.pids.is_empty() && !self.is_selected(event) {
            return false;
        }
        let is_comm = |comm: &CommPatterns| {
            event.comm.as_deref().is_some_and(|name| {
                let mut bytes = [0; 16];
                let len = name.len().min(15);
                bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
                comm.matches(&bytes)
            })
        };
        if self.comm.as_ref().is_some_and(|comm| !is_comm(comm)) {
            return false;
        }
        if !self.uids.is_empty() && !event.uid.is_some_and(|uid| self.uids.contains(&uid)) {
            return false;
        }
        let is_below = |wanted: &str| {
            let path = event.cgroup.as_deref().unwrap_or_default();
            let wanted = wanted.trim_end_matches('/');
            path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.cgroup.as_deref().is_some_and(|wanted| !is_below(wanted)) {
            return false;
        }
        let begins =
            |id: &String| event.container.as_deref().is_some_and(|container| container.starts_with(id));
        if self.container.as_ref().is_some_and(|id| !begins(id)) {
            return false;
        }
        if !self.netns.is_empty() && !self.netns.contains(&event.netns) {
            return false;
        }
        if !self.protos.is_empty() && !self.protos.contains(&event.proto) {
            return false;
        }
        let has = |ports: &PortSet, port: Option<u16>| port.is_some_and(|port| ports.contains(port));
        // A bind that only later connects has no destination yet: the connect decides.
        let is_bind = event.r#type == EventType::PortAllocated && event.raddr.is_none();
        if self.ports_remote.as_ref().is_some_and(|ports| !is_bind && !has(ports, event.rport))
            || self.ports_local.as_ref().is_some_and(|ports| !has(ports, event.lport))
        {
            return false;
        }
        let is_remote = |net: &IpNet| event.raddr.is_some_and(|address| net.contains(&address));
        if !self.addrs_remote.is_empty() && !is_bind && !self.addrs_remote.iter().any(is_remote) {
            return false;
        }
        if !self.addrs_local.is_empty() && !self.addrs_local.iter().any(|net| net.contains(&event.laddr)) {
            return false;
        }
        let address = event.raddr.unwrap_or(event.laddr);
        !(self.ipv4_only && address.is_ipv6() || self.ipv6_only && address.is_ipv4())
    }

    fn is_selected(&mut self, event: &Event) -> bool {
        let Some(pid) = event.pid else { return false };
        if self.pids.contains(&pid) || self.selected.contains(&pid) {
            return true;
        }
        let is_child =
            event.ppid.is_some_and(|parent| self.pids.contains(&parent) || self.selected.contains(&parent));
        if self.follow && is_child {
            self.selected.insert(pid);
            return true;
        }
        false
    }
}
