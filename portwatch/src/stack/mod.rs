//! Raw user stacks → frames with names, and the line of the application that asked for a port.
//!
//! [`Stacks`] is the door, and [`walks`] the half of it that runs ahead. Inside, in the order data flows: what code is
//! mapped where ([`process_maps`], kept up to date by [`sideband`]), the program files behind it ([`elf`]), how their frames
//! are walked ([`rows`], [`unwind`]), names of what is in them ([`symbolize`], `perf_map`), and which of the frames is the
//! application's ([`call_site`], [`libraries`]). How addresses are taken from a live stack is the kernel side's business; so
//! is which event a stack belongs to.

pub mod call_site;
mod debug_file;
mod decompress;
pub mod elf;
mod elf_copy;
mod elf_open;
#[doc(hidden)]
pub mod fuzz;
pub mod kernel_symbols;
pub mod libraries;
pub mod machine;
pub mod mapping;
pub mod opener;
mod perf_map;
pub mod process_maps;
pub mod python;
pub mod rows;
pub mod sideband;
pub mod start_time;
pub mod symbol_directory;
pub mod symbolize;
pub mod unwind;
pub mod walks;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use portwatch_common::wire::stack_id_mix;

use crate::event::{RawPythonCode, RawPythonStack, RawSnapshot, RawStack, StackId};
use crate::output::{Frame, FrameKind, Stack};

use call_site::{Libraries, PlacedFrame};
use elf::{Module, Unreadable};
use mapping::{Backing, Mapping};
use perf_map::PerfMaps;
use python::frames::{Codes, merge};
use rows::Row;
use symbolize::{Symbol, SymbolTable};
use unwind::{Registers, StackBytes, Unwound};
use walks::{Place, Walks};

/// Address spaces kept: as many as a busy host has processes, at about 10 kB each.
const PROCESSES_MAX: usize = 8192;

/// Program files kept, and their bytes.
const MODULES_MAX: usize = 2048;
const MODULE_BYTES_MAX: u64 = 1 << 30;

/// Addresses whose names are kept.
const SYMBOLS_MAX: usize = 65_536;

/// How stacks are to be read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What else is to count as a library, see [`call_site::matches`].
    pub library_patterns: Vec<String>,
    /// Follow mappings of all processes by records of the kernel.
    pub sideband: bool,
}

/// A stack that the kernel side copied because it met an instruction without a row.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'s> {
    pub tgid: u32,
    /// Start of the process, `CLOCK_BOOTTIME`; 0 when not known.
    pub start_boot_ns: u64,
    /// When it was taken; `u64::MAX` for now.
    pub mono_ns: u64,
    pub registers: Registers,
    pub stack: StackBytes<'s>,
    /// Addresses found before, innermost first, without `registers.ip`.
    pub prefix: &'s [u64],
}

impl<'s> Snapshot<'s> {
    /// As the kernel side sent it at `mono_ns`.
    pub fn new(raw: &'s RawSnapshot, mono_ns: u64) -> Snapshot<'s> {
        Snapshot {
            tgid: raw.tgid,
            start_boot_ns: raw.start_boot_ns,
            mono_ns,
            registers: Registers { ip: raw.ip, sp: raw.sp, bp: raw.bp },
            stack: StackBytes { start: raw.sp, bytes: &raw.bytes, valid: raw.pages_valid.into() },
            // The last address is the registers' own.
            prefix: raw.addresses.split_last().map_or(&[], |(_, before)| before),
        }
    }
}

/// Whether a stack reaches from the system call to the start of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    Complete,
    /// Some of it is missing, or not known to be there.
    Partial,
    None,
}

/// A stack with names.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub stack: Stack,
    /// `function (file:line)`, `function+0x… (module)` or `module+0x…`; untrusted text, like all names.
    pub call_site: Option<String>,
    pub completeness: Completeness,
    /// It ends early because code on the way had just been replaced.
    pub is_cut: bool,
}

/// What was refused or given up, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub maps: process_maps::Counters,
    pub records: sideband::Counters,
    pub modules: elf::Counters,
    pub symbols: symbolize::Counters,
    /// Unwind tables, or entries of them, that could not be read.
    pub tables_malformed: u64,
}

