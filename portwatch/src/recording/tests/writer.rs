use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::super::*;
use super::{directory, read_all, record, text};
use crate::event::What;
use crate::output::Output;
use crate::output::json::JsonLines;
use crate::output::scene;

#[test]
fn a_crash_keeps_what_was_flushed() {
    let directory = directory();
    for name in ["a.jsonl", "a.jsonl.zst"] {
        let path = directory.path().join(name);
        let mut out = JsonLines::new(create(&path, false).unwrap());
        out.header(&scene::header()).unwrap();
        let hold = scene::hold(1, Some(2));
        let tell = |out: &mut JsonLines<_>| {
            out.event(&scene::event(&hold, 0, What::PortAllocated), &hold, &scene::process(), None).unwrap();
        };
        (0..50).for_each(|_| tell(&mut out));
        out.flush().unwrap();
        (0..50).for_each(|_| tell(&mut out));
        // As if the process were gone: nothing runs any more.
        std::mem::forget(out);
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(read_all(&mut reader).unwrap().len(), 50);
        assert_eq!(reader.ending(), Some(&Ending::Cut { why: reader_why(name) }));
    }
}

fn reader_why(name: &str) -> &'static str {
    if name.ends_with("zst") { "its compressed data ends early" } else { "it has no summary" }
}

#[test]
fn a_busy_recording_is_flushed_by_itself_after_a_second() {
    let directory = directory();
    let path = directory.path().join("a.jsonl.zst");
    let mut sink = create(&path, false).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    // So few bytes that the compressor keeps them to itself until it is told to flush.
    while fs::metadata(&path).unwrap().len() == 0 {
        assert!(std::time::Instant::now() < deadline, "nothing reached the file");
        sink.write_all(b"x").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn the_extension_chooses_the_format() {
    for (name, format) in [
        ("a.jsonl", Some(Format::JsonLines)),
        ("/x/y/a.b.jsonl.zst", Some(Format::JsonLinesZstd)),
        ("-", Some(Format::JsonLines)),
        ("a.parquet", None),
        ("a.zst", None),
        ("a.json", None),
        ("ajsonl", None),
        ("a", None),
        ("dir.jsonl/", Some(Format::JsonLines)),
        ("/", None),
        ("", None),
    ] {
        assert_eq!(Format::of(Path::new(name)).ok(), format, "{name}");
    }
    let error = Format::of(Path::new("a.csv")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    assert!(message.contains("`.jsonl`") && message.contains("`.jsonl.zst`"), "{message}");
}

#[test]
fn a_recording_is_for_its_owner_alone() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_not_empty_needs_force() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    fs::write(&path, "precious").unwrap();
    let error = create(&path, false).err().expect("refused");
    assert!(matches!(error, Error::NotEmpty { .. }));
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let mut sink = create(&path, true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious", "kept until the first write");
    sink.write_all(b"new\n").unwrap();
    sink.end().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");

    let empty = directory.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    record(&empty);
    assert!(fs::metadata(&empty).unwrap().len() > 0);
}

#[test]
fn a_start_that_fails_leaves_no_file_and_no_older_one_changed() {
    let directory = directory();
    for name in ["a.jsonl", "a.jsonl.zst"] {
        let path = directory.path().join(name);
        drop(create(&path, false).unwrap());
        assert!(!path.exists(), "{name}");
        fs::write(&path, "precious").unwrap();
        drop(create(&path, true).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
    let empty = directory.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    drop(create(&empty, false).unwrap());
    assert!(empty.exists(), "it was there before");
}

#[test]
fn only_our_own_file_is_removed() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let sink = create(&path, false).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    drop(sink);
    assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
}

#[test]
fn links_are_not_followed() {
    let directory = directory();
    let target = directory.path().join("target");
    let link = directory.path().join("a.jsonl");
    symlink(&target, &link).unwrap();
    for force in [false, true] {
        assert!(matches!(create(&link, force), Err(Error::SymbolicLink { .. })));
        assert!(!target.exists(), "a dangling link makes nothing");
    }
    fs::write(&target, "precious").unwrap();
    assert!(matches!(create(&link, true), Err(Error::SymbolicLink { .. })));
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn directories_and_pipes_are_refused_without_waiting() {
    let directory = directory();
    let inner = directory.path().join("d.jsonl");
    fs::create_dir(&inner).unwrap();
    assert!(matches!(create(&inner, true), Err(Error::NotAFile { .. })));
    let pipe = directory.path().join("p.jsonl");
    let status = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is in coreutils");
    assert!(status.success());
    assert!(matches!(create(&pipe, true), Err(Error::NotAFile { .. })), "nobody reads");
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    assert!(matches!(create(&pipe, true), Err(Error::NotAFile { .. })), "somebody reads");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let error = create(Path::new("/nonexistent/a.jsonl"), false).err().expect("no such directory");
    assert!(error.to_string().contains("`/nonexistent/a.jsonl`"), "{error}");
    let source = std::error::Error::source(&error).expect("the cause");
    assert!(source.to_string().contains("No such file"), "{source}");
    assert_eq!(error.exit_code(), 1);
}

/// Runs [`fills_a_small_disk`] on a file system of 128 KiB in namespaces of its own.
#[test]
fn a_full_disk_is_an_error_and_leaves_a_log_that_can_be_read() {
    let unshare = |command: &[&str]| {
        std::process::Command::new("unshare").args(["--map-root-user", "--mount"]).args(command).output()
    };
    if !unshare(&["true"]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none(), "user namespaces are needed");
        eprintln!("SKIP: a small disk needs user namespaces, which this host does not allow");
        return;
    }
    let directory = directory();
    let script = "mount -t tmpfs -o size=128k none \"$1\" && \
                  SMALL_DISK=$1 exec \"$2\" --exact recording::tests::writer::fills_a_small_disk --ignored --nocapture";
    let this = std::env::current_exe().unwrap();
    let output =
        unshare(&["sh", "-c", script, "sh", directory.path().to_str().unwrap(), this.to_str().unwrap()]);
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by a_full_disk_is_an_error_and_leaves_a_log_that_can_be_read"]
fn fills_a_small_disk() {
    let Some(directory) = std::env::var_os("SMALL_DISK") else {
        eprintln!("SKIP: filling a disk needs a small one, named by SMALL_DISK");
        return;
    };
    for name in ["a.jsonl", "a.jsonl.zst"] {
        let path = Path::new(&directory).join(name);
        let mut out = JsonLines::new(create(&path, false).unwrap());
        out.header(&scene::header()).unwrap();
        let mut told = 0u64;
        let error = loop {
            // Numbers that do not repeat, or the compressor would need hours.
            let socket = told.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hold = scene::hold(socket, Some(2));
            let event = scene::event(&hold, socket >> 8, What::PortAllocated);
            if let Err(error) = out.event(&event, &hold, &scene::process(), None) {
                break error;
            }
            told += 1;
            assert!(told < 1_000_000, "the disk never filled");
        };
        let cause = error.root_cause().downcast_ref::<io::Error>().expect("an I/O error");
        assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
        drop(out);

        let mut reader = Reader::open(&path).unwrap();
        let lines = read_all(&mut reader).unwrap();
        assert!(lines.len() > 100, "{} lines of {told} in `{name}`", lines.len());
        assert!(matches!(reader.ending(), Some(Ending::Cut { .. })));
        if name == "a.jsonl" {
            assert!(text(&path).ends_with("}\n"), "whole lines for everybody's tools");
        }
        fs::remove_file(&path).unwrap();
    }
}
