use serde_json::{Value, json};

use super::*;
use crate::event::{Closer, Direction, Errno, Family, Protocol, Reason};
use crate::output::scene::{self, START_MONO_NS};

fn written(tell: impl FnOnce(&mut JsonLines<Vec<u8>>)) -> Vec<Value> {
    let mut out = JsonLines::new(Vec::new());
    out.header(&scene::header()).unwrap();
    tell(&mut out);
    out.flush().unwrap();
    let text = String::from_utf8(out.sink).expect("a log is UTF-8");
    text.lines().skip(1).map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn event_line(hold: &Hold, what: What) -> Value {
    written(|out| out.event(&scene::event(hold, 7, what), hold, &scene::process(), None).unwrap()).remove(0)
}

fn keys(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_example_log_is_what_the_writer_writes() {
    let mut out = JsonLines::new(Vec::new());
    scene::play(&mut out).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/log.v1.example.jsonl");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &out.sink).unwrap();
    }
    let expected = std::fs::read_to_string(path).expect("run the tests with UPDATE_EXPECT=1 to make it");
    let written = String::from_utf8(out.sink).unwrap();
    for (written, expected) in written.lines().zip(expected.lines()) {
        assert_eq!(written, expected, "UPDATE_EXPECT=1 rewrites the example");
    }
    assert_eq!(written.lines().count(), expected.lines().count());
}

#[test]
fn a_port_allocation_has_every_field_of_the_contract() {
    let line = event_line(&scene::hold(9, Some(45_678)), What::PortAllocated);
    assert_eq!(
        line,
        json!({
            "type": "port_allocated", "time": "2026-11-21T09:27:34.500000007Z", "mono_ns": 7, "socket": "9",
            "direction": "out", "pid": 4711, "tid": 4713, "ppid": 4700, "comm": "python3", "uid": 1000,
            "start_ns": "8120000000000123", "exe": "/usr/bin/python3.11", "cgroup": "/system.slice/app.service",
            "netns": 4_026_531_840_u32, "proto": "tcp", "family": "ipv4", "laddr": "10.0.0.5", "lport": 45678,
            "raddr": "10.0.0.9", "rport": 5432, "how": "connect", "alloc_ns": 3211,
            "stack": "15118125371129593857", "confidence": "exact",
        })
    );
}

#[test]
fn numbers_past_two_to_the_53_are_strings() {
    let hold = scene::hold(u64::MAX, None);
    let line = event_line(&hold, What::PortAllocated);
    for key in ["socket", "stack", "start_ns"] {
        assert!(line[key].is_string(), "{key}");
    }
    assert_eq!(line["socket"], u64::MAX.to_string());
}

#[test]
fn a_failure_without_a_port_says_so_with_null() {
    let what = What::ConnectFailed { errno: Some(Errno(99)), is_abandoned: false };
    let line = event_line(&scene::hold(1, None), what);
    assert_eq!(
        (&line["lport"], &line["errno"], &line["how"]),
        (&json!(null), &json!("EADDRNOTAVAIL"), &json!("connect"))
    );
    assert!(keys(&line).contains(&"lport"));
    assert!(!keys(&line).contains(&"abandoned"));
}

#[test]
fn an_abandoned_attempt_has_no_errno() {
    let line = event_line(&scene::hold(1, Some(5)), What::ConnectFailed { errno: None, is_abandoned: true });
    assert!(keys(&line).contains(&"errno"));
    assert_eq!((&line["errno"], &line["abandoned"]), (&json!(null), &json!(true)));
}

#[test]
fn a_failed_connect_of_a_bound_socket_is_a_failed_connect() {
    let bound = Hold { how: How::Bind, ..scene::hold(1, Some(5)) };
    let line = event_line(&bound, What::ConnectFailed { errno: Some(Errno(111)), is_abandoned: false });
    assert_eq!(line["how"], "connect");
    assert_eq!(event_line(&bound, What::BindFailed { errno: Errno(98) })["how"], "bind");
    let listening = Hold { how: How::Listen, ..bound };
    assert_eq!(event_line(&listening, What::BindFailed { errno: Errno(98) })["how"], "listen");
}

#[test]
fn without_a_peer_raddr_and_rport_are_null_and_the_unspecified_address_stays() {
    for (family, address) in [(Family::Ipv4, "0.0.0.0"), (Family::Ipv6, "::")] {
        let endpoints = scene::endpoints(family, (address, Some(80)), None);
        let line = event_line(&Hold { endpoints, ..scene::hold(1, None) }, What::PortAllocated);
        assert_eq!(line["laddr"], address);
        assert_eq!((&line["raddr"], &line["rport"]), (&json!(null), &json!(null)));
        assert!(keys(&line).contains(&"raddr") && keys(&line).contains(&"rport"));
        assert!(!keys(&line).contains(&"mapped"));
    }
}

#[test]
fn mapped_addresses_are_written_as_ipv4_and_the_family_stays() {
    let endpoints =
        scene::endpoints(Family::Ipv6, ("::ffff:10.0.0.5", Some(1)), Some(("::ffff:10.0.0.9", 2)));
    let line = event_line(&Hold { endpoints, ..scene::hold(1, None) }, What::PortAllocated);
    assert_eq!((&line["mapped"], &line["family"]), (&json!(true), &json!("ipv6")));
    assert_eq!((&line["laddr"], &line["raddr"]), (&json!("10.0.0.5"), &json!("10.0.0.9")));
}

#[test]
fn protocol_and_direction_are_written() {
    let mut hold = Hold { direction: Direction::In, how: How::Autobind, ..scene::hold(1, Some(2)) };
    hold.endpoints.protocol = Protocol::Udp;
    let line = event_line(&hold, What::PortAllocated);
    assert_eq!(
        (&line["proto"], &line["direction"], &line["how"]),
        (&json!("udp"), &json!("in"), &json!("autobind"))
    );
    assert_eq!(event_line(&Hold { how: How::None, ..hold }, What::PortAllocated)["how"], json!(null));
}

#[test]
fn ns_pid_stands_only_where_it_differs() {
    let with = |tgid, ns_tgid| {
        let owner = Some(Owner { tgid, ns_tgid, ..scene::owner() });
        event_line(&Hold { owner, ..scene::hold(1, None) }, What::PortAllocated)
    };
    assert!(!keys(&with(Some(4711), None)).contains(&"ns_pid"));
    assert!(!keys(&with(Some(4711), Some(4711))).contains(&"ns_pid"));
    assert_eq!(with(Some(4711), Some(7))["ns_pid"], 7);
    let foreign = with(None, Some(7));
    assert!(keys(&foreign).contains(&"pid"));
    assert_eq!((&foreign["pid"], &foreign["ns_pid"]), (&json!(null), &json!(7)));
}

#[test]
fn an_unknown_owner_is_pid_null_and_nothing_made_up() {
    let hold = Hold { owner: None, stack: None, ..scene::hold(1, None) };
    let line = written(|out| {
        out.event(&scene::event(&hold, 0, What::PortAllocated), &hold, &Process::default(), None).unwrap();
    })
    .remove(0);
    assert!(keys(&line).contains(&"pid"));
    assert_eq!(line["pid"], json!(null));
    for key in [
        "tid",
        "ppid",
        "comm",
        "uid",
        "start_ns",
        "exe",
        "cgroup",
        "container",
        "cmdline",
        "stack",
        "call_site",
    ] {
        assert!(!keys(&line).contains(&key), "{key}");
    }
}

#[test]
fn a_port_learned_late_says_since_when() {
    let hold = Hold { is_late: true, begun_mono_ns: START_MONO_NS - 5, ..scene::hold(1, Some(2)) };
    assert_eq!(event_line(&hold, What::PortAllocated)["since_ns"], -5);
    let in_time = Hold { is_late: false, ..hold };
    assert!(!keys(&event_line(&in_time, What::PortAllocated)).contains(&"since_ns"));
}

#[test]
fn what_is_known_at_the_end_of_a_connection() {
    let hold = scene::hold(1, Some(2));
    let traffic = Traffic { bytes_sent: Some(u64::MAX), bytes_received: Some(0), connect_ns: Some(9) };
    let closed = |closed_by, closer| What::Closed { closer, traffic, held_ns: Some(11), closed_by };
    let line = event_line(&hold, closed(Some(4711), Some(Closer::Reset)));
    assert_eq!(
        (
            &line["closer"],
            &line["bytes_sent"],
            &line["bytes_received"],
            &line["connect_ns"],
            &line["held_ns"]
        ),
        (&json!("reset"), &json!(u64::MAX), &json!(0), &json!(9), &json!(11))
    );
    assert!(!keys(&line).contains(&"closed_by"), "the owner closed it");
    assert_eq!(event_line(&hold, closed(Some(5), None))["closed_by"], 5);
    let unseen = event_line(&hold, closed(None, None));
    assert!(!keys(&unseen).contains(&"closed_by"));
    assert!(keys(&unseen).contains(&"closer"));
    assert_eq!(unseen["closer"], json!(null));
}

#[test]
fn time_wait_names_its_substate_when_the_entry_was_seen() {
    let hold = scene::hold(1, Some(2));
    let line = |substate| {
        let traffic = Traffic::default();
        event_line(&hold, What::TimeWait { closer: Some(Closer::Both), traffic, substate })
    };
    assert_eq!(line(TimeWaitState::FinWait2)["substate"], "fin_wait2");
    assert_eq!(line(TimeWaitState::TimeWait)["substate"], "time_wait");
    let unknown = line(TimeWaitState::Unknown);
    assert_eq!(unknown["closer"], "both");
    for key in ["substate", "bytes_sent", "bytes_received", "connect_ns"] {
        assert!(!keys(&unknown).contains(&key), "{key}");
    }
}

#[test]
fn how_long_is_null_where_nobody_saw_the_beginning() {
    let hold = scene::hold(1, Some(2));
    let traffic = Traffic::default();
    let closed = What::Closed { closer: None, traffic, held_ns: None, closed_by: None };
    for what in [closed, What::PortReleased { reason: Reason::Closed, held_ns: None }] {
        let line = event_line(&hold, what);
        assert!(keys(&line).contains(&"held_ns") && line["held_ns"].is_null(), "{line}");
    }
}

#[test]
fn every_reason_of_a_release_has_its_name() {
    for (reason, name) in [
        (Reason::Closed, "closed"),
        (Reason::TimeWaitExpired, "tw_expired"),
        (Reason::TimeWaitReused, "tw_reused"),
        (Reason::TimeWaitReset, "tw_reset"),
        (Reason::TimeWaitOverflow, "tw_overflow"),
        (Reason::NetnsExit, "netns_exit"),
        (Reason::Disconnected, "disconnected"),
        (Reason::Unknown, "unknown"),
    ] {
        let line = event_line(&scene::hold(1, Some(2)), What::PortReleased { reason, held_ns: Some(3) });
        assert_eq!((&line["reason"], &line["held_ns"]), (&json!(name), &json!(3)));
    }
}

#[test]
fn hostile_names_stay_one_line_of_valid_json() {
    let mut hold = scene::hold(1, Some(2));
    hold.owner.as_mut().unwrap().comm = scene::comm(b"a\n\x1b[2J\"\\\xff\xc3");
    let process = Process {
        exe: Some("/tmp/\u{202e}cod\"exe\\\u{7f}\u{2028}\0".into()),
        cmdline: Some(vec![String::new(), "\r\n\"".into()]),
        ..Process::default()
    };
    let event = scene::event(&hold, 0, What::PortAllocated);
    let lines = written(|out| out.event(&event, &hold, &process, Some("\"f\" (x\\y:1)")).unwrap());
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["comm"], "a\n\u{1b}[2J\"\\\u{fffd}\u{fffd}");
    assert_eq!(lines[0]["exe"], "/tmp/\u{202e}cod\"exe\\\u{7f}\u{2028}\0");
    assert_eq!(lines[0]["cmdline"], json!(["", "\r\n\""]));
    assert_eq!(lines[0]["call_site"], "\"f\" (x\\y:1)");
}

