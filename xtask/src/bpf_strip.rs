//! Takes DWARF out of a BPF object: the loader reads every section and relocation there is each time it starts, and of
//! seven megabytes six are of no use to it. What the kernel wants to know of lines and types is BTF.
//!
//! Sections keep their numbers, for relocations and symbols name them by number; those that go become empty.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

/// Places in the header of a 64-bit ELF file.
const SECTIONS_AT: usize = 0x28;
const SECTION_BYTES_AT: usize = 0x3a;
const SECTION_COUNT_AT: usize = 0x3c;
const NAMES_INDEX_AT: usize = 0x3e;

/// Places in a section's header.
const NAME: usize = 0;
const TYPE: usize = 4;
const OFFSET: usize = 24;
const SIZE: usize = 32;

const HEADER_BYTES: usize = 64;
const NO_BITS: u64 = 8;

/// The object without its sections `.debug_*` and their relocations.
pub fn without_debug(object: &[u8]) -> Result<Vec<u8>> {
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "not a little-endian 64-bit ELF file");
    let table = number::<8>(object, SECTIONS_AT)? as usize;
    let count = number::<2>(object, SECTION_COUNT_AT)? as usize;
    let names = number::<2>(object, NAMES_INDEX_AT)? as usize;
    ensure!(number::<2>(object, SECTION_BYTES_AT)? as usize == HEADER_BYTES, "sections have odd headers");
    let header = |index: usize| {
        let at = table + index * HEADER_BYTES;
        object.get(at..at + HEADER_BYTES).context("a section header is outside the file")
    };
    let names = bytes(object, header(names)?)?;

    let mut out = object.get(..HEADER_BYTES).context("the file is too short")?.to_vec();
    let mut headers = Vec::new();
    for index in 0..count {
        let mut header = header(index)?.to_vec();
        let name = names.get(number::<4>(&header, NAME)? as usize..).unwrap_or_default();
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            header[TYPE..].fill(0);
        } else if number::<4>(&header, TYPE)? != NO_BITS {
            out.resize(out.len().next_multiple_of(16), 0);
            let offset = out.len() as u64;
            out.extend_from_slice(bytes(object, &header)?);
            header[OFFSET..OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
        }
        headers.extend(header);
    }
    out.resize(out.len().next_multiple_of(16), 0);
    let table = out.len() as u64;
    out[SECTIONS_AT..SECTIONS_AT + 8].copy_from_slice(&table.to_le_bytes());
    out.extend(headers);
    Ok(out)
}

/// What is in a section.
fn bytes<'o>(object: &'o [u8], header: &[u8]) -> Result<&'o [u8]> {
    let (offset, size) = (number::<8>(header, OFFSET)? as usize, number::<8>(header, SIZE)? as usize);
    let range: Range<usize> = offset..offset.checked_add(size).context("a section has no end")?;
    object.get(range).context("a section is outside the file")
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Result<u64> {
    let mut wide = [0; 8];
    wide[..BYTES].copy_from_slice(bytes.get(at..at + BYTES).context("the file is too short")?);
    Ok(u64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three sections behind the null one: code, DWARF, names.
    fn object() -> Vec<u8> {
        let names = b"\0.text\0.debug_info\0.shstrtab\0";
        let (code, dwarf) = ([7; 24], [9; 1000]);
        let mut out = vec![0; HEADER_BYTES];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![0; HEADER_BYTES];
        for (name, bytes) in [(1_u32, &code[..]), (7, &dwarf), (19, names)] {
            let mut header = [0; HEADER_BYTES];
            header[NAME..4].copy_from_slice(&name.to_le_bytes());
            header[TYPE] = 1;
            header[OFFSET..OFFSET + 8].copy_from_slice(&(out.len() as u64).to_le_bytes());
            header[SIZE..SIZE + 8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            headers.extend(header);
            out.extend_from_slice(bytes);
        }
        let table = out.len() as u64;
        out[SECTIONS_AT..SECTIONS_AT + 8].copy_from_slice(&table.to_le_bytes());
        out[SECTION_BYTES_AT] = HEADER_BYTES as u8;
        out[SECTION_COUNT_AT] = 4;
        out[NAMES_INDEX_AT] = 3;
        out.extend(headers);
        out
    }

    #[test]
    fn dwarf_goes_and_the_rest_stays_under_its_number() {
        let object = object();
        let stripped = without_debug(&object).unwrap();
        assert!(stripped.len() + 900 < object.len());
        let table = number::<8>(&stripped, SECTIONS_AT).unwrap() as usize;
        let section = |index: usize| {
            let at = table + index * HEADER_BYTES;
            bytes(&stripped, &stripped[at..at + HEADER_BYTES]).unwrap()
        };
        assert_eq!(section(1), [7; 24]);
        assert_eq!(section(2), []);
        assert!(section(3).ends_with(b".shstrtab\0"));
        assert_eq!(without_debug(&stripped).unwrap(), stripped);
    }

    #[test]
    fn broken_files_are_errors() {
        let object = object();
        for end in 0..object.len() {
            assert!(without_debug(&object[..end]).is_err(), "{end}");
        }
    }
}
