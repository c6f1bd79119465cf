//! What happened, in plain words.

use crate::event::{
    Closer, Endpoints, Errno, Event, Family, Hold, How, Protocol, Reason, TimeWaitState, What,
};
use crate::output::errno;

/// The last column of an event's line.
pub(super) fn what(event: &Event, hold: &Hold) -> String {
    let mut words = match &event.what {
        What::PortAllocated => port_allocated(event, hold),
        What::ConnectFailed { is_abandoned: true, .. } => "given up before there was an answer".into(),
        What::ConnectFailed { errno: None, .. } => "error not known".into(),
        What::ConnectFailed { errno: Some(errno), .. } => failure(*errno, &connect_failure(*errno, hold)),
        What::BindFailed { errno } => failure(*errno, &bind_failure(*errno, hold)),
        What::Established { connect_ns: Some(ns) } => format!("after {}", duration(*ns)),
        What::Established { connect_ns: None } => String::new(),
        What::TimeWait { closer, substate, .. } => time_wait(*closer, *substate).into(),
        What::Closed { closer, held_ns, closed_by, .. } => {
            let mut words = held(*held_ns, hold);
            if let Some(closer) = closer {
                words += match closer {
                    Closer::Local => ", we closed",
                    Closer::Remote => ", peer closed",
                    Closer::Both => ", both closed",
                    Closer::Reset => ", reset",
                };
            }
            let owner = hold.owner.as_ref().and_then(|owner| owner.tgid);
            match closed_by {
                Some(pid) if *closed_by != owner => words + &format!(", closed by PID {pid}"),
                _ => words,
            }
        }
        What::PortReleased { reason, held_ns } => {
            let is_udp = hold.endpoints.protocol == Protocol::Udp;
            // Only TCP has a TIME_WAIT to be without.
            let why = if is_udp && *reason == Reason::Closed { "" } else { released(*reason) };
            format!("{}{}{why}", held(*held_ns, hold), if why.is_empty() { "" } else { ", " })
        }
    };
    if hold.endpoints.protocol == Protocol::Udp {
        words = format!("udp {words}");
    }
    words
}

fn port_allocated(event: &Event, hold: &Hold) -> String {
    let mut words = match hold.how.name() {
        Some(how) => format!("by {how}"),
        None => String::new(),
    };
    // A search that takes this long is the first sign of a range that runs out.
    if let Some(ns) = hold.search_ns.filter(|&ns| ns >= 1_000_000) {
        words += &format!(", searched {}", duration(ns));
    }
    // On the tracepoint rung every port is learned late, by microseconds, which is no news.
    let late_ns = event.mono_ns.saturating_sub(hold.begun_mono_ns);
    if hold.is_late && late_ns >= 1_000_000 {
        words += &format!(", seen {} late", duration(late_ns));
    }
    words
}

fn failure(errno: Errno, words: &str) -> String {
    format!("{}: {words}", errno::name(errno))
}

fn connect_failure(errno: Errno, hold: &Hold) -> String {
    let Endpoints { local, local_port, family, .. } = hold.endpoints;
    match errno::name(errno).as_ref() {
        // A port that the program chose itself is in use for this very peer; the range has not run out.
        "EADDRNOTAVAIL" | "EADDRINUSE" if local_port.is_some() => {
            "this port is already connected there".into()
        }
        // The same number says that no source address fits, which only IPv6 chooses after the connect began.
        "EADDRNOTAVAIL" if family == Family::Ipv6 && local.is_unspecified() => {
            "no free port, or no usable local address".into()
        }
        "EADDRNOTAVAIL" => "no free port to this destination".into(),
        "EAGAIN" if hold.endpoints.protocol == Protocol::Udp && local_port.is_none() => "no free port".into(),
        "ECONNREFUSED" => "nobody listens there".into(),
        "ETIMEDOUT" => "no answer".into(),
        "ECONNRESET" => "the peer reset it".into(),
        "ENETUNREACH" => "no route to that network".into(),
        "EHOSTUNREACH" => "no route to that host".into(),
        "EACCES" | "EPERM" => "forbidden by a route, firewall or policy".into(),
        _ => errno::description(errno),
    }
}

fn bind_failure(errno: Errno, hold: &Hold) -> String {
    match (errno::name(errno).as_ref(), hold.endpoints.local_port) {
        ("EADDRINUSE", Some(port)) => format!("port {port} is taken"),
        ("EADDRINUSE", None) => "no free port".into(),
        ("EADDRNOTAVAIL", _) => "not an address of this host".into(),
        ("EACCES", Some(port)) => format!("not allowed to take port {port}"),
        ("EINVAL", _) if hold.how == How::Bind => "already bound, or a bad address".into(),
        _ => errno::description(errno),
    }
}