#[test]
fn the_header_carries_the_anchor_as_a_string() {
    let mut out = JsonLines::new(Vec::new());
    out.header(&scene::header()).unwrap();
    out.flush().unwrap();
    let line: Value = serde_json::from_slice(&out.sink).unwrap();
    assert_eq!(line["mono_ns"], START_MONO_NS.to_string());
    assert_eq!((&line["schema"], &line["version"]), (&json!("portwatch"), &json!(1)));
    assert_eq!(line["started"], "2026-11-21T09:27:34.500000000Z");
    assert_eq!(line["filters"], json!({"comm": ["python*"]}));
}

#[test]
fn lower_bound_stands_only_where_it_is_true() {
    let line = |is_lower_bound| {
        let summary = Summary { is_lower_bound, ..scene::summary() };
        written(|out| out.summary(&summary).unwrap()).remove(0)
    };
    assert_eq!(line(true)["lower_bound"], true);
    let exact = line(false);
    assert!(!keys(&exact).contains(&"lower_bound"));
    assert_eq!((&exact["complete"], &exact["ended_by"]), (&json!(true), &json!("signal")));
    assert_eq!(exact["lost"], json!({"time_wait": {"ring_full": 2}}));
    assert_eq!(
        (&exact["inferred"], &exact["filtered"]),
        (&json!({"closed": 1, "port_allocated": 1, "port_released": 1}), &json!({"port_allocated": 1}))
    );
}

