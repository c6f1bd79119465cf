//! The judges judged: a log made from the truth must pass, and one with a planted fault must not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::errno::Errno;
use serde_json::{Value, json};

use crate::check::{self, Leeway};
use crate::coverage::{self, Seen};
use crate::log::Log;
use crate::namespace::Era;
use crate::run::{Outcome, report};
use crate::sockets::Family;
use crate::stage::{closed_into_time_wait, released, time_wait_ends};
use crate::truth::{Closer, Failure, Happened, How, Kind, Reason, Story, Task, name_of};
use crate::whole;

const ERA: Era = Era { inode: 4_026_531_840, from_ns: 0, until_ns: i128::MAX };
const TRACER_PID: u32 = 1;

/// The log that a perfect tracer would write of these stories, line by line.
fn perfect_log(rung: &str, stories: &[Story]) -> Vec<Value> {
    let mut events: Vec<Value> = Vec::new();
    for (number, story) in stories.iter().enumerate() {
        // Steps of half a nanosecond would be needed for calls of one; none is that fast.
        let begun_ns = story.call_ns.0.midpoint(story.call_ns.1);
        for (step, event) in story.events.iter().enumerate() {
            let seen = coverage::of(rung, story, event);
            if seen != Seen::Absent {
                events.push(line(number, story, event, begun_ns, begun_ns + step as u64, seen));
            }
        }
    }
    events.sort_by_key(|line| line["mono_ns"].as_u64());
    let (mut counts, mut inferred) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    for line in &events {
        let table = if line["confidence"] == "inferred" { &mut inferred } else { &mut counts };
        *table.entry(line["type"].as_str().expect("written above")).or_default() += 1;
    }
    let summary = json!({"type": "summary", "events": counts, "lost": {}, "kernel_totals": counts,
        "inferred": inferred, "ended_by": "signal", "complete": true});
    let header = json!({"type": "header", "schema": "portwatch", "version": 1, "rung": rung, "mono_ns": "0"});
    [vec![header], events, vec![summary]].concat()
}

fn line(number: usize, story: &Story, event: &Happened, begun_ns: u64, now_ns: u64, seen: Seen) -> Value {
    let Story { owner, how, peer, .. } = story;
    let kind = event.kind();
    let has_peer =
        peer.is_some() && (kind != Kind::PortAllocated || matches!(how, How::Connect | How::Autobind));
    let mut line = json!({
        "type": kind.name(), "mono_ns": now_ns, "socket": number.to_string(), "netns": ERA.inode,
        "direction": if story.listens || *how == How::Listen { "in" } else { "out" },
        "pid": owner.pid, "tid": owner.tid, "ppid": owner.ppid, "ns_pid": owner.ns_pid, "comm": owner.comm,
        "uid": owner.uid, "start_ns": (owner.start_ticks * 10_000_000).to_string(),
        "proto": name_of(&story.protocol), "family": name_of(&story.family), "laddr": story.local, "lport": story.port,
        "raddr": peer.filter(|_| has_peer).map(|peer| peer.ip()),
        "rport": peer.filter(|_| has_peer).map(|peer| peer.port()),
        "mapped": has_peer && story.family == Family::Ipv6 && peer.is_some_and(|peer| peer.is_ipv4()),
        "how": how.name(), "held_ns": now_ns - begun_ns,
        "confidence": if seen == Seen::Inferred { "inferred" } else { "exact" },
    });
    match event {
        Happened::ConnectFailed(failure) | Happened::BindFailed(failure) => match failure {
            Failure::Errno(number) => line["errno"] = json!(format!("{:?}", Errno::from_raw(*number))),
            Failure::Abandoned => line["abandoned"] = json!(true),
        },
        Happened::TimeWait { closer, substate } => {
            line["closer"] = json!(closer);
            line["substate"] = json!(substate);
        }
        Happened::Closed { closer } => line["closer"] = json!(closer),
        Happened::Released { reason } => line["reason"] = json!(reason[0]),
        Happened::Allocated | Happened::Established => {}
    }
    line
}

