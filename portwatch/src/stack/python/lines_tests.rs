use std::process::Command;

use super::*;
use crate::stack::python::testing;

/// Modules of the standard library that are compared.
const MODULES: &str = "25";

struct Known {
    first_line: u32,
    table: Vec<u8>,
    /// Start, end, line.
    ranges: Vec<(i32, i32, Option<u32>)>,
}

/// What an interpreter says of its own tables.
fn ask(python: &std::path::Path) -> (Form, Vec<Known>) {
    let out = Command::new(python).args(["-c", include_str!("lines_tests.py"), MODULES]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut lines = text.lines();
    let form = match lines.next().unwrap() {
        "3.9" => Form::Lnotab,
        "3.10" => Form::Ranges,
        _ => Form::Locations,
    };
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let known = lines.map(|line| {
        let mut words = line.split(' ');
        Known {
            first_line: words.next().unwrap().parse().unwrap(),
            table: hex(words.next().unwrap()),
            ranges: words
                .map(|range| {
                    let mut numbers = range.split(':');
                    let mut next = || numbers.next().unwrap();
                    (next().parse().unwrap(), next().parse().unwrap(), next().parse().ok())
                })
                .collect(),
        }
    });
    (form, known.collect())
}

/// Every instruction of thousands of functions has the line that its own interpreter says, and a table that is cut
/// anywhere says that or nothing.
#[test]
fn lines_are_those_of_the_interpreter() {
    for version in testing::VERSIONS {
        let Some(python) = testing::interpreter(version) else {
            eprintln!("SKIP lines_are_those_of_the_interpreter: no python{version} here");
            continue;
        };
        let (form, known) = ask(&python);
        assert!(known.len() > 300, "{version}: {}", known.len());
        let mut compared = 0;
        for Known { first_line, table, ranges } in known {
            let whole = Table { form, bytes: &table, is_cut: false, first_line };
            let cuts = [table.len() / 3, table.len() / 2 + 1].map(|end| table.get(..end).unwrap_or(&table));
            for (start, end, line) in ranges {
                let expected = line.map_or(Line::None, Line::At);
                for at in (start..end).step_by(2) {
                    assert_eq!(whole.line(at), expected, "{version} {first_line} at {at}: {table:x?}");
                    compared += 1;
                }
                for bytes in cuts {
                    let got = Table { bytes, is_cut: bytes.len() < table.len(), ..whole }.line(start);
                    assert!(got == expected || got == Line::Unknown, "{version} at {start}: {got:?}");
                }
            }
        }
        assert!(compared > 20_000, "{version}: {compared}");
    }
}

#[test]
fn any_bytes_are_a_table() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for length in 0..600 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        for form in [Form::Lnotab, Form::Ranges, Form::Locations] {
            for at in [-2, 0, 2, 100, 10_000, i32::MAX] {
                let _ = Table { form, bytes: &bytes, is_cut: length % 2 == 0, first_line: 7 }.line(at);
            }
        }
    }
}

#[test]
fn before_the_first_instruction_is_the_first_line() {
    for form in [Form::Lnotab, Form::Ranges, Form::Locations] {
        assert_eq!(Table { form, bytes: &[], is_cut: true, first_line: 7 }.line(-1), Line::At(7));
    }
}

#[test]
fn cut_in_the_middle_of_a_number_is_not_a_line() {
    // No column, a delta of two bytes, the second of which is missing.
    let table = Table { form: Form::Locations, bytes: &[0x80 | 13 << 3, 0x42], is_cut: true, first_line: 7 };
    assert_eq!(table.line(0), Line::Unknown);
}
