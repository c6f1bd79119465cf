//! The layout of a tracepoint's record, from `events/CATEGORY/NAME/format` in tracefs.
//!
//! Layouts differ between kernels (`sched_process_fork` got shorter in 6.18, `tcp_destroy_sock` has a family
//! from 6.1 on), so no offset into a record is a constant.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// More than any record has; a longer file is not one of these.
const FIELDS_MAX: usize = 256;

/// Where the fields of a tracepoint's record lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// What perf_event_open() wants.
    pub id: u32,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    /// Bytes from the start of the record.
    pub offset: u32,
    /// Bytes. Four for a field that is a reference to a string further back (`__data_loc`).
    pub size: u32,
    pub is_signed: bool,
}

impl Format {
    /// Reads the format of tracepoint `category:name` in the tracefs at `dir`.
    pub fn read(dir: &Path, category: &str, name: &str) -> Result<Format> {
        let path = dir.join("events").join(category).join(name).join("format");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Format::parse(&text).with_context(|| format!("cannot understand `{}`", path.display()))
    }

    /// # Errors
    /// No id, no field, or a field without its place.
    pub fn parse(text: &str) -> Result<Format> {
        let mut id = None;
        let mut fields = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(number) = line.strip_prefix("ID:") {
                id = number.trim().parse().ok();
            } else if let Some(rest) = line.strip_prefix("field:") {
                ensure!(fields.len() < FIELDS_MAX, "more than {FIELDS_MAX} fields");
                let field = field(rest).with_context(|| format!("line `{}`", line.escape_debug()))?;
                fields.push(field);
            }
        }
        let id = id.context("no line `ID:`")?;
        ensure!(!fields.is_empty(), "no line `field:`");
        Ok(Format { id, fields })
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// `__u8 saddr[4]; offset:32; size:4; signed:0;`
fn field(text: &str) -> Result<Field> {
    let mut parts = text.split(';').map(str::trim);
    let declaration = parts.next().unwrap_or_default();
    let mut offset = None;
    let mut size = None;
    let mut is_signed = None;
    for (key, value) in parts.filter_map(|part| part.split_once(':')) {
        let number = value.trim().parse::<u32>().ok();
        match key.trim() {
            "offset" => offset = number,
            "size" => size = number,
            "signed" => is_signed = number.map(|number| number != 0),
            // Kernels may say more one day.
            _ => {}
        }
    }
    let (offset, size) = offset.zip(size).context("no `offset:` or no `size:`")?;
    ensure!(offset.checked_add(size).is_some(), "offset and size are beyond any record");
    Ok(Field {
        name: name(declaration).context("no name")?.to_owned(),
        offset,
        size,
        is_signed: is_signed.unwrap_or(false),
    })
}

/// The last word of a C declaration, without array brackets: `__u8 saddr[4]`, `const void * skaddr`,
/// `__data_loc char[] comm`.
fn name(declaration: &str) -> Option<&str> {
    let end = match declaration.strip_suffix(']') {
        Some(_) => &declaration[..declaration.rfind('[')?],
        None => declaration,
    };
    let name = end.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: [&str; 2] = ["5.10.223", "7.2.13"];

    fn stored(kernel: &str, category: &str, name: &str) -> Format {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tracefs").join(kernel);
        Format::read(&dir, category, name).unwrap()
    }

    fn places<'a>(format: &Format, names: impl IntoIterator<Item = &'a str>) -> Vec<Option<(u32, u32)>> {
        let place = |name| format.field(name).map(|field| (field.offset, field.size));
        names.into_iter().map(place).collect()
    }

    #[test]
    fn state_change_has_one_layout_on_all_kernels() {
        for kernel in KERNELS {
            let format = stored(kernel, "sock", "inet_sock_set_state");
            let names =
                ["skaddr", "oldstate", "newstate", "sport", "dport", "family", "protocol", "saddr", "daddr"];
            let expected = [(8, 8), (16, 4), (20, 4), (24, 2), (26, 2), (28, 2), (30, 2), (32, 4), (36, 4)];
            assert_eq!(places(&format, names), expected.map(Some), "{kernel}");
            assert_eq!(places(&format, ["saddr_v6", "daddr_v6"]), [(40, 16), (56, 16)].map(Some), "{kernel}");
            assert!(format.field("oldstate").unwrap().is_signed && !format.field("sport").unwrap().is_signed);
        }
        assert_eq!(stored("7.2.13", "sock", "inet_sock_set_state").id, 1590);
    }

    #[test]
    fn layouts_that_differ_are_read_as_they_are() {
        let names = ["parent_comm", "parent_pid", "child_comm", "child_pid"];
        let [old, new] = KERNELS.map(|kernel| stored(kernel, "sched", "sched_process_fork"));
        assert_eq!(places(&old, names), [(8, 16), (24, 4), (28, 16), (44, 4)].map(Some));
        assert_eq!(places(&new, names), [(8, 4), (12, 4), (16, 4), (20, 4)].map(Some));

        let [old, new] = KERNELS.map(|kernel| stored(kernel, "sched", "sched_process_exit"));
        assert_eq!(places(&old, ["pid", "group_dead"]), [Some((24, 4)), None]);
        assert_eq!(places(&new, ["pid", "group_dead"]), [Some((24, 4)), Some((32, 1))]);

        let [old, new] = KERNELS.map(|kernel| stored(kernel, "tcp", "tcp_destroy_sock"));
        assert_eq!(places(&old, ["family", "saddr", "sock_cookie"]), [None, Some((20, 4)), Some((64, 8))]);
        assert_eq!(places(&new, ["family", "saddr"]), [Some((20, 2)), Some((22, 4))]);
    }

    #[test]
    fn system_calls_are_read() {
        for kernel in KERNELS {
            assert_eq!(places(&stored(kernel, "syscalls", "sys_exit_connect"), ["ret"]), [Some((16, 8))]);
            let bind = stored(kernel, "syscalls", "sys_enter_bind");
            let names = ["fd", "umyaddr", "addrlen"];
            assert_eq!(places(&bind, names), [(16, 8), (24, 8), (32, 8)].map(Some));
        }
    }

    #[test]
    fn broken_text_is_an_error_and_never_a_panic() {
        let whole = "name: x\nID: 7\nformat:\n\tfield:int a[2];\toffset:8;\tsize:8;\tsigned:1;\n";
        assert_eq!(Format::parse(whole).unwrap().fields[0].name, "a");
        for (from, to, error) in [
            ("ID: 7", "ID: x", "no line `ID:`"),
            ("field:int", "int", "no line `field:`"),
            ("offset:8", "offset:-8", "no `offset:` or no `size:`"),
            ("offset:8", "offset:4294967295", "offset and size are beyond any record"),
            ("int a[2]", "", "no name"),
            ("int a[2]", "a]", "no name"),
            ("int a[2]", "int [2]", "no name"),
        ] {
            let text = whole.replace(from, to);
            let found = format!("{:#}", Format::parse(&text).unwrap_err());
            assert!(found.ends_with(error), "{text:?}: {found}");
        }
        for end in 0..whole.len() {
            let _ = Format::parse(&whole[..end]);
        }
    }
}
