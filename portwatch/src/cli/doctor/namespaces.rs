//! The settings of every network namespace that decide how many ports there are, and what they mean here.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use crate::kernel::netns::{self, Namespace};
use crate::output::Netns;

use super::checks::State;

/// Seconds that a port stays in TIME_WAIT: a constant of the kernel (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT_S: u32 = 60;

/// Namespaces that are looked into; hosts with more have many of a kind.
const NAMESPACES_MAX: usize = 1024;

/// What was seen of the host's network namespaces.
#[derive(Debug, Default, Serialize)]
pub(super) struct Namespaces {
    /// portwatch's own comes first.
    pub groups: Vec<Group>,
    /// Processes and namespaces that may not be looked into with these privileges.
    pub unreadable: usize,
    /// Namespaces beyond the first 1024.
    pub omitted: usize,
}

/// Namespaces whose settings are the same.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    /// Inode numbers.
    pub netns: Vec<u32>,
    /// portwatch's own is among them.
    pub is_own: bool,
    /// Ports that automatic choice has for one destination; null when the range cannot be read.
    pub capacity: Option<u32>,
    pub settings: Vec<Setting>,
}

/// A sysctl under net.ipv4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub name: &'static str,
    /// As the kernel shows it; null when this kernel has none.
    pub value: Option<String>,
    pub state: State,
    pub means: String,
}

pub(super) fn gather() -> Result<Namespaces> {
    let own = Namespace::current()?.inode();
    let listing = netns::list()?;
    let mut result = Namespaces { unreadable: listing.unreadable, ..Namespaces::default() };
    let mut seen = listing.namespaces;
    seen.sort_by_key(|seen| (seen.inode != own, seen.inode));
    result.omitted = seen.len().saturating_sub(NAMESPACES_MAX);
    seen.truncate(NAMESPACES_MAX);
    let mut found: Vec<(Netns, Option<u32>)> = Vec::new();
    for seen in seen {
        let look = || Ok((netns::settings(0)?, netns::number("tcp_fin_timeout")));
        // One that is gone by now is of no interest; one that may not be entered is counted.
        let Ok(namespace) = seen.open() else { continue };
        match namespace.run(look).and_then(|settings: Result<_>| settings) {
            Ok(settings) => found.push(settings),
            Err(_) => result.unreadable += 1,
        }
    }
    result.groups = group(found, own);
    Ok(result)
}

fn group(found: Vec<(Netns, Option<u32>)>, own: u32) -> Vec<Group> {
    let mut groups: Vec<(Netns, Option<u32>, Vec<u32>)> = Vec::new();
    for (settings, fin_timeout) in found {
        let inode = settings.inode;
        // The inode is what namespaces of a group differ in.
        let settings = Netns { inode: 0, ..settings };
        match groups.iter_mut().find(|group| group.0 == settings && group.1 == fin_timeout) {
            Some(group) => group.2.push(inode),
            None => groups.push((settings, fin_timeout, vec![inode])),
        }
    }
    let mut groups: Vec<_> = groups
        .into_iter()
        .map(|(netns, fin_timeout, inodes)| Group {
            is_own: inodes.contains(&own),
            netns: inodes,
            capacity: capacity(&netns),
            settings: settings(&netns, fin_timeout),
        })
        .collect();
    groups.sort_by_key(|group| !group.is_own);
    groups
}

/// Ports of the range that are not reserved.
fn capacity(netns: &Netns) -> Option<u32> {
    let (first, last) = netns.port_range?;
    Some(u32::from(last).checked_sub(u32::from(first))? + 1 - reserved_in_range(netns, first, last))
}

/// Each port once, in case ranges overlap.
fn reserved_in_range(netns: &Netns, first: u16, last: u16) -> u32 {
    let ranges = netns.reserved.iter().flatten();
    let mut merged: BTreeMap<u16, u16> = BTreeMap::new();
    for &(from, to) in ranges {
        let end = merged.entry(from).or_insert(to);
        *end = to.max(*end);
    }
    let mut next = u32::from(first);
    let mut count = 0;
    for (from, to) in merged {
        let (from, to) = (u32::from(from).max(next), u32::from(to.min(last)));
        if from <= to {
            count += to - from + 1;
            next = to + 1;
        }
    }
    count
}

