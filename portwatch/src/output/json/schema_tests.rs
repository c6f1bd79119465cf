//! The writer against `docs/schema/log.v1.json`, which is what other programs are told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::JsonLines;
use crate::output::scene;

fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/log.v1.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The schema with no room for fields that it does not name: for our own writer, not for readers.
fn strict(mut schema: Value) -> Value {
    for (_, definition) in schema["$defs"].as_object_mut().unwrap() {
        let is_line = definition["properties"].get("type").is_some();
        let is_closed = is_line || definition["required"] == json!(["function", "kind", "inlined"]);
        if is_closed {
            definition["unevaluatedProperties"] = json!(false);
        }
    }
    schema
}

fn lines() -> Vec<Value> {
    let mut out = JsonLines::new(Vec::new());
    scene::play(&mut out).unwrap();
    let text = String::from_utf8(out.sink).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::draft202012::new(schema).expect("the schema itself is valid")
}

#[test]
fn every_line_is_as_the_schema_says_and_has_no_field_more() {
    let validator = validator(&strict(schema()));
    let mut types = BTreeSet::new();
    for line in lines() {
        let errors: Vec<String> = validator.iter_errors(&line).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {errors:#?}");
        types.insert(line["type"].as_str().unwrap().to_string());
    }
    let schema = schema();
    let named: BTreeSet<String> = schema["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["$ref"].as_str().unwrap().trim_start_matches("#/$defs/").to_string())
        .collect();
    assert_eq!(types, named, "the scene has every type, and the schema no other");
}

#[test]
fn the_example_has_every_field_that_the_schema_names() {
    let schema = schema();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lines() {
        let kind = line["type"].as_str().unwrap().to_string();
        seen.entry(kind).or_default().extend(line.as_object().unwrap().keys().cloned());
        for frame in line["frames"].as_array().into_iter().flatten() {
            seen.entry("frame".into()).or_default().extend(frame.as_object().unwrap().keys().cloned());
        }
    }
    let properties = |name: &str| -> BTreeSet<String> {
        schema["$defs"][name]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let hold = properties("hold");
    let mut seen_of_hold = BTreeSet::new();
    for (name, seen) in &seen {
        assert!(properties(name).is_subset(seen), "{name}: {:?}", properties(name).difference(seen));
        seen_of_hold.extend(seen.intersection(&hold).cloned());
    }
    assert_eq!(seen_of_hold, hold);
}

#[test]
fn the_schema_refuses_lines_without_a_field_that_readers_rely_on() {
    let schema = schema();
    let validator = validator(&schema);
    let required = |name: &str| -> Vec<String> {
        let of = schema["$defs"][name]["required"].as_array();
        of.into_iter().flatten().map(|key| key.as_str().unwrap().to_string()).collect()
    };
    let mut refused = 0;
    for line in lines() {
        let kind = line["type"].as_str().unwrap();
        let mut keys = required(kind);
        if schema["$defs"][kind].get("$ref").is_some() {
            keys.extend(required("hold"));
        }
        for key in keys {
            let mut without = line.clone();
            without.as_object_mut().unwrap().remove(&key).expect("required, so it is there");
            assert!(!validator.is_valid(&without), "`{key}` of {line}");
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn the_schema_refuses_wrong_values_and_lets_later_fields_pass() {
    let validator = validator(&schema());
    let good = lines().into_iter().find(|line| line["type"] == "time_wait").unwrap();
    for (key, value) in [
        ("time", json!("2026-11-21T09:27:36Z")),
        ("mono_ns", json!("7")),
        ("socket", json!(3)),
        ("lport", json!(65_536)),
        ("lport", json!("80")),
        ("closer", json!("peer")),
        ("family", json!("inet")),
        ("confidence", json!(null)),
        ("mapped", json!(false)),
        ("laddr", json!(null)),
        ("type", json!("timewait")),
        ("start_ns", json!(8_120_000_000_000_123_u64)),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(!validator.is_valid(&bad), "{key}: {bad}");
    }
    let mut newer = good.clone();
    newer["weather"] = json!("rain");
    assert!(validator.is_valid(&newer));
}

/// Names in the first column of the tables of a page: `` | `a`, `b` | … ``.
fn fields_of_page(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).expect("a cell"));
    cells.flat_map(|cell| cell.split(',').map(|name| name.trim().trim_matches('`').to_string())).collect()
}

#[test]
fn every_event_has_a_page_that_lists_its_fields_and_no_others() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events");
    let page = |name: &str| std::fs::read_to_string(format!("{docs}/{name}.md")).expect(name);
    let schema = schema();
    let properties = |name: &str| -> BTreeSet<String> {
        schema["$defs"][name]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    for name in portwatch_common::wire::EVENT_NAMES {
        let mut fields = properties(name);
        fields.remove("type");
        assert_eq!(fields_of_page(&page(name)), fields, "{name}");
        assert!(page("README").contains(&format!("[{name}]({name}.md)")), "{name}");
    }
    let readme = page("README");
    let (_, rest) = readme.split_once("## Common fields").expect("the section");
    let (common, _) = rest.split_once("\n## ").expect("the next section");
    let mut hold = properties("hold");
    hold.insert("type".into());
    assert_eq!(fields_of_page(common), hold);
}
