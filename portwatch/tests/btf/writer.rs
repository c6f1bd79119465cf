//! Writes BTF, for tests only: made-up types, and the small copies of real kernels' types.

use std::collections::HashMap;

#[derive(Default)]
pub struct Writer {
    types: Vec<u8>,
    count: u32,
    strings: Strings,
}

struct Strings {
    bytes: Vec<u8>,
    known: HashMap<Vec<u8>, u32>,
}

impl Default for Strings {
    fn default() -> Strings {
        Strings { bytes: vec![0], known: HashMap::from([(Vec::new(), 0)]) }
    }
}

impl Writer {
    pub fn string(&mut self, name: &[u8]) -> u32 {
        let strings = &mut self.strings;
        *strings.known.entry(name.to_vec()).or_insert_with(|| {
            let at = strings.bytes.len() as u32;
            strings.bytes.extend_from_slice(name);
            strings.bytes.push(0);
            at
        })
    }

    /// Adds a type with an `info` word made elsewhere and returns its id.
    pub fn raw(&mut self, name: &[u8], info: u32, size_or_type: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    pub fn add(&mut self, name: &str, kind: u32, vlen: u32, size_or_type: u32, tail: &[u32]) -> u32 {
        self.raw(name.as_bytes(), kind << 24 | vlen, size_or_type, tail)
    }

    pub fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.add(name, 1, 0, bytes, &[bytes * 8])
    }

    /// Members are (name, type, bit offset).
    pub fn structure(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        let mut tail = Vec::new();
        for &(member, type_id, bit_offset) in members {
            tail.extend([self.string(member.as_bytes()), type_id, bit_offset]);
        }
        self.add(name, 4, members.len() as u32, bytes, &tail)
    }

    /// `header_bytes` may be more than 24, as on newer kernels.
    pub fn finish(&self, header_bytes: u32) -> Vec<u8> {
        let mut bytes = 0xeb9fu16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.bytes.len() as u32);
        for word in [header_bytes, 0, types, types, strings] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.resize(header_bytes as usize, 0);
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings.bytes);
        bytes
    }
}
