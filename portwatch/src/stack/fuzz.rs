//! Doors for fuzzers: what strangers write, as bytes, through the parsers here. None may panic, or take time or memory
//! that the input's size does not bound.
//!
//! A fuzz target is one call of one of these; the test below makes some thousand inputs of real ones by itself.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::elf::Module;
use super::opener::Opener;
use super::rows::Rows;
use super::symbolize::SymbolTable;
use super::{elf_copy, mapping, perf_map, sideband};

/// Addresses asked for in each executable segment.
const ADDRESSES: u64 = 4;

/// A program file: its headers, its copy, and the rows at some addresses. Says whether it was taken for a program.
pub fn elf(bytes: &[u8]) -> bool {
    module(bytes).is_some_and(|module| {
        let mut rows = Rows::default();
        for address in addresses(&module) {
            rows.at(&module, address);
        }
        true
    })
}

/// The same, and names at these addresses.
pub fn names(bytes: &[u8]) -> bool {
    module(bytes).is_some_and(|module| {
        let mut symbols = SymbolTable::new(64, Opener::default());
        // No process has this number.
        addresses(&module).for_each(|address| drop(symbols.at(&module, address, u32::MAX, Path::new("/"))));
        true
    })
}

/// A `/tmp/perf-PID.map`.
pub fn perf_map(bytes: &[u8]) {
    perf_map::parse_and_find(bytes, 0x1000);
}

/// A `/proc/PID/maps`.
pub fn maps(bytes: &[u8]) {
    mapping::tidy(mapping::parse(bytes));
}

/// A record of the kernel's about mappings: its kind, flags, and what is behind its header.
pub fn record(bytes: &[u8]) {
    if let Some((head, body)) = bytes.split_first_chunk::<2>() {
        sideband::parse_any(head[0].into(), u16::from(head[1]) << 8, body);
    }
}

fn module(bytes: &[u8]) -> Option<Arc<Module>> {
    let mut file = elf_copy::memory_file().ok()?;
    file.write_all(bytes).ok()?;
    Module::copy(&file, 1).ok().map(Arc::new)
}

fn addresses(module: &Module) -> impl Iterator<Item = u64> {
    let code = module.layout.segments.iter().filter(|segment| segment.is_executable).take(8);
    code.flat_map(|segment| {
        let step = segment.file_bytes / ADDRESSES;
        (0..ADDRESSES).map(move |at| segment.address.wrapping_add(at * step))
    })
}

#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod tests;
