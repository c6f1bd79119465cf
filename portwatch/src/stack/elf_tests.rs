//! Files as hostile, or as short-lived, as they come.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::mapping::parse;
use super::super::process_maps::ProcessMaps;
use super::super::symbolize::SymbolTable;
use super::*;

fn whose(tgid: u32) -> Whose {
    Whose { tgid, parent: None, generation: 1 }
}

/// A program that sleeps, under a path of its own.
struct Sleeper {
    child: Child,
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Sleeper {
    fn new() -> Sleeper {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sleeper");
        fs::copy("/bin/sleep", &path).unwrap();
        let child = Command::new(&path).arg("600").stdout(Stdio::null()).spawn().unwrap();
        let sleeper = Sleeper { child, directory, path };
        sleeper.mapping();
        sleeper
    }

    /// Of its program; waits until exec is through.
    fn mapping(&self) -> Mapping {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let maps = parse(&fs::read(format!("/proc/{}/maps", self.child.id())).unwrap());
            let is_program = |mapping: &Mapping| match &mapping.backing {
                Backing::File { path, .. } => **path == *self.path,
                _ => false,
            };
            if let Some(mapping) = maps.into_iter().find(is_program) {
                return mapping;
            }
            assert!(Instant::now() < deadline, "the program is not mapped");
            std::thread::yield_now();
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn modules() -> Modules {
    Modules::new(16, 1 << 30, Opener::default())
}

fn build_id_of(path: &Path) -> Option<Vec<u8>> {
    Module::copy(&File::open(path).unwrap(), 0).unwrap().build_id
}

fn file_of(mapping: &Mapping) -> (FileId, Arc<Path>) {
    match &mapping.backing {
        Backing::File { id, path, .. } => (*id, Arc::clone(path)),
        other => panic!("{other:?}"),
    }
}

/// As if the kernel's link to the mapped file did not exist.
fn without_link(mapping: &Mapping) -> Mapping {
    Mapping { start: mapping.start - 1, ..mapping.clone() }
}

#[test]
fn program_that_was_deleted_or_replaced_while_it_runs_is_read() {
    let sleeper = Sleeper::new();
    let expected = build_id_of(Path::new("/bin/sleep"));
    assert!(expected.is_some());
    let tgid = sleeper.child.id();
    fs::remove_file(&sleeper.path).unwrap();
    let maps = parse(&fs::read(format!("/proc/{tgid}/maps")).unwrap());
    let deleted = maps
        .iter()
        .find(|mapping| matches!(&mapping.backing, Backing::File { is_deleted: true, .. }))
        .unwrap();
    assert_eq!(*file_of(deleted).1, *sleeper.path, "the mark is not part of the path");
    assert_eq!(modules().get(whose(tgid), deleted).unwrap().build_id, expected);
    fs::copy("/bin/cat", &sleeper.path).unwrap();
    assert_eq!(modules().get(whose(tgid), deleted).unwrap().build_id, expected);
}

#[test]
fn another_file_at_the_path_is_not_taken_for_the_program() {
    let mut sleeper = Sleeper::new();
    let mapping = sleeper.mapping();
    let tgid = sleeper.child.id();
    // Gone, so that only the path is left.
    sleeper.child.kill().unwrap();
    sleeper.child.wait().unwrap();
    assert_eq!(modules().get(whose(tgid), &mapping).unwrap().build_id, build_id_of(Path::new("/bin/sleep")));
    let other = sleeper.directory.path().join("other");
    fs::copy("/bin/cat", &other).unwrap();
    fs::rename(&other, &sleeper.path).unwrap();
    assert_eq!(modules().get(whose(tgid), &mapping).unwrap_err(), Unreadable::Replaced);
    fs::remove_file(&sleeper.path).unwrap();
    assert_eq!(modules().get(whose(tgid), &mapping).unwrap_err(), Unreadable::Gone);
}

#[test]
fn only_regular_files_are_opened_and_nothing_blocks() {
    let mut sleeper = Sleeper::new();
    let mapping = without_link(&sleeper.mapping());
    let (id, path) = file_of(&mapping);
    let tgid = sleeper.child.id();
    fs::remove_file(&sleeper.path).unwrap();
    // Opening a pipe that nobody writes to would never return.
    nix::unistd::mkfifo(&sleeper.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(elf_open::open(tgid, None, &mapping, id, &path).unwrap_err(), Unreadable::NotRegular);
    fs::remove_file(&sleeper.path).unwrap();
    symlink("/dev/zero", &sleeper.path).unwrap();
    assert_eq!(elf_open::open(tgid, None, &mapping, id, &path).unwrap_err(), Unreadable::NotRegular);
    fs::remove_file(&sleeper.path).unwrap();
    fs::create_dir(&sleeper.path).unwrap();
    assert_eq!(elf_open::open(tgid, None, &mapping, id, &path).unwrap_err(), Unreadable::NotRegular);
    sleeper.child.kill().unwrap();
}

#[test]
fn no_link_leads_out_of_a_root() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/inside"), "x").unwrap();
    fs::write(directory.path().join("outside"), "x").unwrap();
    symlink("/etc/inside", root.join("good")).unwrap();
    symlink("../outside", root.join("up")).unwrap();
    symlink(directory.path().join("outside"), root.join("absolute")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    for (path, is_found) in [
        ("/good", true),
        ("/etc/../../../../etc/inside", true),
        ("/up", false),
        ("/absolute", false),
        ("/magic/etc/passwd", false),
        ("/../outside", false),
    ] {
        assert_eq!(elf_open::open_below(&root, Path::new(path)).is_ok(), is_found, "{path}");
    }
}

#[test]
fn program_of_another_mount_namespace_is_read_by_link_and_by_path() {
    let script = "mount -t tmpfs none /mnt && cp /bin/sleep /mnt/inside && exec /mnt/inside 600";
    let spawned = Command::new("unshare").args(["--mount", "sh", "-c", script]).stderr(Stdio::null()).spawn();
    let mut child = spawned.unwrap();
    let tgid = child.id();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mapping = loop {
        let maps = parse(&fs::read(format!("/proc/{tgid}/maps")).unwrap_or_default());
        let is_inside = |mapping: &Mapping| matches!(&mapping.backing, Backing::File { path, .. } if path.ends_with("inside"));
        if let Some(mapping) = maps.into_iter().find(is_inside) {
            break mapping;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none(), "unshare: {status}");
            eprintln!("SKIP: no mount namespace can be made here: {status}");
            return;
        }
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    };
    let (id, path) = file_of(&mapping);
    assert!(!path.exists(), "it must not be visible outside");
    let by_link = modules().get(whose(tgid), &mapping).map(|module| module.build_id.clone());
    let by_path = elf_open::open(tgid, None, &without_link(&mapping), id, &path)
        .map(|file| Module::copy(&file, 1).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    let expected = build_id_of(Path::new("/bin/sleep"));
    assert_eq!(by_link.unwrap(), expected);
    assert_eq!(by_path.unwrap().build_id, expected);
}

#[test]
fn copy_stays_whole_when_the_file_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let module = Arc::new(Module::copy(&file, 1).unwrap());
    file.set_len(0).unwrap();
    let mut symbols = SymbolTable::new(16, Opener::default());
    // Read through a map of the copy: had it been cut, the process would die of SIGBUS.
    let code = module.layout.segments.iter().find(|segment| segment.is_executable).unwrap().address;
    let names: Vec<_> = (0..64)
        .filter_map(|at| symbols.at(&module, code + 0x4000 + at * 64, 1, &path).last()?.function.clone())
        .collect();
    assert!(!names.is_empty());
    // And nobody can change it any more, not even through its path.
    assert!(
        File::options().write(true).open(module.path()).and_then(|mut copy| copy.write_all(b"x")).is_err()
    );
}

#[test]
fn code_and_data_are_left_out_of_the_copy() {
    let path = Path::new("/proc/self/exe");
    let module = Module::copy(&File::open(path).unwrap(), 1).unwrap();
    let size = fs::metadata(path).unwrap().len();
    let text = module.section(".text").unwrap();
    assert!(module.bytes(text.offset, text.bytes).unwrap().iter().all(|&byte| byte == 0));
    assert!(module.copied_bytes <= size - text.bytes);
}

#[test]
fn full_table_drops_the_copy_that_was_not_used() {
    let own = std::process::id();
    let maps = parse(&fs::read("/proc/self/maps").unwrap());
    let files: Vec<&Mapping> =
        maps.iter().filter(|mapping| matches!(mapping.backing, Backing::File { .. })).collect();
    let mut modules = Modules::new(2, 1 << 30, Opener::default());
    let mut opened = 0;
    for mapping in &files {
        opened += u64::from(modules.get(whose(own), mapping).is_ok());
        assert!(modules.by_file.len() <= 2);
    }
    assert!(opened > 2, "a test binary is linked with several libraries");
    assert_eq!(modules.counters().evicted, opened - 2);
    assert_eq!(modules.take_dropped().len() as u64, opened - 2);
    let sum: u64 = modules.by_file.values().map(|entry| entry.module.copied_bytes).sum();
    assert_eq!(modules.bytes, sum);
}

/// Runs a tool of the compiler; `None` when it is not there.
fn tool(name: &str, arguments: &[&str], directory: &Path) -> Option<()> {
    let status = Command::new(name).args(arguments).current_dir(directory).status().ok()?;
    assert!(status.success(), "{name} {arguments:?}");
    Some(())
}

/// Builds a program without symbols whose debug file lies in `.debug` beside it.
fn stripped_program(directory: &Path, flags: &[&str]) -> Option<PathBuf> {
    let source = "int unmistakable_function(int a) { return a * 3; }\nint main(int c, char **v) { return unmistakable_function(c); }\n";
    fs::write(directory.join("p.c"), source).unwrap();
    tool("cc", &[&["-g", "-O0", "-o", "p", "p.c"], flags].concat(), directory)?;
    fs::create_dir(directory.join(".debug")).unwrap();
    tool("objcopy", &["--only-keep-debug", "p", ".debug/p.debug"], directory)?;
    tool("strip", &["--strip-all", "p"], directory)?;
    tool("objcopy", &["--add-gnu-debuglink=.debug/p.debug", "p"], directory)?;
    Some(directory.join("p"))
}

fn names_in(path: &Path) -> Vec<(String, bool)> {
    let module = Arc::new(Module::copy(&File::open(path).unwrap(), 1).unwrap());
    let mut symbols = SymbolTable::new(4096, Opener::default());
    let code = module.layout.segments.iter().find(|segment| segment.is_executable).unwrap();
    let at = (code.address..code.address + code.file_bytes).step_by(4);
    let found: Vec<_> = at.map(|address| symbols.at(&module, address, std::process::id(), path)).collect();
    found
        .iter()
        .filter_map(|found| Some((found.last()?.function.clone()?, found.last()?.line.is_some())))
        .collect()
}

#[test]
fn stripped_program_is_named_by_its_debug_file() {
    for flags in [&["-Wl,--build-id"], &["-Wl,--build-id=none"]] {
        let directory = tempfile::tempdir().unwrap();
        let Some(program) = stripped_program(directory.path(), flags) else {
            eprintln!("SKIP: no C compiler");
            return;
        };
        let unmistakable = ("unmistakable_function".to_owned(), true);
        assert!(names_in(&program).contains(&unmistakable), "{flags:?}");
        // Another build's debug file does not fit, by build id or by checksum.
        let debug = directory.path().join(".debug/p.debug");
        let other = fs::read("/bin/sleep").unwrap();
        fs::write(&debug, other).unwrap();
        assert!(!names_in(&program).contains(&unmistakable), "{flags:?}");
    }
}

#[test]
fn debug_link_leads_nowhere_but_to_a_plain_name() {
    let directory = tempfile::tempdir().unwrap();
    let Some(program) = stripped_program(directory.path(), &["-Wl,--build-id=none"]) else {
        eprintln!("SKIP: no C compiler");
        return;
    };
    let bytes = fs::read(&program).unwrap();
    let at = bytes.windows(8).position(|window| window == b"p.debug\0").unwrap();
    // Either would hang or read what is not ours if it were followed.
    nix::unistd::mkfifo(&directory.path().join(".debug/fifoxxx"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for link in [b"/dev/tt", b"../../x", b"fifoxxx", b"/dev/fd"] {
        let mut changed = bytes.clone();
        changed[at..at + 7].copy_from_slice(link);
        fs::write(&program, changed).unwrap();
        assert!(names_in(&program).iter().all(|(name, _)| name != "unmistakable_function"));
    }
}

#[test]
fn files_of_processes_that_are_gone_are_read_by_their_path() {
    let mut maps = ProcessMaps::new(64, Opener::default());
    let mut child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let tgid = child.id();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mapping = loop {
        let space = maps.find(tgid, 0, u64::MAX).unwrap();
        let is_sleep =
            |m: &&Mapping| matches!(&m.backing, Backing::File { path, .. } if path.ends_with("sleep"));
        if let Some(mapping) = space.mappings().iter().find(is_sleep) {
            break mapping.clone();
        }
        assert!(Instant::now() < deadline);
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let module = modules().get(whose(tgid), &mapping).unwrap();
    assert_eq!(module.build_id, build_id_of(Path::new("/bin/sleep")));
}

#[test]
fn compressed_debug_information_is_read_and_a_wrong_length_is_not_believed() {
    for format in ["zlib", "zstd"] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("p.c"),
            "#include <stdio.h>\n#include <signal.h>\n#include <pthread.h>\nint f(int a) { struct sigaction s; printf(\"%d\", a); sigaction(a, &s, 0); return a * 3; }\nint main(int c, char **v) { return f(c); }\n",
        )
        .unwrap();
        let mut build = Command::new("cc");
        build.args(["-g", "-O0", "-o", "p", "p.c", &format!("-gz={format}")]).current_dir(directory.path());
        if !build.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            eprintln!("SKIP: no C compiler that compresses with {format}");
            continue;
        }
        let program = directory.path().join("p");
        let f = ("f".to_owned(), true);
        assert!(names_in(&program).contains(&f), "{format}");
        let bytes = fs::read(&program).unwrap();
        let found = elf_copy::layout(&File::open(&program).unwrap(), bytes.len() as u64).unwrap();
        let packed: Vec<_> = found.sections.iter().filter(|section| section.is_compressed).collect();
        assert!(!packed.is_empty(), "{format}");
        // A length of 2^60 bytes, one too many, and one too few: the first two are no sections, none is a crash.
        for change in [1 << 60, 1, u64::MAX] {
            let mut changed = bytes.clone();
            for section in &packed {
                let at = usize::try_from(section.offset).unwrap() + 8;
                let length = u64::from_le_bytes(*changed[at..].first_chunk().unwrap());
                changed[at..at + 8].copy_from_slice(&length.wrapping_add(change).to_le_bytes());
            }
            fs::write(&program, changed).unwrap();
            let _ = names_in(&program);
            let module = Module::copy(&File::open(&program).unwrap(), 1).unwrap();
            let is_offered = |section: &Section| section.is_compressed && !section.name.is_empty();
            assert!(!module.layout.sections.iter().any(is_offered), "{format}");
            assert_eq!(module.section(".debug_info").is_some(), change == u64::MAX, "{format} {change}");
        }
    }
}