/// Reads stacks. Not `Send`: make it in the thread that uses it.
pub struct Stacks {
    walks: Walks,
    symbols: SymbolTable,
    perf_maps: PerfMaps,
    codes: Codes,
    libraries: Libraries,
}

impl Stacks {
    pub fn new(options: Options) -> Stacks {
        let walks = Walks::new(options.sideband);
        Stacks::with(walks, options.library_patterns)
    }

    /// Shares what is known of processes with whoever else has `walks`.
    pub fn with(walks: Walks, library_patterns: Vec<String>) -> Stacks {
        Stacks {
            symbols: SymbolTable::new(SYMBOLS_MAX, walks.opener()),
            perf_maps: PerfMaps::new(walks.opener()),
            codes: Codes::default(),
            libraries: Libraries::new(library_patterns),
            walks,
        }
    }

    /// What the user should know of how well processes can be followed; `None` when all is well.
    pub fn note(&self) -> Option<&str> {
        self.walks.note()
    }

    /// The program that a process ran at `mono_ns`, also when it is gone: as its path was at exec.
    pub fn program(&self, tgid: u32, start_boot_ns: u64, mono_ns: u64) -> Option<String> {
        self.walks.program(tgid, start_boot_ns, mono_ns)
    }

    /// The process that made a process, also when both are gone.
    pub fn parent(&self, tgid: u32) -> Option<u32> {
        self.walks.parent(tgid)
    }

    /// What was refused or given up so far.
    pub fn counters(&self) -> Counters {
        let walks::Counters { maps, records, modules, tables_malformed } = self.walks.counters();
        Counters { maps, records, modules, tables_malformed, symbols: self.symbols.counters() }
    }

    /// As [`Walks::drain_sideband`].
    pub fn drain_sideband(&mut self) -> Vec<u32> {
        self.walks.drain_sideband()
    }

    /// As [`Walks::expire`].
    pub fn expire(&self, mono_ns: u64) {
        self.walks.expire(mono_ns);
    }

    /// As [`Walks::unwind`].
    pub fn unwind_snapshot(&mut self, snapshot: &Snapshot<'_>) -> Unwound {
        self.walks.unwind(snapshot)
    }

    /// What a stack that was taken before is at `mono_ns`, if code of its process was replaced meanwhile and the kernel
    /// side, which names it by its addresses alone, could not know yet.
    pub fn revised(&self, raw: &RawStack, taken_mono_ns: u64, mono_ns: u64) -> Option<RawStack> {
        let generation = self.walks.changed_between(raw.tgid, raw.start_boot_ns, taken_mono_ns, mono_ns)?;
        Some(RawStack { id: StackId(stack_id_mix(raw.id.0, generation) | 1), ..raw.clone() })
    }

    /// As [`Walks::is_being_replaced`].
    pub fn is_being_replaced(&self, tgid: u32, mono_ns: u64) -> bool {
        self.walks.is_being_replaced(tgid, mono_ns)
    }

    /// Takes in a code object that later stacks name.
    pub fn add_python_code(&mut self, code: RawPythonCode) {
        self.codes.add(code);
    }

    /// Names the frames of a stack that was taken at `mono_ns`. `start_boot_ns` is the start of its process,
    /// `CLOCK_BOOTTIME`, 0 when not known. The side-band must have been drained after the stack was received.
    ///
    /// What cannot be known is in the frame as its reason; there is no error.
    pub fn resolve_at(&mut self, raw: &RawStack, start_boot_ns: u64, mono_ns: u64) -> Resolved {
        self.resolve_merged(raw, None, start_boot_ns, mono_ns)
    }

