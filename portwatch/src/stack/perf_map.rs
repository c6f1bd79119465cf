//! Names of just-in-time compiled functions, from the file `/tmp/perf-PID.map` that some runtimes write.
//!
//! A line is `START SIZE NAME`, numbers in base 16. The file is written by the process itself, so it is treated like
//! any other file of a stranger; it names the process by its number in the process's own PID namespace.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
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
    inode: u64,
    /// Bytes that were read, up to the end of a line. The file grows for as long as the process compiles.
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
        let known = self.files.get(&tgid).filter(|known| known.start_boot_ns == start_boot_ns);
        let known = known.map(|known| (known.inode, known.length));
        // Asked every time: code is moved, and its place taken by other code, without anybody saying so.
        let read = move || {
            let (mut file, inode, length) = open(tgid)?;
            let from = known.filter(|&(was, from)| was == inode && from <= length).map(|(_, from)| from);
            let read = read(&mut file, from.unwrap_or(0));
            Some((inode, from, read))
        };
        let Some((inode, from, (mut functions, bytes))) = self.opener.run(read).flatten() else {
            // It is gone, or the process is.
            return find(
                &self.files.get(&tgid).filter(|k| k.start_boot_ns == start_boot_ns)?.functions,
                address,
            );
        };
        let former = self.files.remove(&tgid).filter(|_| from.is_some());
        if let Some(mut former) = former {
            if !functions.is_empty() {
                former.functions.append(&mut functions);
                sort(&mut former.functions);
            }
            functions = former.functions;
        }
        let found = find(&functions, address);
        if self.files.len() >= FILES_MAX
            && let Some(oldest) = self.files.iter().min_by_key(|(_, known)| known.used).map(|(&tgid, _)| tgid)
        {
            self.files.remove(&oldest);
        }
        let length = from.unwrap_or(0) + bytes;
        self.files.insert(tgid, Known { start_boot_ns, inode, length, functions, used: self.uses });
        found
    }
}

fn open(tgid: u32) -> Option<(File, u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).ok()?;
    let own =
        status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().next_back()?;
    let own: u32 = own.parse().ok()?;
    let root = format!("/proc/{tgid}/root");
    let found = elf_open::open_below(Path::new(&root), Path::new(&format!("/tmp/perf-{own}.map"))).ok()?;
    let file = elf_open::any_regular(found).ok()?;
    let metadata = file.metadata().ok()?;
    Some((file, metadata.ino(), metadata.len()))
}

/// The functions from byte `from` on, and how many bytes their whole lines take.
fn read(file: &mut File, from: u64) -> (Vec<Function>, u64) {
    let mut text = Vec::new();
    let room = FILE_BYTES_MAX.saturating_sub(from);
    // A file that cannot be read to its end still names what was read.
    let _ = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(room).read_to_end(&mut text));
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    (parse(&text[..whole]), whole as u64)
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
    sort(&mut functions);
    functions
}

/// Stable: of several for one address, which happens when code is moved or replaced, the last one written counts.
fn sort(functions: &mut [Function]) {
    functions.sort_by_key(|function| function.start);
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

    #[test]
    fn what_is_written_later_takes_the_place_of_what_was_there() {
        let own = std::process::id();
        let path = format!("/tmp/perf-{own}.map");
        let write = |text: &str| fs::write(&path, text).unwrap();
        let mut maps = PerfMaps::new(Opener::default());
        let mut name = |address| maps.find(own, 1, address).map(|(name, _)| name);
        write("1000 10 first\n2000 10 stays\n3000 10 half");
        assert_eq!(name(0x1000).as_deref(), Some("first"));
        assert_eq!(name(0x3000), None, "its line is not whole yet");
        write("1000 10 first\n2000 10 stays\n3000 10 half a name\n1000 10 second\n");
        let names = [name(0x1000), name(0x2000), name(0x3000)];
        assert_eq!(names.map(|name| name.unwrap()), ["second", "stays", "half a name"]);
        // A shorter one is another file.
        write("2000 10 anew\n");
        assert_eq!((name(0x1000), name(0x2000).as_deref()), (None, Some("anew")));
        fs::remove_file(&path).unwrap();
        assert_eq!(name(0x2000).as_deref(), Some("anew"), "what was known when it went");
    }
}
