//! Verdicts on clients that behave well and badly, side by side.

use super::report::{Finding, Report, Severity};
use super::scene::{CLIENT, Client, MS, S, Scene};
use super::*;
use crate::recording::format::{EventType, How, Proto};

fn report(scene: &Scene, until_ns: i64) -> Report {
    diagnose(&scene.ledger(until_ns))
}

fn verdicts(report: &Report) -> Vec<&str> {
    report.findings.iter().map(|finding| finding.verdict).collect()
}

#[track_caller]
fn only<'a>(report: &'a Report, verdict: &str) -> &'a Finding {
    assert_eq!(verdicts(report), [verdict]);
    &report.findings[0]
}

#[track_caller]
fn healthy(scene: &Scene, until_ns: i64) {
    let report = report(scene, until_ns);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn a_connection_per_request_is_found_whoever_closes_first() {
    for has_time_wait in [true, false] {
        let mut scene = Scene { has_time_wait, ..Scene::default() };
        for n in 0..60 {
            scene.connection(CLIENT, n * 50 * MS, Some(5 * MS));
        }
        let report = report(&scene, 3 * S);
        let finding = only(&report, "connect-per-request");
        assert_eq!((finding.pid, finding.destination.as_deref()), (Some(4711), Some("10.0.0.9:5432")));
        assert_eq!(finding.call_site.as_deref(), Some("fetch (client.py:42)"));
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(finding.evidence["connections"], 60.0);
        assert_eq!(finding.evidence["connections_avoidable"], 59.0);
        let row = &report.call_sites[0];
        assert_eq!((row.connections, row.held_now), (60, if has_time_wait { 60 } else { 0 }));
        let closer = if has_time_wait { "local" } else { "remote" };
        assert_eq!(row.closers[closer], 60);
    }
}

#[test]
fn pools_ramps_bursts_health_checks_and_heartbeats_are_healthy() {
    // A pool of 32 that is opened within half a second and kept.
    let mut pool = Scene::default();
    for n in 0..32 {
        pool.connection(CLIENT, n * 15 * MS, None);
    }
    healthy(&pool, 10 * S);
    healthy(&pool, 3 * S);

    // One that grows for two seconds with the load, and then has what it needs.
    let mut ramp = Scene::default();
    for n in 0..40 {
        ramp.connection(CLIENT, n * 50 * MS, None);
    }
    healthy(&ramp, 10 * S);

    // A load generator: all at once, kept to the end, closed together.
    let mut generator = Scene::default();
    for n in 0..200 {
        generator.connection_sending(CLIENT, n * MS, Some(8 * S), 400_000);
    }
    healthy(&generator, 9 * S);

    // The same against a server that ends each connection after a thousand requests.
    let mut replaced = Scene { has_time_wait: false, ..Scene::default() };
    for n in 0..300 {
        for lane in 0..10 {
            replaced.connection_sending(CLIENT, n * 300 * MS + lane * MS, Some(299 * MS), 100_000);
        }
    }
    healthy(&replaced, 90 * S);

    // A health check every two seconds, for ten minutes.
    let mut check = Scene::default();
    for n in 0..300 {
        check.connection(CLIENT, n * 2 * S, Some(3 * MS));
    }
    healthy(&check, 600 * S);

    // Start-up: forty lookups of settings, then nothing.
    let mut start = Scene::default();
    for n in 0..40 {
        start.connection(CLIENT, n * 20 * MS, Some(5 * MS));
    }
    healthy(&start, 60 * S);

    // A pool that replaces connections after half a minute idle.
    let mut idle = Scene::default();
    for n in 0..20 {
        for lane in 0..8 {
            idle.connection(CLIENT, n * 31 * S + lane * 50 * MS, Some(30 * S));
        }
    }
    healthy(&idle, 620 * S);

    // A balancer that checks eight servers every second, and a pool that is replaced under load.
    let mut balancer = Scene::default();
    for n in 0..480_i64 {
        balancer.server.0 = std::net::Ipv4Addr::new(10, 0, 3, (n % 8) as u8).into();
        balancer.connection(CLIENT, n * 125 * MS, Some(2 * MS));
    }
    healthy(&balancer, 60 * S);
    let mut replaced = Scene::default();
    for n in 0..30_u64 {
        let mut old = replaced.event(EventType::Preexisting, 0, 1_000 + n, CLIENT);
        (old.state, old.call_site) = (Some("established".into()), Some(CLIENT.call_site.into()));
        replaced.push(old);
        for kind in [EventType::Closed, EventType::PortReleased] {
            let at_ns = n as i64 * 50 * MS;
            replaced.push(replaced.event(kind, at_ns + MS, 1_000 + n, CLIENT));
        }
        replaced.connection(CLIENT, n as i64 * 50 * MS, None);
    }
    healthy(&replaced, 3 * S);

    // Fifty requests at once, each with a connection, once.
    let mut burst = Scene::default();
    for n in 0..50 {
        burst.connection(CLIENT, n * MS / 10, Some(100 * MS));
    }
    healthy(&burst, 3 * S);
    healthy(&Scene::default(), S);
}

#[test]
fn a_loop_of_short_lived_children_is_one_finding_on_their_parent() {
    let curl =
        |pid, ppid| Client { pid, ppid, exe: "/usr/bin/curl", call_site: "Curl_connect (cf-socket.c:1)" };
    let mut direct = Scene::default();
    direct.parent(300, 299, "/usr/bin/bash");
    let mut wrapped = Scene::default();
    wrapped.parent(300, 299, "/usr/bin/bash");
    for n in 0..40_u32 {
        let at_ns = i64::from(n) * 40 * MS;
        direct.connection(curl(1_000 + n, 300), at_ns, Some(10 * MS));
        wrapped.parent(2_000 + n, 300, "/usr/bin/timeout");
        wrapped.connection(curl(1_000 + n, 2_000 + n), at_ns, Some(10 * MS));
    }
    for scene in [direct, wrapped] {
        let report = report(&scene, 2 * S);
        let finding = only(&report, "connect-per-request");
        let parent = finding.parent.as_ref().unwrap();
        assert_eq!((finding.pid, finding.children), (None, Some(40)));
        assert_eq!((parent.pid, parent.comm.as_deref()), (300, Some("bash")));
        assert_eq!(finding.advice_id, "curl-loop");
        assert_eq!(report.call_sites.len(), 1);
    }
}

#[test]
fn workers_share_a_finding_and_a_healthy_one_beside_them_has_no_part_in_it() {
    let mut scene = Scene::default();
    for worker in 0..3 {
        let client = Client { pid: 5_000 + worker, ..CLIENT };
        for n in 0..100 {
            scene.connection(client, n * 30 * MS + i64::from(worker) * MS, Some(4 * MS));
        }
    }
    scene.connection(Client { pid: 5_009, ..CLIENT }, 0, None);
    let whole = report(&scene, 3 * S);
    let finding = only(&whole, "connect-per-request");
    let mut pids: Vec<_> = finding.workers.iter().map(|worker| worker.pid.unwrap()).collect();
    pids.sort_unstable();
    assert_eq!((finding.pid, finding.children, pids), (None, None, vec![5_000, 5_001, 5_002]));
    assert!((finding.workers.iter().map(|worker| worker.share).sum::<f64>() - 1.0).abs() < 0.01);

    // One that churns beside one that does not.
    let mut pair = Scene::default();
    for n in 0..100 {
        pair.connection(CLIENT, n * 30 * MS, Some(4 * MS));
    }
    pair.connection(Client { pid: 4_712, ..CLIENT }, 0, None);
    assert_eq!(only(&report(&pair, 3 * S), "connect-per-request").pid, Some(4711));
}

#[test]
fn a_service_behind_several_addresses_is_one_finding() {
    let mut scene = Scene::default();
    for n in 0..120_i64 {
        scene.server.0 = std::net::Ipv4Addr::new(10, 0, 1, (n % 10) as u8).into();
        scene.connection(CLIENT, n * 25 * MS, Some(4 * MS));
    }
    let report = report(&scene, 3 * S);
    let finding = only(&report, "connect-per-request");
    assert_eq!((finding.destination.as_deref(), finding.evidence["destinations"]), (None, 10.0));
}

#[test]
fn a_crawler_is_spread_and_nothing_worse() {
    let mut scene = Scene::default();
    for n in 0..200_i64 {
        scene.server.0 = std::net::Ipv4Addr::new(10, 0, 2, (n / 2) as u8).into();
        scene.connection(CLIENT, n * 20 * MS, Some(15 * MS));
    }
    let report = report(&scene, 5 * S);
    assert_eq!(only(&report, "spread").severity, Severity::Info);
}

#[test]
fn connections_that_are_never_closed_are_a_leak_also_when_the_process_ends_with_them() {
    let mut open = Scene::default();
    let mut ended = Scene::default();
    for n in 0..60 {
        open.connection(CLIENT, n * 50 * MS, None);
        ended.connection(CLIENT, n * 50 * MS, Some(3 * S + 100 * MS - n * 50 * MS));
    }
    let whole = report(&open, 3 * S);
    let finding = only(&whole, "connection-leak");
    assert_eq!(finding.evidence["live_now"], 60.0);
    only(&report(&ended, 4 * S), "connection-leak");
    // Attempts that nobody answers are no connections.
    let mut unanswered = Scene::default();
    for n in 0..60_u64 {
        let attempt = unanswered.event(EventType::PortAllocated, n as i64 * 50 * MS, n + 1, CLIENT);
        unanswered.push(crate::recording::format::Event { how: Some(How::Connect), ..attempt });
    }
    healthy(&unanswered, 3 * S);
    // Seen from the middle of a long one.
    let mut slow = Scene::default();
    for n in 0..300 {
        slow.connection(CLIENT, n * 2 * S, None);
    }
    only(&report(&slow, 600 * S), "connection-leak");
}

#[test]
fn refused_connects_are_a_storm_and_a_wait_is_not() {
    let mut storm = Scene::default();
    for n in 0..60 {
        storm.failure(CLIENT, n * 20 * MS, "ECONNREFUSED", true);
    }
    assert_eq!(only(&report(&storm, 2 * S), "refused-storm").evidence["refused"], 60.0);
    // Every half second for a minute, or every 100 ms until the service is up.
    let mut patient = Scene::default();
    for n in 0..120 {
        patient.failure(CLIENT, n * 500 * MS, "ECONNREFUSED", true);
    }
    healthy(&patient, 60 * S);
    let mut wait = Scene::default();
    for n in 0..50 {
        wait.failure(CLIENT, n * 100 * MS, "ECONNREFUSED", true);
    }
    wait.connection(CLIENT, 5 * S, None);
    healthy(&wait, 8 * S);
}

#[test]
fn a_connect_without_a_port_is_exhaustion_and_a_taken_port_a_conflict() {
    let mut scene = Scene::default();
    scene.settings.port_range = Some((40_000, 40_099));
    for n in 0..100 {
        scene.connection(CLIENT, n * 5 * MS, Some(2 * MS));
    }
    for n in 0..10 {
        scene.failure(CLIENT, 600 * MS + n * MS, "EADDRNOTAVAIL", false);
    }
    let whole = report(&scene, S);
    assert_eq!(verdicts(&whole), ["exhaustion", "connect-per-request"]);
    let (finding, pool) = (&whole.findings[0], &whole.pools[0]);
    assert_eq!((finding.severity, finding.evidence["failures_no_port"]), (Severity::Critical, 10.0));
    assert_eq!((pool.capacity, pool.utilization, pool.past_half), (Some(100), Some(1.0), true));
    let reuse = finding.knobs.iter().find(|knob| knob.sysctl.ends_with("tcp_tw_reuse")).unwrap();
    assert!(reuse.sustainable_per_s.unwrap() > 30.0 * pool.sustainable_per_s.unwrap());
    let nothing = finding.knobs.iter().find(|knob| knob.sysctl.ends_with("tcp_fin_timeout")).unwrap();
    assert_eq!(nothing.sustainable_per_s, None);

    let mut taken = Scene::default();
    let mut failed = taken.event(EventType::BindFailed, MS, 7, CLIENT);
    (failed.raddr, failed.rport, failed.lport) = (None, None, Some(8080));
    (failed.how, failed.errno) = (Some(How::Bind), Some("EADDRINUSE".into()));
    taken.push(failed.clone());
    assert_eq!(only(&report(&taken, S), "bind-conflict").evidence["port"], 8080.0);
    // The next port was free.
    let mut bound = taken.event(EventType::PortAllocated, 2 * MS, 8, CLIENT);
    (bound.raddr, bound.rport, bound.lport, bound.how) = (None, None, Some(8081), Some(How::Bind));
    taken.push(bound);
    healthy(&taken, S);
}

#[test]
fn binds_without_a_number_take_the_range_away() {
    let mut scene = Scene::default();
    scene.settings.port_range = Some((40_000, 40_039));
    for n in 0..40_u16 {
        let mut bound = scene.event(EventType::PortAllocated, i64::from(n) * MS, 100 + u64::from(n), CLIENT);
        (bound.raddr, bound.rport, bound.how) = (None, None, Some(How::Bind));
        bound.lport = Some(40_000 + n);
        scene.push(bound);
    }
    scene.failure(CLIENT, 50 * MS, "EADDRNOTAVAIL", false);
    let report = report(&scene, S);
    assert_eq!(verdicts(&report), ["bind-conflict", "exhaustion"]);
    let ids: Vec<&str> = report.findings.iter().map(|finding| finding.advice_id.as_str()).collect();
    assert_eq!(ids, ["taken-from-range", "bind-before-connect"]);
    assert_eq!((report.pools[0].capacity, report.pools[0].in_use.bound), (Some(0), Some(40)));
}

#[test]
fn a_udp_socket_per_query_is_found_and_a_few_lookups_are_not() {
    let scene = |queries: i64, every_ns: i64| {
        let mut scene = Scene { proto: Proto::Udp, ..Scene::default() };
        scene.server.1 = 53;
        for n in 0..queries {
            scene.connection(CLIENT, n * every_ns, Some(3 * MS));
        }
        scene
    };
    let found = report(&scene(200, 10 * MS), 3 * S);
    assert_eq!(only(&found, "udp-per-query").advice_id, "resolver");
    healthy(&scene(60, 500 * MS), 30 * S);
    // getaddrinfo() tries each address with a UDP socket, and then TCP connects there.
    let mut sorted = scene(200, 10 * MS);
    sorted.proto = Proto::Tcp;
    sorted.connection(CLIENT, 0, None);
    healthy(&sorted, 3 * S);
}

/// Steady churn towards a range that is too small: from half-way on the forecast is within 20 %.
#[test]
fn a_forecast_is_right_from_half_way_on() {
    for (ports, per_s) in [(400_u16, 40_i64), (1_000, 500), (4_000, 90)] {
        let mut scene = Scene::default();
        scene.settings.port_range = Some((32_768, 32_767 + ports));
        let every_ns = S / per_s;
        let full_ns = i64::from(ports) * every_ns;
        for n in 0..i64::from(ports) {
            // Not in step with anything.
            let jitter_ns = (n * 7_919 % 13) * every_ns / 13;
            scene.connection(CLIENT, n * every_ns + jitter_ns, Some(2 * MS));
        }
        for tenths in 5..10 {
            let now_ns = full_ns * tenths / 10;
            let report = report(&scene, now_ns);
            let forecast = report.pools[0].exhaustion_in_s.expect("it will run out");
            let truth = (full_ns - now_ns) as f64 / 1e9;
            assert!(
                (forecast - truth).abs() <= 0.2 * truth + 0.2,
                "{ports} ports, {per_s}/s, at {tenths}/10: {forecast} instead of {truth}"
            );
            let (from, to) = report.pools[0].exhaustion_in_s_range.unwrap();
            assert!(from <= truth && truth <= to, "{from} to {to}: {truth}");
        }
    }
}

#[test]
fn what_levels_off_or_can_be_reused_never_runs_out() {
    // 100 a second leave 6 000 TIME_WAITs, of 28 232 ports.
    let mut level = Scene::default();
    for n in 0..6_000 {
        level.connection(CLIENT, n * 10 * MS, Some(2 * MS));
    }
    let pool = report(&level, 60 * S).pools.remove(0);
    assert_eq!(pool.exhaustion_in_s, None, "{pool:?}");
    assert!((pool.sustainable_per_s.unwrap() - 470.5).abs() < 1.0, "{pool:?}");

    // On loopback a connect takes the port of an old TIME_WAIT over.
    let mut loopback = Scene { laddr: std::net::Ipv4Addr::LOCALHOST.into(), ..Default::default() };
    loopback.server.0 = loopback.laddr;
    loopback.settings.port_range = Some((40_000, 40_999));
    for n in 0..600 {
        loopback.connection(CLIENT, n * 5 * MS, Some(2 * MS));
    }
    let pool = report(&loopback, 3 * S).pools.remove(0);
    assert!(pool.inputs.time_wait_is_reusable);
    assert_eq!(pool.exhaustion_in_s, None, "{pool:?}");
}

#[test]
fn a_pool_has_its_capacity_from_the_namespace_and_counts_live_and_waiting() {
    let mut scene = Scene::default();
    scene.settings.reserved = Some(vec![(32_768, 32_777), (32_770, 32_787), (10, 20)]);
    scene.settings.bind_ports = Some(vec![40_000, 40_001, 22, 32_770]);
    for n in 0..30 {
        scene.connection(CLIENT, n * 10 * MS, Some(5 * MS));
        scene.connection(CLIENT, n * 10 * MS, None);
    }
    let pool = report(&scene, S).pools.remove(0);
    assert_eq!(pool.capacity, Some(28_232 - 20 - 2));
    assert_eq!((pool.in_use.live, pool.in_use.time_wait, pool.in_use.bound), (30, 30, Some(2)));

    scene.settings.bind_ports = None;
    let pool = report(&scene, S).pools.remove(0);
    assert_eq!((pool.in_use.bound, pool.inputs.capacity_is_upper_bound), (None, true));
}

#[test]
fn a_log_without_its_end_says_so_and_several_are_added_up() {
    let mut scene = Scene::default();
    for n in 0..60 {
        scene.connection(CLIENT, n * 50 * MS, Some(5 * MS));
    }
    let mut ledger = Ledger::default();
    for _ in 0..2 {
        ledger.begin(&Scene::header());
        scene.lines(3 * S).iter().for_each(|line| ledger.line(line));
    }
    ledger.end();
    let report = diagnose(&ledger);
    assert_eq!((report.window.complete, report.window.cut_short), (false, 2));
    assert_eq!(report.call_sites[0].connections, 120);
    assert_eq!(report.pools[0].in_use.time_wait, 60, "what the first log left open is over");
}

#[test]
fn hostile_names_do_nothing_to_a_terminal_or_a_table() {
    let hostile = Client {
        exe: "/tmp/a\u{1b}[2J|`x\n",
        call_site: "f\u{1b}]0;owned\u{7} (|`a.py:1)\n# no heading",
        ..CLIENT
    };
    let mut scene = Scene::default();
    for n in 0..60 {
        scene.connection(hostile, n * 50 * MS, Some(5 * MS));
    }
    let report = report(&scene, 3 * S);
    assert_eq!(report.findings.len(), 1);
    for page in
        [crate::output::report::text(&report, 10, false), crate::output::report::markdown(&report, 10)]
    {
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page}");
        assert!(!page.contains("\n# no heading"), "{page}");
    }
}

/// One screen of a terminal.
#[test]
fn the_text_fits_a_hundred_columns() {
    let mut scene = Scene::default();
    for n in 0..60_i64 {
        scene.server = ("2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff".parse().unwrap(), 5432);
        scene.laddr = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:1".parse().unwrap();
        scene.connection(
            Client { call_site: "a_rather_long_function_name::of_a_module::and_more (a/rather/long/path/to/some/file/of/a/program.rs:1234)", ..CLIENT },
            n * 50 * MS,
            Some(5 * MS),
        );
    }
    let page = crate::output::report::text(&report(&scene, 3 * S), 10, false);
    let too_wide: Vec<&str> =
        page.lines().filter(|line| line.chars().count() > 100 && !line.contains("2001:")).collect();
    assert!(too_wide.is_empty(), "{too_wide:#?}");
    assert!(page.lines().count() <= 24, "{page}");
}