    /// As [`Stacks::resolve_at`], with the Python frames that the kernel side took.
    pub fn resolve_merged(
        &mut self,
        raw: &RawStack,
        python: Option<&RawPythonStack>,
        start_boot_ns: u64,
        mono_ns: u64,
    ) -> Resolved {
        let reliable = self.walks.reliable(raw.tgid, start_boot_ns, mono_ns, &raw.addresses);
        let addresses = &raw.addresses[..reliable];
        let placed = self.walks.place(raw.tgid, start_boot_ns, mono_ns, addresses);
        let has_start = placed.iter().any(|placed| placed.row.is_some_and(|row| row.kind == Row::END));
        let mut frames = Vec::with_capacity(placed.len());
        for placed in placed {
            match placed.place {
                Place::Code { mapping, module } => {
                    self.name(&mut frames, raw.tgid, &mapping, module, placed.call);
                }
                Place::Anonymous => frames.push(self.jit(raw.tgid, start_boot_ns, placed.call)),
                Place::Nowhere => frames.push(unknown("the address is in no executable mapping".to_owned())),
                Place::Missing(missing) => frames.push(unknown(missing.to_string())),
            }
        }
        self.symbols.forget(&self.walks.take_dropped());
        let completeness = match frames.last() {
            None => Completeness::None,
            Some(outermost) if has_start || is_start(&outermost.frame) => Completeness::Complete,
            Some(_) => Completeness::Partial,
        };
        let is_complete = completeness == Completeness::Complete;
        let refused = || self.walks.why_no_python(raw.tgid);
        let frames = merge(frames, is_complete, python, &mut self.codes, refused);
        let call_site = self.libraries.call_site(&frames);
        let frames = frames.into_iter().map(|placed| placed.frame).collect();
        let is_cut = reliable < raw.addresses.len();
        Resolved { stack: Stack { id: raw.id, frames }, call_site, completeness, is_cut }
    }

    /// Adds the frames at address `call`, several when functions were inlined there.
    fn name(
        &mut self,
        frames: &mut Vec<PlacedFrame>,
        tgid: u32,
        mapping: &Mapping,
        module: Result<Arc<Module>, Unreadable>,
        call: u64,
    ) {
        let path = match &mapping.backing {
            Backing::File { path, .. } => path,
            Backing::Vdso | Backing::Anonymous(_) => Path::new("[vdso]"),
        };
        let module_path = Some(elf::shown(path));
        let module = match module {
            Ok(module) => module,
            Err(unreadable) => {
                // The file offset is all there is; as an address it would mislead.
                let symbol = Symbol::unknown(unreadable.to_string());
                frames.push(placed(
                    symbol,
                    Frame { module: module_path, kind: FrameKind::Native, ..Frame::default() },
                ));
                return;
            }
        };
        let offset = module.address_in(mapping, call);
        let base = Frame {
            module: module_path,
            build_id: module.build_id.as_deref().map(hex),
            offset,
            kind: FrameKind::Native,
            ..Frame::default()
        };
        match offset {
            Some(offset) => {
                let symbols = self.symbols.at(&module, offset, tgid, path);
                frames.extend(symbols.iter().map(|symbol| placed(symbol.clone(), base.clone())));
            }
            None => {
                let symbol = Symbol::unknown("the address is outside the code of the program file");
                frames.push(placed(symbol, base));
            }
        }
    }

    fn jit(&mut self, tgid: u32, start_boot_ns: u64, call: u64) -> PlacedFrame {
        match self.perf_maps.find(tgid, start_boot_ns, call) {
            Some((function, offset)) => PlacedFrame {
                frame: Frame { function: Some(function), kind: FrameKind::Jit, ..Frame::default() },
                function_offset: Some(offset),
            },
            None => PlacedFrame {
                frame: Frame {
                    kind: FrameKind::Jit,
                    reason: Some("compiled at run time, and no perf map names it".to_owned()),
                    ..Frame::default()
                },
                function_offset: None,
            },
        }
    }
}

fn placed(symbol: Symbol, base: Frame) -> PlacedFrame {
    let Symbol { function, function_offset, file, line, is_inlined, reason } = symbol;
    PlacedFrame { frame: Frame { function, file, line, is_inlined, reason, ..base }, function_offset }
}

fn unknown(reason: String) -> PlacedFrame {
    PlacedFrame { frame: Frame { reason: Some(reason), ..Frame::default() }, function_offset: None }
}

