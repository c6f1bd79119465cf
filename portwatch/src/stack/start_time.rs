//! When a process started: with its number, the only name of it that is never used again.

use std::fs;
use std::sync::OnceLock;

/// `/proc` counts in steps of this length: `USER_HZ` is 100 on every architecture portwatch runs on.
pub const STEP_NS: u64 = 10_000_000;

/// Start of a live process, `CLOCK_BOOTTIME`, rounded down to [`STEP_NS`].
pub fn of_process(tgid: u32) -> Option<u64> {
    // Taken by bytes: the name of a process need not be UTF-8.
    let stat = fs::read(format!("/proc/{tgid}/stat")).ok()?;
    parse(&stat)?.checked_mul(STEP_NS)?.checked_add_signed(-namespace_offset_ns())
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 may hold spaces and brackets, so counting starts behind its end.
fn parse(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let field = stat[end + 1..].split(|&byte| byte == b' ').filter(|field| !field.is_empty()).nth(19)?;
    str::from_utf8(field).ok()?.parse().ok()
}

/// What `/proc` adds for a reader in a time namespace; the kernel side reports without it.
fn namespace_offset_ns() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let text = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        parse_offset(&text).unwrap_or(0)
    })
}

/// A line `boottime SECONDS NANOSECONDS`.
fn parse_offset(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<i64>);
    let (seconds, ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_found_behind_a_name_full_of_brackets() {
        let stat = b"7 (a) R (b) c) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 100";
        assert_eq!(parse(stat), Some(4711));
        for cut in 0..stat.len() - 9 {
            assert_eq!(parse(&stat[..cut]).filter(|&ticks| ticks == 4711), None);
        }
    }

    #[test]
    fn own_start_is_in_the_past() {
        let start = of_process(std::process::id()).unwrap();
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        let now = u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).unwrap();
        assert!(start <= now, "start {start} lies behind now {now}");
        assert!(now - start < 86_400_000_000_000, "start {start} is more than a day before now {now}");
    }

    #[test]
    fn offset_of_a_time_namespace_is_read() {
        assert_eq!(parse_offset("monotonic 0 0\nboottime 86400 5\n"), Some(86_400_000_000_005));
        assert_eq!(parse_offset("boottime -3 0"), Some(-3_000_000_000));
        assert_eq!(parse_offset(""), None);
    }
}
