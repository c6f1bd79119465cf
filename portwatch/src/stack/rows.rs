//! Unwind tables → the one row for an instruction, in the form the kernel side walks by.
//!
//! A [`Row`] says where, at one instruction, the caller's frame is: enough for the return addresses, which is all that a
//! walk needs. It comes from `.eh_frame`, else `.debug_frame`. Code that neither mentions is taken to keep a frame
//! pointer, as Go and the code of just-in-time compilers does. Tables are strangers': whatever is wrong with one is an
//! error value, and the row for it says that the walk ends.

use portwatch_common::wire::row_kind;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use gimli::{
    BaseAddresses, CieOrFde, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, FrameDescriptionEntry,
    LittleEndian, UnwindContext, UnwindSection,
};

use super::elf::Module;
use super::elf_copy;
use super::machine;

/// Bytes of one unwind table that are read. Chromium's is 20 MB.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// Modules whose tables are kept in memory, and rows that are remembered.
const TABLES_MAX: usize = 64;
const ROWS_MAX: usize = 65_536;

/// How to get from a frame to its caller's.
///
/// The return address is always in the word below the CFA, the canonical frame address, which is the caller's stack
/// pointer after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// From the register that `kind` names to the CFA.
    pub cfa_off: i32,
    /// From the CFA to where the caller's frame pointer is saved.
    pub bp_off: i16,
    /// One of the constants below.
    pub kind: u8,
    /// 1: the frame pointer is saved. 0: it is the caller's still.
    pub bp_saved: u8,
}

impl Row {
    /// CFA = stack pointer + `cfa_off`.
    pub const SP: u8 = row_kind::SP;
    /// CFA = frame pointer + `cfa_off`. A frame pointer of 0 marks the outermost frame.
    pub const BP: u8 = row_kind::BP;
    /// There is no caller.
    pub const END: u8 = row_kind::END;
    /// A signal handler returns here: the registers of the interrupted code are on the stack, see [`machine`].
    pub const SIGNAL: u8 = row_kind::SIGNAL;
    /// The table says something that a row cannot.
    pub const UNSUPPORTED: u8 = row_kind::UNSUPPORTED;
    /// CFA = word at frame pointer + `cfa_off`; if `bp_saved`, the caller's frame pointer is the word at frame pointer +
    /// `bp_off`. GCC writes this where it aligns the stack of a function with arguments on it.
    pub const BP_WORD: u8 = row_kind::BP_WORD;

    /// As the kernel side reads it.
    pub fn wire(self) -> portwatch_common::wire::Row {
        portwatch_common::wire::Row {
            cfa_off: self.cfa_off,
            bp_off: self.bp_off,
            kind: self.kind,
            bp_saved: self.bp_saved,
        }
    }

    pub const fn end() -> Row {
        Row { cfa_off: 0, bp_off: 0, kind: Row::END, bp_saved: 0 }
    }

    pub const fn signal() -> Row {
        Row { cfa_off: 0, bp_off: 0, kind: Row::SIGNAL, bp_saved: 0 }
    }

    pub const fn unsupported() -> Row {
        Row { cfa_off: 0, bp_off: 0, kind: Row::UNSUPPORTED, bp_saved: 0 }
    }
}

/// Why a table gives no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    Table(gimli::Error),
    TooLarge,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Table(error) => write!(f, "the unwind table is malformed: {error}"),
            Malformed::TooLarge => f.write_str("the unwind table is too large"),
        }
    }
}

impl From<gimli::Error> for Malformed {
    fn from(error: gimli::Error) -> Malformed {
        Malformed::Table(error)
    }
}

type Slice<'t> = EndianSlice<'t, LittleEndian>;

/// The unwind tables of one module.
#[derive(Debug, Default)]
pub struct Table {
    eh_frame: Vec<u8>,
    /// The linker's search table for `eh_frame`; empty when there is none.
    header: Vec<u8>,
    debug_frame: Vec<u8>,
    bases: BaseAddresses,
    /// Made when there is no search table: (first address, one past the last, offset), sorted.
    eh_index: Option<Vec<Extent>>,
    debug_index: Option<Vec<Extent>>,
}

type Extent = (u64, u64, usize);

