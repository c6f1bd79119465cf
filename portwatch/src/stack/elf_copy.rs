//! Which parts of an ELF file matter here, and a copy of them.
//!
//! Reads a file that somebody else may be writing to at the same time: every number is checked before it is used, and
//! what counts in the end is what the copy says. Malformed input is an error value.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::Endianness;
use object::elf::{
    EM_X86_64, FileHeader32, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE, SHF_COMPRESSED,
    SHT_NOBITS,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::decompress::unpack;
use super::elf::{Unreadable, failed};

/// Bytes copied of one file. Debug information is left out where it would go past this.
const COPY_BYTES_MAX: u64 = 512 << 20;

/// Headers are read into memory whole: more than this many bytes of either kind is not a program.
const HEADERS_BYTES_MAX: u64 = 8 << 20;

/// Length of a section name that is looked at.
const NAME_BYTES_MAX: u64 = 128;

const CHUNK_BYTES: usize = 1 << 20;

/// What an ELF file consists of, as far as it matters here.
#[derive(Debug, Default)]
pub struct Layout {
    /// `e_machine`.
    machine: u16,
    is_64: bool,
    is_little_endian: bool,
    /// Loadable ones.
    pub segments: Vec<Segment>,
    /// Where the unwind table's header is: (file offset, address, bytes).
    pub unwind_header: Option<(u64, u64, u64)>,
    notes: Vec<(u64, u64)>,
    pub sections: Vec<Section>,
    /// Positions of section headers that parsers of the copy must not act upon.
    hidden_headers: Vec<u64>,
    /// `.gnu_debuglink`, which the copy has only without its name: (file offset, bytes).
    pub debug_link: Option<(u64, u64)>,
    /// Whole headers and tables: (file offset, bytes).
    tables: Vec<(u64, u64)>,
}

impl Layout {
    /// Whether a parser of this very file could be made to open others.
    pub(super) fn has_links(&self) -> bool {
        !self.hidden_headers.is_empty()
    }

    /// File offset of `address`, and how many bytes of its segment follow.
    pub(super) fn rest_of_segment(&self, address: u64) -> Option<(u64, u64)> {
        self.segments.iter().find_map(|segment| {
            let within =
                address.checked_sub(segment.address).filter(|&within| within < segment.file_bytes)?;
            Some((segment.offset.checked_add(within)?, segment.file_bytes - within))
        })
    }
}

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub offset: u64,
    pub address: u64,
    pub file_bytes: u64,
    pub is_executable: bool,
}

/// A section that has bytes in the file.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: String,
    pub address: u64,
    pub offset: u64,
    pub bytes: u64,
    pub is_compressed: bool,
    /// Where its header is in the file.
    header_at: u64,
    is_wanted: bool,
}

/// Reads the headers of `file`, which has `file_bytes`.
///
/// # Errors
/// When they do not make sense.
pub(super) fn layout(file: &File, file_bytes: u64) -> Result<Layout, Unreadable> {
    let mut start = [0; 64];
    let short = |_| Unreadable::Malformed("it is too short");
    file.read_exact_at(&mut start[..52], 0).map_err(short)?;
    if start[..4] != *b"\x7fELF" {
        return Err(Unreadable::Malformed("it is not an ELF file"));
    }
    let source = Source { file, bytes: file_bytes };
    match start[4] {
        1 => parse::<FileHeader32<Endianness>>(&source, &start[..52]),
        2 => {
            file.read_exact_at(&mut start, 0).map_err(short)?;
            parse::<FileHeader64<Endianness>>(&source, &start)
        }
        _ => Err(Unreadable::Malformed("its class is unknown")),
    }
}

struct Source<'f> {
    file: &'f File,
    bytes: u64,
}

impl Source<'_> {
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Unreadable> {
        if length > HEADERS_BYTES_MAX {
            return Err(Unreadable::TooLarge);
        }
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            return Err(Unreadable::Malformed("a table lies outside the file"));
        }
        // Bounded above.
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|error| failed("read", &error))?;
        Ok(bytes)
    }
}

fn parse<H: FileHeader<Endian = Endianness>>(
    source: &Source<'_>,
    start: &[u8],
) -> Result<Layout, Unreadable> {
    let malformed = |_| Unreadable::Malformed("its header");
    let header = H::parse(start).map_err(malformed)?;
    let endian = header.endian().map_err(malformed)?;
    let mut layout = Layout {
        machine: header.e_machine(endian),
        is_64: header.is_type_64(),
        is_little_endian: header.is_little_endian(),
        ..Layout::default()
    };
    layout.tables.push((0, start.len() as u64));

    let count = u64::from(header.e_phnum(endian));
    if count > 0 && usize::from(header.e_phentsize(endian)) == size_of::<H::ProgramHeader>() {
        let offset: u64 = header.e_phoff(endian).into();
        let length = count * size_of::<H::ProgramHeader>() as u64;
        let table = source.read(offset, length)?;
        layout.tables.push((offset, length));
        let (segments, _) = object::pod::slice_from_bytes::<H::ProgramHeader>(&table, count as usize)
            .map_err(|()| Unreadable::Malformed("its program headers"))?;
        for segment in segments {
            add_segment(&mut layout, segment, endian);
        }
    }
    add_sections(&mut layout, header, endian, source)?;
    if layout.sections.is_empty() {
        // Without section headers all there is to go by are the segments.
        layout.tables.extend(layout.notes.iter().copied());
        let holds_table = |segment: &&Segment| {
            layout.unwind_header.is_some_and(|(offset, ..)| {
                offset >= segment.offset && offset - segment.offset < segment.file_bytes
            })
        };
        let found =
            layout.segments.iter().find(holds_table).map(|segment| (segment.offset, segment.file_bytes));
        layout.tables.extend(found);
    }
    Ok(layout)
}

