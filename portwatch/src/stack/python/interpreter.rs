//! Which program files are a CPython, of which version, and where in them its state is.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::layout::{DESCRIPTION_BYTES, Described, Version, by_version};
use crate::stack::elf::Unreadable;
use crate::stack::elf_copy::{self, Layout};

/// Bytes of a symbol table or its strings that are read: CPython's have 70 kB.
const TABLE_BYTES_MAX: u64 = 32 << 20;

/// An interpreter in a program file. Addresses are the file's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interpreter {
    pub version: Version,
    /// Of Python 3.
    pub minor: u32,
    /// `_PyRuntime`
    pub runtime: u64,
    /// `PyCode_Type`
    pub code_type: u64,
    /// Code at offset `n` of the file is at address `n` + this, wrapping.
    pub code_bias: u64,
    /// The lowest address of code: what the kernel calls the start of a program's code.
    pub code_start: u64,
}

/// Why the frames of an interpreter cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is Python 3.`minor`; which ones are known is in [`super::layout`].
    Version(u32),
    /// Neither the file nor its name says which version it is.
    NoVersion,
    PreRelease,
    DebugBuild,
    FreeThreaded,
    /// What it says of itself cannot be followed.
    Described,
    Unreadable(Unreadable),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Version(minor) => write!(f, "Python 3.{minor} is not known to this portwatch"),
            Refused::NoVersion => f.write_str("the version of Python is not known"),
            Refused::PreRelease => f.write_str("it is no final release of Python"),
            Refused::DebugBuild => f.write_str("it is a debug build of Python"),
            Refused::FreeThreaded => f.write_str("it is a free-threaded build of Python"),
            Refused::Described => f.write_str("what this Python says of its structures cannot be followed"),
            Refused::Unreadable(unreadable) => unreadable.fmt(f),
        }
    }
}

impl From<Unreadable> for Refused {
    fn from(unreadable: Unreadable) -> Refused {
        Refused::Unreadable(unreadable)
    }
}

/// Whether a file of this path is worth looking into: an interpreter, or the library that it is in.
pub fn may_be(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.windows(6).any(|part| part.eq_ignore_ascii_case(b"python"))
}

/// The interpreter in `file`, which goes by `path`. Nothing: there is none in it, it only starts one from a library.
///
/// # Errors
/// When there is one whose frames cannot be read.
pub fn in_file(file: &File, path: &Path) -> Result<Option<Interpreter>, Refused> {
    let failed = |error: std::io::Error| {
        Refused::Unreadable(Unreadable::Failed("inspect", error.raw_os_error().unwrap_or(0)))
    };
    let layout = elf_copy::layout(file, file.metadata().map_err(failed)?.len())?;
    if !elf_copy::is_native(&layout) {
        return Ok(None);
    }
    // A static one without exported symbols still has the table for debuggers, if it was not stripped.
    let Some(symbols) = [(".dynsym", ".dynstr"), (".symtab", ".strtab")]
        .into_iter()
        .filter_map(|(table, strings)| Symbols::read(file, &layout, table, strings))
        .find(|symbols| symbols.runtime.is_some())
    else {
        return Ok(None);
    };
    let (Some(runtime), Some(code_type)) = (symbols.runtime, symbols.code_type) else { return Ok(None) };
    if symbols.is_debug {
        return Err(Refused::DebugBuild);
    }
    let minor = match symbols.version.and_then(|at| data(file, &layout, at, 8)) {
        Some(version) => {
            let version = u64::from_le_bytes(version.first_chunk().copied().unwrap_or_default());
            if version >> 24 != 3 {
                return Err(Refused::NoVersion);
            }
            if !matches!(version >> 4 & 15, 0xf | 0xc) {
                return Err(Refused::PreRelease);
            }
            (version >> 16 & 0xff) as u32
        }
        // Since 3.11 the file says it.
        None => minor_in_name(path).filter(|&minor| minor < 11).ok_or(Refused::NoVersion)?,
    };
    let mut version = by_version(minor).ok_or(Refused::Version(minor))?;
    let described = data(file, &layout, runtime, DESCRIPTION_BYTES).and_then(|bytes| Described::read(&bytes));
    match described {
        Some(described) if described.is_free_threaded => return Err(Refused::FreeThreaded),
        Some(described) => version = described.apply(version).ok_or(Refused::Described)?,
        None if minor >= 13 => return Err(Refused::Described),
        None => {}
    }
    let code = layout.segments.iter().filter(|segment| segment.is_executable);
    let Some(code) = code.min_by_key(|segment| segment.address) else { return Ok(None) };
    let code_bias = code.address.wrapping_sub(code.offset);
    Ok(Some(Interpreter { version, minor, runtime, code_type, code_bias, code_start: code.address }))
}

