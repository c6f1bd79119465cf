//! The same walks by framehop.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder as _};
use object::elf::{FileHeader64, PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _};
use portwatch::event::RawSnapshot;
use portwatch::stack::Snapshot;
use portwatch::stack::mapping::{self, Backing, Mapping};

type Bytes = Arc<[u8]>;

/// Program files that were read, with the sections that framehop wants.
#[derive(Default)]
pub struct Oracle {
    files: HashMap<String, Option<Arc<File>>>,
}

struct File {
    sections: ExplicitModuleSectionInfo<Bytes>,
    /// Executable segments: (file offset, bytes, address).
    segments: Vec<(u64, u64, u64)>,
}

impl Oracle {
    /// Addresses from where the snapshot begins, innermost first. Nothing: the process is gone, and with it the list of
    /// its mappings.
    pub fn walk(&mut self, raw: &RawSnapshot) -> Option<Vec<u64>> {
        let snapshot = Snapshot::new(raw, u64::MAX);
        let mut unwinder: UnwinderX86_64<Bytes> = UnwinderX86_64::new();
        let maps = format!("/proc/{}/maps", raw.tgid);
        for mapping in mapping::parse(&fs::read(&maps).ok()?) {
            if let Some(module) = self.module(raw.tgid, &mapping) {
                unwinder.add_module(module);
            }
        }
        // Its files were there to be read until now.
        fs::read(&maps).ok().filter(|maps| !maps.is_empty())?;
        let mut cache = CacheX86_64::<_>::new();
        let mut registers = UnwindRegsX86_64::new(raw.ip, raw.sp, raw.bp);
        let mut read = |address| snapshot.stack.word(address).ok_or(());
        let mut addresses = vec![raw.ip];
        let mut at = match snapshot.prefix {
            [] => FrameAddress::from_instruction_pointer(raw.ip),
            _ => FrameAddress::from_return_address(raw.ip).expect("the kernel side stops at 0"),
        };
        while addresses.len() < 512
            && let Ok(Some(caller)) = unwinder.unwind_frame(at, &mut registers, &mut cache, &mut read)
            && let Some(next) = FrameAddress::from_return_address(caller)
        {
            addresses.push(caller);
            at = next;
        }
        Some(addresses)
    }

    fn module(&mut self, tgid: u32, mapping: &Mapping) -> Option<framehop::Module<Bytes>> {
        let Backing::File { path, .. } = &mapping.backing else { return None };
        let name = path.display().to_string();
        let link = format!("/proc/{tgid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
        let read = || fs::read(link).ok().and_then(|bytes| File::of(&bytes)).map(Arc::new);
        // One that could not be read is tried again: its process may have ended.
        let known = self.files.entry(name.clone()).or_default();
        if known.is_none() {
            *known = read();
        }
        let file = known.clone()?;
        let length = mapping.end - mapping.start;
        let is_mapped = |(offset, bytes, _): &&(u64, u64, u64)| {
            mapping.offset < offset + bytes && *offset < mapping.offset + length
        };
        let (offset, _, address) = file.segments.iter().find(is_mapped)?;
        let bias = mapping.start.wrapping_sub(mapping.offset).wrapping_add(*offset).wrapping_sub(*address);
        Some(framehop::Module::new(name, mapping.start..mapping.end, bias, copy(&file.sections)))
    }
}

fn copy(sections: &ExplicitModuleSectionInfo<Bytes>) -> ExplicitModuleSectionInfo<Bytes> {
    ExplicitModuleSectionInfo {
        base_svma: sections.base_svma,
        text_svma: sections.text_svma.clone(),
        text: sections.text.clone(),
        got_svma: sections.got_svma.clone(),
        eh_frame_svma: sections.eh_frame_svma.clone(),
        eh_frame: sections.eh_frame.clone(),
        eh_frame_hdr_svma: sections.eh_frame_hdr_svma.clone(),
        eh_frame_hdr: sections.eh_frame_hdr.clone(),
        ..Default::default()
    }
}

impl File {
    fn of(bytes: &[u8]) -> Option<File> {
        let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
        let endian = file.endian();
        let range = |name| file.section_by_name(name).map(|s| s.address()..s.address() + s.size());
        let data = |name| file.section_by_name(name).and_then(|s| s.data().ok()).map(Bytes::from);
        let code = |segment: &&<FileHeader64<Endianness> as object::read::elf::FileHeader>::ProgramHeader| {
            segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0
        };
        let place = |segment: &<FileHeader64<Endianness> as object::read::elf::FileHeader>::ProgramHeader| {
            (segment.p_offset(endian), segment.p_filesz(endian), segment.p_vaddr(endian))
        };
        Some(File {
            segments: file.elf_program_headers().iter().filter(code).map(place).collect(),
            sections: ExplicitModuleSectionInfo {
                base_svma: 0,
                text_svma: range(".text"),
                text: data(".text"),
                got_svma: range(".got"),
                eh_frame_svma: range(".eh_frame"),
                eh_frame: data(".eh_frame"),
                eh_frame_hdr_svma: range(".eh_frame_hdr"),
                eh_frame_hdr: data(".eh_frame_hdr"),
                ..Default::default()
            },
        })
    }
}
