use std::fs;
use std::io;

use serde_json::Value;

use super::super::format::{self, EventType, Line};
use super::super::*;
use super::{directory, read_all, read_bytes, record, text};
use crate::output::json::JsonLines;
use crate::output::scene;

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
                    Line::Process(process) => serde_json::to_value(process),
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
        let of = |counts: &std::collections::BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0);
        assert_eq!(written, total + of(&summary.inferred), "{name}");
        let lost: u64 = summary.lost.get(name).map_or(0, |reasons| reasons.values().sum());
        let happened = total + lost + of(&summary.filtered);
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
    assert_eq!(error.exit_code(), 2);
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
    assert_eq!(error.exit_code(), 2);
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
        assert_eq!(error.exit_code(), 2);
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
    assert_eq!(error.exit_code(), 2);
}