fn settings(netns: &Netns, fin_timeout: Option<u32>) -> Vec<Setting> {
    let capacity = capacity(netns);
    let text = |value: Option<u32>| value.map(|value| value.to_string());
    let setting = |name, value, (state, means): (State, String)| Setting { name, value, state, means };
    let unknown = || (State::Unknown, "not in this kernel".to_owned());
    vec![
        setting(
            "ip_local_port_range",
            netns.port_range.map(|(first, last)| format!("{first}-{last}")),
            capacity.map_or_else(|| (State::Unknown, "cannot be read".to_owned()), range),
        ),
        setting(
            "ip_local_reserved_ports",
            netns.reserved.as_ref().map(|ranges| reserved_text(ranges)),
            reserved(netns),
        ),
        setting("tcp_tw_reuse", text(netns.tcp_tw_reuse), reuse(netns, capacity)),
        setting("tcp_tw_reuse_delay", text(netns.tcp_tw_reuse_delay_ms), delay(netns)),
        setting(
            "tcp_timestamps",
            text(netns.tcp_timestamps),
            match netns.tcp_timestamps {
                Some(0) => (State::Limited, "off: no port in TIME_WAIT is ever reused".to_owned()),
                Some(_) => (State::Ok, "on, as reuse of TIME_WAIT ports needs it".to_owned()),
                None => unknown(),
            },
        ),
        setting(
            "tcp_max_tw_buckets",
            text(netns.tcp_max_tw_buckets),
            netns.tcp_max_tw_buckets.map_or_else(unknown, |max| buckets(max, capacity)),
        ),
        setting(
            "tcp_fin_timeout",
            text(fin_timeout),
            fin_timeout.map_or_else(unknown, |seconds| {
                let means = format!("a closed connection whose peer stays open keeps its port {seconds} s");
                (if seconds > TIME_WAIT_S { State::Limited } else { State::Ok }, means)
            }),
        ),
        setting(
            "ip_local_port_step_width",
            text(netns.step_width),
            match netns.step_width {
                Some(0) => (State::Ok, "off: connects take the ports of one parity first".to_owned()),
                Some(_) => (State::Ok, "connects look for a port in random steps".to_owned()),
                None => {
                    (State::Ok, "not in this kernel: connects take the ports of one parity first".to_owned())
                }
            },
        ),
    ]
}

fn range(capacity: u32) -> (State, String) {
    let means = format!("{capacity} ports for connections from one address to one destination");
    (if capacity < 4096 { State::Limited } else { State::Ok }, means)
}

fn reserved(netns: &Netns) -> (State, String) {
    match (&netns.reserved, netns.port_range) {
        (None, _) | (_, None) => (State::Unknown, "cannot be read".to_owned()),
        (Some(ranges), _) if ranges.is_empty() => (State::Ok, "the whole range is free to choose".to_owned()),
        (Some(_), Some((first, last))) => {
            let count = reserved_in_range(netns, first, last);
            (State::Ok, format!("{count} ports of the range are never chosen automatically"))
        }
    }
}

