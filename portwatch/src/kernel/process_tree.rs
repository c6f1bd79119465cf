//! Which processes there are, and who descends from whom.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};

use super::proc_dir::{self, ProcessDir};

/// Scans of /proc before a tree that still grows is taken as it is.
const SCANS_MAX: usize = 16;

/// What is known by a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A process that runs.
    Process,
    /// It has ended, and its parent has not noticed yet.
    Zombie,
    /// A thread of that process.
    ThreadOf(u32),
    Absent,
}

/// Looks up a number of portwatch's own PID namespace.
pub fn look_up(pid: u32) -> Presence {
    let Ok(dir) = ProcessDir::open(pid) else { return Presence::Absent };
    let Ok(status) = dir.read("status", 4096) else { return Presence::Absent };
    let tgid = String::from_utf8_lossy(&status)
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok());
    match (tgid, dir.stat()) {
        (Some(tgid), Some(_)) if tgid != pid => Presence::ThreadOf(tgid),
        (Some(_), Some(stat)) if stat.is_dead() => Presence::Zombie,
        (Some(_), Some(_)) => Presence::Process,
        _ => Presence::Absent,
    }
}

/// Whether `pid` is a process that has not ended.
pub fn exists(pid: u32) -> bool {
    look_up(pid) == Presence::Process
}

/// All living descendants of `roots`, without the roots, in ascending order.
///
/// Scans until a scan finds nothing new, so that a fork during one is found by the next. A process whose
/// parent ended before the first scan has another parent by then and is not found.
pub fn descendants(roots: &[u32]) -> Result<Vec<u32>> {
    let mut found: HashSet<u32> = roots.iter().copied().collect();
    for _ in 0..SCANS_MAX {
        let before = found.len();
        grow(&mut found, &parents()?);
        if found.len() == before {
            break;
        }
    }
    let mut descendants: Vec<_> = found.into_iter().filter(|pid| !roots.contains(pid)).collect();
    descendants.sort_unstable();
    Ok(descendants)
}

fn parents() -> Result<Vec<(u32, u32)>> {
    let parent = |pid| {
        let stat = ProcessDir::open(pid).ok()?.stat()?;
        (!stat.is_dead()).then_some((pid, stat.ppid))
    };
    Ok(proc_dir::pids().context("cannot list `/proc`")?.filter_map(parent).collect())
}

/// Adds everything that descends from what is in `found`.
fn grow(found: &mut HashSet<u32>, parents: &[(u32, u32)]) {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for &(pid, ppid) in parents {
        children.entry(ppid).or_default().push(pid);
    }
    let mut open: Vec<u32> = found.iter().copied().collect();
    while let Some(pid) = open.pop() {
        // Removed, so that a circle, which a scan of moving processes could show, ends.
        for child in children.remove(&pid).unwrap_or_default() {
            found.insert(child);
            open.push(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tree_grows_over_generations_and_ends_on_circles() {
        let table: [(&[u32], &[(u32, u32)], &[u32]); 4] = [
            (&[1], &[(2, 1), (3, 2), (4, 9)], &[1, 2, 3]),
            (&[5], &[(6, 7), (7, 6), (5, 7)], &[5]),
            (&[6], &[(6, 7), (7, 6), (5, 7)], &[5, 6, 7]),
            (&[1, 2], &[(2, 1)], &[1, 2]),
        ];
        for (roots, parents, expected) in table {
            let mut found = roots.iter().copied().collect();
            grow(&mut found, parents);
            assert_eq!(found, expected.iter().copied().collect(), "{roots:?} {parents:?}");
        }
    }

    #[test]
    fn children_of_children_are_descendants() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 62 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();

        let found = descendants(&[std::process::id()]).unwrap();
        assert!(found.contains(&child.id()) && found.contains(&grandchild), "{found:?}");
        assert!(!found.contains(&std::process::id()));
        assert_eq!(descendants(&[child.id()]).unwrap(), [grandchild]);
        assert!(exists(grandchild));

        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(grandchild.try_into().unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        child.wait().unwrap();
        assert!(!exists(child.id()));
        assert_eq!(look_up(child.id()), Presence::Absent);
    }

    #[test]
    fn zombies_and_threads_are_no_processes() {
        let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        // The end of its output comes before the zombie; the state follows within the same exit.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while look_up(child.id()) != Presence::Zombie {
            assert!(std::time::Instant::now() < deadline, "{:?}", look_up(child.id()));
            std::thread::yield_now();
        }
        child.wait().unwrap();

        std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw().try_into().unwrap();
            assert_eq!(look_up(tid), Presence::ThreadOf(std::process::id()));
            assert!(!exists(tid));
        })
        .join()
        .unwrap();
        assert_eq!(look_up(std::process::id()), Presence::Process);
    }
}
