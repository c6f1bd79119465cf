//! The parents of port owners, told once each: a crowd of short-lived children is the work of one of them.

use std::collections::HashMap;

use super::proc_dir::ProcessDir;
use crate::output::Ancestor;

/// Processes remembered as told; when full, all are told again.
const TOLD_MAX: usize = 16_384;

/// Deeper trees are cut: what matters is near the leaves.
const DEPTH_MAX: usize = 8;

#[derive(Debug, Default)]
pub struct Ancestry {
    /// Number → start in ticks, as told.
    told: HashMap<u32, u64>,
    /// Owners whose parents were looked at.
    owners: HashMap<(u32, u64), ()>,
}

/// What records tell of a process that /proc no longer shows.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    pub ppid: Option<u32>,
    pub exe: Option<String>,
}

impl Ancestry {
    /// Parents of an owner that were not told yet, nearest first. Empty once it was asked for; where a process is gone
    /// and was not followed, the list ends.
    pub fn news(
        &mut self,
        (pid, start_boot_ns): (u32, u64),
        ppid: u32,
        mono_ns: u64,
        followed: impl Fn(u32) -> Followed,
    ) -> Vec<Ancestor> {
        if self.owners.contains_key(&(pid, start_boot_ns)) {
            return Vec::new();
        }
        if self.owners.len() >= TOLD_MAX {
            self.owners.clear();
        }
        self.owners.insert((pid, start_boot_ns), ());
        let mut news = Vec::new();
        let mut next = ppid;
        while next > 1 && news.len() < DEPTH_MAX {
            let gone = || {
                let Followed { ppid, exe } = followed(next);
                let ppid = Some(ppid?);
                Some((Ancestor { mono_ns, pid: next, ppid, comm: None, exe }, 0))
            };
            let Some((ancestor, start_ticks)) = read(next, mono_ns).or_else(gone) else { break };
            if self.told.get(&next) == Some(&start_ticks) {
                break;
            }
            if self.told.len() >= TOLD_MAX {
                self.told.clear();
            }
            self.told.insert(next, start_ticks);
            next = ancestor.ppid.unwrap_or(0);
            news.push(ancestor);
        }
        news
    }
}

fn read(pid: u32, mono_ns: u64) -> Option<(Ancestor, u64)> {
    let dir = ProcessDir::open(pid).ok()?;
    let stat = dir.stat()?;
    let ancestor =
        Ancestor { mono_ns, pid, ppid: Some(stat.ppid), comm: Some(stat.comm), exe: dir.link("exe").ok() };
    Some((ancestor, stat.start_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_told_once() {
        let mut ancestry = Ancestry::default();
        let own = std::process::id();
        let nobody = |_| Followed::default();
        let news = ancestry.news((5_000_000, 1), own, 7, nobody);
        assert_eq!(news[0].pid, own);
        assert_eq!(news[0].exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert_eq!(news[0].ppid, Some(std::os::unix::process::parent_id()));
        assert!(ancestry.news((5_000_000, 1), own, 8, nobody).is_empty(), "the same owner");
        assert!(
            ancestry.news((5_000_001, 2), own, 9, nobody).is_empty(),
            "another child of one that was told"
        );
        assert!(ancestry.news((5_000_002, 3), 4_900_000, 9, nobody).is_empty(), "no such process");
    }

    #[test]
    fn a_parent_that_is_gone_is_told_by_records() {
        let own = std::process::id();
        let followed = |pid| match pid {
            4_900_000 => Followed { ppid: Some(own), exe: Some("/bin/dash".into()) },
            _ => Followed::default(),
        };
        let news = Ancestry::default().news((5_000_000, 1), 4_900_000, 7, followed);
        assert_eq!((news[0].pid, news[0].ppid), (4_900_000, Some(own)));
        assert_eq!(news[0].exe.as_deref(), Some("/bin/dash"));
        assert_eq!(news[1].pid, own);
    }
}
