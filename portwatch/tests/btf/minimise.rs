//! Makes a small BTF out of a kernel's: the structures portwatch reads, whole, with all that is embedded in
//! them; what pointers point to becomes `void`. Reads the format on its own, not through the code under test.

use std::collections::{BTreeSet, HashMap};

use crate::writer::Writer;

const PTR: u32 = 2;

struct Type<'a> {
    name: &'a [u8],
    info: u32,
    size_or_type: u32,
    tail: Vec<u32>,
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// Places in `tail` that hold type ids which matter for layout.
    fn inner(&self) -> Vec<usize> {
        match self.kind() {
            3 => vec![0, 1],
            4 | 5 => (0..self.tail.len()).step_by(3).map(|at| at + 1).collect(),
            _ => Vec::new(),
        }
    }

    fn refers(&self) -> bool {
        // Typedef, volatile, const, restrict, function, type tag.
        matches!(self.kind(), 8..=12 | 18)
    }
}

pub fn minimise(btf: &[u8], structures: &[&str], functions: &[&str]) -> Vec<u8> {
    let types = read(btf);
    let wanted = |ty: &Type| {
        let names = match ty.kind() {
            4 | 5 => structures,
            12 => functions,
            _ => return false,
        };
        names.iter().any(|name| name.as_bytes() == ty.name)
    };
    let mut todo: Vec<u32> = (1..=types.len() as u32).filter(|&id| wanted(&types[id as usize - 1])).collect();
    let mut keep = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if id == 0 || !keep.insert(id) {
            continue;
        }
        let ty = &types[id as usize - 1];
        todo.extend(ty.inner().iter().map(|&at| ty.tail[at]));
        todo.extend(ty.refers().then_some(ty.size_or_type));
    }

    let mut out = Writer::default();
    let pointer = out.add("", PTR, 0, 0, &[]);
    let mut ids = HashMap::from([(0, 0)]);
    let mut next = pointer;
    for &id in &keep {
        let is_pointer = types[id as usize - 1].kind() == PTR;
        next += u32::from(!is_pointer);
        ids.insert(id, if is_pointer { pointer } else { next });
    }
    for id in keep {
        let ty = &types[id as usize - 1];
        if ty.kind() == PTR {
            continue;
        }
        let (mut info, mut tail) = (ty.info, ty.tail.clone());
        let size_or_type = if ty.refers() { ids[&ty.size_or_type] } else { ty.size_or_type };
        match ty.kind() {
            3 => [0, 1].iter().for_each(|&at| tail[at] = ids[&tail[at]]),
            4 | 5 => {
                for member in tail.chunks_exact_mut(3) {
                    member[0] = out.string(text(btf, member[0]));
                    member[1] = ids[&member[1]];
                }
            }
            // The values of an enumeration are of no interest, the number of parameters is.
            6 | 19 => (info, tail) = (info & !0xff_ffff, Vec::new()),
            13 => tail.chunks_exact_mut(2).for_each(|parameter| parameter.copy_from_slice(&[0, pointer])),
            _ => {}
        }
        let size_or_type = if ty.kind() == 13 { 0 } else { size_or_type };
        let written = out.raw(ty.name, info, size_or_type, &tail);
        assert_eq!(written, ids[&id]);
    }
    out.finish(24)
}

fn word(btf: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(btf[at..at + 4].try_into().unwrap())
}

fn text(btf: &[u8], name: u32) -> &[u8] {
    let start = (word(btf, 4) + word(btf, 16) + name) as usize;
    btf[start..].split(|&byte| byte == 0).next().unwrap()
}

fn read(btf: &[u8]) -> Vec<Type<'_>> {
    let start = (word(btf, 4) + word(btf, 8)) as usize;
    let end = start + word(btf, 12) as usize;
    let mut types = Vec::new();
    let mut at = start;
    while at < end {
        let info = word(btf, at + 4);
        let vlen = (info & 0xffff) as usize;
        let tail_words = match info >> 24 & 0x1f {
            1 | 14 | 17 => 1,
            3 => 3,
            4 | 5 | 15 | 19 => 3 * vlen,
            6 | 13 => 2 * vlen,
            2 | 7..=12 | 16 | 18 => 0,
            kind => panic!("type {} is of unknown kind {kind}", types.len() + 1),
        };
        let tail = (0..tail_words).map(|index| word(btf, at + 12 + 4 * index)).collect();
        types.push(Type { name: text(btf, word(btf, at)), info, size_or_type: word(btf, at + 8), tail });
        at += 12 + 4 * tail_words;
    }
    types
}
