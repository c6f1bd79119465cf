//! How fast a large log is read, and in how much memory: run by hand, in release builds.
//!
//! `cargo test --release -p portwatch --lib -- --ignored --nocapture ten_million`

use std::io::{Read, Write};
use std::time::Instant;

use super::Ledger;
use crate::diagnosis::diagnose;
use crate::diagnosis::scene::{CLIENT, Client, MS, S, Scene};
use crate::recording::Reader;
use crate::recording::format::{Event, EventType, How, Line, Reason};

const EVENTS: u64 = 10_000_000;
/// Lines of one connection: allocated, established, time_wait, closed, released.
const LINES: u64 = 5;
/// Resident memory that the whole test may take; the generator's is in it.
const MEMORY_MAX_KIB: u64 = 200 << 10;

/// Makes the text of a log as it is read: 2 000 connections a second of many processes to many places.
struct Generator {
    scene: Scene,
    at: u64,
    text: Vec<u8>,
    taken: usize,
    /// Ends of TIME_WAIT to come, oldest first.
    ends: std::collections::VecDeque<(i64, Event)>,
}

impl Generator {
    fn new() -> Self {
        let scene = Scene::default();
        let mut text = tagged("header", serde_json::to_value(Scene::header()).unwrap());
        text.extend(tagged("netns", serde_json::to_value(&scene.settings).unwrap()));
        Generator { scene, at: 0, text, taken: 0, ends: Default::default() }
    }

    fn fill(&mut self) {
        let n = self.at;
        if n * LINES >= EVENTS {
            return;
        }
        self.at += 1;
        let at_ns = n as i64 * MS / 2;
        while self.ends.front().is_some_and(|(end, _)| *end <= at_ns) {
            if let Some((_, event)) = self.ends.pop_front() {
                self.put(&event);
            }
        }
        // A long tail: most connections go to a few places, some to one of 60 000.
        let tail =
            if n.is_multiple_of(10) { (n.wrapping_mul(2_654_435_761) % 60_000) as u32 } else { n as u32 % 7 };
        self.scene.server.0 = std::net::Ipv4Addr::from(0x0b00_0000 + tail).into();
        let client = Client { pid: 1_000 + (n % 5_000) as u32, ppid: 100 + (n % 40) as u32, ..CLIENT };
        let event = |kind, at_ns| Event {
            time: "2026-11-21T09:27:34.500000000Z".to_owned(),
            stack: Some("15118345094321995777".to_owned()),
            ..self.scene.event(kind, at_ns, n + 1, client)
        };
        let traffic = |event| Event { bytes_sent: Some(120), bytes_received: Some(2_000), ..event };
        let life_ns = 2 * MS;
        let events = [
            Event { how: Some(How::Connect), alloc_ns: Some(900), ..event(EventType::PortAllocated, at_ns) },
            event(EventType::Established, at_ns + MS / 10),
            traffic(event(EventType::TimeWait, at_ns + life_ns)),
            Event { held_ns: Some(life_ns as u64), ..traffic(event(EventType::Closed, at_ns + life_ns)) },
        ];
        let end_ns = at_ns + 60 * S;
        let released = Event {
            reason: Some(Reason::TwExpired),
            held_ns: Some(60 * S as u64),
            ..event(EventType::PortReleased, end_ns)
        };
        events.iter().for_each(|event| self.put(event));
        self.ends.push_back((end_ns, released));
    }

    fn put(&mut self, event: &Event) {
        // `null` fields are left out, as the writer does.
        let mut value = serde_json::to_value(event).unwrap();
        value.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        serde_json::to_writer(&mut self.text, &value).unwrap();
        self.text.push(b'\n');
    }
}

impl Read for Generator {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.taken == self.text.len() {
            self.text.clear();
            self.taken = 0;
            for _ in 0..256 {
                self.fill();
            }
        }
        let n = (&self.text[self.taken..]).read(into)?;
        self.taken += n;
        Ok(n)
    }
}

fn tagged(kind: &str, mut value: serde_json::Value) -> Vec<u8> {
    value["type"] = kind.into();
    format!("{value}\n").into_bytes()
}

fn resident_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
#[ignore = "a measurement, for release builds"]
fn ten_million_events() {
    // Onto the disk first, compressed: what is measured is reading.
    let path = std::env::temp_dir().join(format!("portwatch-bench-{}.jsonl.zst", std::process::id()));
    let mut encoder = zstd::Encoder::new(std::fs::File::create(&path).unwrap(), 3).unwrap();
    std::io::copy(&mut Generator::new(), &mut encoder).unwrap();
    encoder.finish().unwrap().flush().unwrap();
    let before_kib = resident_peak_kib();

    let started = Instant::now();
    let reader = Reader::open(&path).unwrap();
    let mut ledger = Ledger::default();
    ledger.begin(reader.header());
    let mut lines = 0_u64;
    for line in reader {
        let line = line.unwrap();
        lines += u64::from(matches!(line, Line::Event(_)));
        ledger.line(&line);
    }
    ledger.end();
    let report = diagnose(&ledger);
    let took = started.elapsed();
    let size = std::fs::metadata(&path).unwrap().len();
    std::fs::remove_file(&path).unwrap();
    let peak_kib = resident_peak_kib();
    println!(
        "{lines} events ({} MiB compressed) in {took:.1?}: {:.0} a second; peak memory {} MiB ({} before); {:?}",
        size >> 20,
        lines as f64 / took.as_secs_f64(),
        peak_kib >> 10,
        before_kib >> 10,
        report.evicted
    );
    assert!(lines > EVENTS * 9 / 10);
    assert!(peak_kib < MEMORY_MAX_KIB, "{peak_kib} KiB");
}
