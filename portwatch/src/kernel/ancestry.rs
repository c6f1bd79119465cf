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

impl Ancestry {
    /// Parents of an owner that were not told yet, nearest first. Empty once it was asked for; processes that are gone
    /// end the list.
    pub fn news(&mut self, pid: u32, start_boot_ns: u64, ppid: u32, mono_ns: u64) -> Vec<Ancestor> {
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
            let Some((ancestor, start_ticks)) = read(next, mono_ns) else { break };
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
        let news = ancestry.news(5_000_000, 1, own, 7);
        assert_eq!(news[0].pid, own);
        assert_eq!(news[0].exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert_eq!(news[0].ppid, Some(std::os::unix::process::parent_id()));
        assert!(ancestry.news(5_000_000, 1, own, 8).is_empty(), "the same owner");
        assert!(ancestry.news(5_000_001, 2, own, 9).is_empty(), "another child of a parent that was told");
        assert!(ancestry.news(5_000_002, 3, 4_900_000, 9).is_empty(), "no such process");
    }
}