/// Functions that nothing calls: programs and threads begin in them.
fn is_start(frame: &Frame) -> bool {
    const STARTS: &[&str] =
        &["_start", "clone", "clone3", "__clone", "__clone3", "start_thread", "runtime.goexit*"];
    frame
        .function
        .as_deref()
        .is_some_and(|function| STARTS.iter().any(|start| call_site::matches(start, function)))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod live_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(tgid: u32, addresses: Vec<u64>) -> RawStack {
        RawStack { id: StackId(7), tgid, start_boot_ns: 0, addresses }
    }

    #[inline(never)]
    fn somewhere_to_point_at() -> u64 {
        std::hint::black_box(1)
    }

    #[test]
    fn own_function_is_named_with_its_line() {
        let mut stacks = Stacks::new(Options::default());
        let address = somewhere_to_point_at as fn() -> u64 as usize as u64 + 1;
        let raw = raw(std::process::id(), vec![address]);
        for start in [0, start_time::of_process(std::process::id()).unwrap()] {
            let resolved = stacks.resolve_at(&raw, start, u64::MAX);
            let frame = resolved.stack.frames.last().unwrap();
            assert!(
                frame.function.as_ref().is_some_and(|f| f.contains("somewhere_to_point_at")),
                "{frame:?}"
            );
            assert!(frame.file.as_ref().is_some_and(|file| file.ends_with("stack/mod.rs")), "{frame:?}");
            assert_eq!(frame.kind, FrameKind::Native);
            assert!(frame.build_id.is_some() && frame.offset.is_some());
            let site = resolved.call_site.unwrap();
            assert!(site.contains("somewhere_to_point_at (mod.rs:"), "{site}");
            assert_eq!(resolved.completeness, Completeness::Partial);
        }
    }

    #[test]
    fn function_of_the_c_library_is_named_and_is_no_call_site() {
        let mut stacks = Stacks::new(Options::default());
        let maps = mapping::parse(&std::fs::read("/proc/self/maps").unwrap());
        let is_libc = |mapping: &&Mapping| match &mapping.backing {
            Backing::File { path, .. } => path.to_string_lossy().contains("libc.so"),
            _ => false,
        };
        let libc = maps.iter().find(is_libc).expect("a test binary is linked with the C library");
        let raw = raw(std::process::id(), vec![libc.start + 0x2000]);
        let resolved = stacks.resolve_at(&raw, 0, u64::MAX);
        assert!(resolved.stack.frames[0].module.as_ref().is_some_and(|module| module.contains("libc.so")));
        assert_eq!(resolved.call_site, None);
    }

    #[test]
    fn vdso_is_named() {
        let mut stacks = Stacks::new(Options::default());
        let maps = mapping::parse(&std::fs::read("/proc/self/maps").unwrap());
        let vdso = maps.iter().find(|mapping| mapping.backing == Backing::Vdso).unwrap();
        let addresses = (vdso.start + 1..vdso.end).step_by(16).collect();
        let raw = raw(std::process::id(), addresses);
        let resolved = stacks.resolve_at(&raw, 0, u64::MAX);
        let names: Vec<_> =
            resolved.stack.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert!(names.iter().any(|name| name.contains("clock_gettime")), "{names:?}");
    }

    #[test]
    fn process_that_is_gone_gives_frames_with_a_reason() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tgid = child.id();
        child.wait().unwrap();
        let mut stacks = Stacks::new(Options::default());
        let resolved = stacks.resolve_at(&raw(tgid, vec![0, 0x1000]), 0, u64::MAX);
        assert_eq!(resolved.stack.frames.len(), 2);
        assert!(resolved.stack.frames.iter().all(|frame| frame.reason.is_some() && frame.function.is_none()));
        assert_eq!(resolved.call_site, None);
    }

    #[test]
    fn empty_stack_is_none() {
        let mut stacks = Stacks::new(Options::default());
        let raw = raw(std::process::id(), Vec::new());
        assert_eq!(stacks.resolve_at(&raw, 0, u64::MAX).completeness, Completeness::None);
    }
}
