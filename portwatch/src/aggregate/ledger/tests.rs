//! The ledger against a model that keeps everything, on random lives of ports, with loss, repetition and disorder.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::Ledger;
use crate::aggregate::site::Peer;
use crate::diagnosis::diagnose;
use crate::diagnosis::scene::{CLIENT, Client, MS, S, Scene};
use crate::recording::format::{Event, EventType, Line};

/// One life: who, towards where, from when, for how long; `None`: still open.
#[derive(Clone, Debug)]
struct Life {
    pid: u32,
    server: u8,
    begun_ns: i64,
    life_ns: Option<i64>,
    has_time_wait: bool,
    fails: bool,
}

fn life() -> impl Strategy<Value = Life> {
    let when = 0..120 * S;
    let how_long = proptest::option::weighted(0.85, MS..20 * S);
    (1_u32..4, 0_u8..3, when, how_long, any::<bool>(), proptest::bool::weighted(0.1)).prop_map(
        |(pid, server, begun_ns, life_ns, has_time_wait, fails)| Life {
            pid,
            server,
            begun_ns,
            life_ns,
            has_time_wait,
            fails,
        },
    )
}

fn scene(lives: &[Life]) -> Scene {
    let mut scene = Scene::default();
    for life in lives {
        scene.has_time_wait = life.has_time_wait;
        scene.server.0 = std::net::Ipv4Addr::new(10, 0, 0, life.server).into();
        let client = Client { pid: life.pid, ..CLIENT };
        if life.fails {
            scene.failure(client, life.begun_ns, "ECONNREFUSED", true);
        } else {
            scene.connection(client, life.begun_ns, life.life_ns);
        }
    }
    scene
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Counts {
    ports: u64,
    connections: u64,
    failures: u64,
    live: u64,
    waiting: u64,
    port_ns: u128,
}

/// What truly was, straight from the lives.
fn truth(lives: &[Life], until_ns: i64) -> BTreeMap<u8, Counts> {
    let mut all: BTreeMap<u8, Counts> = BTreeMap::new();
    for life in lives.iter().filter(|life| life.begun_ns < until_ns) {
        let counts = all.entry(life.server).or_default();
        counts.ports += 1;
        if life.fails {
            counts.failures += u64::from(life.begun_ns + 1 < until_ns);
            counts.port_ns += (until_ns - life.begun_ns).min(2) as u128;
            counts.live += u64::from(life.begun_ns + 2 >= until_ns);
            continue;
        }
        counts.connections += u64::from(life.begun_ns + MS / 10 < until_ns);
        let end_ns = life.life_ns.map_or(i64::MAX, |life_ns| life.begun_ns + life_ns);
        let free_ns = if life.has_time_wait { end_ns.saturating_add(60 * S) } else { end_ns };
        counts.port_ns += (free_ns.min(until_ns) - life.begun_ns) as u128;
        counts.live += u64::from(end_ns >= until_ns);
        counts.waiting += u64::from(end_ns < until_ns && free_ns >= until_ns);
    }
    all
}

fn counted(ledger: &Ledger) -> BTreeMap<u8, Counts> {
    let mut all: BTreeMap<u8, Counts> = BTreeMap::new();
    for (_, key, site) in ledger.sites() {
        let Peer::To(std::net::IpAddr::V4(address), _) = key.peer else { panic!("{key:?}") };
        let counts = all.entry(address.octets()[3]).or_default();
        counts.ports += site.ports;
        counts.connections += site.connections;
        counts.failures += site.failure_count();
        counts.live += site.live.now();
        counts.waiting += site.waiting.now();
        counts.port_ns += site.port_ns(ledger.now_ns());
    }
    all
}

fn fed(lines: &[Line], until_ns: i64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.begin(&Scene::header());
    lines.iter().for_each(|line| ledger.line(line));
    ledger.line(&Line::Summary(Scene::summary(until_ns)));
    ledger.end();
    ledger
}

fn check_pools(ledger: &Ledger) {
    let mut of_sites = (0, 0);
    for (_, _, site) in ledger.sites() {
        of_sites.0 += site.live.now();
        of_sites.1 += site.waiting.now();
    }
    let of_pools = ledger.pools().fold((0, 0), |sum, (_, pool)| (sum.0 + pool.live, sum.1 + pool.waiting));
    assert_eq!(of_pools, of_sites, "every port of these lives is a connect's");
    assert_eq!(ledger.held_now() as u64, of_sites.0 + of_sites.1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_whole_log_is_counted_exactly(lives in proptest::collection::vec(life(), 0..60), until_ns in S..200 * S) {
        let ledger = fed(&scene(&lives).lines(until_ns), until_ns);
        let truth: BTreeMap<u8, Counts> = truth(&lives, until_ns);
        prop_assert_eq!(counted(&ledger), truth);
        check_pools(&ledger);
    }

    /// Lines that come twice, at once or later, change nothing.
    #[test]
    fn repeated_lines_change_nothing(
        lives in proptest::collection::vec(life(), 1..40),
        again in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..30), 0..40),
    ) {
        let until_ns = 200 * S;
        let mut lines = scene(&lives).lines(until_ns);
        let whole = counted(&fed(&lines, until_ns));
        for (at, later) in again {
            let at = at.index(lines.len());
            let line = lines[at].clone();
            let to = (at + 1 + later).min(lines.len());
            lines.insert(to, line);
        }
        let repeated = fed(&lines, until_ns);
        prop_assert_eq!(counted(&repeated), whole);
        check_pools(&repeated);
    }

    /// Lost lines make numbers too low, never too high; and nothing is held for ever that must be over.
    #[test]
    fn lost_lines_never_make_more_of_anything(
        lives in proptest::collection::vec(life(), 1..60),
        lost in proptest::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let until_ns = 300 * S;
        let mut lines = scene(&lives).lines(until_ns);
        for at in lost {
            // The settings stay: they are no event.
            let at = at.index(lines.len());
            if at > 0 {
                lines.remove(at);
            }
        }
        let ledger = fed(&lines, until_ns);
        let truth = truth(&lives, until_ns);
        for (server, counts) in counted(&ledger) {
            let truth = truth[&server];
            prop_assert!(counts.ports <= truth.ports, "{:?} {:?}", counts, truth);
            prop_assert!(counts.connections <= truth.connections, "{:?} {:?}", counts, truth);
            prop_assert!(counts.failures <= truth.failures, "{:?} {:?}", counts, truth);
            prop_assert_eq!(counts.waiting, 0, "all TIME_WAITs are over by then");
        }
        check_pools(&ledger);
    }

    /// Times step back within the log's window; the numbers at the end do not depend on it.
    #[test]
    fn disorder_within_the_window_changes_no_count(
        lives in proptest::collection::vec(life(), 1..40),
        swaps in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let until_ns = 400 * S;
        let mut lines = scene(&lives).lines(until_ns);
        let ordered = counted(&fed(&lines, until_ns));
        for at in swaps {
            let at = at.index(lines.len());
            if at + 1 < lines.len() && may_swap(&lines[at], &lines[at + 1]) {
                lines.swap(at, at + 1);
            }
        }
        let counts = counted(&fed(&lines, until_ns));
        for (server, counts) in counts {
            let ordered = ordered[&server];
            prop_assert_eq!(Counts { port_ns: 0, ..counts }, Counts { port_ns: 0, ..ordered });
        }
    }

    /// The same lines as text: the same report, to the byte.
    #[test]
    fn a_replay_gives_the_same_report(lives in proptest::collection::vec(life(), 0..30)) {
        let until_ns = 200 * S;
        let lines = scene(&lives).lines(until_ns);
        let live = crate::output::report::json(&diagnose(&fed(&lines, until_ns))).unwrap();
        let mut text = tagged("header", serde_json::to_value(Scene::header()).unwrap());
        for line in lines.iter().chain([&Line::Summary(Scene::summary(until_ns))]) {
            text += &match line {
                Line::Event(event) | Line::Preexisting(event) => {
                    serde_json::to_string(event).unwrap() + "\n"
                }
                Line::Netns(netns) => tagged("netns", serde_json::to_value(netns).unwrap()),
                Line::Stack(stack) => tagged("stack", serde_json::to_value(stack).unwrap()),
                Line::Process(process) => tagged("process", serde_json::to_value(process).unwrap()),
                Line::Summary(summary) => tagged("summary", serde_json::to_value(summary).unwrap()),
            };
        }
        let reader = crate::recording::Reader::new("memory", std::io::Cursor::new(text.into_bytes())).unwrap();
        let mut ledger = Ledger::default();
        ledger.begin(reader.header());
        for line in reader {
            ledger.line(&line.unwrap());
        }
        ledger.end();
        prop_assert_eq!(crate::output::report::json(&diagnose(&ledger)).unwrap(), live);
    }
}

