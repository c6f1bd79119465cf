//! The cgroup version 2 hierarchy: ids, levels and paths, which the kernel filter and the event log need.
//!
//! A cgroup's id is the inode number of its directory (`cgroup_id`; on 64-bit kernels since 5.5). Version 1
//! hierarchies are left out: eBPF tells a task's version 2 cgroup alone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{container, mountinfo};

/// Cgroups remembered and walked over; above what one host is known to run.
const CGROUPS_MAX: usize = 65_536;

/// Least time between two walks for an id that the last one did not find.
const WALK_PAUSE: Duration = Duration::from_secs(1);

/// A walk may take this part of the time at most.
const WALK_SHARE: u32 = 50;

/// Inode of the root of a hierarchy, as kernfs numbers them.
const ROOT_INODE: u64 = 1;

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub id: u64,
    /// Depth in the hierarchy, 0 for its root; `None` where only a part of the hierarchy is mounted, as in a
    /// container with a cgroup namespace of its own.
    pub level: Option<u32>,
    /// As `/proc/PID/cgroup` shows it.
    pub path: String,
}

/// The mounted version 2 hierarchy.
#[derive(Debug)]
pub struct Cgroups {
    mount: Mount,
    is_whole: bool,
    paths: HashMap<u64, Arc<str>>,
    walked: Option<(Instant, Duration)>,
}

/// Where a hierarchy is mounted, and which of its cgroups is at the top there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// As seen from this process's cgroup namespace; empty for the root.
    prefix: String,
}

impl Cgroups {
    /// Finds the mount; hybrid layouts have it below the version 1 ones.
    ///
    /// # Errors
    /// When there is none, as on hosts with version 1 alone.
    pub fn find() -> Result<Cgroups> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read `/proc/self/mountinfo`")?;
        let mut found: Option<Cgroups> = None;
        for mount in mounts.lines().filter_map(cgroup2_mount) {
            // Another file system may be mounted over it.
            if !statfs(&mount.point).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC) {
                continue;
            }
            let Ok(metadata) = fs::metadata(&mount.point) else { continue };
            let is_whole = metadata.ino() == ROOT_INODE;
            if is_whole || found.is_none() {
                found = Some(Cgroups { mount, is_whole, paths: HashMap::new(), walked: None });
            }
            if is_whole {
                break;
            }
        }
        found.context(
            "this host has no cgroup version 2 hierarchy mounted, and only that one is visible to the kernel \
             programs; select by `--pid`, `--comm` or `--uid`, or boot with `systemd.unified_cgroup_hierarchy=1`",
        )
    }

    /// Where the hierarchy is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount.point
    }

    /// The cgroup that `--cgroup PATH` means: a directory of the file system, or a path in the hierarchy.
    pub fn resolve(&self, path: &Path) -> Result<Cgroup> {
        let shown = || path.display().to_string().escape_debug().to_string();
        let in_hierarchy = self.mount.point.join(path.strip_prefix("/").unwrap_or(path));
        let mut is_elsewhere = false;
        for candidate in [path, &in_hierarchy] {
            let Ok(directory) = fs::canonicalize(candidate) else { continue };
            let Ok(relative) = directory.strip_prefix(&self.mount.point) else {
                is_elsewhere |= candidate.is_absolute() && candidate == path;
                continue;
            };
            let metadata = fs::metadata(&directory).with_context(|| format!("cannot stat `{}`", shown()))?;
            if metadata.is_dir() {
                return Ok(self.describe(relative, metadata.ino()));
            }
            bail!("`{}` is a file of a cgroup, not a cgroup; name its directory", shown());
        }
        if is_elsewhere {
            bail!(
                "`{}` is not in the cgroup version 2 hierarchy, which is mounted at `{}`",
                shown(),
                self.mount.point.display()
            );
        }
        bail!(
            "there is no cgroup `{}`\n  next: give a path below `{}`, as in `/proc/PID/cgroup` after `0::`",
            shown(),
            self.mount.point.display()
        )
    }

    /// The cgroups of the one container whose id starts with `prefix`: the topmost of each branch.
    ///
    /// # Errors
    /// When no container or more than one matches.
    pub fn of_container(&self, prefix: &str) -> Result<Vec<Cgroup>> {
        let mut matches: Vec<(String, Cgroup)> = Vec::new();
        self.walk(|relative, id| {
            let cgroup = self.describe(relative, id);
            match container::id(&cgroup.path) {
                Some(container) if container.starts_with(prefix) => {
                    matches.push((container, cgroup));
                    Descend::No
                }
                _ => Descend::Yes,
            }
        });
        let mut ids: Vec<_> = matches.iter().map(|(id, _)| id.escape_debug().to_string()).collect();
        ids.sort_unstable();
        ids.dedup();
        match ids.len() {
            0 => bail!(
                "no container with an id that starts with `{}` runs here\n  next: `docker ps` or `crictl ps` lists ids",
                prefix.escape_debug()
            ),
            1 => Ok(matches.into_iter().map(|(_, cgroup)| cgroup).collect()),
            count => bail!(
                "{count} containers have an id that starts with `{}`, such as `{}` and `{}`\n  next: give more of it",
                prefix.escape_debug(),
                ids[0],
                ids[1]
            ),
        }
    }

    /// Path of a cgroup by its id; `None` when it was gone before it was ever seen.
    ///
    /// An unknown id costs a walk over the hierarchy, but no more than a fiftieth of the time is spent on that.
    pub fn path_of(&mut self, id: u64) -> Option<Arc<str>> {
        if !self.paths.contains_key(&id) && self.may_walk() {
            self.learn();
        }
        self.paths.get(&id).cloned()
    }

    fn may_walk(&self) -> bool {
        self.walked.is_none_or(|(at, took)| at.elapsed() >= WALK_PAUSE.max(took * WALK_SHARE))
    }

    fn learn(&mut self) {
        let start = Instant::now();
        let mut paths = std::mem::take(&mut self.paths);
        if paths.len() >= CGROUPS_MAX {
            paths.clear();
        }
        self.walk(|relative, id| {
            paths.entry(id).or_insert_with(|| self.path(relative).into());
            Descend::Yes
        });
        self.paths = paths;
        self.walked = Some((Instant::now(), start.elapsed()));
    }

    /// Visits cgroups from the top, at most [`CGROUPS_MAX`].
    fn walk(&self, mut visit: impl FnMut(&Path, u64) -> Descend) {
        let Ok(metadata) = fs::metadata(&self.mount.point) else { return };
        let mut open = match visit(Path::new(""), metadata.ino()) {
            Descend::Yes => vec![PathBuf::new()],
            Descend::No => Vec::new(),
        };
        let mut visited = 1;
        while let Some(relative) = open.pop() {
            // Cgroups come and go: what is gone meanwhile is left out.
            let Ok(entries) = fs::read_dir(self.mount.point.join(&relative)) else { continue };
            for entry in entries.filter_map(Result::ok) {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                visited += 1;
                if visited > CGROUPS_MAX {
                    return;
                }
                let child = relative.join(entry.file_name());
                if let Descend::Yes = visit(&child, entry.ino()) {
                    open.push(child);
                }
            }
        }
    }

    fn describe(&self, relative: &Path, id: u64) -> Cgroup {
        let depth = u32::try_from(relative.components().count()).ok();
        Cgroup { id, level: depth.filter(|_| self.is_whole), path: self.path(relative) }
    }

    fn path(&self, relative: &Path) -> String {
        let relative = relative.to_string_lossy();
        match (self.mount.prefix.as_str(), relative.as_ref()) {
            ("", relative) => format!("/{relative}"),
            (prefix, "") => prefix.to_owned(),
            (prefix, relative) => format!("{prefix}/{relative}"),
        }
    }
}

