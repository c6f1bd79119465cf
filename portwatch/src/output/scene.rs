//! A short, realistic run that uses every line type and every field: what the outputs are tested with.

use std::net::{IpAddr, Ipv6Addr};

use super::{
    Ancestor, Frame, FrameKind, Header, Netns, Output, Process, Stack, StackAudit, StackShares, Summary,
};
use crate::event::{
    Closer, Comm, Confidence, Direction, Endpoints, Errno, Event, Family, Hold, How, Owner, Protocol, Reason,
    SocketId, StackGap, StackId, StackState, TimeWaitState, Traffic, What,
};

pub const START_MONO_NS: u64 = 8_123_456_000_000_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// 2026-11-21 09:27:34.5 UTC.
const START_WALL_NS: i128 = 1_795_253_254_500_000_000;

pub fn comm(name: &[u8]) -> Comm {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name);
    Comm(bytes)
}

pub fn header() -> Header {
    Header {
        host: "web-3".into(),
        kernel: "6.12.107".into(),
        arch: "x86_64",
        rung: "fentry",
        started_wall_ns: START_WALL_NS,
        mono_ns: START_MONO_NS,
        command: ["portwatch", "record", "-o", "web.jsonl", "--comm", "python*"].map(String::from).to_vec(),
        filters: [("comm".to_string(), serde_json::json!(["python*"]))].into(),
        coverage: [
            ("bind_failed", "exact"),
            ("closed", "exact"),
            ("connect_failed", "exact"),
            ("established", "exact"),
            ("port_allocated", "exact"),
            ("port_released", "exact"),
            ("time_wait", "exact"),
        ]
        .into(),
        stack_method: "unwind",
    }
}

pub fn netns() -> Netns {
    Netns {
        mono_ns: START_MONO_NS + MS,
        inode: 4_026_531_840,
        port_range: Some((32_768, 60_999)),
        reserved: Some(vec![(35_000, 35_010), (40_000, 40_000)]),
        tcp_tw_reuse: Some(2),
        tcp_tw_reuse_delay_ms: Some(1000),
        tcp_timestamps: Some(1),
        tcp_max_tw_buckets: Some(65_536),
        step_width: None,
        bind_ports: Some(vec![40_404]),
    }
}

pub fn stack() -> Stack {
    let module = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    Stack {
        id: StackId(0xd1ce_5eed_0000_0001),
        frames: vec![
            Frame {
                function: Some("__connect".into()),
                module: Some(module.into()),
                build_id: Some("6196744a316dbd57c0fc8968df1680aac482cec4".into()),
                offset: Some(0xf0c54),
                kind: FrameKind::Native,
                ..Frame::default()
            },
            Frame {
                function: Some("fetch".into()),
                file: Some("/srv/app/client.py".into()),
                line: Some(42),
                kind: FrameKind::Python,
                is_inlined: true,
                ..Frame::default()
            },
            Frame { reason: Some("no symbols in this module".into()), ..Frame::default() },
        ],
    }
}

pub fn owner() -> Owner {
    Owner {
        tgid: Some(4711),
        tid: Some(4713),
        ppid: Some(4700),
        uid: 1000,
        ns_tgid: None,
        start_boot_ns: 8_120_000_000_000_123,
        cgroup_id: 5_123,
        comm: comm(b"python3"),
        is_kernel: false,
    }
}

pub fn parent() -> Ancestor {
    Ancestor {
        mono_ns: START_MONO_NS + MS,
        pid: 4700,
        ppid: Some(1),
        comm: Some(comm(b"gunicorn")),
        exe: Some("/usr/bin/python3.11".into()),
    }
}

pub fn process() -> Process {
    Process {
        exe: Some("/usr/bin/python3.11".into()),
        cgroup: Some("/system.slice/app.service".into()),
        container: None,
        cmdline: None,
    }
}