/// Lines of different sockets that lie close together.
fn may_swap(a: &Line, b: &Line) -> bool {
    let (Line::Event(a), Line::Event(b)) = (a, b) else { return false };
    let uses_same = (a.lport, a.raddr) == (b.lport, b.raddr);
    a.socket != b.socket && !uses_same && (b.mono_ns - a.mono_ns).abs() < 10 * MS
}

fn tagged(kind: &str, mut value: serde_json::Value) -> String {
    value["type"] = kind.into();
    value.to_string() + "\n"
}

#[test]
fn a_lost_end_is_made_good_when_the_port_is_seen_again() {
    let mut scene = Scene::default();
    scene.connection(CLIENT, 0, None);
    let mut again = scene.event(EventType::PortAllocated, 5 * S, 99, CLIENT);
    again.lport = scene.event(EventType::PortAllocated, 0, 1, CLIENT).lport;
    again.how = Some(crate::recording::format::How::Connect);
    scene.push(again);
    let ledger = scene.ledger(10 * S);
    let live: u64 = ledger.sites().map(|(_, _, site)| site.live.now()).sum();
    assert_eq!(live, 1, "the kernel gives a port out once");
}

#[test]
fn a_lost_beginning_is_made_good_by_the_end() {
    let mut scene = Scene::default();
    scene.connection(CLIENT, S, Some(S));
    let is_end = |line: &Line| match line {
        Line::Event(event) => event.r#type == EventType::Closed,
        _ => true,
    };
    let lines: Vec<Line> = scene.lines(3 * S).into_iter().filter(is_end).collect();
    let ledger = fed(&lines, 3 * S);
    let (_, _, site) = ledger.sites().next().unwrap();
    assert_eq!((site.ports, site.connections), (1, 1));
    // One from before the log is no connection of it.
    let mut old: Vec<Line> = lines;
    if let Some(Line::Event(event)) = old.last_mut() {
        event.held_ns = None;
    }
    let ledger = fed(&old, 3 * S);
    let (_, _, site) = ledger.sites().next().unwrap();
    assert_eq!((site.ports, site.connections, site.closed), (0, 0, 1));
}

