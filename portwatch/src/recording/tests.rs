use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::format::{EventType, Line};
use super::*;
use crate::event::What;
use crate::output::Output;
use crate::output::json::JsonLines;
use crate::output::scene;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn record(path: &Path) {
    scene::play(&mut JsonLines::new(create(path, false).unwrap())).unwrap();
}

/// The whole log as text, however it is compressed.
fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let bytes =
        if path.extension().unwrap() == "zst" { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
    String::from_utf8(bytes).unwrap()
}

fn read_all(reader: &mut Reader) -> Result<Vec<Line>, Error> {
    reader.by_ref().collect()
}

/// Reads bytes as a file would be read.
fn read_bytes(bytes: &[u8]) -> Result<(Vec<Line>, Ending), Error> {
    let mut reader = Reader::new("x.jsonl", io::Cursor::new(bytes.to_vec()))?;
    let lines = read_all(&mut reader)?;
    Ok((lines, reader.ending().expect("the end was reached").clone()))
}

/// A field that is `null` says as little as one that is missing, and one that is `false` says no more.
fn without_empty(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                *field = without_empty(field.take());
            }
            fields.retain(|_, field| !field.is_null() && *field != Value::Bool(false));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_empty(item.take())),
        _ => {}
    }
    value
}

#[test]
fn what_is_written_is_read_back_field_by_field() {
    let directory = directory();
    for name in ["a.jsonl", "a.jsonl.zst"] {
        let path = directory.path().join(name);
        record(&path);
        let mut reader = Reader::open(&path).unwrap();
        let mut read = vec![serde_json::to_value(reader.header()).unwrap()];
        for line in reader.by_ref() {
            read.push(
                match line.unwrap() {
                    Line::Event(event) | Line::Preexisting(event) => serde_json::to_value(event),
                    Line::Netns(netns) => serde_json::to_value(netns),
                    Line::Stack(stack) => serde_json::to_value(stack),
                    Line::Summary(summary) => serde_json::to_value(summary),
                }
                .unwrap(),
            );
        }
        assert_eq!(reader.ending(), Some(&Ending::Complete));
        assert_eq!(reader.skipped(), 0);

        let text = text(&path);
        assert_eq!(read.len(), text.lines().count());
        for (read, line) in read.into_iter().zip(text.lines()) {
            let mut written: Value = serde_json::from_str(line).unwrap();
            if read.get("type").is_none() {
                // Told by the variant.
                written.as_object_mut().unwrap().remove("type");
            }
            assert_eq!(without_empty(read), without_empty(written), "{line}");
        }
    }
}

#[test]
fn the_scene_keeps_the_equations_of_its_summary() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let lines = read_all(&mut Reader::open(&path).unwrap()).unwrap();
    let Some(Line::Summary(summary)) = lines.last() else { panic!("no summary") };
    for (name, &total) in &summary.events {
        let written = lines
            .iter()
            .filter(
                |line| matches!(line, Line::Event(event) if serde_json::json!(event.r#type) == name.as_str()),
            )
            .count() as u64;
        assert_eq!(written, total, "{name}");
        let of = |counts: &std::collections::BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0);
        let lost: u64 = summary.lost.get(name).map_or(0, |reasons| reasons.values().sum());
        let happened = total - of(&summary.inferred) + lost + of(&summary.filtered);
        assert_eq!(of(&summary.kernel_totals), happened, "{name}");
    }
}

#[test]
fn a_log_cut_off_anywhere_gives_every_whole_line_before_the_cut() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let log = fs::read(&path).unwrap();
    let (all, ending) = read_bytes(&log).unwrap();
    assert_eq!(ending, Ending::Complete);
    let header_bytes = log.iter().position(|&byte| byte == b'\n').unwrap();
    for bytes in 0..log.len() - 1 {
        let cut = read_bytes(&log[..bytes]);
        if bytes < header_bytes {
            assert!(matches!(cut, Err(Error::NotALog { .. })), "cut at {bytes}");
            continue;
        }
        let (lines, ending) = cut.unwrap();
        // A line is whole with its closing brace, the newline behind it says nothing more.
        let whole = log[..bytes + 1].iter().filter(|&&byte| byte == b'\n').count() - 1;
        assert_eq!(lines, all[..whole], "cut at {bytes}");
        assert!(matches!(ending, Ending::Cut { .. }), "cut at {bytes}");
    }
}