fn wide(address: &str) -> Ipv6Addr {
    match address.parse().expect("a test's address") {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// `remote` of `None`: no peer.
pub fn endpoints(family: Family, local: (&str, Option<u16>), remote: Option<(&str, u16)>) -> Endpoints {
    Endpoints {
        netns: 4_026_531_840,
        family,
        protocol: Protocol::Tcp,
        local: wide(local.0),
        remote: remote.map_or(Ipv6Addr::UNSPECIFIED, |(address, _)| wide(address)),
        local_port: local.1,
        remote_port: remote.map(|(_, port)| port),
    }
}

pub fn hold(socket: u64, local_port: Option<u16>) -> Hold {
    Hold {
        socket: SocketId(socket),
        owner: Some(owner()),
        endpoints: endpoints(Family::Ipv4, ("10.0.0.5", local_port), Some(("10.0.0.9", 5432))),
        how: How::Connect,
        direction: Direction::Out,
        confidence: Confidence::Exact,
        begun_mono_ns: START_MONO_NS + 2 * MS,
        search_ns: Some(3_211),
        stack: Some(stack().id),
        stack_state: StackState::Whole,
        is_late: false,
    }
}

pub fn event(hold: &Hold, after_ns: u64, what: What) -> Event {
    Event { mono_ns: START_MONO_NS + after_ns, socket: hold.socket, what, confidence: Confidence::Exact }
}

const CALL_SITE: &str = "fetch (/srv/app/client.py:42)";

pub fn summary() -> Summary {
    Summary {
        events: [
            ("bind_failed", 1),
            ("closed", 2),
            ("connect_failed", 4),
            ("established", 3),
            ("port_allocated", 4),
            ("port_released", 3),
            ("time_wait", 1),
        ]
        .into(),
        lost: [("time_wait", [("ring_full", 2)].into())].into(),
        kernel_totals: [
            ("bind_failed", 1),
            ("closed", 2),
            ("connect_failed", 4),
            ("established", 3),
            ("port_allocated", 5),
            ("port_released", 3),
            ("time_wait", 3),
        ]
        .into(),
        is_lower_bound: true,
        inferred: [("closed", 1), ("port_allocated", 1), ("port_released", 1)].into(),
        filtered: [("port_allocated", 1)].into(),
        stacks: StackShares {
            complete: 14,
            partial: 2,
            none: 3,
            gaps: [(StackGap::KernelTask, 1), (StackGap::RateLimited, 1), (StackGap::NotCopied, 1)].into(),
            walked: 13,
            snapshots: 4,
            rate_limited: 1,
            audit: StackAudit { matched: 2, matched_in_part: 1, ..StackAudit::default() },
        },
        duration_ns: 62 * S,
        ended_by: "signal",
    }
}

/// Plays the run into an output.
pub fn play(out: &mut dyn Output) -> anyhow::Result<()> {
    let process = process();
    out.header(&header())?;
    out.netns(&netns())?;
    out.stack(&stack())?;
    out.process(&parent())?;

    let old = Hold {
        owner: None,
        how: How::None,
        stack: None,
        stack_state: StackState::Unasked,
        confidence: Confidence::Inferred,
        search_ns: None,
        ..hold(1, Some(51_000))
    };
    out.preexisting(START_MONO_NS + MS, &old, &Process::default(), "established")?;
    let listener = Hold {
        endpoints: endpoints(Family::Ipv6, ("::", Some(8080)), None),
        how: How::None,
        direction: Direction::In,
        stack: None,
        search_ns: None,
        ..hold(2, None)
    };
    out.preexisting(START_MONO_NS + MS, &listener, &process, "listen")?;

    // One connection from its port to its release.
    let ordinary = hold(3, Some(45_678));
    let traffic = Traffic { bytes_sent: Some(512), bytes_received: Some(20_480), connect_ns: Some(310_000) };
    let mut tell = |hold: &Hold, after_ns, what, call_site: Option<&str>| {
        out.event(&event(hold, after_ns, what), hold, &process, call_site)
    };
    tell(&ordinary, 2 * MS, What::PortAllocated, Some(CALL_SITE))?;
    tell(&ordinary, 3 * MS, What::Established { connect_ns: Some(310_000) }, Some(CALL_SITE))?;
    let substate = TimeWaitState::FinWait2;
    tell(
        &ordinary,
        2 * S,
        What::TimeWait { closer: Some(Closer::Local), traffic, substate },
        Some(CALL_SITE),
    )?;
    let held_ns = Some(2 * S - 2 * MS);
    let closed_by = Some(4711);
    tell(
        &ordinary,
        2 * S + 4_000,
        What::Closed { closer: Some(Closer::Local), traffic, held_ns, closed_by },
        Some(CALL_SITE),
    )?;

    // Refused, abandoned, out of ports, and a taken port.
    let refused = hold(4, Some(45_680));
    tell(&refused, 4 * S, What::PortAllocated, Some(CALL_SITE))?;
    let errno = Some(Errno(111));
    tell(&refused, 4 * S + MS, What::ConnectFailed { errno, is_abandoned: false }, Some(CALL_SITE))?;
    let reason = Reason::Closed;
    tell(&refused, 4 * S + 2 * MS, What::PortReleased { reason, held_ns: Some(2 * MS) }, Some(CALL_SITE))?;
    let abandoned = Hold { stack: None, ..hold(5, Some(45_682)) };
    tell(&abandoned, 5 * S, What::PortAllocated, None)?;
    tell(&abandoned, 8 * S, What::ConnectFailed { errno: None, is_abandoned: true }, None)?;
    let exhausted = Hold { search_ns: Some(4_213_000), ..hold(6, None) };
    let errno = Some(Errno(99));
    tell(&exhausted, 9 * S, What::ConnectFailed { errno, is_abandoned: false }, Some(CALL_SITE))?;
    let taken = Hold {
        endpoints: endpoints(Family::Ipv4, ("0.0.0.0", Some(8080)), None),
        how: How::Bind,
        direction: Direction::In,
        ..hold(7, None)
    };
    tell(&taken, 10 * S, What::BindFailed { errno: Errno(98) }, Some(CALL_SITE))?;

    // An IPv6 socket that talks IPv4, in a container, learned late, closed by another process.
    let mapped = Hold {
        owner: Some(Owner { ns_tgid: Some(7), comm: comm(b"app\xff\x1b[2J\"\\"), ..owner() }),
        endpoints: endpoints(Family::Ipv6, ("::ffff:10.0.0.5", Some(45_684)), Some(("::ffff:10.0.0.9", 80))),
        confidence: Confidence::Inferred,
        search_ns: None,
        stack_state: StackState::Part(StackGap::RateLimited),
        is_late: true,
        begun_mono_ns: START_MONO_NS - MS,
        ..hold(8, None)
    };
    let contained = Process {
        container: Some("3f4e5d6c7b8a".into()),
        cmdline: Some(vec!["python3".into(), "app \"x\".py".into()]),
        ..process.clone()
    };
    let inferred = |hold: &Hold, after_ns, what| Event {
        confidence: Confidence::Inferred,
        ..event(hold, after_ns, what)
    };
    out.event(&inferred(&mapped, 11 * S, What::PortAllocated), &mapped, &contained, Some(CALL_SITE))?;
    let established = What::Established { connect_ns: None };
    out.event(&event(&mapped, 11 * S + MS, established), &mapped, &contained, Some(CALL_SITE))?;
    let traffic = Traffic::default();
    let closed = What::Closed { closer: None, traffic, held_ns: Some(MS), closed_by: Some(4900) };
    out.event(&inferred(&mapped, 12 * S, closed), &mapped, &contained, Some(CALL_SITE))?;
    let released = What::PortReleased { reason: Reason::TimeWaitReused, held_ns: Some(S) };
    out.event(&inferred(&mapped, 12 * S, released), &mapped, &contained, Some(CALL_SITE))?;

    // A process without a number in portwatch's PID namespace, over IPv6.
    let foreign = Hold {
        owner: Some(Owner {
            tgid: None,
            tid: None,
            ppid: None,
            ns_tgid: Some(12),
            start_boot_ns: 0,
            ..owner()
        }),
        endpoints: endpoints(Family::Ipv6, ("2001:db8::5", Some(45_686)), Some(("2001:db8::9", 443))),
        ..hold(9, None)
    };
    let process = Process::default();
    out.event(&event(&foreign, 13 * S, What::PortAllocated), &foreign, &process, None)?;
    let established = What::Established { connect_ns: Some(25 * MS) };
    out.event(&event(&foreign, 13 * S + 25 * MS, established), &foreign, &process, None)?;
    let timed_out = hold(10, None);
    let failed = What::ConnectFailed { errno: Some(Errno(101)), is_abandoned: false };
    out.event(&event(&timed_out, 14 * S, failed), &timed_out, &process, None)?;
    let released = What::PortReleased { reason: Reason::TimeWaitExpired, held_ns: Some(62 * S - 2 * MS) };
    out.event(&event(&ordinary, 62 * S, released), &ordinary, &process, Some(CALL_SITE))?;

    // Nobody saw when this one got its port.
    let closer = Some(Closer::Remote);
    let closed = What::Closed { closer, traffic, held_ns: None, closed_by: None };
    out.event(&event(&old, 62 * S, closed), &old, &process, None)?;
    let released = What::PortReleased { reason: Reason::Closed, held_ns: None };
    out.event(&event(&old, 62 * S, released), &old, &process, None)?;
    out.summary(&summary())
}