/// A crawler to a hundred thousand hosts: memory stays bounded, and no connection is lost from the sum.
#[test]
fn a_long_tail_is_folded_and_counted() {
    let mut ledger = Ledger::default();
    ledger.begin(&Scene::header());
    let scene = Scene::default();
    let hosts = 18_000_u32;
    for n in 0..hosts {
        let at_ns = i64::from(n) * MS;
        let event = |kind, at_ns| Event {
            raddr: Some(std::net::Ipv4Addr::from(0x0b00_0000 + n).into()),
            how: Some(crate::recording::format::How::Connect),
            held_ns: Some(MS as u64 / 2),
            ..scene.event(kind, at_ns, u64::from(n) + 1, CLIENT)
        };
        for (kind, after_ns) in [
            (EventType::PortAllocated, 0),
            (EventType::Established, 10),
            (EventType::Closed, MS / 2),
            (EventType::PortReleased, MS / 2),
        ] {
            ledger.line(&Line::Event(Box::new(event(kind, at_ns + after_ns))));
        }
    }
    ledger.end();
    let sum: u64 = ledger.sites().map(|(_, _, site)| site.connections).sum();
    assert_eq!(sum, u64::from(hosts));
    assert!(ledger.sites().count() <= super::SITES_MAX + 8);
    assert!(ledger.pools().count() <= super::POOLS_MAX);
    assert!(ledger.evicted().call_sites > 0 && ledger.evicted().pools > 0);
    let report = diagnose(&ledger);
    let verdicts: Vec<&str> = report.findings.iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts, ["spread"]);
    assert_eq!(report.findings[0].evidence["destinations"], f64::from(hosts));
}

/// The state of the ledger must not depend on how its hash tables are seeded.
#[test]
fn two_ledgers_agree_to_the_byte_after_evictions() {
    let reports: HashMap<String, ()> = (0..2)
        .map(|_| {
            let mut scene = Scene::default();
            for n in 0..3_000_u32 {
                scene.server.0 = std::net::Ipv4Addr::from(0x0b00_0000 + n % 700).into();
                let client = Client { pid: 1_000 + n % 50, ..CLIENT };
                scene.connection(client, i64::from(n) * MS, Some(3 * MS));
            }
            (crate::output::report::json(&diagnose(&scene.ledger(5 * S))).unwrap(), ())
        })
        .collect();
    assert_eq!(reports.len(), 1);
}
