//! A reader of the kernel's own type information (BTF), for two questions: where does a structure member
//! lie, and is there a function of this name.
//!
//! `aya_obj` parses BTF too but keeps members to itself, and rustc emits no field relocations, so offsets must
//! be looked up here. The parser is total: any bytes give an answer or an error, in bounded time. One pass
//! finds where each type starts and indexes the names of structures, unions and functions by hash; everything
//! else is read from the bytes when asked. Which members portwatch wants is in [`offsets`](super::offsets).
//!
//! Format: `Documentation/bpf/btf.rst` of the kernel source.

mod encoding;

use std::{fmt, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use encoding::{Header, MEMBER_BYTES, TYPE_BYTES, Type, kind, u32_at};

/// Where a kernel with `CONFIG_DEBUG_INFO_BTF` shows its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Longest chain of typedefs and qualifiers, and deepest nesting of anonymous members, that is followed.
/// Real kernels stay below ten; the bound is what makes a cyclic BTF harmless.
const DEPTH_MAX: u32 = 32;
/// Members looked at in one lookup. `task_struct` with everything anonymous inside it has fewer than a thousand.
const STEPS_MAX: u32 = 1 << 17;

/// The types of one kernel.
pub struct Btf {
    data: Vec<u8>,
    /// Range of the strings in `data`; its last byte is 0.
    strings: std::ops::Range<usize>,
    /// Where type `id` starts in `data`, at index `id - 1`: type 0 is `void` and is not stored.
    starts: Vec<u32>,
    /// Structures and unions.
    composites: NameIndex,
    functions: NameIndex,
}

/// A structure member, after everything anonymous and every typedef around it was looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub bit_offset: u32,
    pub kind: MemberKind,
    /// Bytes; `None` where BTF does not say.
    pub size: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// An embedded structure or union.
    Composite,
    Pointer,
    Array,
    /// Integer, enumeration or floating point number.
    Scalar,
    Bitfield {
        bits: u8,
    },
    /// `void`, a function, or a type known by name alone.
    Other,
}

/// Why a member has no offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    NoStruct,
    NoMember,
    /// Several structures have this name and they disagree.
    Ambiguous,
    /// The path goes on through a pointer or a plain value.
    NotEmbedded,
    /// A bit-field has no byte offset.
    Bitfield,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Absent::NoStruct => "this kernel has no such structure",
            Absent::NoMember => "the structure has no such member",
            Absent::Ambiguous => "several structures have this name and disagree",
            Absent::NotEmbedded => "it is behind a pointer",
            Absent::Bitfield => "it is a bit-field",
        })
    }
}

impl Btf {
    /// The types of the running kernel, from [`VMLINUX`].
    ///
    /// # Errors
    /// The kernel shows none, they cannot be read, or they are corrupt.
    pub fn from_running_kernel() -> Result<Btf> {
        Btf::from_file(Path::new(VMLINUX))
    }