#[test]
fn what_the_kernel_does_not_show_of_a_namespace_is_null() {
    let netns = Netns { bind_ports: None, reserved: None, port_range: None, ..scene::netns() };
    let line = written(|out| out.netns(&netns).unwrap()).remove(0);
    for key in ["bind_ports", "reserved", "port_range", "step_width"] {
        assert!(keys(&line).contains(&key) && line[key].is_null(), "{key}");
    }
}

/// Takes so many bytes, then is full.
struct SmallDisk(usize);

impl std::io::Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink for SmallDisk {
    fn name(&self) -> String {
        "`small`".into()
    }

    fn end(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_that_names_its_kind() {
    let mut out = JsonLines::new(SmallDisk(100));
    let error = scene::play(&mut out).expect_err("the disk is full");
    let io = error.root_cause().downcast_ref::<std::io::Error>().expect("an I/O error at the root");
    assert_eq!(io.kind(), std::io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("`small`"), "{error}");
}

#[test]
fn nothing_follows_a_write_that_failed() {
    let mut out = JsonLines::new(SmallDisk(100));
    scene::play(&mut out).expect_err("the disk is full");
    // Somebody made room, but the log has a hole now.
    out.sink.0 = 1_000_000;
    let error = out.summary(&scene::summary()).expect_err("broken off");
    assert!(error.to_string().contains("broke off"), "{error}");
    assert_eq!(out.sink.0, 1_000_000);
}

#[test]
fn lines_reach_the_sink_in_whole_blocks_before_any_flush() {
    let mut out = JsonLines::new(Vec::new());
    out.header(&scene::header()).unwrap();
    let hold = scene::hold(1, Some(2));
    for _ in 0..1000 {
        out.event(&scene::event(&hold, 0, What::PortAllocated), &hold, &scene::process(), None).unwrap();
    }
    assert!(out.sink.len() >= BLOCK_BYTES);
    assert_eq!(out.sink.last(), Some(&b'\n'));
    assert!(out.block.len() < BLOCK_BYTES);
}