fn parse(lines: &[Value]) -> Log {
    Log::parse(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

/// What the judge of stories finds in the perfect log of `stories`: it should be nothing.
pub fn found_in_perfect_log(stories: &[Story]) -> Vec<String> {
    let rungs = ["fentry", "tracepoint"];
    let found = rungs.map(|rung| {
        let log = parse(&perfect_log(rung, stories));
        [check::stories(rung, &log, &ERA, stories, Leeway::NONE), whole::log(&log, rung, TRACER_PID)].concat()
    });
    found.concat()
}

/// A change to a log, and whether the judge of stories (or else that of the whole) must see it.
type Fault = (&'static str, Judge, fn(&mut Vec<Value>));

#[derive(Clone, Copy, PartialEq)]
enum Judge {
    Stories,
    Whole,
}

fn find<'a>(lines: &'a mut [Value], kind: &str) -> &'a mut Value {
    lines.iter_mut().find(|line| line["type"] == kind).expect("the stories have every kind")
}

fn position(lines: &[Value], kind: &str) -> usize {
    lines.iter().position(|line| line["type"] == kind).expect("the stories have every kind")
}

const FAULTS: &[Fault] = &[
    ("a lost allocation", Judge::Stories, |log| drop(log.remove(position(log, "port_allocated")))),
    ("a lost time_wait", Judge::Stories, |log| drop(log.remove(position(log, "time_wait")))),
    ("a lost failure", Judge::Stories, |log| drop(log.remove(position(log, "connect_failed")))),
    ("a lost release", Judge::Stories, |log| drop(log.remove(position(log, "port_released")))),
    ("an invented socket", Judge::Stories, |log| {
        let mut line = find(log, "connect_failed").clone();
        line["socket"] = json!("99");
        log.insert(1, line);
    }),
    ("a socket said to be old", Judge::Stories, |log| {
        let mut line = find(log, "established").clone();
        line["type"] = json!("preexisting");
        log.insert(1, line);
    }),
    ("a failure told twice", Judge::Stories, |log| {
        let line = find(log, "connect_failed").clone();
        log.insert(position(log, "connect_failed"), line);
    }),
    ("a time_wait that was none", Judge::Stories, |log| {
        let closed = log.iter().position(|line| line["closer"] == "remote").expect("a server closes first");
        let mut line = log[closed].clone();
        line["type"] = json!("time_wait");
        log.insert(closed, line);
    }),
    ("another process", Judge::Stories, |log| find(log, "time_wait")["pid"] = json!(4)),
    ("another thread", Judge::Stories, |log| find(log, "port_allocated")["tid"] = json!(4)),
    ("another name", Judge::Stories, |log| find(log, "closed")["comm"] = json!("ksoftirqd/0")),
    ("another user", Judge::Stories, |log| find(log, "port_allocated")["uid"] = json!(1)),
    ("another start", Judge::Stories, |log| find(log, "port_allocated")["start_ns"] = json!("1")),
    ("no owner", Judge::Stories, |log| find(log, "port_released")["pid"] = Value::Null),
    ("another port", Judge::Stories, |log| find(log, "established")["lport"] = json!(1)),
    ("no port", Judge::Stories, |log| find(log, "port_allocated")["lport"] = Value::Null),
    ("another peer", Judge::Stories, |log| find(log, "established")["raddr"] = json!("127.0.0.9")),
    ("another error", Judge::Stories, |log| find(log, "connect_failed")["errno"] = json!("EAGAIN")),
    ("an error that nobody saw", Judge::Stories, |log| {
        let line = log.iter_mut().find(|line| line["abandoned"] == true).expect("one is abandoned");
        line["errno"] = json!("ETIMEDOUT");
    }),
    ("the wrong closer", Judge::Stories, |log| find(log, "closed")["closer"] = json!("remote")),
    ("the wrong reason", Judge::Stories, |log| find(log, "port_released")["reason"] = json!("unknown")),
    ("the wrong length", Judge::Stories, |log| find(log, "closed")["held_ns"] = json!(50_000_000)),
    ("the wrong time", Judge::Stories, |log| find(log, "bind_failed")["mono_ns"] = json!(1)),
    ("a guess", Judge::Stories, |log| find(log, "established")["confidence"] = json!("inferred")),
    ("a new id in the middle", Judge::Stories, |log| find(log, "closed")["socket"] = json!("99")),
    ("another namespace", Judge::Stories, |log| find(log, "bind_failed")["netns"] = json!(1)),
    ("an order against time", Judge::Whole, |log| {
        let (time_wait, closed) = (position(log, "time_wait"), position(log, "closed"));
        log.swap(time_wait, closed);
    }),
    ("an established for the second time", Judge::Whole, |log| {
        let line = find(log, "established").clone();
        log.insert(position(log, "established"), line);
    }),
    ("the tracer itself", Judge::Whole, |log| find(log, "established")["pid"] = json!(TRACER_PID)),
    ("a stack that never came", Judge::Whole, |log| find(log, "established")["stack"] = json!("7")),
    ("no summary", Judge::Whole, |log| drop(log.pop())),
    ("no header", Judge::Whole, |log| drop(log.remove(0))),
    ("a summary that is not the last line", Judge::Whole, |log| log.rotate_right(1)),
    ("an incomplete log", Judge::Whole, |log| find(log, "summary")["complete"] = json!(false)),
    ("a total that is too high", Judge::Whole, |log| {
        find(log, "summary")["kernel_totals"]["time_wait"] = json!(1000)
    }),
    ("a loss that is owned up to", Judge::Whole, |log| {
        let summary = find(log, "summary");
        summary["lost"] = json!({"closed": {"ring_full": 1}});
        summary["kernel_totals"]["closed"] =
            json!(summary["kernel_totals"]["closed"].as_u64().map(|n| n + 1));
    }),
    ("an event that the summary does not count", Judge::Whole, |log| {
        let mut line = find(log, "established").clone();
        line["socket"] = json!("99");
        log.insert(1, line);
    }),
];

/// Every planted fault is found by the judge that is there for it.
pub fn faults_are_found() -> Result<Outcome, String> {
    let stories = stories();
    let mut problems = found_in_perfect_log(&stories);
    for (name, judge, plant) in FAULTS {
        let mut lines = perfect_log("fentry", &stories);
        plant(&mut lines);
        let log = parse(&lines);
        let found = match judge {
            Judge::Stories => check::stories("fentry", &log, &ERA, &stories, Leeway::NONE),
            Judge::Whole => whole::log(&log, "fentry", TRACER_PID),
        };
        if found.is_empty() {
            problems.push(format!("nobody notices {name}"));
        }
    }
    report(problems)
}

/// One story of each sort.
fn stories() -> Vec<Story> {
    let local_close = [vec![Happened::Allocated, Happened::Established], closed_into_time_wait(None).into()];
    let time_wait = [local_close.concat(), vec![time_wait_ends()]].concat();
    let errno = |errno: Errno| Failure::Errno(errno as i32);
    let all = [
        (How::Connect, Some(40_000), time_wait),
        (
            How::Connect,
            Some(40_001),
            vec![
                Happened::Allocated,
                Happened::Established,
                Happened::Closed { closer: Closer::Remote },
                released(Reason::Closed),
            ],
        ),
        (
            How::Connect,
            Some(40_002),
            vec![
                Happened::Allocated,
                Happened::ConnectFailed(errno(Errno::ECONNREFUSED)),
                released(Reason::Closed),
            ],
        ),
        (
            How::Connect,
            Some(40_002),
            vec![Happened::Allocated, Happened::ConnectFailed(Failure::Abandoned), released(Reason::Closed)],
        ),
        (How::Connect, None, vec![Happened::ConnectFailed(errno(Errno::EADDRNOTAVAIL))]),
        (How::Connect, None, vec![Happened::ConnectFailed(errno(Errno::EADDRNOTAVAIL))]),
        (How::Bind, Some(7_000), vec![Happened::Allocated, released(Reason::Closed)]),
        (How::Bind, Some(7_000), vec![Happened::BindFailed(errno(Errno::EADDRINUSE))]),
    ];
    let owner = Task {
        pid: 10,
        tid: 11,
        ppid: 9,
        ns_pid: None,
        comm: "planted".to_owned(),
        uid: 0,
        start_ticks: 77,
        cgroup: None,
    };
    let made = all.into_iter().zip(1u64..).map(|((how, port, events), number)| Story {
        owner: owner.clone(),
        how,
        family: Family::Ipv4,
        protocol: crate::sockets::Protocol::Tcp,
        local: Some(IpAddr::from([127, 0, 0, 1])),
        port,
        peer: (how == How::Connect).then(|| "127.0.0.1:7000".parse().expect("an address")),
        call_ns: (number * 1_000_000_000, number * 1_000_000_000 + 1000),
        listens: false,
        told_at_connect: false,
        is_long: false,
        events,
    });
    made.collect()
}