impl Table {
    /// Reads the tables of `module`. One without any is an empty table.
    ///
    /// # Errors
    /// When they are too large or lie outside the file.
    pub fn of(module: &Module) -> Result<Table, Malformed> {
        let mut table = Table::default();
        let mut bases = BaseAddresses::default();
        let read = |offset, bytes| {
            if bytes > TABLE_BYTES_MAX {
                return Err(Malformed::TooLarge);
            }
            Ok(module.bytes(offset, bytes).unwrap_or_default())
        };
        for (name, into) in [
            (".eh_frame", &mut table.eh_frame),
            (".eh_frame_hdr", &mut table.header),
            (".debug_frame", &mut table.debug_frame),
        ] {
            if let Some(section) = module.section(name).filter(|section| !section.is_compressed) {
                *into = read(section.offset, section.bytes)?;
            }
        }
        let address = |name| module.section(name).map(|section| section.address);
        bases.eh_frame.text = address(".text");
        bases.eh_frame.data = address(".got");
        bases.eh_frame.section = address(".eh_frame");
        if let Some((offset, address, bytes)) = module.layout.unwind_header {
            bases = bases.set_eh_frame_hdr(address);
            if table.header.is_empty() {
                table.header = read(offset, bytes)?;
            }
            if table.eh_frame.is_empty() {
                // Without section headers the search table says where the table itself is, and the segment how far it may go.
                let header = EhFrameHdr::new(&table.header, LittleEndian).parse(&bases, 8);
                if let Ok(gimli::Pointer::Direct(at)) = header.map(|header| header.eh_frame_ptr())
                    && let Some((offset, bytes)) = module.layout.rest_of_segment(at)
                {
                    table.eh_frame = read(offset, bytes.min(TABLE_BYTES_MAX))?;
                    bases = bases.set_eh_frame(at);
                }
            }
        }
        table.bases = bases;
        Ok(table)
    }

    /// The row for the instruction at `address`, in the ELF file's own terms; `None` when no table mentions it.
    ///
    /// # Errors
    /// When the table that mentions it is malformed.
    pub fn row(
        &mut self,
        address: u64,
        context: &mut UnwindContext<usize>,
    ) -> Result<Option<Row>, Malformed> {
        match self.eh_row(address, context) {
            Ok(None) => self.debug_row(address, context),
            // One broken table must not hide the other.
            Err(malformed) => match self.debug_row(address, context) {
                Ok(Some(row)) => Ok(Some(row)),
                _ => Err(malformed),
            },
            found => found,
        }
    }

    fn eh_row(&mut self, address: u64, context: &mut UnwindContext<usize>) -> Result<Option<Row>, Malformed> {
        if self.eh_frame.is_empty() {
            return Ok(None);
        }
        let mut section = EhFrame::from(Slice::new(&self.eh_frame, LittleEndian));
        section.set_address_size(8);
        let at = match searched(&self.header, &self.bases, address) {
            Some(at) => at,
            None => offset_of(self.eh_index.get_or_insert_with(|| index(&section, &self.bases)), address),
        };
        let Some(at) = at else { return Ok(None) };
        let entry = section.fde_from_offset(&self.bases, at.into(), EhFrame::cie_from_offset)?;
        if !entry.contains(address) {
            return Ok(None);
        }
        row_of(&entry, &section, &self.bases, context, address).map(Some)
    }

    fn debug_row(
        &mut self,
        address: u64,
        context: &mut UnwindContext<usize>,
    ) -> Result<Option<Row>, Malformed> {
        if self.debug_frame.is_empty() {
            return Ok(None);
        }
        let mut section = DebugFrame::from(Slice::new(&self.debug_frame, LittleEndian));
        section.set_address_size(8);
        let index = self.debug_index.get_or_insert_with(|| index(&section, &self.bases));
        let Some(at) = offset_of(index, address) else { return Ok(None) };
        let entry = section.fde_from_offset(&self.bases, at.into(), DebugFrame::cie_from_offset)?;
        row_of(&entry, &section, &self.bases, context, address).map(Some)
    }
}

type Entry<'t> = FrameDescriptionEntry<Slice<'t>>;

