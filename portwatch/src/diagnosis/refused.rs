//! `refused-storm`: connects, one after the other, to where nobody answers.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::aggregate::site::Peer;
use crate::recording::format::Proto;

/// What the other side, or the way to it, answers.
const REFUSALS: [&str; 7] = [
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ECONNABORTED",
    // The program's own patience ended before the kernel's.
    "abandoned",
];

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    for group in groups.iter().filter(|group| group.key.proto == Proto::Tcp && group.destination().is_some())
    {
        let site = &group.site;
        let refused: u64 =
            site.failures.iter().filter(|(errno, _)| REFUSALS.contains(&&***errno)).map(|(_, n)| n).sum();
        let span_s = ((site.last_ns - site.first_ns.unwrap_or(0)) as f64 / 1e9).max(1e-3);
        let rate_per_s = refused as f64 / span_s.max(1.0);
        if refused < REFUSED_MIN || rate_per_s < REFUSED_RATE_MIN_PER_S {
            continue;
        }
        if (refused as f64) < REFUSED_SHARE_MIN * (refused + site.connections) as f64 {
            continue;
        }
        // Waiting for a service that then came up.
        let has_come_up = site.last_success_ns.is_some_and(|at| at >= site.last_ns);
        if has_come_up && refused < REFUSED_WAIT_MAX {
            continue;
        }
        if falls_back(group, groups, refused) {
            continue;
        }
        let mut evidence: BTreeMap<&'static str, f64> = [
            ("refused", refused as f64),
            ("span_s", round(span_s)),
            ("rate_per_s", round(rate_per_s)),
            ("established", site.connections as f64),
        ]
        .into();
        for (key, errno) in [("refused_econnrefused", "ECONNREFUSED"), ("refused_etimedout", "ETIMEDOUT")] {
            if let Some(&count) = site.failures.get(errno) {
                evidence.insert(key, count as f64);
            }
        }
        let many = (refused as f64 / 200.0).min(1.0);
        let all = refused as f64 / (refused + site.connections) as f64;
        let finding =
            groups::blame(context, group, ("refused-storm", ""), Severity::Warning, evidence, |member| {
                member.failures
            });
        findings.push(finding.with(0.55 + 0.25 * many + 0.19 * all, refused));
    }
}

/// `localhost` is tried over both families: where one is refused and the other answers, nothing is wrong.
fn falls_back(group: &Group, groups: &[Group], refused: u64) -> bool {
    let Peer::To(address, port) = group.key.peer else { return false };
    groups.iter().any(|other| {
        let Peer::To(other_address, other_port) = other.key.peer else { return false };
        other.key.program == group.key.program
            && other.key.netns == group.key.netns
            && other_port == port
            && other_address.is_ipv4() != address.is_ipv4()
            && other.site.connections >= refused / 2
    })
}
