//! `portwatch doctor` on the machine that runs the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use serde_json::Value;

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portwatch")).arg("doctor").args(args).output().expect("portwatch starts")
}

fn json(output: &Output) -> Value {
    let text = str::from_utf8(&output.stdout).expect("JSON is UTF-8");
    assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
    serde_json::from_str(text).expect("JSON")
}

/// The exit code and what is said must be the same answer.
fn assert_consistent(report: &Value, code: Option<i32>) {
    let rungs = report["rungs"].as_array().expect("rungs");
    let names: Vec<_> = rungs.iter().map(|rung| rung["rung"].as_str().expect("name")).collect();
    assert_eq!(names, ["fentry", "kprobe", "tracepoint", "poll"]);
    let best = rungs.iter().find(|rung| rung["possible"] == true && rung["traces"] == true);
    assert_eq!(report["rung"], best.map_or(Value::Null, |rung| rung["rung"].clone()));
    assert_eq!(code, Some(if best.is_some() { 0 } else { 77 }));
    for rung in rungs.iter().filter(|rung| rung["possible"] == false) {
        assert!(rung["reason"].is_string() && rung["next"].is_string(), "{rung}");
    }
}

#[test]
fn json_is_one_object_that_agrees_with_the_exit_code() {
    let output = doctor(&["--json"]);
    let report = json(&output);
    assert_eq!((&report["type"], &report["version"]), (&"doctor".into(), &1.into()));
    assert_consistent(&report, output.status.code());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
    assert_eq!(report["kernel"], release.trim());

    let own = &report["namespaces"]["groups"][0];
    assert_eq!(own["is_own"], true);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("range");
    let range = range.split_whitespace().collect::<Vec<_>>().join("-");
    assert_eq!(
        (&own["settings"][0]["name"], &own["settings"][0]["value"]),
        (&"ip_local_port_range".into(), &range.into())
    );
}

#[test]
fn text_fits_a_terminal_and_is_plain_in_a_pipe() {
    let output = doctor(&[]);
    let text = String::from_utf8(output.stdout).expect("text is UTF-8");
    assert!(!text.contains('\x1b'));
    for line in text.lines() {
        // A word alone may be longer, as a path may be.
        assert!(line.chars().count() <= 100 || line.split_whitespace().count() <= 2, "{line}");
    }
    for part in ["ways to observe", "kernel", "privileges", "tcp_tw_reuse", "tracepoint"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let colored = doctor(&["--color", "always"]);
    let colored = String::from_utf8(colored.stdout).expect("text is UTF-8");
    assert!(colored.contains('\x1b'));
    assert!(!String::from_utf8(doctor(&["--color", "never"]).stdout).expect("UTF-8").contains('\x1b'));
}

#[test]
fn host_has_the_same_mounts_and_modules_afterwards() {
    let state = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mounts: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains("tracefs") || line.contains("securityfs"))
            .map(str::to_owned)
            .collect();
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let modules: Vec<_> = modules
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.ends_with("_diag"))
            .map(str::to_owned)
            .collect();
        (mounts, modules)
    };
    let before = state();
    doctor(&["--json"]);
    assert_eq!(state(), before);
}

#[test]
fn without_privileges_it_says_how_to_get_them_and_ends_with_77() {
    if !geteuid().is_root() {
        println!("SKIP without_privileges: only root can become somebody else");
        return;
    }
    // The build directory may be out of reach for nobody.
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let program = dir.path().join("portwatch");
    fs::copy(Path::new(env!("CARGO_BIN_EXE_portwatch")), &program).expect("copy");
    let output =
        Command::new(&program).args(["doctor", "--json"]).current_dir("/").uid(65534).gid(65534).output();
    let output = output.expect("portwatch starts");
    let report = json(&output);
    assert_consistent(&report, output.status.code());
    assert_eq!((output.status.code(), &report["rung"]), (Some(77), &Value::Null));
    let next = report["rungs"][0]["next"].as_str().expect("advice");
    assert!(next.contains("sudo portwatch") && next.contains("cap_bpf"), "{next}");
}
