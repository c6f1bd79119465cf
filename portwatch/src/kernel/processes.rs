//! What /proc says about the processes that own ports, remembered.
//!
//! A process is known by its number and its start: what /proc shows under a number that was given away again
//! is never said of the first one. Nothing is guessed from a parent. Text is untrusted and not escaped here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroups::Cgroups;
use super::container;
use super::proc_dir::{ProcessDir, ticks};
use crate::event::Owner;
use crate::output::Process;

/// Processes remembered. Some 300 bytes each; a host rarely has more that use the network.
const REMEMBERED_MAX: usize = 8192;

/// A process may exec or be moved to another cgroup: what was read is read again after this.
const FRESH: Duration = Duration::from_secs(2);

/// Arguments beyond this are cut off.
const CMDLINE_BYTES_MAX: usize = 4096;
const CGROUP_BYTES_MAX: usize = 16 << 10;

/// Whether command lines, which may hold secrets, are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmdline {
    Read,
    Skip,
}

/// A process: number in portwatch's PID namespace, start in ticks.
type Key = (u32, u64);

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    read_at: Instant,
}

/// What is known of the processes met so far, at most 8192 of them.
#[derive(Debug)]
pub struct Processes {
    cmdline: Cmdline,
    /// Tells the cgroup of processes that are gone already.
    cgroups: Option<Cgroups>,
    /// Met since the last change of generation; half the limit.
    recent: HashMap<Key, Entry>,
    /// Met before that: dropped at the next change unless met again.
    older: HashMap<Key, Entry>,
    forgotten: u64,
}

impl Processes {
    pub fn new(cmdline: Cmdline, cgroups: Option<Cgroups>) -> Processes {
        Processes { cmdline, cgroups, recent: HashMap::new(), older: HashMap::new(), forgotten: 0 }
    }

    /// What is known of an owner. Fields stay `None` when it was gone before anyone looked.
    pub fn get(&mut self, owner: &Owner) -> Arc<Process> {
        let Some(tgid) = owner.tgid else {
            // No number here, no /proc entry: only the cgroup is left.
            return Arc::new(self.complete(Process::default(), owner.cgroup_id));
        };
        let key = (tgid, ticks(owner.start_boot_ns));
        let known = self.recent.remove(&key).or_else(|| self.older.remove(&key));
        let entry = match known {
            Some(entry) if entry.read_at.elapsed() < FRESH => entry,
            known => {
                let process = match (read(key, self.cmdline), known) {
                    (Some(process), _) => Arc::new(self.complete(process, owner.cgroup_id)),
                    // Gone by now: what was read in its lifetime stays true.
                    (None, Some(known)) => known.process,
                    (None, None) => Arc::new(self.complete(Process::default(), owner.cgroup_id)),
                };
                Entry { process, read_at: Instant::now() }
            }
        };
        let process = Arc::clone(&entry.process);
        self.remember(key, entry);
        process
    }

    /// Processes dropped for want of room; they are read again when they are met again and still alive.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn remember(&mut self, key: Key, entry: Entry) {
        if self.recent.len() >= REMEMBERED_MAX / 2 {
            let recent = std::mem::take(&mut self.recent);
            self.forgotten += std::mem::replace(&mut self.older, recent).len() as u64;
        }
        self.recent.insert(key, entry);
    }

    /// Adds what the cgroup id, which the kernel recorded with the port, tells by itself.
    fn complete(&mut self, mut process: Process, cgroup_id: u64) -> Process {
        if process.cgroup.is_none() && cgroup_id != 0 {
            let path = self.cgroups.as_mut().and_then(|cgroups| cgroups.path_of(cgroup_id));
            process.cgroup = path.map(|path| path.to_string());
        }
        if process.container.is_none() {
            process.container = process.cgroup.as_deref().and_then(container::id);
        }
        process
    }
}

/// `None` when that process is gone.
fn read((pid, start_ticks): Key, cmdline: Cmdline) -> Option<Process> {
    let dir = ProcessDir::open(pid).ok()?;
    if dir.stat()?.start_ticks != start_ticks {
        return None;
    }
    let cgroups = dir.read("cgroup", CGROUP_BYTES_MAX).unwrap_or_default();
    let (cgroup, container) = parse_cgroups(&String::from_utf8_lossy(&cgroups));
    let cmdline = match cmdline {
        Cmdline::Read => dir.read("cmdline", CMDLINE_BYTES_MAX).ok().map(|bytes| split_arguments(&bytes)),
        Cmdline::Skip => None,
    };
    // A program that was replaced on disk shows as `PATH (deleted)`, which is worth telling.
    Some(Process { exe: dir.link("exe").ok(), cgroup, container, cmdline })
}

