//! The bytes of BTF: its header, and the first words of each type. Everything is checked against the length
//! there is; what types mean is not known here.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
pub const TYPE_BYTES: usize = 12;
pub const MEMBER_BYTES: usize = 12;

pub mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The first twelve bytes of a type.
pub struct Type {
    /// Where it starts.
    pub at: usize,
    /// Offset of its name in the string section; 0 for none.
    pub name: u32,
    info: u32,
    pub size_or_type: u32,
}

impl Type {
    pub fn read(data: &[u8], at: usize) -> Option<Type> {
        Some(Type {
            at,
            name: u32_at(data, at)?,
            info: u32_at(data, at + 4)?,
            size_or_type: u32_at(data, at + 8)?,
        })
    }

    /// Kernels check that the bits not used by a format version are zero, so reading the full width of the
    /// fields refuses what is unknown instead of misreading it.
    pub fn kind(&self) -> u32 {
        (self.info >> 24) & 0x7f
    }

    pub fn vlen(&self) -> u32 {
        self.info & 0x00ff_ffff
    }

    pub fn kind_flag(&self) -> bool {
        self.info >> 31 != 0
    }

    pub fn is_composite(&self) -> bool {
        matches!(self.kind(), kind::STRUCT | kind::UNION)
    }

    /// Bytes that follow the first twelve; `None` for an unknown kind.
    pub fn tail_bytes(&self) -> Option<usize> {
        let per_entry = |bytes: usize| bytes * self.vlen() as usize;
        Some(match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION => per_entry(MEMBER_BYTES),
            kind::ENUM | kind::FUNC_PROTO => per_entry(8),
            kind::DATASEC | kind::ENUM64 => per_entry(12),
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

/// Where the sections are.
pub struct Header {
    pub types: Range<usize>,
    /// Ends with a zero byte.
    pub strings: Range<usize>,
}

impl Header {
    pub fn parse(data: &[u8]) -> Result<Header> {
        ensure!(data.len() >= HEADER_BYTES, "{} bytes are too few for a BTF header", data.len());
        let magic = u16::from_ne_bytes([data[0], data[1]]);
        ensure!(magic != MAGIC.swap_bytes(), "BTF of the other byte order");
        ensure!(magic == MAGIC, "not BTF: magic number {magic:#06x}, expected {MAGIC:#06x}");
        ensure!(data[2] == VERSION, "BTF version {}, expected {VERSION}", data[2]);
        let word = |at| u32_at(data, at).map(|word| word as usize).context("header is cut short");
        // Newer kernels append to the header; sections are counted from its end.
        let end = word(4)?;
        ensure!(end >= HEADER_BYTES, "header length {end}, expected at least {HEADER_BYTES}");
        let section = |at: usize, name: &str| -> Result<Range<usize>> {
            let (start, len) = (word(at)?, word(at + 4)?);
            let range = end.checked_add(start).and_then(|start| Some(start..start.checked_add(len)?));
            range
                .filter(|range| range.end <= data.len())
                .with_context(|| format!("{name} section reaches beyond the end, at {} bytes", data.len()))
        };
        let (types, strings) = (section(8, "type")?, section(16, "string")?);
        ensure!(data[strings.clone()].last() == Some(&0), "string section does not end with a zero byte");
        Ok(Header { types, strings })
    }
}

/// The word at `at`, if there is one.
pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}
