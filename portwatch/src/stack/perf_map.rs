//! Names of just-in-time compiled functions, from the file `/tmp/perf-PID.map` that some runtimes write.
//!
//! A line is `START SIZE NAME`, numbers in base 16. The file is written by the process itself, so it is treated like
//! any other file of a stranger; it names the process by its number in the process's own PID namespace.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::elf_open;
use super::opener::Opener;

/// Bytes of one file that are read. Node writes about 10 MB in a long run.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Processes whose file is kept.
const FILES_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct PerfMaps {
    files: HashMap<u32, Known>,
    uses: u64,
    opener: Opener,
}

#[derive(Debug)]
struct Known {
    start_boot_ns: u64,
    /// The file grows for as long as the process compiles.
    length: u64,
    functions: Vec<Function>,
    used: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    start: u64,
    end: u64,
    name: Box<str>,
}

/// A compiled function: its name, and how far behind its start the address is.
pub(super) type Found = (String, u64);

impl PerfMaps {
    pub(super) fn new(opener: Opener) -> PerfMaps {
        PerfMaps { files: HashMap::new(), uses: 0, opener }
    }

    pub(super) fn find(&mut self, tgid: u32, start_boot_ns: u64, address: u64) -> Option<Found> {
        self.uses += 1;
        let uses = self.uses;
        let known = self.files.get_mut(&tgid).filter(|known| known.start_boot_ns == start_boot_ns);
        if let Some(known) = known {
            known.used = uses;
            if let Some(found) = find(&known.functions, address) {
                return Some(found);
            }
        }
        let known = self.files.get(&tgid).filter(|known| known.start_boot_ns == start_boot_ns);
        let known = known.map(|known| known.length);
        let read = move || {
            let (mut file, length) = open(tgid)?;
            (known != Some(length)).then(|| (read(&mut file), length))
        };
        let (functions, length) = self.opener.run(read)??;
        let found = find(&functions, address);
        if self.files.len() >= FILES_MAX
            && !self.files.contains_key(&tgid)
            && let Some(oldest) = self.files.iter().min_by_key(|(_, known)| known.used).map(|(&tgid, _)| tgid)
        {
            self.files.remove(&oldest);
        }
        self.files.insert(tgid, Known { start_boot_ns, length, functions, used: uses });
        found
    }
}

fn open(tgid: u32) -> Option<(File, u64)> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).ok()?;
    let own =
        status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().next_back()?;
    let own: u32 = own.parse().ok()?;
    let root = format!("/proc/{tgid}/root");
    let found = elf_open::open_below(Path::new(&root), Path::new(&format!("/tmp/perf-{own}.map"))).ok()?;
    let file = elf_open::any_regular(found).ok()?;
    let length = file.metadata().ok()?.len();
    Some((file, length))
}

fn read(file: &mut File) -> Vec<Function> {
    let mut text = Vec::new();
    // A file that cannot be read to its end still names what was read.
    let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut text);
    parse(&text)
}

/// What a file of this text says of an address.
pub(super) fn parse_and_find(text: &[u8], address: u64) -> Option<Found> {
    find(&parse(text), address)
}

fn parse(text: &[u8]) -> Vec<Function> {
    let line = |line: &[u8]| {
        let line = str::from_utf8(line).ok()?;
        let (start, rest) = line.split_once(' ')?;
        let (size, name) = rest.split_once(' ')?;
        let hex = |digits: &str| u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok();
        let start = hex(start)?;
        Some(Function { start, end: start.checked_add(hex(size)?)?, name: name.trim_end().into() })
    };
    let mut functions: Vec<Function> = text.split(|&byte| byte == b'\n').filter_map(line).collect();
    // Stable: of several for one address, which happens when code is moved or replaced, the last one written counts.
    functions.sort_by_key(|function| function.start);
    functions
}

fn find(functions: &[Function], address: u64) -> Option<Found> {
    let after = functions.partition_point(|function| function.start <= address);
    let function = &functions[after.checked_sub(1)?];
    (address < function.end).then(|| (function.name.to_string(), address - function.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_function_written_for_an_address_wins_and_bad_lines_are_skipped() {
        let functions = parse(b"1000 10 JS:old a.js:1\nrubbish\n0x2000 8 f\n1000 20 JS:*new b.js:2\n3000 ff");
        assert_eq!(find(&functions, 0x1018), Some(("JS:*new b.js:2".to_owned(), 0x18)));
        assert_eq!(find(&functions, 0x2007), Some(("f".to_owned(), 7)));
        assert_eq!(find(&functions, 0x2008), None);
        assert_eq!(find(&functions, 0xfff), None);
    }
}
