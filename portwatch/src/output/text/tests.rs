use super::*;
use crate::event::{Closer, Errno, Family, Reason, TimeWaitState, Traffic};
use crate::output::scene;

fn text_of(has_color: bool, tell: impl FnOnce(&mut dyn Output)) -> String {
    let mut bytes = Vec::new();
    let mut out = Text::with_zone(&mut bytes, has_color, TimeZone::UTC);
    tell(&mut out);
    out.flush().unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The events' own lines of the whole scene.
fn scene_text(has_color: bool) -> String {
    text_of(has_color, |out| scene::play(out).unwrap())
}

#[test]
fn the_scene_reads_as_stored() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/text/scene.txt");
    let written = scene_text(false);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let expected = std::fs::read_to_string(path).expect("run the tests with UPDATE_EXPECT=1 to make it");
    assert!(written == expected, "UPDATE_EXPECT=1 rewrites `{path}`; now it would be:\n{written}");
}

#[test]
fn lines_of_an_ordinary_ipv4_connection_take_80_to_100_columns() {
    let hold = scene::hold(1, Some(45_678));
    let (closer, traffic) = (Some(Closer::Local), Traffic::default());
    let story = [
        What::PortAllocated,
        What::Established { connect_ns: Some(25_300_000) },
        What::TimeWait { closer, traffic, substate: TimeWaitState::FinWait2 },
        What::Closed { closer, traffic, held_ns: Some(12_300_000_000), closed_by: None },
        What::PortReleased { reason: Reason::Closed, held_ns: Some(2_000_000) },
    ];
    let text = text_of(false, |out| {
        for what in story {
            out.event(&scene::event(&hold, 0, what), &hold, &Process::default(), None).unwrap();
        }
    });
    for line in text.lines() {
        assert!((80..=100).contains(&line.len()), "{}: {line}", line.len());
    }
}

#[test]
fn color_changes_nothing_but_color() {
    let colored = scene_text(true);
    assert!(colored.contains("\x1b["));
    assert_eq!(anstream::adapter::strip_str(&colored).to_string(), scene_text(false));
}

#[test]
fn failures_stand_out_in_color() {
    let hold = scene::hold(1, None);
    let line = |what| {
        let event = scene::event(&hold, 0, what);
        text_of(true, |out| out.event(&event, &hold, &Process::default(), None).unwrap())
    };
    let red = format!("{BAD}connect_failed{BAD:#}");
    assert!(line(What::ConnectFailed { errno: Some(Errno(99)), is_abandoned: false }).contains(&red));
    assert!(!line(What::PortAllocated).contains(&BAD.to_string()));
}

#[test]
fn without_color_no_control_character_is_written_whatever_the_names() {
    let mut hold = scene::hold(1, Some(2));
    for name in [&b"\x1b[2J"[..], b"a\nb\tc\rd", b"\xff\x9b31m", "\u{202e}\u{2066}x\u{9b}".as_bytes()] {
        hold.owner.as_mut().unwrap().comm = scene::comm(name);
        let call_site = String::from_utf8_lossy(name).into_owned() + " (\x1b]0;x\x07:\n)";
        let failed = What::ConnectFailed { errno: Some(Errno(99)), is_abandoned: false };
        let text = text_of(false, |out| {
            out.header(&scene::header()).unwrap();
            let event = scene::event(&hold, 0, failed.clone());
            out.event(&event, &hold, &Process::default(), Some(&call_site)).unwrap();
            out.preexisting(scene::START_MONO_NS, &hold, &Process::default(), "\x1b[A").unwrap();
            out.summary(&scene::summary()).unwrap();
        });
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains(['\u{202e}', '\u{2066}']), "{text:?}");
        assert_eq!(text.lines().filter(|line| line.starts_with("09:27:34.500 ")).count(), 2, "{text}");
    }
}