/// Looks `address` up in the linker's search table: the offset of the entry at or before it in `.eh_frame`. The outer
/// `None`: there is no table, or none of the one form that linkers write (all of it in words relative to itself).
///
/// Read here because gimli multiplies and subtracts a stranger's numbers without a check.
fn searched(header: &[u8], bases: &BaseAddresses, address: u64) -> Option<Option<usize>> {
    const FORM: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
    let at = bases.eh_frame_hdr.section?;
    let rest = header.strip_prefix(&FORM)?.get(4..)?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let table = rest.get(..count.checked_mul(8)?)?.as_chunks::<8>().0;
    let absolute = |word: [u8; 4]| at.wrapping_add_signed(i32::from_le_bytes(word).into());
    let start = |entry: &[u8; 8]| absolute([entry[0], entry[1], entry[2], entry[3]]);
    let after = table.partition_point(|entry| start(entry) <= address);
    let Some(entry) = after.checked_sub(1).and_then(|before| table.get(before)) else { return Some(None) };
    let found = absolute([entry[4], entry[5], entry[6], entry[7]]);
    let offset = found.checked_sub(bases.eh_frame.section?)?;
    Some(Some(usize::try_from(offset).ok()?))
}

/// Extents of all entries, as far as the section can be read.
fn index<'t, S: UnwindSection<Slice<'t>>>(section: &S, bases: &BaseAddresses) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(entry) = partial.parse(S::cie_from_offset)
            && entry.end_address() > entry.initial_address()
        {
            extents.push((entry.initial_address(), entry.end_address(), entry.offset()));
        }
    }
    extents.sort_unstable();
    extents
}

fn offset_of(index: &[Extent], address: u64) -> Option<usize> {
    let after = index.partition_point(|&(start, ..)| start <= address);
    let &(_, end, offset) = index.get(after.checked_sub(1)?)?;
    (address < end).then_some(offset)
}

fn row_of<'t, S: UnwindSection<Slice<'t>>>(
    entry: &Entry<'t>,
    section: &S,
    bases: &BaseAddresses,
    context: &mut UnwindContext<usize>,
    address: u64,
) -> Result<Row, Malformed> {
    if entry.is_signal_trampoline() {
        return Ok(Row::signal());
    }
    let rules = entry.unwind_info_for_address(section, bases, context, address)?;
    Ok(machine::row(rules, section, entry.cie().encoding()).unwrap_or(Row::unsupported()))
}

/// Rows of all modules, bounded.
#[derive(Default)]
pub struct Rows {
    tables: HashMap<u64, (Option<Table>, u64)>,
    known: HashMap<(u64, u64), Row>,
    context: UnwindContext<usize>,
    uses: u64,
    malformed: u64,
}

impl Rows {
    /// The row for the instruction at `address` of `module`, in the ELF file's own terms.
    pub fn at(&mut self, module: &Arc<Module>, address: u64) -> Row {
        let key = (module.serial, address);
        if let Some(&row) = self.known.get(&key) {
            return row;
        }
        let row = self.look_up(module, address);
        if self.known.len() >= ROWS_MAX {
            self.known.clear();
        }
        self.known.insert(key, row);
        row
    }

    /// Code in no file: there is no table, and just-in-time compilers keep frame pointers.
    pub fn anonymous() -> Row {
        machine::FRAME_POINTER_ROW
    }

    /// Tables or entries that could not be read.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Lets go of what was read from copies that were dropped.
    pub fn forget(&mut self, modules: &[Arc<Module>]) {
        for module in modules {
            self.tables.remove(&module.serial);
            self.known.retain(|&(serial, _), _| serial != module.serial);
        }
    }

    fn look_up(&mut self, module: &Arc<Module>, address: u64) -> Row {
        if !elf_copy::is_native(&module.layout) {
            return Row::unsupported();
        }
        self.uses += 1;
        if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(&module.serial) {
            let oldest = self.tables.iter().min_by_key(|(_, (_, used))| *used).map(|(&serial, _)| serial);
            oldest.map(|serial| self.tables.remove(&serial));
        }
        let malformed = &mut self.malformed;
        let read = || {
            let table =
                Table::of(module).inspect_err(|error| log::debug!("module {}: {error}", module.serial)).ok();
            *malformed += u64::from(table.is_none());
            (table, 0)
        };
        let (table, used) = self.tables.entry(module.serial).or_insert_with(read);
        *used = self.uses;
        // Without its table nothing is known of the module's frames, not even that they have frame pointers.
        let Some(table) = table else { return Row::unsupported() };
        match table.row(address, &mut self.context) {
            Ok(Some(row)) => row,
            Ok(None) => machine::FRAME_POINTER_ROW,
            Err(error) => {
                log::debug!("module {}, address {address:#x}: {error}", module.serial);
                self.malformed += 1;
                Row::unsupported()
            }
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
