//! Which failures were most frequent.

use std::collections::HashMap;

use crate::event::{Errno, Event, Hold, What};

/// Different failures kept apart. A run against a million destinations is told by its first thousand.
const FAILURES_MAX: usize = 1024;

/// Failures of one kind: same error, same process name, same address, same call site.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Failure {
    pub is_bind: bool,
    pub errno: Option<Errno>,
    pub comm: Vec<u8>,
    /// The peer of a connect, the own address of a bind.
    pub address: String,
    pub call_site: Option<String>,
}

#[derive(Default)]
pub(super) struct Tally {
    counts: HashMap<Failure, u64>,
    /// Failures of kinds that found no place.
    others: u64,
}

impl Tally {
    pub fn count(&mut self, event: &Event, hold: &Hold, address: &str, call_site: Option<&str>) {
        let (is_bind, errno) = match event.what {
            What::ConnectFailed { errno, .. } => (false, errno),
            What::BindFailed { errno } => (true, Some(errno)),
            _ => return,
        };
        let failure = Failure {
            is_bind,
            errno,
            comm: hold.owner.as_ref().map_or_else(Vec::new, |owner| owner.comm.bytes().to_vec()),
            address: address.into(),
            call_site: call_site.map(str::to_string),
        };
        if self.counts.len() < FAILURES_MAX || self.counts.contains_key(&failure) {
            *self.counts.entry(failure).or_default() += 1;
        } else {
            self.others += 1;
        }
    }

    /// The `n` most frequent failures and how many others there were.
    pub fn top(&self, n: usize) -> (Vec<(&Failure, u64)>, u64) {
        let mut sorted: Vec<_> = self.counts.iter().map(|(failure, &count)| (failure, count)).collect();
        sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let rest = sorted.get(n..).unwrap_or_default().iter().map(|(_, count)| count).sum::<u64>();
        sorted.truncate(n);
        (sorted, rest + self.others)
    }
}