fn reserved_text(ranges: &[(u16, u16)]) -> String {
    const SHOWN: usize = 4;
    let mut shown: Vec<_> = ranges
        .iter()
        .take(SHOWN)
        .map(|&(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
        .collect();
    match (ranges.len(), ranges.len().saturating_sub(SHOWN)) {
        (0, _) => return "none".to_owned(),
        (_, 0) => {}
        (_, more) => shown.push(format!("{more} more")),
    }
    shown.join(",")
}

fn reuse(netns: &Netns, capacity: Option<u32>) -> (State, String) {
    let rate = capacity.map_or_else(
        || "no more than one connection a minute per port".to_owned(),
        |capacity| {
            format!("at most {} new connections/s to one destination in the long run", capacity / TIME_WAIT_S)
        },
    );
    let after = match netns.tcp_tw_reuse_delay_ms {
        Some(ms) => format!("{ms} ms"),
        None => "up to 1 s".to_owned(),
    };
    match (netns.tcp_tw_reuse, netns.tcp_timestamps) {
        (None, _) => (State::Unknown, "cannot be read".to_owned()),
        (Some(0), _) => (State::Limited, format!("never: who closes first waits {TIME_WAIT_S} s; {rate}")),
        (Some(_), Some(0)) => (State::Limited, format!("without effect, as tcp_timestamps is off; {rate}")),
        (Some(1), _) => (State::Ok, format!("a port in TIME_WAIT is taken again after {after}")),
        (Some(_), _) => (State::Ok, format!("taken again after {after} on loopback alone; elsewhere {rate}")),
    }
}

fn delay(netns: &Netns) -> (State, String) {
    match netns.tcp_tw_reuse_delay_ms {
        Some(ms) => (State::Ok, format!("a port must have waited {ms} ms before it is reused")),
        None => (State::Ok, "not in this kernel: reuse from the next whole second on".to_owned()),
    }
}

fn buckets(max: u32, capacity: Option<u32>) -> (State, String) {
    if capacity.is_some_and(|capacity| max < capacity) {
        let means = "fewer than the ports there are: beyond it closed ports skip TIME_WAIT and are free at once, \
                     unprotected (counter TCPTimeWaitOverflow)";
        return (State::Limited, means.to_owned());
    }
    (State::Ok, "enough for every port of one destination to wait".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Netns {
        Netns {
            mono_ns: 0,
            inode: 1,
            port_range: Some((32768, 60999)),
            reserved: Some(Vec::new()),
            tcp_tw_reuse: Some(2),
            tcp_tw_reuse_delay_ms: Some(1000),
            tcp_timestamps: Some(1),
            tcp_max_tw_buckets: Some(65536),
            step_width: None,
            bind_ports: None,
        }
    }

    fn setting(netns: &Netns, name: &str) -> Setting {
        settings(netns, Some(60)).into_iter().find(|setting| setting.name == name).unwrap()
    }

    #[test]
    fn capacity_leaves_out_reserved_ports_once() {
        assert_eq!(capacity(&host()), Some(28232));
        let with = |range, reserved| Netns { port_range: Some(range), reserved: Some(reserved), ..host() };
        assert_eq!(capacity(&with((40000, 40009), vec![(40002, 40003), (40003, 40005), (1, 9)])), Some(6));
        assert_eq!(capacity(&with((40000, 40009), vec![(1, 65535), (40001, 40002)])), Some(0));
        assert_eq!(capacity(&with((65535, 65535), vec![(65535, 65535)])), Some(0));
        assert_eq!(capacity(&with((9, 1), vec![])), None);
        assert_eq!(capacity(&Netns { port_range: None, ..host() }), None);
    }

    #[test]
    fn settings_say_what_they_mean_here() {
        let reuse = |netns: &Netns| setting(netns, "tcp_tw_reuse").means;
        assert!(reuse(&host()).contains("on loopback alone; elsewhere at most 470 new connections/s"));
        assert!(reuse(&Netns { tcp_tw_reuse: Some(0), ..host() }).starts_with("never"));
        assert!(reuse(&Netns { tcp_timestamps: Some(0), ..host() }).starts_with("without effect"));
        let old = Netns { tcp_tw_reuse: Some(1), tcp_tw_reuse_delay_ms: None, ..host() };
        assert_eq!(reuse(&old), "a port in TIME_WAIT is taken again after up to 1 s");
        assert_eq!(setting(&old, "tcp_tw_reuse_delay").value, None);

        assert_eq!(setting(&host(), "tcp_max_tw_buckets").state, State::Ok);
        let small = Netns { tcp_max_tw_buckets: Some(4096), ..host() };
        assert_eq!(setting(&small, "tcp_max_tw_buckets").state, State::Limited);
        let narrow = Netns { port_range: Some((40000, 40003)), ..host() };
        assert_eq!(setting(&narrow, "ip_local_port_range").state, State::Limited);
    }

    #[test]
    fn reserved_ports_are_shortened() {
        assert_eq!(reserved_text(&[]), "none");
        assert_eq!(reserved_text(&[(1, 1), (3, 5)]), "1,3-5");
        assert_eq!(reserved_text(&[(1, 1), (3, 3), (5, 5), (7, 7), (9, 9), (11, 11)]), "1,3,5,7,2 more");
    }

    #[test]
    fn equal_namespaces_are_one_group_and_the_own_one_comes_first() {
        let other = Netns { tcp_tw_reuse: Some(1), inode: 5, ..host() };
        let found = vec![(other, Some(60)), (host(), Some(60)), (Netns { inode: 9, ..host() }, Some(60))];
        let groups = group(found, 9);
        let inodes: Vec<_> = groups.iter().map(|group| (group.netns.clone(), group.is_own)).collect();
        assert_eq!(inodes, [(vec![1, 9], true), (vec![5], false)]);
    }
}
