//! A second opinion on member offsets: `bpftool btf dump … format raw`, read as text.

use std::{collections::HashMap, path::Path, process::Command};

#[derive(Default)]
pub struct Dump {
    types: HashMap<u32, Type>,
    by_name: HashMap<String, Vec<u32>>,
    functions: Vec<String>,
}

struct Type {
    kind: String,
    target: u32,
    size: u32,
    /// Name, type, bit offset.
    members: Vec<(String, u32, u32)>,
}

impl Dump {
    /// `None`: there is no bpftool here.
    pub fn of(btf: &Path) -> Option<Dump> {
        let run = |program: &str| {
            Command::new(program).args(["btf", "dump", "file"]).arg(btf).args(["format", "raw"]).output()
        };
        let output = run("bpftool").or_else(|_| run("/usr/sbin/bpftool")).ok()?;
        assert!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
        Some(Dump::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(text: &str) -> Dump {
        let mut dump = Dump::default();
        let mut current = 0;
        for line in text.lines() {
            // [17] STRUCT 'net' size=4096 vlen=90
            if let Some(rest) = line.strip_prefix('[') {
                let (id, rest) = rest.split_once("] ").unwrap();
                let (kind, rest) = rest.split_once(' ').unwrap();
                current = id.parse().unwrap();
                let name = quoted(rest);
                match kind {
                    "STRUCT" | "UNION" => dump.by_name.entry(name.to_owned()).or_default().push(current),
                    "FUNC" => dump.functions.push(name.to_owned()),
                    _ => {}
                }
                let ty = Type {
                    kind: kind.to_owned(),
                    target: number(rest, "type_id="),
                    size: number(rest, " size="),
                    members: Vec::new(),
                };
                dump.types.insert(current, ty);
            } else if line.contains(" bits_offset=") {
                //     'ns' type_id=1234 bits_offset=1024
                let member =
                    (quoted(line).to_owned(), number(line, "type_id="), number(line, "bits_offset="));
                dump.types.get_mut(&current).unwrap().members.push(member);
            }
        }
        dump.functions.sort_unstable();
        dump
    }

    pub fn has_func(&self, name: &str) -> bool {
        self.functions.binary_search_by(|function| function.as_str().cmp(name)).is_ok()
    }

    pub fn struct_size(&self, name: &str) -> Option<u32> {
        Some(self.types[self.by_name.get(name)?.first()?].size)
    }

    /// Bit offset of a dotted path.
    pub fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        self.by_name.get(structure)?.iter().find_map(|&id| {
            path.split('.')
                .try_fold((id, 0), |(id, offset), name| {
                    let (inner, more) = self.member(id, name)?;
                    Some((inner, offset + more))
                })
                .map(|(_, offset)| offset)
        })
    }

    fn member(&self, id: u32, wanted: &str) -> Option<(u32, u32)> {
        let ty = self.types.get(&id)?;
        match ty.kind.as_str() {
            "TYPEDEF" | "CONST" | "VOLATILE" => return self.member(ty.target, wanted),
            "STRUCT" | "UNION" => {}
            _ => return None,
        }
        ty.members.iter().find_map(|(name, inner, offset)| match name.as_str() {
            _ if name == wanted => Some((*inner, *offset)),
            "(anon)" => self.member(*inner, wanted).map(|(inner, more)| (inner, offset + more)),
            _ => None,
        })
    }
}

fn quoted(text: &str) -> &str {
    text.split('\'').nth(1).unwrap_or_default()
}

fn number(text: &str, key: &str) -> u32 {
    let digits = text.split(key).nth(1).and_then(|rest| rest.split(' ').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}
