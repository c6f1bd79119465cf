//! Where a measurement was made.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process;

/// Facts without which a figure says nothing: (name, value).
pub fn describe(portwatch: &Path) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        value.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name");
    let output = |command: &mut Command| process::output(command).unwrap_or_else(|_| "unknown".to_owned());
    vec![
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("processors", format!("{processors} × {model}")),
        ("hypervisor", if read("/proc/cpuinfo").contains(" hypervisor ") { "yes" } else { "no" }.to_owned()),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("load before", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
        ("portwatch", output(Command::new(portwatch).arg("--version"))),
    ]
}