fn add_segment<P: ProgramHeader<Endian = Endianness>>(layout: &mut Layout, segment: &P, endian: Endianness) {
    let offset = segment.p_offset(endian).into();
    let address = segment.p_vaddr(endian).into();
    let file_bytes = segment.p_filesz(endian).into();
    match segment.p_type(endian) {
        PT_LOAD => layout.segments.push(Segment {
            offset,
            address,
            file_bytes,
            is_executable: segment.p_flags(endian) & PF_X != 0,
        }),
        PT_GNU_EH_FRAME => layout.unwind_header = Some((offset, address, file_bytes)),
        PT_NOTE => layout.notes.push((offset, file_bytes)),
        _ => {}
    }
}

fn add_sections<H: FileHeader<Endian = Endianness>>(
    layout: &mut Layout,
    header: &H,
    endian: Endianness,
    source: &Source<'_>,
) -> Result<(), Unreadable> {
    let entry_bytes = size_of::<H::SectionHeader>() as u64;
    let offset: u64 = header.e_shoff(endian).into();
    if offset == 0 || u64::from(header.e_shentsize(endian)) != entry_bytes {
        return Ok(());
    }
    let first = source.read(offset, entry_bytes)?;
    let (first, _) = object::pod::from_bytes::<H::SectionHeader>(&first)
        .map_err(|()| Unreadable::Malformed("its section headers"))?;
    // Large counts stand in the first entry.
    let count = match u64::from(header.e_shnum(endian)) {
        0 => first.sh_size(endian).into(),
        count => count,
    };
    let names_at = match header.e_shstrndx(endian) {
        0xffff => u64::from(first.sh_link(endian)),
        index => u64::from(index),
    };
    let length = count.checked_mul(entry_bytes).ok_or(Unreadable::TooLarge)?;
    let table = source.read(offset, length)?;
    layout.tables.push((offset, length));
    let (headers, _) = object::pod::slice_from_bytes::<H::SectionHeader>(&table, count as usize)
        .map_err(|()| Unreadable::Malformed("its section headers"))?;
    let names = match headers.get(names_at as usize) {
        Some(names) => source.read(names.sh_offset(endian).into(), names.sh_size(endian).into())?,
        None => Vec::new(),
    };
    for (index, section) in headers.iter().enumerate() {
        let name = name_at(&names, section.sh_name(endian));
        let header_at = offset + index as u64 * entry_bytes;
        if is_link(&name) {
            layout.hidden_headers.push(header_at);
        }
        if section.sh_type(endian) == SHT_NOBITS || index == 0 {
            continue;
        }
        let at: u64 = section.sh_offset(endian).into();
        let bytes: u64 = section.sh_size(endian).into();
        if at.checked_add(bytes).is_none_or(|end| end > source.bytes) {
            continue;
        }
        let flags: u64 = section.sh_flags(endian).into();
        if name == ".gnu_debuglink" {
            layout.debug_link = Some((at, bytes));
        }
        layout.sections.push(Section {
            is_wanted: is_wanted(&name),
            address: section.sh_addr(endian).into(),
            offset: at,
            bytes,
            header_at,
            is_compressed: flags & u64::from(SHF_COMPRESSED) != 0,
            name,
        });
    }
    Ok(())
}

