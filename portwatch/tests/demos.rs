//! `portwatch demo`: each ends by itself and does what it says, whoever runs it; and the log shows its problem.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;

const PORTWATCH: &str = env!("CARGO_BIN_EXE_portwatch");

/// One demonstration with `connections`, and how often each of these must be in its log, beside the server's own port.
struct Demo {
    name: &'static str,
    connections: u32,
    /// type, errno, count
    lines: &'static [(&'static str, Option<&'static str>, usize)],
}

const DEMOS: &[Demo] = &[
    Demo { name: "churn", connections: 20, lines: &[("established", None, 20), ("time_wait", None, 20)] },
    // Nothing waits on the client's side.
    Demo {
        name: "server-close",
        connections: 20,
        lines: &[("established", None, 20), ("time_wait", None, 0)],
    },
    Demo { name: "leak", connections: 20, lines: &[("established", None, 20)] },
    Demo {
        name: "exhaustion",
        connections: 110,
        lines: &[("established", None, 100), ("connect_failed", Some("EADDRNOTAVAIL"), 10)],
    },
    Demo {
        name: "bind-bucket",
        connections: 100,
        lines: &[("established", None, 100), ("connect_failed", Some("EADDRNOTAVAIL"), 20)],
    },
    Demo { name: "refused", connections: 20, lines: &[("connect_failed", Some("ECONNREFUSED"), 20)] },
    Demo { name: "spread", connections: 20, lines: &[("established", None, 20)] },
    Demo { name: "healthy", connections: 100, lines: &[("established", None, 5)] },
    // The tracepoint rung does not see the sockets that their first datagram binds.
    Demo { name: "udp", connections: 20, lines: &[("established", None, 0), ("connect_failed", None, 0)] },
];

/// Lines of a log by type and errno.
fn count(log: &Path) -> BTreeMap<(String, Option<String>), usize> {
    let text = std::fs::read_to_string(log).expect("a log");
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        *counts.entry((text("type").expect("type"), text("errno"))).or_default() += 1;
    }
    counts
}

#[test]
fn every_demonstration_shows_its_problem_in_the_log() {
    if !geteuid().is_root() {
        println!("SKIP every_demonstration_shows_its_problem_in_the_log: only root may trace");
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    for demo in DEMOS {
        let log = directory.path().join(format!("{}.jsonl", demo.name));
        let mut portwatch = Command::new(PORTWATCH);
        portwatch.args(["record", "-o"]).arg(&log).args([
            "--",
            PORTWATCH,
            "demo",
            demo.name,
            "--workload-only",
        ]);
        let output =
            portwatch.args(["--connections", &demo.connections.to_string()]).output().expect("starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {} {stderr}", demo.name, output.status);
        let counts = count(&log);
        for (kind, errno, expected) in demo.lines {
            let key = ((*kind).to_owned(), errno.map(str::to_owned));
            let found = counts.get(&key).copied().unwrap_or(0);
            assert_eq!(found, *expected, "{}: {key:?} in {counts:?}", demo.name);
        }
        if demo.name == "udp" {
            let key = ("port_allocated".to_owned(), None);
            // Every second query connects; the server is one more.
            assert!(counts[&key] as u32 > demo.connections / 2, "{counts:?}");
        }
    }
}

/// Those that need no namespace of their own run for everybody, wherever they may not have one.
#[test]
fn demonstrations_need_no_privilege() {
    if !geteuid().is_root() {
        println!("SKIP demonstrations_need_no_privilege: only root can become somebody else");
        return;
    }
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in("/tmp")
        .expect("directory");
    let program = directory.path().join("portwatch");
    std::fs::copy(PORTWATCH, &program).expect("copy");
    for demo in DEMOS {
        let mut portwatch = Command::new(&program);
        portwatch.args(["demo", demo.name, "--workload-only", "--connections", "20"]);
        let output = portwatch.current_dir("/").uid(65534).gid(65534).output().expect("starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_refused = output.status.code() == Some(77) && stderr.contains("user namespaces");
        let may_be_refused = ["exhaustion", "bind-bucket"].contains(&demo.name);
        assert!(output.status.success() || (may_be_refused && is_refused), "{}: {stderr}", demo.name);
    }
}

/// On the tracepoint rung the ends of UDP sockets are learned too late to tell short lives from long ones.
const VERDICTS: &[(&str, Option<&str>)] = &[
    ("churn", Some("connect-per-request")),
    ("server-close", Some("connect-per-request")),
    ("leak", Some("connection-leak")),
    ("exhaustion", Some("exhaustion")),
    ("bind-bucket", Some("exhaustion")),
    ("refused", Some("refused-storm")),
    ("spread", Some("spread")),
    ("healthy", None),
];

#[test]
fn every_demonstration_gets_its_verdict() {
    if !geteuid().is_root() {
        println!("SKIP every_demonstration_gets_its_verdict: only root may trace");
        return;
    }
    for (demo, verdict) in VERDICTS {
        let output = Command::new(PORTWATCH)
            .args(["report", "--format", "json", "--", PORTWATCH, "demo", demo, "--workload-only"])
            .output()
            .expect("starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{demo}: {error}: {stderr}"));
        let findings = report["findings"].as_array().expect("findings");
        let verdicts: Vec<_> = findings.iter().filter_map(|finding| finding["verdict"].as_str()).collect();
        match verdict {
            Some(verdict) => assert_eq!(verdicts.first(), Some(verdict), "{demo}: {findings:#?}"),
            None => assert!(verdicts.is_empty(), "{demo}: {findings:#?}"),
        }
    }
}
