//! How fast event lines are written, and what the other way would cost. Run by hand:
//! `cargo test --release -p portwatch --lib -- --ignored --nocapture json::bench`.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use serde::Serialize;

use super::JsonLines;
use crate::event::{Hold, SocketId, What};
use crate::output::{Output, scene};
use crate::recording::{self, Sink};

const EVENTS: u64 = 1_000_000;

/// Takes everything and keeps nothing.
struct Nowhere(u64);

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += black_box(bytes).len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Nowhere {
    fn name(&self) -> String {
        "nowhere".into()
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn measure(name: &str, run: impl FnOnce() -> u64) {
    let start = Instant::now();
    let bytes = run();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name:24} {:9.0} lines/s  {:6.1} MB/s  {:5.0} ns/line  {} bytes/line",
        EVENTS as f64 / seconds,
        bytes as f64 / seconds / 1e6,
        seconds / EVENTS as f64 * 1e9,
        bytes / EVENTS,
    );
}

/// A `port_allocated` as serde would write it, everything borrowed.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'a str,
    time: String,
    mono_ns: i64,
    #[serde(serialize_with = "as_text")]
    socket: u64,
    direction: &'a str,
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ppid: Option<u32>,
    comm: &'a str,
    uid: u32,
    #[serde(serialize_with = "as_text")]
    start_ns: u64,
    exe: Option<&'a str>,
    cgroup: Option<&'a str>,
    netns: u32,
    proto: &'a str,
    family: &'a str,
    laddr: std::net::IpAddr,
    lport: Option<u16>,
    raddr: Option<std::net::IpAddr>,
    rport: Option<u16>,
    how: Option<&'a str>,
    alloc_ns: Option<u64>,
    #[serde(serialize_with = "as_text")]
    stack: u64,
    call_site: &'a str,
    confidence: &'a str,
}

fn as_text<S: serde::Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

#[test]
#[ignore = "a measurement, for release builds"]
fn event_lines() {
    let process = scene::process();
    let call_site = "fetch (/srv/app/client.py:42)";
    let holds: Vec<Hold> =
        (0..1000).map(|n| Hold { socket: SocketId(n << 40), ..scene::hold(1, Some(n as u16)) }).collect();

    for _ in 0..2 {
        measure("by hand", || {
            let mut out = JsonLines::new(Nowhere(0));
            out.header(&scene::header()).unwrap();
            for n in 0..EVENTS {
                let hold = &holds[n as usize % holds.len()];
                let event = scene::event(hold, n * 3_333, What::PortAllocated);
                out.event(&event, hold, &process, Some(call_site)).unwrap();
            }
            out.flush().unwrap();
            out.sink.0
        });
        measure("serde", || {
            let mut clock = super::Clock::new(scene::START_MONO_NS, scene::header().started_wall_ns);
            let mut sink = Nowhere(0);
            let mut block = Vec::new();
            for n in 0..EVENTS {
                let hold = &holds[n as usize % holds.len()];
                let event = scene::event(hold, n * 3_333, What::PortAllocated);
                let owner = hold.owner.as_ref().unwrap();
                let line = Line {
                    r#type: event.what.name(),
                    time: clock.text(event.mono_ns),
                    mono_ns: clock.relative(event.mono_ns),
                    socket: hold.socket.0,
                    direction: hold.direction.name(),
                    pid: owner.tgid,
                    ns_pid: owner.ns_tgid,
                    tid: owner.tid,
                    ppid: owner.ppid,
                    comm: &String::from_utf8_lossy(owner.comm.bytes()),
                    uid: owner.uid,
                    start_ns: owner.start_boot_ns,
                    exe: process.exe.as_deref(),
                    cgroup: process.cgroup.as_deref(),
                    netns: hold.endpoints.netns,
                    proto: hold.endpoints.protocol.name(),
                    family: hold.endpoints.family.name(),
                    laddr: hold.endpoints.local_ip(),
                    lport: hold.endpoints.local_port,
                    raddr: hold.endpoints.remote_ip(),
                    rport: hold.endpoints.remote_port,
                    how: hold.how.name(),
                    alloc_ns: hold.search_ns,
                    stack: hold.stack.unwrap().0,
                    call_site,
                    confidence: event.confidence.name(),
                };
                serde_json::to_writer(&mut block, &line).unwrap();
                block.push(b'\n');
                if block.len() > 64 * 1024 {
                    sink.write_all(&block).unwrap();
                    block.clear();
                }
            }
            sink.0
        });
        measure("text", || {
            let mut counted = Nowhere(0);
            let mut out = crate::output::text::Text::new(&mut counted, false);
            out.header(&scene::header()).unwrap();
            for n in 0..EVENTS {
                let hold = &holds[n as usize % holds.len()];
                let event = scene::event(hold, n * 3_333, What::PortAllocated);
                out.event(&event, hold, &process, Some(call_site)).unwrap();
            }
            out.flush().unwrap();
            drop(out);
            counted.0
        });
        for level in [1, 3, 6] {
            let mut compressed = 0;
            measure(&format!("by hand, zstd level {level}"), || {
                let mut log = JsonLines::new(Vec::new());
                log.header(&scene::header()).unwrap();
                let mut encoder = zstd::Encoder::new(Nowhere(0), level).unwrap();
                for n in 0..EVENTS {
                    let hold = &holds[n as usize % holds.len()];
                    let event = scene::event(hold, n * 3_333, What::PortAllocated);
                    log.event(&event, hold, &process, Some(call_site)).unwrap();
                    if log.sink.len() > 64 * 1024 {
                        encoder.write_all(&log.sink).unwrap();
                        log.sink.clear();
                    }
                }
                compressed = encoder.finish().unwrap().0;
                compressed
            });
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl.zst");
        let mut out = JsonLines::new(recording::create(&path, false).unwrap());
        out.header(&scene::header()).unwrap();
        for n in 0..EVENTS {
            let hold = &holds[n as usize % holds.len()];
            let event = scene::event(hold, n * 3_333, What::PortAllocated);
            out.event(&event, hold, &process, Some(call_site)).unwrap();
        }
        out.summary(&scene::summary()).unwrap();
        measure("read back", || {
            let reader = recording::Reader::open(&path).unwrap();
            assert_eq!(reader.filter(|line| line.is_ok()).count() as u64, EVENTS + 1);
            std::fs::metadata(&path).unwrap().len()
        });
    }
}
