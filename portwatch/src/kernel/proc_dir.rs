//! Reading `/proc/PID`, so that everything read is of one and the same process.
//!
//! The directory is opened once: after the process is gone its files fail instead of showing another process
//! that got the same number. All of it is untrusted: sizes are capped, and nothing is escaped here.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

use crate::event::Comm;

/// Ticks per second in /proc (`USER_HZ`), the same on every architecture that has eBPF and Rust.
pub const TICKS_PER_SECOND: u64 = 100;

/// Longer than any `stat` line: 52 numbers of at most 20 digits.
const STAT_BYTES_MAX: usize = 2048;

/// An open `/proc/PID`.
#[derive(Debug)]
pub struct ProcessDir(OwnedFd);

impl ProcessDir {
    /// Fails with ENOENT when there is no such process. A thread's number is found too.
    pub fn open(pid: u32) -> Result<ProcessDir, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).map(ProcessDir)
    }

    /// At most `bytes_max` bytes of a file, whatever is beyond is left out.
    pub fn read(&self, name: &str, bytes_max: usize) -> Result<Vec<u8>, Errno> {
        let fd = openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(fd)
            .take(bytes_max as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
        Ok(bytes)
    }

    /// Target of a link, invalid UTF-8 replaced.
    pub fn link(&self, name: &str) -> Result<String, Errno> {
        Ok(readlinkat(&self.0, name)?.to_string_lossy().into_owned())
    }

    pub fn open_dir(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// `None` when the process is gone.
    pub fn stat(&self) -> Option<Stat> {
        parse_stat(&self.read("stat", STAT_BYTES_MAX).ok()?)
    }
}

/// What `/proc/PID/stat` says, as far as it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub comm: Comm,
    /// `R`, `S`, `Z`, …
    pub state: u8,
    pub ppid: u32,
    pub is_kernel: bool,
    /// When the process started, in ticks as this process's time namespace shows them.
    pub start_ticks: u64,
}

impl Stat {
    /// When the process started, `CLOCK_BOOTTIME`; up to one tick (10 ms) before the true time.
    pub fn start_boot_ns(&self) -> u64 {
        self.start_ticks
            .saturating_mul(NS_PER_TICK)
            .saturating_add_signed(boot_offset_ns().checked_neg().unwrap_or(0))
    }

    /// Zombies hold no descriptors and run nothing any more.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// `start_boot_ns` as the kernel side gives it → ticks as /proc shows them.
pub fn ticks(start_boot_ns: u64) -> u64 {
    start_boot_ns.saturating_add_signed(boot_offset_ns()) / NS_PER_TICK
}

/// What /proc adds to start times for readers in a time namespace (`timens_add_boottime_ns`).
fn boot_offset_ns() -> i64 {
    static OFFSET_NS: LazyLock<i64> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        parse_boot_offset(&text).unwrap_or(0)
    });
    *OFFSET_NS
}

/// `boottime  86400  0`: seconds and nanoseconds.
fn parse_boot_offset(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<i64>);
    let (seconds, ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(ns)
}

/// `PID (COMM) STATE PPID …`. The name may hold spaces and parentheses: it ends at the last one of the line.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let name = line.get(open + 1..close)?;
    let mut comm = [0; 16];
    let len = name.len().min(comm.len() - 1);
    comm[..len].copy_from_slice(&name[..len]);

    let mut fields = str::from_utf8(line.get(close + 1..)?).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    let flags: u32 = fields.nth(4)?.parse().ok()?;
    let start_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat { comm: Comm(comm), state, ppid, is_kernel: flags & PF_KTHREAD != 0, start_ticks })
}

/// The numbers of all processes that this PID namespace shows. Threads other than the first are not among them.
pub fn pids() -> std::io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str =
        "S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 200 18446744073709551615 1 1 0";

    #[test]
    fn name_of_a_process_cannot_mislead() {
        for name in ["bash", "a b", "x) R 9 (y", ")))", "", "((", "123456789012345", "tmux: server (1"] {
            let stat = parse_stat(format!("4711 ({name}) {REST}\n").as_bytes()).unwrap();
            assert_eq!(stat.comm.to_string(), name);
            assert_eq!((stat.state, stat.ppid, stat.start_ticks), (b'S', 1, 123456), "{name}");
            assert!(!stat.is_kernel);
        }
        let mut line = b"4711 (\xff\xfe) ".to_vec();
        line.extend(REST.as_bytes());
        assert_eq!(parse_stat(&line).unwrap().comm.bytes(), b"\xff\xfe");
        let long = format!("4711 (kworker/u4:1-events_unbound) {REST}");
        assert_eq!(parse_stat(long.as_bytes()).unwrap().comm.to_string(), "kworker/u4:1-ev");
    }

    #[test]
    fn short_lines_say_nothing() {
        let line = format!("4711 (bash) {REST}");
        let end = line.find(" 123456").unwrap();
        for len in 0..=end {
            assert_eq!(parse_stat(&line.as_bytes()[..len]), None, "{}", &line[..len]);
        }
        for line in [")(", "4711 )bash( S 1", "4711 (bash) S -1 1 1 1 1 1"] {
            assert_eq!(parse_stat(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn boot_offset_is_that_of_the_boottime_clock() {
        assert_eq!(parse_boot_offset("monotonic  5  6\nboottime  86400  7\n"), Some(86_400_000_000_007));
        assert_eq!(parse_boot_offset("boottime  -1  5\n"), Some(-999_999_995));
        for text in ["", "boottime", "boottime 1", "boottime 9223372036854775807 1"] {
            assert_eq!(parse_boot_offset(text), None, "{text}");
        }
    }

    #[test]
    fn own_directory_is_consistent_with_the_clock() {
        let stat = ProcessDir::open(std::process::id()).unwrap().stat().unwrap();
        let now = nix::time::ClockId::CLOCK_BOOTTIME.now().unwrap();
        let now_ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        assert!(stat.start_boot_ns() <= now_ns);
        assert!(now_ns - stat.start_boot_ns() < 3600 * 1_000_000_000, "this test runs for less than an hour");
        assert_eq!(ticks(stat.start_boot_ns()), stat.start_ticks);
        assert_eq!(ticks(stat.start_boot_ns() + NS_PER_TICK - 1), stat.start_ticks);
    }

    #[test]
    fn files_of_a_process_end_with_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let dir = ProcessDir::open(child.id()).unwrap();
        assert!(dir.stat().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(dir.stat(), None);
        assert!(dir.read("cgroup", 10).is_err());
        assert_eq!(ProcessDir::open(child.id()).err(), Some(Errno::ENOENT));
    }
}
