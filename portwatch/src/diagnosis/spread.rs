//! `spread`: many destinations, hardly more than once each. Told, because it looks like churn and is none: every
//! destination has a range of its own.

use std::collections::BTreeMap;

use super::groups::{self, Group};
use super::report::{Finding, Severity};
use super::thresholds::*;
use super::{Context, round};
use crate::aggregate::site::{Peer, SiteKey};
use crate::recording::format::Proto;

pub fn judge(context: &Context, groups: &[Group], findings: &mut Vec<Finding>) {
    for (key, of_site) in by_site(groups) {
        // One that was folded and came back counts twice.
        let own = |group: &Group| u64::from(group.key.peer != Peer::Others);
        let destinations: u64 = of_site.iter().map(|group| own(group) + group.site.folded).sum();
        let connections: u64 = of_site.iter().map(|group| group.site.attempts()).sum();
        if destinations < SPREAD_MIN || connections as f64 > SPREAD_PER_DESTINATION_MAX * destinations as f64
        {
            continue;
        }
        let whole = groups::merged(context, key, &of_site);
        let site = &whole.site;
        let span_s = ((site.last_ns - site.first_ns.unwrap_or(0)) as f64 / 1e9).max(1e-3);
        let evidence: BTreeMap<&'static str, f64> = [
            ("destinations", destinations as f64),
            ("connections", site.connections as f64),
            ("span_s", round(span_s)),
            ("rate_per_s", round(site.connections as f64 / span_s.max(1.0))),
            ("port_seconds", round(site.port_ns(context.ledger.now_ns()) as f64 / 1e9)),
        ]
        .into();
        let finding = groups::blame(context, &whole, ("spread", ""), Severity::Info, evidence, |member| {
            member.connections + member.failures
        });
        findings.push(finding.with(0.9, destinations));
    }
}

/// Rows of one call site, by all but their destinations.
fn by_site(groups: &[Group]) -> BTreeMap<SiteKey, Vec<&Group>> {
    let mut sites: BTreeMap<SiteKey, Vec<&Group>> = BTreeMap::new();
    for group in groups {
        let is_told = group.key.peer != Peer::None
            && group.key.program.as_ref() != &Default::default()
            && matches!(group.key.proto, Proto::Tcp | Proto::Udp);
        if is_told {
            sites.entry(SiteKey { peer: Peer::Others, ..group.key.clone() }).or_default().push(group);
        }
    }
    sites
}