    /// The types in a file that holds nothing but BTF.
    pub fn from_file(path: &Path) -> Result<Btf> {
        let data = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow::anyhow!(
                "`{}` does not exist: this kernel was built without `CONFIG_DEBUG_INFO_BTF`; \
                 use a distribution kernel of 5.10 or later, or `--rung tracepoint`",
                path.display()
            ),
            _ => anyhow::Error::new(error).context(format!("cannot read `{}`", path.display())),
        })?;
        Btf::parse(data)
            .with_context(|| format!("cannot use kernel type information in `{}`", path.display()))
    }

    /// Checks and indexes BTF bytes of this machine's byte order.
    ///
    /// # Errors
    /// Not BTF, cut short, a kind that is not known, or ranges that leave the bytes.
    pub fn parse(data: Vec<u8>) -> Result<Btf> {
        let header = Header::parse(&data)?;
        let mut btf = Btf {
            starts: Vec::with_capacity(header.types.len() / 20),
            composites: NameIndex::default(),
            functions: NameIndex::default(),
            strings: header.strings,
            data,
        };
        let mut at = header.types.start;
        while at < header.types.end {
            let id = btf.starts.len() + 1;
            let start = u32::try_from(at).context("more than 4 GiB of type information")?;
            let Some(ty) = Type::read(&btf.data[..header.types.end], at) else {
                bail!("type {id} is cut short");
            };
            let Some(tail) = ty.tail_bytes() else {
                bail!("type {id} is of kind {}, which this version does not know", ty.kind());
            };
            at += TYPE_BYTES + tail;
            ensure!(at <= header.types.end, "type {id} is cut short");
            let index = match ty.kind() {
                kind::STRUCT | kind::UNION => Some(&mut btf.composites),
                kind::FUNC => Some(&mut btf.functions),
                _ => None,
            };
            if let Some(index) = index
                && ty.name != 0
            {
                let strings = &btf.data[btf.strings.clone()];
                let name = strings
                    .get(ty.name as usize..)
                    .with_context(|| format!("the name of type {id} lies outside the string section"))?;
                index.add(name, id as u32);
            }
            btf.starts.push(start);
        }
        btf.composites.finish();
        btf.functions.finish();
        Ok(btf)
    }

    /// The number of types, `void` not counted.
    pub fn type_count(&self) -> usize {
        self.starts.len()
    }

    /// Whether the kernel has a function of this name as an out-of-line symbol with type information.
    pub fn has_func(&self, name: &str) -> bool {
        self.functions.candidates(name).any(|id| self.is_named(id, name))
    }

    /// How many parameters a function has; `None` when there is no such function.
    pub fn func_params(&self, name: &str) -> Option<u32> {
        let id = self.functions.candidates(name).find(|&id| self.is_named(id, name))?;
        let proto = self.ty(self.ty(id)?.size_or_type)?;
        (proto.kind() == kind::FUNC_PROTO).then(|| proto.vlen())
    }

    /// The size of a structure or union in bytes.
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        self.composites_named(name).next().map(|(_, ty)| ty.size_or_type)
    }

    /// Byte offset of `path` from the start of `structure`, see [`Btf::member`].
    pub fn member_offset(&self, structure: &str, path: &str) -> Option<u32> {
        self.byte_offset(structure, path).ok()
    }

    /// As [`Btf::member_offset`], with the reason when there is none.
    pub fn byte_offset(&self, structure: &str, path: &str) -> Result<u32, Absent> {
        let member = self.member(structure, path)?;
        if matches!(member.kind, MemberKind::Bitfield { .. }) || member.bit_offset % 8 != 0 {
            return Err(Absent::Bitfield);
        }
        Ok(member.bit_offset / 8)
    }

    /// Finds a member. `path` may name a member of an embedded structure (`ns.inum`), never one behind a
    /// pointer. Anonymous structures and unions are looked through, as in C.
    ///
    /// A name may belong to several structures of a kernel; those that have the member must agree on where.
    pub fn member(&self, structure: &str, path: &str) -> Result<Member, Absent> {
        let mut found: Option<Member> = None;
        let mut why = Absent::NoStruct;
        for (id, _) in self.composites_named(structure) {
            match (self.member_of(id, path), found) {
                (Ok(member), Some(other)) if member != other => return Err(Absent::Ambiguous),
                (Ok(member), _) => found = Some(member),
                (Err(reason), _) => why = reason,
            }
        }
        found.ok_or(why)
    }

    fn member_of(&self, mut composite: u32, path: &str) -> Result<Member, Absent> {
        let mut bit_offset = 0u32;
        let mut steps = 0;
        let mut names = path.split('.').peekable();
        loop {
            let name = names.next().ok_or(Absent::NoMember)?;
            let member = self.search(composite, name, DEPTH_MAX, &mut steps).ok_or(Absent::NoMember)?;
            bit_offset = bit_offset.checked_add(member.bit_offset).ok_or(Absent::NoMember)?;
            if names.peek().is_none() {
                let (kind, size) = self.describe(&member);
                return Ok(Member { bit_offset, kind, size });
            }
            composite = self.strip(member.type_id).ok_or(Absent::NotEmbedded)?;
            if !self.ty(composite).is_some_and(|ty| ty.is_composite()) {
                return Err(Absent::NotEmbedded);
            }
        }
    }

    /// Looks for `name` among the members of a structure and of what is anonymous in it.
    fn search(&self, composite: u32, name: &str, depth: u32, steps: &mut u32) -> Option<RawMember> {
        let ty = self.ty(composite).filter(Type::is_composite)?;
        let depth = depth.checked_sub(1)?;
        for index in 0..ty.vlen() {
            *steps += 1;
            if *steps > STEPS_MAX {
                return None;
            }
            let member = self.raw_member(&ty, index)?;
            if member.name != 0 {
                if self.name_is(member.name, name) {
                    return Some(member);
                }
                continue;
            }
            let Some(inner) = self.strip(member.type_id) else { continue };
            if let Some(found) = self.search(inner, name, depth, steps) {
                return Some(RawMember {
                    bit_offset: member.bit_offset.checked_add(found.bit_offset)?,
                    ..found
                });
            }
        }
        None
    }

    fn raw_member(&self, ty: &Type, index: u32) -> Option<RawMember> {
        let at = ty.at + TYPE_BYTES + index as usize * MEMBER_BYTES;
        let place = u32_at(&self.data, at + 8)?;
        // The same word holds a bit offset alone, or with the size of a bit-field in its top byte.
        let (bitfield_bits, bit_offset) =
            if ty.kind_flag() { ((place >> 24) as u8, place & 0x00ff_ffff) } else { (0, place) };
        Some(RawMember {
            name: u32_at(&self.data, at)?,
            type_id: u32_at(&self.data, at + 4)?,
            bit_offset,
            bitfield_bits,
        })
    }

    fn describe(&self, member: &RawMember) -> (MemberKind, Option<u32>) {
        if member.bitfield_bits != 0 {
            return (MemberKind::Bitfield { bits: member.bitfield_bits }, None);
        }
        let Some(ty) = self.strip(member.type_id).and_then(|id| self.ty(id)) else {
            return (MemberKind::Other, None);
        };
        match ty.kind() {
            kind::STRUCT | kind::UNION => (MemberKind::Composite, Some(ty.size_or_type)),
            kind::INT => {
                // Old encoders wrote bit-fields as integers with fewer bits than their bytes hold.
                let bits = u32_at(&self.data, ty.at + TYPE_BYTES).map_or(0, |encoding| encoding as u8);
                if u32::from(bits) == ty.size_or_type.saturating_mul(8) {
                    (MemberKind::Scalar, Some(ty.size_or_type))
                } else {
                    (MemberKind::Bitfield { bits }, None)
                }
            }
            kind::ENUM | kind::ENUM64 | kind::FLOAT => (MemberKind::Scalar, Some(ty.size_or_type)),
            // A running kernel's pointers are those of this program; 32-bit builds are not supported.
            kind::PTR => (MemberKind::Pointer, Some(8)),
            kind::ARRAY => (MemberKind::Array, None),
            _ => (MemberKind::Other, None),
        }
    }

    /// Looks through typedefs, qualifiers and type tags.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            let ty = self.ty(id)?;
            match ty.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn composites_named(&self, name: &str) -> impl Iterator<Item = (u32, Type)> {
        self.composites
            .candidates(name)
            .filter(move |&id| self.is_named(id, name))
            .filter_map(|id| Some((id, self.ty(id)?)))
    }

    fn ty(&self, id: u32) -> Option<Type> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        Type::read(&self.data, start as usize)
    }

    fn is_named(&self, id: u32, name: &str) -> bool {
        self.ty(id).is_some_and(|ty| self.name_is(ty.name, name))
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        self.data[self.strings.clone()]
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("types", &self.type_count()).finish_non_exhaustive()
    }
}

struct RawMember {
    name: u32,
    type_id: u32,
    bit_offset: u32,
    bitfield_bits: u8,
}

/// Type ids by hash of their name, sorted: much quicker to build than a map of strings, and as good for the
/// few dozen names that are asked for.
#[derive(Default)]
struct NameIndex(Vec<(u32, u32)>);

impl NameIndex {
    /// `name` ends at its first zero byte.
    fn add(&mut self, name: &[u8], id: u32) {
        self.0.push((hash(name), id));
    }

    fn finish(&mut self) {
        self.0.sort_unstable();
    }

    fn candidates(&self, name: &str) -> impl Iterator<Item = u32> {
        let wanted = hash(name.as_bytes());
        let first = self.0.partition_point(|&(hash, _)| hash < wanted);
        self.0[first..].iter().take_while(move |&&(hash, _)| hash == wanted).map(|&(_, id)| id)
    }
}

/// FNV-1a up to the first zero byte. Only so much of a name counts that a BTF of one endless name stays cheap.
fn hash(name: &[u8]) -> u32 {
    name.iter()
        .take(64)
        .take_while(|&&byte| byte != 0)
        .fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