/// Addresses of the symbols that matter.
#[derive(Default)]
struct Symbols {
    runtime: Option<u64>,
    code_type: Option<u64>,
    version: Option<u64>,
    is_debug: bool,
}

impl Symbols {
    fn read(file: &File, layout: &Layout, table: &str, strings: &str) -> Option<Symbols> {
        let bytes = |name: &str| {
            let section = layout.sections.iter().find(|section| section.name == name)?;
            if section.is_compressed || section.bytes > TABLE_BYTES_MAX {
                return None;
            }
            read(file, section.offset, section.bytes)
        };
        let (table, strings) = (bytes(table)?, bytes(strings)?);
        let mut found = Symbols::default();
        // Name (4 bytes), type, visibility, section (2), address (8), size (8).
        for symbol in table.as_chunks::<24>().0 {
            let (Some(name), Some(section), Some(value)) =
                (symbol.first_chunk(), symbol[6..].first_chunk(), symbol[8..].first_chunk())
            else {
                continue;
            };
            let rest = strings.get(u32::from_le_bytes(*name) as usize..).unwrap_or_default();
            // Undefined: it is in a library.
            if u16::from_le_bytes(*section) == 0 {
                continue;
            }
            let address = Some(u64::from_le_bytes(*value));
            let is = |name: &[u8]| rest.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0));
            if is(b"_PyRuntime") {
                found.runtime = address;
            } else if is(b"PyCode_Type") {
                found.code_type = address;
            } else if is(b"Py_Version") {
                found.version = address;
            } else if is(b"_Py_NegativeRefcount") {
                // Objects that count references for debugging have more members.
                found.is_debug = true;
            }
        }
        Some(found)
    }
}

/// Bytes of the file that are at `address` when it is loaded.
fn data(file: &File, layout: &Layout, address: u64, bytes: u64) -> Option<Vec<u8>> {
    let (offset, rest) = layout.rest_of_segment(address)?;
    (bytes <= rest).then(|| read(file, offset, bytes)).flatten()
}

fn read(file: &File, offset: u64, bytes: u64) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(bytes).ok()?];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}

/// The minor version in a name such as `python3.9` or `libpython3.10.so.1.0`. With a letter behind it, as of a debug
/// build, it is none.
fn minor_in_name(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let rest = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python3.")?;
    let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(end);
    (behind.is_empty() || behind.starts_with(".so")).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::python::testing;

    /// The library that an interpreter is in, or its program file.
    fn file_of(python: &Path) -> std::path::PathBuf {
        let code = "import sys, sysconfig, os; v = sysconfig.get_config_var; \
                    lib = os.path.join(v('LIBDIR') or '', v('INSTSONAME') or ''); \
                    print(lib if v('Py_ENABLE_SHARED') and not sys.executable.startswith('/usr/bin') else os.path.realpath(sys.executable))";
        let out = std::process::Command::new(python).args(["-c", code]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().into()
    }

    #[test]
    fn interpreters_are_found_with_their_version() {
        for version in testing::VERSIONS {
            let Some(python) = testing::interpreter(version) else {
                eprintln!("SKIP interpreters_are_found_with_their_version: no python{version} here");
                continue;
            };
            let path = file_of(&python);
            assert!(may_be(&path), "{path:?}");
            let found = in_file(&File::open(&path).unwrap(), &path).unwrap().expect(version);
            assert_eq!(format!("3.{}", found.minor), version);
            // What the interpreter says of itself and the table agree.
            assert_eq!(Some(found.version), by_version(found.minor), "{version}");
        }
    }

    #[test]
    fn programs_of_other_kinds_are_none() {
        for path in ["/bin/sh", "/proc/self/exe"] {
            let path = Path::new(path);
            assert_eq!(in_file(&File::open(path).unwrap(), path), Ok(None));
        }
        let path = Path::new("/etc/passwd");
        assert!(matches!(in_file(&File::open(path).unwrap(), path), Err(Refused::Unreadable(_))));
    }

    #[test]
    fn names_tell_versions_up_to_3_10() {
        for (name, expected) in [
            ("/usr/bin/python3.9", Some(9)),
            ("/opt/libpython3.10.so.1.0", Some(10)),
            ("python3.9d", None),
            ("python3", None),
            ("libpython3.so", None),
            ("python2.7", None),
        ] {
            assert_eq!(minor_in_name(Path::new(name)), expected, "{name}");
        }
        for (name, expected) in [
            ("/usr/bin/python3", true),
            ("/opt/libPython3.so", true),
            ("/usr/bin/pytho", false),
            ("/", false),
        ] {
            assert_eq!(may_be(Path::new(name)), expected, "{name}");
        }
    }
}