fn name_at(names: &[u8], offset: u32) -> String {
    let rest = names.get(offset as usize..).unwrap_or_default();
    let rest = &rest[..rest.len().min(NAME_BYTES_MAX as usize)];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

/// Sections that make a parser open other files, which are named by whoever made this one.
fn is_link(name: &str) -> bool {
    matches!(name, ".gnu_debuglink" | ".gnu_debugaltlink" | ".debug_sup")
}

fn is_wanted(name: &str) -> bool {
    const WANTED: &[&str] = &[
        ".symtab",
        ".strtab",
        ".shstrtab",
        ".dynsym",
        ".dynstr",
        ".symtab_shndx",
        ".eh_frame",
        ".eh_frame_hdr",
        ".gnu_debuglink",
    ];
    WANTED.contains(&name) || name.starts_with(".note") || is_debug(name)
}

fn is_debug(name: &str) -> bool {
    name.starts_with(".debug_") || name.starts_with(".zdebug_")
}

/// An empty memory file that can be sealed.
pub(super) fn memory_file() -> io::Result<File> {
    let file: OwnedFd = memfd_create("portwatch-module", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(io::Error::from)?;
    Ok(File::from(file))
}

/// Copies what `layout` wants of `file` to the same place in a sealed memory file, and says how many bytes that took.
///
/// The file may have changed since `layout` was read: only what is read of the copy can be relied on.
pub(super) fn copy(file: &File, file_bytes: u64, layout: &Layout) -> Result<(File, u64), Unreadable> {
    let total = |with_debug: bool| -> u64 {
        let sections = layout.sections.iter().filter(|s| s.is_wanted && (with_debug || !is_debug(&s.name)));
        let sections = sections.map(|section| section.bytes).fold(0, u64::saturating_add);
        layout.tables.iter().map(|table| table.1).fold(sections, u64::saturating_add)
    };
    let with_debug = total(true) <= COPY_BYTES_MAX;
    let mut copied = total(with_debug);
    if copied > COPY_BYTES_MAX {
        return Err(Unreadable::TooLarge);
    }
    let mut write = || -> io::Result<File> {
        let memory = memory_file()?;
        memory.set_len(file_bytes)?;
        let wanted = || layout.sections.iter().filter(|s| s.is_wanted && (with_debug || !is_debug(&s.name)));
        let plain =
            wanted().filter(|section| !section.is_compressed).map(|section| (section.offset, section.bytes));
        for (offset, bytes) in plain.chain(layout.tables.iter().copied()) {
            copy_range(file, &memory, offset, bytes)?;
        }
        // A name of 0 is the empty one; the field is the first of a header in both classes.
        let hide = |header_at| memory.write_all_at(&[0; 4], header_at);
        let mut end = file_bytes;
        for section in wanted().filter(|section| section.is_compressed) {
            let source = (section.offset, section.bytes);
            let at = end.next_multiple_of(16);
            let is_known = layout.is_64 && layout.is_little_endian;
            let unpacked = is_known.then(|| unpack(file, source, &memory, at, COPY_BYTES_MAX - copied));
            match unpacked {
                Some(Ok(bytes)) => {
                    point_to(&memory, section.header_at, at, bytes)?;
                    copied += bytes;
                    end = at + bytes;
                }
                _ => hide(section.header_at)?,
            }
        }
        layout.hidden_headers.iter().try_for_each(|&header_at| hide(header_at))?;
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(memory)
    };
    let memory = write().map_err(|error| failed("copy", &error))?;
    Ok((memory, copied))
}

/// Makes the 64-bit section header at `header_at` that of an uncompressed section elsewhere.
fn point_to(memory: &File, header_at: u64, offset: u64, bytes: u64) -> io::Result<()> {
    let mut flags = [0; 8];
    memory.read_exact_at(&mut flags, header_at + 8)?;
    let flags = u64::from_le_bytes(flags) & !u64::from(SHF_COMPRESSED);
    memory.write_all_at(&flags.to_le_bytes(), header_at + 8)?;
    memory.write_all_at(&offset.to_le_bytes(), header_at + 24)?;
    memory.write_all_at(&bytes.to_le_bytes(), header_at + 32)
}

fn copy_range(from: &File, to: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(bytes).unwrap_or(CHUNK_BYTES))];
    let end = offset + bytes;
    let mut at = offset;
    while at < end {
        let chunk = buffer.len().min(usize::try_from(end - at).unwrap_or(buffer.len()));
        from.read_exact_at(&mut buffer[..chunk], at)?;
        to.write_all_at(&buffer[..chunk], at)?;
        at += chunk as u64;
    }
    Ok(())
}

/// The GNU build id of a file, of which `read` gives bytes.
pub(super) fn build_id(layout: &Layout, read: impl Fn(u64, u64) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let sections = layout.sections.iter().filter(|section| section.name.starts_with(".note"));
    let sections = sections.map(|section| (section.offset, section.bytes));
    sections.chain(layout.notes.iter().copied()).find_map(|(offset, bytes)| {
        let notes = read(offset, bytes.min(64 << 10))?;
        build_id_in(&notes, layout.is_little_endian)
    })
}

/// Finds the note of type 3 of owner `GNU`.
fn build_id_in(notes: &[u8], is_little_endian: bool) -> Option<Vec<u8>> {
    let mut rest = notes;
    let aligned = |length: u32| length.checked_add(3).map(|length| (length & !3) as usize);
    loop {
        let (head, after) = rest.split_first_chunk::<12>()?;
        let word = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            if is_little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
        };
        let (name_bytes, value_bytes, kind) = (word(0), word(4), word(8));
        let value_at = aligned(name_bytes)?;
        let value = after.get(value_at..value_at.checked_add(value_bytes as usize)?)?;
        if kind == 3 && after.starts_with(b"GNU\0") && (4..=64).contains(&value.len()) {
            return Some(value.to_vec());
        }
        rest = after.get(value_at.checked_add(aligned(value_bytes)?)?..)?;
    }
}

/// Whether the file is for the machine of [`super::machine`].
pub(super) fn is_native(layout: &Layout) -> bool {
    layout.machine == EM_X86_64 && layout.is_64 && layout.is_little_endian
}