fn time_wait(closer: Option<Closer>, substate: TimeWaitState) -> &'static str {
    match closer {
        Some(Closer::Local) => "we closed first",
        Some(Closer::Remote) => "peer closed first",
        Some(Closer::Both) => "both closed at once",
        Some(Closer::Reset) => "reset",
        // With a closer known it is not worth a word: the ordinary case when this side closes first.
        None if substate == TimeWaitState::FinWait2 => "peer still open",
        None => "",
    }
}

fn released(reason: Reason) -> &'static str {
    match reason {
        Reason::Closed => "no TIME_WAIT",
        Reason::TimeWaitExpired => "TIME_WAIT over",
        Reason::TimeWaitReused => "reused by a connect",
        Reason::TimeWaitReset => "TIME_WAIT cut short",
        Reason::TimeWaitOverflow => "TIME_WAIT table full",
        Reason::NetnsExit => "namespace gone",
        Reason::Disconnected => "disconnected",
        Reason::Unknown => "",
    }
}

fn held(held_ns: Option<u64>, hold: &Hold) -> String {
    match held_ns {
        Some(ns) => format!("held {}", duration(ns)),
        None if hold.how == How::None => "held since before the start".into(),
        // Gone before it was looked for.
        None => "held for a moment".into(),
    }
}

/// A duration with three figures or so.
pub(super) fn duration(ns: u64) -> String {
    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..MS => format!("{} us", ns / 1_000),
        // Below what would round to the next unit.
        MS..999_950_000 => format!("{:.1} ms", ns as f64 / MS as f64),
        _ if ns < 600 * S => format!("{:.1} s", ns as f64 / S as f64),
        _ if ns < 36_000 * S => format!("{} min", ns / (60 * S)),
        _ => format!("{} h", ns / (3_600 * S)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::scene;

    #[test]
    fn durations_keep_about_three_figures() {
        for (ns, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (310_999, "310 us"),
            (999_999, "999 us"),
            (1_000_000, "1.0 ms"),
            (25_340_000, "25.3 ms"),
            (999_949_999, "999.9 ms"),
            (999_950_000, "1.0 s"),
            (61_998_000_000, "62.0 s"),
            (599_900_000_000, "599.9 s"),
            (600_000_000_000, "10 min"),
            (36_000_000_000_000, "10 h"),
        ] {
            assert_eq!(duration(ns), expected);
        }
    }

    #[test]
    fn the_same_errno_means_different_things() {
        let connect = |number, hold: &Hold| {
            let what = What::ConnectFailed { errno: Some(Errno(number)), is_abandoned: false };
            super::what(&scene::event(hold, 0, what), hold)
        };
        let exhausted = scene::hold(1, None);
        assert_eq!(connect(99, &exhausted), "EADDRNOTAVAIL: no free port to this destination");
        let own_port = scene::hold(1, Some(5000));
        assert_eq!(connect(99, &own_port), "EADDRNOTAVAIL: this port is already connected there");
        let endpoints = scene::endpoints(Family::Ipv6, ("::", None), Some(("2001:db8::9", 80)));
        let no_source = Hold { endpoints, ..scene::hold(1, None) };
        assert_eq!(connect(99, &no_source), "EADDRNOTAVAIL: no free port, or no usable local address");

        let bind = |number, port| {
            let endpoints = scene::endpoints(Family::Ipv4, ("10.0.0.5", port), None);
            let hold = Hold { how: How::Bind, endpoints, ..scene::hold(1, None) };
            super::what(&scene::event(&hold, 0, What::BindFailed { errno: Errno(number) }), &hold)
        };
        assert_eq!(bind(98, Some(8080)), "EADDRINUSE: port 8080 is taken");
        assert_eq!(bind(98, None), "EADDRINUSE: no free port");
        assert_eq!(bind(99, Some(80)), "EADDRNOTAVAIL: not an address of this host");
        assert_eq!(bind(13, Some(80)), "EACCES: not allowed to take port 80");
        assert_eq!(bind(512, None), "E512: unknown error");
    }

    #[test]
    fn a_long_search_and_a_late_port_are_told() {
        let mut hold = scene::hold(1, Some(2));
        let words = |hold: &Hold| what(&scene::event(hold, 2_000_000, What::PortAllocated), hold);
        assert_eq!(words(&hold), "by connect");
        hold.search_ns = Some(4_200_000);
        assert_eq!(words(&hold), "by connect, searched 4.2 ms");
        hold.is_late = true;
        hold.begun_mono_ns = scene::START_MONO_NS;
        hold.search_ns = None;
        assert_eq!(words(&hold), "by connect, seen 2.0 ms late");
    }
}