/// Lines `HIERARCHY:CONTROLLERS:PATH` → version 2 path (hierarchy 0), and the container that any of them shows:
/// on hybrid hosts only the version 1 paths may tell.
fn parse_cgroups(text: &str) -> (Option<String>, Option<String>) {
    let path_of = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let hierarchy = fields.next()?.to_owned();
        let path = fields.nth(1)?;
        Some((hierarchy, path.strip_suffix(" (deleted)").unwrap_or(path).to_owned()))
    };
    let paths: Vec<_> = text.lines().filter_map(path_of).collect();
    let unified = paths.iter().find(|(hierarchy, _)| hierarchy == "0").map(|(_, path)| path.clone());
    let container = unified
        .as_deref()
        .and_then(container::id)
        .or_else(|| paths.iter().find_map(|(_, path)| container::id(path)));
    (unified, container)
}

fn split_arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|&byte| byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::event::Comm;

    fn owner(pid: u32, start_boot_ns: u64) -> Owner {
        Owner {
            tgid: Some(pid),
            tid: Some(pid),
            ppid: None,
            uid: 0,
            ns_tgid: None,
            start_boot_ns,
            cgroup_id: 0,
            comm: Comm([0; 16]),
            is_kernel: false,
        }
    }

    fn start_boot_ns(pid: u32) -> u64 {
        ProcessDir::open(pid).unwrap().stat().unwrap().start_boot_ns()
    }

    #[test]
    fn live_process_is_described_and_remembered_after_its_end() {
        let mut child = Command::new("/bin/sleep").arg("61").spawn().unwrap();
        let owner = owner(child.id(), start_boot_ns(child.id()));
        let mut processes = Processes::new(Cmdline::Read, None);
        let exe = std::fs::canonicalize("/bin/sleep").unwrap();
        // spawn() returns within the exec, a moment before the new program shows (`exec_mm_release`).
        let deadline = Instant::now() + Duration::from_secs(5);
        let shows = |file: &str| std::fs::read(format!("/proc/{}/{file}", child.id())).unwrap();
        while std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap() != exe
            || shows("cmdline").is_empty()
        {
            assert!(Instant::now() < deadline, "no exec within 5 s");
            std::thread::yield_now();
        }
        let process = processes.get(&owner);
        assert_eq!(process.exe.as_deref(), exe.to_str());
        assert_eq!(process.cmdline.as_deref(), Some(&["/bin/sleep".to_owned(), "61".to_owned()][..]));
        assert!(process.cgroup.as_deref().is_none_or(|path| path.starts_with('/')));

        child.kill().unwrap();
        child.wait().unwrap();
        let key = (child.id(), ticks(owner.start_boot_ns));
        processes.recent.get_mut(&key).unwrap().read_at -= FRESH;
        assert_eq!(processes.get(&owner), process);
        assert_eq!(*Processes::new(Cmdline::Read, None).get(&owner), Process::default());
    }

    #[test]
    fn another_process_of_the_same_number_is_not_described() {
        let pid = std::process::id();
        let start = start_boot_ns(pid);
        let mut processes = Processes::new(Cmdline::Skip, None);
        for other in [0, start - 10_000_000, start + 10_000_000, u64::MAX] {
            assert_eq!(*processes.get(&owner(pid, other)), Process::default(), "{other}");
        }
        let own = processes.get(&owner(pid, start));
        assert_eq!(own.exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert_eq!(own.cmdline, None);
    }

    #[test]
    fn what_is_dropped_is_counted() {
        let mut processes = Processes::new(Cmdline::Skip, None);
        let kept = owner(1, 77);
        for pid in 0..3 * REMEMBERED_MAX as u32 {
            processes.get(&kept);
            processes.get(&owner(5_000_000 + pid, 1));
            assert!(processes.recent.len() + processes.older.len() <= REMEMBERED_MAX);
        }
        let remembered = (processes.recent.len() + processes.older.len()) as u64;
        assert_eq!(processes.forgotten() + remembered, 3 * REMEMBERED_MAX as u64 + 1);
        assert!(processes.recent.contains_key(&(1, ticks(77))));
    }

    #[test]
    fn hybrid_hosts_show_containers_in_version_1_paths() {
        const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
        let v2 = format!("0::/system.slice/docker-{ID}.scope\n");
        let hybrid = format!("9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n");
        let v1 = "4:memory:/a:b\n".to_owned();
        let deleted = "0::/gone (deleted)\n".to_owned();
        let table = [
            (v2, Some(format!("/system.slice/docker-{ID}.scope")), Some(ID)),
            (hybrid, Some("/".to_owned()), Some(ID)),
            (v1, None, None),
            (deleted, Some("/gone".to_owned()), None),
            ("0\nx:y\n::\n".to_owned(), None, None),
        ];
        for (text, cgroup, id) in table {
            assert_eq!(parse_cgroups(&text), (cgroup, id.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn arguments_split_at_their_zeros() {
        let table: [(&[u8], &[&str]); 4] = [
            (b"", &[]),
            (b"a\0b c\0\0", &["a", "b c", ""]),
            (b"a\0cut", &["a", "cut"]),
            (b"\xff\0", &["\u{fffd}"]),
        ];
        for (bytes, arguments) in table {
            assert_eq!(split_arguments(bytes), arguments);
        }
    }
}
