//! Which process has a socket open, from `/proc/PID/fd`.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::readlinkat;

use super::proc_dir::{self, ProcessDir, Stat};

/// A process that has a socket open. Of several the one that started first, as the likeliest to have made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub stat: Stat,
    /// How many processes have it open.
    pub holders: u32,
}

/// Which processes are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Among {
    All,
    Only(Vec<u32>),
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// By inode of the socket.
    pub holders: HashMap<u64, Holder>,
    /// Processes whose descriptors may not be read.
    pub unreadable: usize,
    /// The deadline came first: holders may be missing.
    pub is_cut: bool,
}

/// Looks for the holders of sockets by their inodes, until `deadline`.
///
/// One pass over the descriptors of every process, about 1 µs each. Threads with descriptors of their own
/// (`unshare(CLONE_FILES)`) are not looked at.
pub fn socket_owners(inodes: &HashSet<u64>, among: &Among, deadline: Instant) -> Result<Scan> {
    let mut scan = Scan::default();
    if inodes.is_empty() {
        return Ok(scan);
    }
    let pids: Vec<u32> = match among {
        Among::All => proc_dir::pids().context("cannot list `/proc`")?.collect(),
        Among::Only(pids) => pids.clone(),
    };
    for pid in pids {
        if Instant::now() >= deadline {
            scan.is_cut = true;
            break;
        }
        match sockets_of(pid, inodes) {
            Ok(Some((stat, sockets))) => {
                for inode in sockets {
                    add(&mut scan.holders, inode, Holder { pid, stat, holders: 1 });
                }
            }
            Ok(None) => {}
            Err(Errno::EACCES | Errno::EPERM) => scan.unreadable += 1,
            // Gone meanwhile.
            Err(_) => {}
        }
    }
    Ok(scan)
}

fn add(holders: &mut HashMap<u64, Holder>, inode: u64, new: Holder) {
    holders
        .entry(inode)
        .and_modify(|known| {
            let count = known.holders + 1;
            if (new.stat.start_ticks, new.pid) < (known.stat.start_ticks, known.pid) {
                *known = new;
            }
            known.holders = count;
        })
        .or_insert(new);
}

/// Those of `inodes` that process `pid` has open.
fn sockets_of(pid: u32, inodes: &HashSet<u64>) -> Result<Option<(Stat, HashSet<u64>)>, Errno> {
    let dir = ProcessDir::open(pid)?;
    let descriptors: OwnedFd = dir.open_dir("fd")?;
    let listing = Dir::from_fd(descriptors.try_clone().map_err(|_| Errno::EMFILE)?)?;
    let mut found = HashSet::new();
    for entry in listing {
        let Ok(entry) = entry else { break };
        // Descriptors are numbers; `.` and `..` are no links.
        let Ok(target) = readlinkat(&descriptors, entry.file_name()) else { continue };
        let inode = target.to_str().and_then(socket_inode);
        found.extend(inode.filter(|inode| inodes.contains(inode)));
    }
    if found.is_empty() {
        return Ok(None);
    }
    Ok(dir.stat().map(|stat| (stat, found)))
}

/// `socket:[4711]` → 4711
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn links_of_other_files_are_no_sockets() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        for target in ["socket:[]", "pipe:[1]", "/socket:[1]", "socket:[1", "anon_inode:[eventfd]"] {
            assert_eq!(socket_inode(target), None, "{target}");
        }
    }

    #[test]
    fn oldest_of_several_holders_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino();
        let inherited: OwnedFd = listener.try_clone().unwrap().into();
        let wanted = HashSet::from([inode]);
        let alone = socket_owners(&wanted, &Among::All, soon()).unwrap().holders[&inode];
        assert_eq!((alone.pid, alone.holders), (std::process::id(), 1));

        let mut child = Command::new("sleep").arg("64").stdin(Stdio::from(inherited)).spawn().unwrap();
        let both = socket_owners(&wanted, &Among::All, soon()).unwrap().holders[&inode];
        let childs = socket_owners(&wanted, &Among::Only(vec![child.id()]), soon()).unwrap().holders[&inode];
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((both.pid, both.holders), (std::process::id(), 2));
        assert_eq!((childs.pid, childs.holders), (child.id(), 1));
    }

    #[test]
    fn scan_ends_at_its_deadline() {
        let scan = socket_owners(&HashSet::from([1]), &Among::All, Instant::now()).unwrap();
        assert!(scan.is_cut && scan.holders.is_empty());
    }
}