enum Descend {
    Yes,
    No,
}

/// `ID PARENT DEV ROOT POINT OPTIONS … - cgroup2 SOURCE OPTIONS`
fn cgroup2_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let prefix = mountinfo::unescape(fields.next()?).trim_end_matches('/').to_owned();
    Some(Mount { point: PathBuf::from(mountinfo::unescape(fields.next()?)), prefix })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::event::{Family, Protocol};
    use crate::kernel::{sock_diag, testing};

    #[test]
    fn mounts_are_found_in_every_layout() {
        let mount = |point: &str, prefix: &str| Some(Mount { point: point.into(), prefix: prefix.into() });
        let table = [
            (
                "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw",
                mount("/sys/fs/cgroup", ""),
            ),
            (
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                mount("/sys/fs/cgroup/unified", ""),
            ),
            ("41 31 0:38 /../.. /my\\040cg rw - cgroup2 none rw", mount("/my cg", "/../..")),
            ("41 31 0:38 /docker/1 /cg rw - cgroup2 none rw", mount("/cg", "/docker/1")),
            ("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", None),
            ("31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup2 rw", None),
            ("", None),
            (" - cgroup2", None),
        ];
        for (line, expected) in table {
            assert_eq!(cgroup2_mount(line), expected, "{line}");
        }
    }

    /// A cgroup of the test's own, removed at the end.
    struct OwnCgroup(PathBuf);

    impl OwnCgroup {
        fn make(cgroups: &Cgroups, name: &str) -> Option<OwnCgroup> {
            let path = cgroups.mount_point().join(format!("{name}-{}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => Some(OwnCgroup(path)),
                Err(error) => {
                    testing::skip(&format!("cannot make a cgroup: {error}"));
                    None
                }
            }
        }
    }

    impl Drop for OwnCgroup {
        fn drop(&mut self) {
            fs::remove_dir(&self.0).unwrap();
        }
    }

    fn cgroups() -> Option<Cgroups> {
        Cgroups::find().map_err(|error| testing::skip(&format!("{error:#}"))).ok()
    }

    /// Names the cgroup that this test's child process is to move to.
    const CHILD: &str = "PORTWATCH_TEST_CGROUP";

    #[test]
    fn id_is_the_one_that_the_kernel_tells() {
        if let Some(path) = std::env::var_os(CHILD) {
            return move_to_cgroup_and_compare(Path::new(&path));
        }
        let Some(cgroups) = cgroups() else { return };
        if let Err(refusal) = sock_diag::Permit::obtain(Protocol::Tcp) {
            return testing::skip(&refusal.to_string());
        }
        let Some(own) = OwnCgroup::make(&cgroups, "portwatch-id") else { return };
        // Only a whole process can move, so this very test runs once more as a child that does.
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kernel::cgroups::tests::id_is_the_one_that_the_kernel_tells", "--nocapture"])
            .env(CHILD, &own.0)
            // Its words are a test run's, too, and not this one's.
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn move_to_cgroup_and_compare(path: &Path) {
        fs::write(path.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino();
        let mut told = None;
        sock_diag::dump(sock_diag::Permit::obtain(Protocol::Tcp).unwrap(), Family::Ipv4, |row| {
            if row.inode == inode {
                told = row.cgroup_id;
            }
        })
        .unwrap();
        let cgroup = Cgroups::find().unwrap().resolve(path).unwrap();
        assert_eq!(told, Some(cgroup.id));
        assert_ne!(cgroup.id, ROOT_INODE);
        let shown = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(shown.lines().any(|line| line == format!("0::{}", cgroup.path)), "{shown}");
    }

    #[test]
    fn levels_count_from_the_root() {
        let Some(mut cgroups) = cgroups() else { return };
        let Some(own) = OwnCgroup::make(&cgroups, "portwatch-level") else { return };
        let child = own.0.join("inner");
        fs::create_dir(&child).unwrap();
        let relative = child.strip_prefix(cgroups.mount_point()).unwrap();
        let by_directory = cgroups.resolve(&child);
        let by_path = cgroups.resolve(&Path::new("/").join(relative));
        let by_relative_path = cgroups.resolve(relative);
        let root = cgroups.resolve(Path::new("/")).unwrap();
        let inner = by_directory.unwrap();
        let found = cgroups.path_of(inner.id);
        let file = cgroups.resolve(&child.join("cgroup.procs"));
        fs::remove_dir(&child).unwrap();

        assert_eq!(by_path.unwrap(), inner);
        assert_eq!(by_relative_path.unwrap(), inner);
        assert_eq!(found.as_deref(), Some(inner.path.as_str()));
        assert!(file.unwrap_err().to_string().contains("is a file of a cgroup"));
        if cgroups.is_whole {
            assert_eq!((root.id, root.level, inner.level), (1, Some(0), Some(2)));
        }
        assert!(cgroups.resolve(&child).unwrap_err().to_string().contains("there is no cgroup"));
        assert_eq!(cgroups.path_of(inner.id).as_deref(), Some(inner.path.as_str()), "remembered");
    }

    #[test]
    fn other_directories_are_no_cgroups() {
        let Some(cgroups) = cgroups() else { return };
        for path in ["/tmp", "/proc/self"] {
            let error = cgroups.resolve(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("is not in the cgroup version 2 hierarchy"), "{error}");
        }
        let error = cgroups.resolve(Path::new("../../../tmp")).unwrap_err().to_string();
        assert!(error.contains("there is no cgroup"), "{error}");
    }

    #[test]
    fn containers_are_found_by_the_start_of_their_id() {
        let Some(cgroups) = cgroups() else { return };
        let id = |last: char| format!("{}{:08x}{}{last}", "e".repeat(47), std::process::id(), "0".repeat(8));
        let Some(one) = OwnCgroup::make(&cgroups, "portwatch-containers") else { return };
        let inside = [id('1'), id('2')].map(|id| one.0.join(format!("docker-{id}.scope")));
        for path in &inside {
            fs::create_dir(path).unwrap();
        }
        let nested = inside[0].join("payload");
        fs::create_dir(&nested).unwrap();
        let found = cgroups.of_container(&id('1')[..64]);
        let both = cgroups.of_container(&id('1')[..60]);
        fs::remove_dir(&nested).unwrap();
        for path in &inside {
            fs::remove_dir(path).unwrap();
        }
        let found = found.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].path.ends_with(&format!("docker-{}.scope", id('1'))));
        let error = both.unwrap_err().to_string();
        assert!(error.starts_with("2 containers") && error.contains(&id('2')), "{error}");
        assert!(cgroups.of_container(&id('1')).unwrap_err().to_string().starts_with("no container"));
    }

    #[test]
    fn unknown_ids_do_not_walk_again_and_again() {
        let Some(mut cgroups) = cgroups() else { return };
        assert_eq!(cgroups.path_of(u64::MAX), None);
        let (first, _) = cgroups.walked.unwrap();
        for _ in 0..1000 {
            assert_eq!(cgroups.path_of(u64::MAX), None);
        }
        assert_eq!(cgroups.walked.unwrap().0, first);
    }
}
