use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::*;

fn module_of(path: &Path) -> Arc<Module> {
    Arc::new(Module::copy(&File::open(path).unwrap(), 1).unwrap())
}

fn own_libc() -> std::path::PathBuf {
    let maps = super::super::mapping::parse(&std::fs::read("/proc/self/maps").unwrap());
    maps.into_iter()
        .find_map(|mapping| match mapping.backing {
            super::super::mapping::Backing::File { path, .. }
                if path.to_string_lossy().contains("libc.so") =>
            {
                Some(path.to_path_buf())
            }
            _ => None,
        })
        .expect("a test binary is linked with the C library")
}

/// Every 61st address of the code, so that all kinds of functions are met.
fn addresses(module: &Module) -> Vec<u64> {
    let code = module.layout.segments.iter().filter(|segment| segment.is_executable);
    code.flat_map(|segment| (segment.address..segment.address + segment.file_bytes).step_by(61)).collect()
}

#[test]
fn search_table_and_own_index_give_the_same_rows() {
    let module = module_of(&own_libc());
    let (mut searched, mut indexed) = (Table::of(&module).unwrap(), Table::of(&module).unwrap());
    assert!(!searched.header.is_empty());
    indexed.header.clear();
    let mut context = UnwindContext::new();
    let mut known = 0;
    for address in addresses(&module) {
        let row = searched.row(address, &mut context).unwrap();
        assert_eq!(row, indexed.row(address, &mut context).unwrap(), "{address:#x}");
        known += usize::from(row.is_some());
    }
    assert!(known > 1000, "only {known} addresses have rows");
}

#[test]
fn nearly_all_code_of_the_c_library_has_a_row_that_can_be_walked_by() {
    let module = module_of(&own_libc());
    let mut table = Table::of(&module).unwrap();
    let mut context = UnwindContext::new();
    let rows: Vec<Row> = addresses(&module)
        .into_iter()
        .filter_map(|address| table.row(address, &mut context).unwrap())
        .collect();
    let unsupported = rows.iter().filter(|row| row.kind == Row::UNSUPPORTED).count();
    assert!(unsupported * 50 < rows.len(), "{unsupported} of {} rows are unsupported", rows.len());
}

#[test]
fn file_without_section_headers_is_read_by_its_segments() {
    let mut bytes = std::fs::read(own_libc()).unwrap();
    let whole = module_of(&own_libc());
    // e_shoff, e_shnum and e_shstrndx.
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let bare = Module::copy(&file, 2).unwrap();
    assert_eq!(bare.build_id, whole.build_id);
    let (mut expected, mut found) = (Table::of(&whole).unwrap(), Table::of(&bare).unwrap());
    let mut context = UnwindContext::new();
    for address in addresses(&whole) {
        let row = expected.row(address, &mut context).unwrap();
        assert_eq!(found.row(address, &mut context).unwrap(), row, "{address:#x}");
    }
}

/// A small program with symbols, debug information and both kinds of tables.
fn small_program() -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("small.c");
    let program = directory.path().join("small.so");
    std::fs::write(&source, "int f(int *a, int n) { int s = 0; while (n--) s += a[n]; return s; }\nint g(int n) { int a[n + 9]; return f(a, n); }\n")
        .unwrap();
    let output = std::process::Command::new("cc")
        .args(["-O1", "-g", "-shared", "-fPIC", "-nostdlib", "-Wl,--build-id", "-o"])
        .args([&program, &source])
        .output()
        .ok()?;
    output.status.success().then(|| std::fs::read(program).unwrap())
}

/// Everything that can be asked of a module, so that whatever is wrong in it is met.
fn exercise(bytes: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let Ok(module) = Module::copy(&file, 1) else { return };
    let module = Arc::new(module);
    let mut rows = Rows::default();
    for address in (0..0x3000).step_by(97).chain([u64::MAX, 1 << 63]) {
        let _ = module.code_address(address);
        let _ = rows.at(&module, address);
    }
    if let Ok(mut table) = Table::of(&module) {
        table.header.clear();
        for address in (0x1000..0x1100).step_by(7) {
            let _ = table.row(address, &mut UnwindContext::new());
        }
    }
}

#[test]
fn malformed_files_are_error_values() {
    let Some(bytes) = small_program() else {
        eprintln!("SKIP: no C compiler");
        return;
    };
    exercise(&bytes);
    for cut in (0..bytes.len()).step_by(41) {
        exercise(&bytes[..cut]);
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let tables = {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let module = Module::copy(&file, 1).unwrap();
        [".eh_frame", ".eh_frame_hdr"].map(|name| module.section(name).map(|s| (s.offset, s.bytes)).unwrap())
    };
    for round in 0..3000 {
        let mut broken = bytes.clone();
        // In turn: the headers, the section headers at the end, and the tables; there a flip matters.
        let (from, length) = match round % 4 {
            0 => (0, 0x400),
            1 => (broken.len() as u64 - 0x800, 0x800),
            2 => tables[0],
            _ => tables[1],
        };
        for _ in 0..1 + next() % 4 {
            let at = usize::try_from(from + next() % length).unwrap();
            broken[at] = if next() % 3 == 0 { 0xff } else { broken[at] ^ (1 << (next() % 8)) };
        }
        exercise(&broken);
    }
}
