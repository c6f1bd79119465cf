//! One executable mapping, what is known of several, and how `/proc/PID/maps` writes them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Executable mappings kept per process. Past this the newest are dropped and counted.
pub(super) const MAPPINGS_MAX: usize = 16_384;

/// A file as `/proc/PID/maps` and `PERF_RECORD_MMAP2` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
}

/// What an executable mapping holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// `path` as written by the kernel, without the mark of a deleted file.
    File {
        id: FileId,
        path: Arc<Path>,
        is_deleted: bool,
        /// Tells two files apart that had the inode number one after the other; 0 when not known.
        file_generation: u64,
    },
    Vdso,
    /// Memory without a file, where just-in-time compilers put their code. The text is the kernel's name for it.
    Anonymous(Arc<str>),
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Of `start` in the file, bytes.
    pub offset: u64,
    pub backing: Backing,
}

impl Mapping {
    /// From the fields of a line or a record. `name` is the path or pseudo-path.
    pub(super) fn new(
        start: u64,
        end: u64,
        offset: u64,
        (id, file_generation): (FileId, u64),
        name: &[u8],
    ) -> Option<Mapping> {
        if start >= end {
            return None;
        }
        let backing = match name {
            b"[vdso]" => Backing::Vdso,
            [b'/', rest @ ..] if id.inode != 0 && !rest.starts_with(b"/") => {
                let (path, is_deleted) = match name.strip_suffix(b" (deleted)") {
                    Some(path) => (path, true),
                    None => (name, false),
                };
                Backing::File {
                    id,
                    path: Arc::from(Path::new(OsStr::from_bytes(path))),
                    is_deleted,
                    file_generation,
                }
            }
            _ => Backing::Anonymous(String::from_utf8_lossy(name).into()),
        };
        Some(Mapping { start, end, offset, backing })
    }
}

/// Whether a mapping would take the place of other code.
pub(super) fn replaces(mappings: &[Mapping], new: &Mapping) -> bool {
    mappings.iter().any(|old| old.start < new.end && new.start < old.end && !is_same_code(old, new))
}

/// Lays a mapping over those there are. Returns whether there was no room.
pub(super) fn overlay(mappings: &mut Vec<Mapping>, new: Mapping) -> bool {
    let mut kept = Vec::new();
    mappings.retain_mut(|old| {
        if old.end <= new.start || new.end <= old.start {
            return true;
        }
        // What sticks out on either side is still the former.
        if old.end > new.end {
            let cut = new.end - old.start;
            kept.push(Mapping { start: new.end, offset: old.offset.wrapping_add(cut), ..old.clone() });
        }
        old.end = new.start.min(old.end);
        old.start < old.end
    });
    mappings.append(&mut kept);
    let is_full = mappings.len() >= MAPPINGS_MAX;
    if !is_full {
        mappings.push(new);
    }
    mappings.sort_unstable_by_key(|mapping| mapping.start);
    is_full
}

/// Whether an address in both means the same code.
fn is_same_code(a: &Mapping, b: &Mapping) -> bool {
    let same_backing = match (&a.backing, &b.backing) {
        (Backing::File { id: a, .. }, Backing::File { id: b, .. }) => a == b,
        // Anonymous code may be anything at any time; there is nothing to tell it by.
        (Backing::Anonymous(_), Backing::Anonymous(_)) | (Backing::Vdso, Backing::Vdso) => true,
        _ => false,
    };
    same_backing && a.start.wrapping_sub(a.offset) == b.start.wrapping_sub(b.offset)
}

/// Whether everything in `old` is still there in `new`.
pub(super) fn is_extension(old: &[Mapping], new: &[Mapping]) -> bool {
    old.iter().all(|old| {
        let at = new.partition_point(|new| new.end <= old.start);
        new[at..].first().is_none_or(|new| new.start >= old.end || is_same_code(old, new))
    })
}

/// Sorts what `/proc` said; it is sorted, but nothing here relies on that.
pub(super) fn tidy(mut mappings: Vec<Mapping>) -> (Vec<Mapping>, u64) {
    let dropped = mappings.len().saturating_sub(MAPPINGS_MAX);
    mappings.truncate(MAPPINGS_MAX);
    mappings.sort_unstable_by_key(|mapping| mapping.start);
    mappings.dedup_by(|later, earlier| later.start < earlier.end);
    (mappings, dropped as u64)
}

/// Executable mappings of a `/proc/PID/maps`. Lines of another shape are skipped.
pub fn parse(text: &[u8]) -> Vec<Mapping> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `start-end rwxp offset major:minor inode   path`, numbers in base 16 except the inode.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        rest = after.strip_prefix(b" ").unwrap_or(after);
        str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let protection = field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?;
    if protection.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let hex32 = |digits| u32::from_str_radix(digits, 16).ok();
    let id = FileId { major: hex32(major)?, minor: hex32(minor)?, inode: inode.parse().ok()? };
    Mapping::new(hex(start)?, hex(end)?, hex(offset)?, (id, 0), &unescape(rest.trim_ascii_start()))
}

/// The kernel writes a newline in a path as `\012`, and nothing else in its place.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, after)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(after) => {
                bytes.push(b'\n');
                rest = after;
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}