#[test]
fn a_compressed_log_cut_off_anywhere_gives_at_least_what_was_flushed() {
    let directory = directory();
    let path = directory.path().join("a.jsonl.zst");
    let mut sink = create(&path, false).unwrap();
    let mut plain = Vec::new();
    scene::play(&mut JsonLines::new(&mut plain)).unwrap();
    // (bytes of the file, whole lines in it) after each flush.
    let mut flushed = Vec::new();
    for (index, line) in plain.split_inclusive(|&byte| byte == b'\n').enumerate() {
        sink.write_all(line).unwrap();
        if index % 3 == 0 {
            sink.flush().unwrap();
            flushed.push((fs::metadata(&path).unwrap().len() as usize, index + 1));
        }
    }
    sink.end().unwrap();
    let (all, _) = read_bytes(&plain).unwrap();
    let log = fs::read(&path).unwrap();
    assert!(flushed.len() > 5);
    assert!(flushed.is_sorted_by(|a, b| a.0 < b.0), "every flush reaches the file: {flushed:?}");
    for bytes in 0..log.len() {
        let safe_lines =
            flushed.iter().rev().find(|&&(size, _)| size <= bytes).map_or(0, |&(_, lines)| lines);
        match read_bytes(&log[..bytes]) {
            Ok((lines, ending)) => {
                assert!(lines.len() + 1 >= safe_lines, "cut at {bytes}");
                assert_eq!(lines, all[..lines.len()], "cut at {bytes}");
                let is_complete = lines.len() == all.len();
                assert_eq!(ending == Ending::Complete, is_complete, "cut at {bytes}");
            }
            Err(Error::NotALog { .. }) => assert_eq!(safe_lines, 0, "cut at {bytes}"),
            Err(error) => panic!("cut at {bytes}: {error}"),
        }
    }
}

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
fn a_damaged_last_line_is_a_cut_and_one_in_the_middle_an_error() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let text = text(&path);
    let lines: Vec<&str> = text.lines().collect();
    let torn = format!("{}\n{}\n{}\n", lines[0], lines[1], "\0\0\0\0");
    let (read, ending) = read_bytes(torn.as_bytes()).unwrap();
    assert_eq!((read.len(), ending), (1, Ending::Cut { why: "its last line is damaged" }));

    let damaged = format!("{}\n{}\n{}\n{}\n", lines[0], lines[1], "{\"type\":\"closed\"}", lines[2]);
    let error = read_bytes(damaged.as_bytes()).unwrap_err();
    assert!(matches!(&error, Error::Malformed { line: 3, .. }), "{error}");
    assert!(error.is_usage());
}

#[test]
fn lines_of_unknown_types_are_counted_and_passed_over() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let text = text(&path);
    let (header, rest) = text.split_once('\n').unwrap();
    let newer =
        format!("{header}\n{{\"type\":\"weather\",\"rain\":true}}\n{{\"sun\":1,\"type\":\"moon\"}}\n{rest}");
    let mut reader = Reader::new("x", io::Cursor::new(newer.into_bytes())).unwrap();
    assert_eq!(read_all(&mut reader).unwrap().len(), rest.lines().count());
    assert_eq!(reader.skipped(), 2);
    assert_eq!(reader.ending(), Some(&Ending::Complete));
}

#[test]
fn the_type_is_found_wherever_it_stands() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    // serde_json sorts keys, so the type comes late.
    let sorted: String = text(&path)
        .lines()
        .map(|line| format!("{}\n", serde_json::from_str::<Value>(line).unwrap()))
        .collect();
    assert!(!sorted.lines().next().unwrap().starts_with("{\"type\""));
    let (lines, ending) = read_bytes(sorted.as_bytes()).unwrap();
    assert_eq!(lines, read_bytes(text(&path).as_bytes()).unwrap().0);
    assert_eq!(ending, Ending::Complete);
}

#[test]
fn words_of_later_versions_become_unknown() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let newer = text(&path).replace("\"closer\":\"local\"", "\"closer\":\"moonlight\"");
    let (lines, _) = read_bytes(newer.as_bytes()).unwrap();
    let closers: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Event(event) if event.r#type == EventType::TimeWait => event.closer,
            _ => None,
        })
        .collect();
    assert_eq!(closers, [format::Closer::Unknown]);
}

#[test]
fn a_log_of_another_version_is_refused_with_both_numbers() {
    let error = read_bytes(b"{\"type\":\"header\",\"schema\":\"portwatch\",\"version\":2,\"news\":[]}\n")
        .unwrap_err();
    assert!(matches!(error, Error::Version { found: 2, known: 1, .. }));
    let message = error.to_string();
    assert!(message.contains("version 2") && message.contains("version 1"), "{message}");
    assert!(error.is_usage());
}

#[test]
fn what_is_no_log_is_refused() {
    let summary_of_nothing = br#"{"type":"summary"}"#;
    for input in [
        &b""[..],
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"\x28\xb5\x2f\xfd",
        b"\x7fELF\0\0",
        summary_of_nothing,
    ] {
        let error = read_bytes(input).unwrap_err();
        assert!(matches!(error, Error::NotALog { .. }), "{input:?}: {error}");
        assert!(error.is_usage());
    }
}

#[test]
fn a_second_log_behind_the_first_is_refused() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    record(&path);
    let twice = text(&path).repeat(2);
    assert!(matches!(read_bytes(twice.as_bytes()), Err(Error::Malformed { .. })));
}

#[test]
fn an_endless_line_is_refused_before_it_fills_the_memory() {
    let header = {
        let directory = directory();
        let path = directory.path().join("a.jsonl");
        record(&path);
        text(&path).lines().next().unwrap().to_string() + "\n"
    };
    let endless = io::Read::chain(io::Cursor::new(header.into_bytes()), io::repeat(b'x'));
    let mut reader = Reader::new("x", endless).unwrap();
    assert!(matches!(reader.next(), Some(Err(Error::Malformed { line: 2, .. }))));
    assert!(reader.next().is_none(), "nothing after an error");
}

#[test]
fn damage_inside_compressed_data_is_an_error() {
    let directory = directory();
    let path = directory.path().join("a.jsonl.zst");
    record(&path);
    let mut log = fs::read(&path).unwrap();
    let last = log.len() - 1;
    log[last] ^= 1;
    let error = read_bytes(&log).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "the checksum is checked: {error}");
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
    assert!(error.is_usage());
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
                  SMALL_DISK=$1 exec \"$2\" --exact recording::tests::fills_a_small_disk --ignored --nocapture";
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
