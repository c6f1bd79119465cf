//! The report against `docs/schema/report.v1.json`, which is what other programs are told.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::diagnose;
use super::scene::{CLIENT, Client, MS, S, Scene};
use crate::recording::format::{EventType, How};

fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/report.v1.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The schema with no room for fields, or evidence, that it does not name: for our own writer, not for readers.
fn strict(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let is_closed = map.contains_key("properties");
            map.values_mut().for_each(strict);
            if is_closed {
                map.insert("additionalProperties".into(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strict),
        _ => {}
    }
}

/// A client that churns until the range is full, a crowd, a leak, a storm, a crawler, a taken port and a hoard.
fn example() -> Value {
    let mut scene = Scene::default();
    scene.settings.port_range = Some((32_768, 33_167));
    scene.parent(4700, 1, "/usr/bin/gunicorn");
    scene.parent(300, 299, "/usr/bin/bash");
    for n in 0..390 {
        scene.connection(CLIENT, n * 10 * MS, Some(2 * MS));
    }
    for n in 0..5 {
        scene.failure(CLIENT, 3_950 * MS + n * MS, "EADDRNOTAVAIL", false);
    }
    scene.server.1 = 80;
    for n in 0..40_u32 {
        let curl =
            Client { pid: 1_000 + n, ppid: 300, exe: "/usr/bin/curl", call_site: "curl+0x1bcc1 (curl)" };
        scene.connection(curl, i64::from(n) * 90 * MS, Some(10 * MS));
    }
    scene.server.1 = 6379;
    for worker in 0..2 {
        let client =
            Client { pid: 5_000 + worker, exe: "/usr/bin/php-fpm8.2", call_site: "main (a.c:1)", ..CLIENT };
        for n in 0..50 {
            scene.connection(client, n * 70 * MS + i64::from(worker) * MS, Some(3 * MS));
        }
    }
    scene.server.1 = 5672;
    for n in 0..60 {
        let client =
            Client { pid: 6_000, exe: "/usr/bin/java", call_site: "Leak.open (Leak.java:7)", ..CLIENT };
        scene.connection(client, n * 60 * MS, None);
    }
    scene.server.1 = 9;
    for n in 0..60 {
        let client = Client { pid: 7_000, exe: "/usr/bin/node", call_site: "retry (retry.js:3)", ..CLIENT };
        scene.failure(client, n * 60 * MS, if n % 2 == 0 { "ECONNREFUSED" } else { "ETIMEDOUT" }, true);
    }
    for n in 0..40_u8 {
        scene.server = (std::net::Ipv4Addr::new(10, 9, 9, n).into(), 443);
        let client =
            Client { pid: 8_000, exe: "/usr/bin/crawler", call_site: "visit (crawl.go:9)", ..CLIENT };
        scene.connection(client, i64::from(n) * 90 * MS, Some(30 * MS));
    }
    scene.proto = crate::recording::format::Proto::Udp;
    scene.server = (std::net::Ipv4Addr::new(10, 0, 0, 2).into(), 53);
    for n in 0..100 {
        let client = Client { pid: 9_000, exe: "/usr/bin/resolve", call_site: "ask (dns.c:5)", ..CLIENT };
        scene.connection(client, n * 40 * MS, Some(2 * MS));
    }
    scene.proto = crate::recording::format::Proto::Tcp;
    let hoarder = Client { pid: 9_100, exe: "/usr/bin/hoard", call_site: "grab (hoard.c:2)", ..CLIENT };
    for n in 0..120_u16 {
        let mut bound =
            scene.event(EventType::PortAllocated, i64::from(n) * MS, 50_000 + u64::from(n), hoarder);
        (bound.raddr, bound.rport, bound.how) = (None, None, Some(How::Bind));
        bound.lport = Some(33_047 + n);
        scene.push(bound);
    }
    let mut taken = scene.event(EventType::BindFailed, S, 60_000, Client { pid: 9_200, ..hoarder });
    (taken.raddr, taken.rport, taken.lport) = (None, None, Some(8080));
    (taken.how, taken.errno) = (Some(How::Bind), Some("EADDRINUSE".into()));
    taken.call_site = Some("listen (server.c:8)".into());
    scene.push(taken);
    let mut ledger = scene.ledger(4 * S);
    ledger.lost.entry("time_wait".into()).or_default().insert("ring_full".into(), 2);
    let mut report = diagnose(&ledger);
    // Enough to show every form; the rest repeats.
    report.call_sites.truncate(6);
    report.pools.truncate(3);
    serde_json::to_value(&report).unwrap()
}

#[test]
fn the_report_is_as_the_schema_says_and_has_no_field_more() {
    let mut schema = schema();
    let loose = jsonschema::draft202012::new(&schema).expect("the schema itself is valid");
    strict(&mut schema);
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let report = example();
    let errors: Vec<String> =
        validator.iter_errors(&report).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let verdicts: BTreeSet<&str> =
        report["findings"].as_array().unwrap().iter().map(|it| it["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, super::VERDICTS.into(), "one of each");

    // A later version may say more, but not less.
    let mut newer = report.clone();
    newer["findings"][0]["weather"] = json!("rain");
    newer["findings"][0]["evidence"]["rain_mm"] = json!(3);
    assert!(loose.is_valid(&newer));
    for (at, key) in
        [("/findings/0", "confidence"), ("/call_sites/0", "port_seconds"), ("/pools/0", "past_half")]
    {
        let mut less = report.clone();
        less.pointer_mut(at).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        assert!(!loose.is_valid(&less), "{key}");
    }
}

#[test]
fn the_example_is_what_is_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/report.v1.example.json");
    let written = serde_json::to_string_pretty(&example()).unwrap() + "\n";
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    assert!(written == expected, "UPDATE_EXPECT=1 rewrites the example");
}

/// What a verdict's page lists is what its findings have.
#[test]
fn the_pages_name_all_evidence() {
    for finding in example()["findings"].as_array().unwrap() {
        let verdict = finding["verdict"].as_str().unwrap();
        let page = match verdict {
            "udp-per-query" => "connect-per-request",
            other => other,
        };
        let path = format!("{}/../docs/verdicts/{page}.md", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(path).unwrap();
        for key in finding["evidence"].as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{key}`")), "{verdict}: {key}");
        }
    }
}