#[test]
fn a_long_cell_pushes_only_its_neighbors() {
    let mut wide = scene::hold(1, Some(45_678));
    let long = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff";
    wide.endpoints = scene::endpoints(Family::Ipv6, (long, Some(45_678)), Some(("::1", 80)));
    let narrow = scene::hold(2, Some(45_678));
    let text = text_of(false, |out| {
        for hold in [&wide, &narrow, &wide] {
            let event = scene::event(hold, 0, What::PortAllocated);
            out.event(&event, hold, &Process::default(), None).unwrap();
        }
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[2], "the same before and after");
    assert!(lines[0].contains(&format!("[{long}]:45678 -> [::1]:80 ")));
    assert_eq!(lines[1].find("10.0.0.5"), lines[0].find("[2001"));
    assert!(lines[1].len() < lines[0].len());
}

#[test]
fn incoming_connections_point_the_other_way() {
    let hold = Hold { direction: Direction::In, ..scene::hold(1, Some(80)) };
    let event = scene::event(&hold, 0, What::Established { connect_ns: None });
    let text = text_of(false, |out| out.event(&event, &hold, &Process::default(), None).unwrap());
    assert!(text.contains("10.0.0.5:80    <- 10.0.0.9:5432"), "{text}");
}

#[test]
fn times_are_those_of_the_zone_and_cross_midnight() {
    let mut bytes = Vec::new();
    let zone = TimeZone::fixed(jiff::tz::offset(14));
    let mut out = Text::with_zone(&mut bytes, false, zone);
    out.header(&scene::header()).unwrap();
    let hold = scene::hold(1, Some(2));
    let midnight_ns = (25.5 + 32.0 * 60.0) * 1e9;
    for after_ns in [0, midnight_ns as u64 - 1_000_000, midnight_ns as u64] {
        let event = scene::event(&hold, after_ns, What::PortAllocated);
        out.event(&event, &hold, &Process::default(), None).unwrap();
    }
    out.flush().unwrap();
    drop(out);
    let text = String::from_utf8(bytes).unwrap();
    let times: Vec<&str> = text.lines().skip(1).map(|line| &line[..12]).collect();
    assert_eq!(times, ["23:27:34.500", "23:59:59.999", "00:00:00.000"]);
}

#[test]
fn a_namespace_is_told_again_only_when_its_ports_change() {
    let netns = scene::netns();
    let text = text_of(false, |out| {
        out.netns(&netns).unwrap();
        out.netns(&Netns { tcp_tw_reuse: Some(0), ..netns.clone() }).unwrap();
        out.netns(&Netns { port_range: Some((40_000, 40_009)), ..netns.clone() }).unwrap();
        out.netns(&Netns { port_range: None, inode: 5, ..netns.clone() }).unwrap();
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "-- network namespace 4026531840: 28,220 automatic ports, 32768-60999 without 12 reserved ones",
            "-- network namespace 4026531840: 9 automatic ports, 40000-40009 without 1 reserved ones",
        ]
    );
}

#[test]
fn the_summary_names_the_most_frequent_failures_first() {
    let text = text_of(false, |out| {
        for (port, times) in [(80, 1), (81, 3), (82, 2), (83, 1), (84, 1)] {
            let mut hold = scene::hold(1, None);
            hold.endpoints.remote_port = Some(port);
            for _ in 0..times {
                let what = What::ConnectFailed { errno: Some(Errno(99)), is_abandoned: false };
                let event = scene::event(&hold, 0, what);
                out.event(&event, &hold, &Process::default(), Some("f (a.py:1)")).unwrap();
            }
        }
        let summary = Summary { duration_ns: 5_000_000_000, ended_by: "exit", ..Summary::default() };
        out.summary(&summary).unwrap();
    });
    let (_, end) = text.split_once("-- ").expect("a summary");
    assert_eq!(
        end,
        "traced for 5.0 s, ended by exit\n\
         No events.\n\
         Most frequent failures:\n  \
           3 x EADDRNOTAVAIL: connect to 10.0.0.9:81 by python3 at f (a.py:1)\n  \
           2 x EADDRNOTAVAIL: connect to 10.0.0.9:82 by python3 at f (a.py:1)\n  \
           1 x EADDRNOTAVAIL: connect to 10.0.0.9:80 by python3 at f (a.py:1)\n  \
           2 of other kinds\n\
         Nothing was lost.\n"
    );
}

#[test]
fn color_follows_the_flag_before_the_terminal() {
    let file = tempfile::tempfile().unwrap();
    assert!(Color::Always.is_on(&file));
    assert!(!Color::Never.is_on(&file));
    assert!(!Color::Auto.is_on(&file), "a file is no terminal");
}
