//! Network namespaces: which there are, what their settings say about ports, and how to look from inside one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::output::Netns;

/// A network namespace that is held open. While this lives the kernel keeps the namespace and what is in
/// it, time-wait entries included: keep it for as short as possible.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    inode: u32,
}

impl Namespace {
    /// The one of the current thread.
    pub fn current() -> Result<Namespace> {
        Namespace::at(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one that process `pid` is in.
    pub fn of_process(pid: u32) -> Result<Namespace> {
        Namespace::at(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The one behind a file such as `/proc/PID/ns/net` or `/run/netns/NAME`.
    pub fn at(path: &Path) -> Result<Namespace> {
        let shown = || path.display().to_string().escape_debug().to_string();
        let file =
            File::open(path).with_context(|| format!("cannot open network namespace `{}`", shown()))?;
        let target = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
            .context("cannot read `/proc/self/fd`")?;
        if !target.to_string_lossy().starts_with("net:[") {
            bail!("`{}` is not a network namespace", shown());
        }
        let inode = file.metadata().with_context(|| format!("cannot stat `{}`", shown()))?.ino();
        let inode = u32::try_from(inode).context("inode of a network namespace has more than 32 bits")?;
        Ok(Namespace { file, inode })
    }

    /// Inode number: the `netns` of the event log.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Runs `f` in a thread of its own that is in this namespace.
    ///
    /// # Errors
    /// When the thread may not enter, which takes CAP_SYS_ADMIN here and in the namespace's user namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
                // Looking at one's own takes no privilege.
                if Namespace::current()?.inode != self.inode {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter network namespace {}", self.inode))?;
                }
                Ok(f())
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A namespace that was seen, and is not held open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub inode: u32,
    /// A file by which it can be opened, while the process or mount is still there.
    pub path: PathBuf,
}

impl Seen {
    /// Opens it; an error when it is gone or when its path leads to another one by now.
    pub fn open(&self) -> Result<Namespace> {
        let namespace = Namespace::at(&self.path)?;
        if namespace.inode != self.inode {
            bail!("network namespace {} is gone", self.inode);
        }
        Ok(namespace)
    }
}

/// The namespaces of this host that can be seen from here.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// By inode.
    pub namespaces: Vec<Seen>,
    /// Processes whose namespace could not be read: not ours, and no privilege.
    pub unreadable: usize,
}

/// Looks at every process, and at the mounts that keep namespaces without processes (`ip netns`).
///
/// Namespaces kept by a file descriptor alone, or of processes in PID namespaces that are not below ours, are not found.
pub fn list() -> Result<Listing> {
    let mut found = BTreeMap::new();
    let mut unreadable = 0;
    for entry in fs::read_dir("/proc").context("cannot list `/proc`")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if !name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        match fs::read_link(&path) {
            Ok(target) => {
                if let Some(inode) = inode_in_link(&target.to_string_lossy()) {
                    found.entry(inode).or_insert(path);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => unreadable += 1,
            // Gone meanwhile, or a zombie, which is in none.
            Err(_) => {}
        }
    }
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") {
        for (inode, path) in mounts.lines().filter_map(namespace_mount) {
            found.entry(inode).or_insert(path);
        }
    }
    let namespaces = found.into_iter().map(|(inode, path)| Seen { inode, path }).collect();
    Ok(Listing { namespaces, unreadable })
}

/// `net:[4026531840]` → 4026531840
fn inode_in_link(target: &str) -> Option<u32> {
    target.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// A line of mountinfo → the network namespace that is mounted there.
fn namespace_mount(line: &str) -> Option<(u32, PathBuf)> {
    let mut fields = line.split(' ').skip(3);
    let inode = inode_in_link(fields.next()?)?;
    Some((inode, PathBuf::from(super::mountinfo::unescape(fields.next()?))))
}

/// The settings that decide how many ports there are, of the current thread's namespace.
///
/// `/proc/sys/net` shows each reading thread its own namespace (`net_ctl_header_lookup`), so this is to be
/// called inside [`Namespace::run`]. `mono_ns` is copied. What cannot be read is `None`.
pub fn settings(mono_ns: u64) -> Result<Netns> {
    Ok(Netns {
        mono_ns,
        inode: Namespace::current()?.inode,
        port_range: setting("ip_local_port_range").and_then(|text| parse_pair(&text)),
        reserved: setting("ip_local_reserved_ports").and_then(|text| parse_ranges(&text)),
        tcp_tw_reuse: number("tcp_tw_reuse"),
        tcp_tw_reuse_delay_ms: number("tcp_tw_reuse_delay"),
        tcp_timestamps: number("tcp_timestamps"),
        tcp_max_tw_buckets: number("tcp_max_tw_buckets"),
        step_width: number("ip_local_port_step_width"),
        bind_ports: None,
    })
}

fn setting(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()
}

/// One of the numbers under `net.ipv4`, of the current thread's namespace.
pub fn number(name: &str) -> Option<u32> {
    setting(name)?.trim().parse().ok()
}

/// `32768   60999`
fn parse_pair(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    numbers.next().is_none().then_some((first, last))
}

/// `8080,9148-9200`, or nothing.
fn parse_ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter(|part| !part.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing;

    #[test]
    fn reserved_ports_read_as_ranges() {
        let table: [(&str, Option<Vec<(u16, u16)>>); 5] = [
            ("\n", Some(vec![])),
            ("8080\n", Some(vec![(8080, 8080)])),
            ("1,3-5,65535\n", Some(vec![(1, 1), (3, 5), (65535, 65535)])),
            ("65536\n", None),
            ("x\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_ranges(text), expected, "{text:?}");
        }
    }

    #[test]
    fn port_range_needs_two_numbers() {
        assert_eq!(parse_pair("32768\t60999\n"), Some((32768, 60999)));
        for text in ["", "1", "1 2 3", "1 65536", "a b"] {
            assert_eq!(parse_pair(text), None, "{text:?}");
        }
    }

    #[test]
    fn namespace_mounts_are_found_in_mountinfo() {
        let line = "120 25 0:4 net:[4026532290] /run/netns/my\\040lab rw shared:64 - nsfs nsfs rw";
        assert_eq!(namespace_mount(line), Some((4026532290, PathBuf::from("/run/netns/my lab"))));
        for line in ["", "1 2 3", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw"] {
            assert_eq!(namespace_mount(line), None, "{line}");
        }
    }

    #[test]
    fn other_files_are_no_namespace() {
        for path in ["/proc/self/stat", "/proc/self/ns/uts"] {
            let error = Namespace::at(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains("is not a network namespace"), "{error}");
        }
    }

    #[test]
    fn own_namespace_needs_no_privilege_and_is_listed() {
        let own = Namespace::current().unwrap();
        assert_eq!(own.run(|| Namespace::current().unwrap().inode()).unwrap(), own.inode());
        assert!(list().unwrap().namespaces.iter().any(|seen| seen.inode == own.inode()));
    }

    #[test]
    fn settings_are_those_of_the_thread_that_reads() {
        let host = settings(0).unwrap();
        let result = testing::in_new_netns(|| {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "41000 41007").unwrap();
            fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "41002-41003,41005").unwrap();
            fs::write("/proc/sys/net/ipv4/tcp_timestamps", "0").unwrap();
            let inside = Namespace::current().unwrap();
            // A third thread that starts in this namespace and one of the first namespace that enters it.
            (settings(7).unwrap(), inside)
        });
        let Some((inside, namespace)) = result else { return };
        assert_eq!(inside.port_range, Some((41000, 41007)));
        assert_eq!(inside.reserved, Some(vec![(41002, 41003), (41005, 41005)]));
        assert_eq!((inside.mono_ns, inside.tcp_timestamps), (7, Some(0)));

        assert_eq!(settings(0).unwrap(), host, "the host's own settings are untouched and not mixed up");
        let entered = namespace.run(|| settings(7)).unwrap().unwrap();
        assert_eq!(entered, inside);
        assert_ne!(entered.inode, host.inode);
    }

    #[test]
    fn namespace_that_is_gone_is_said_to_be() {
        let gone = Seen { inode: 1, path: PathBuf::from("/proc/self/ns/net") };
        assert!(gone.open().unwrap_err().to_string().contains("is gone"));
    }
}
