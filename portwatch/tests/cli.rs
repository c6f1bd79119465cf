//! Runs the command: help, messages, exit codes; and holds the documents to what the code says.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use portwatch::bpf::Rung;
use portwatch::session;
use portwatch_common::counters::MISS_NAMES;
use portwatch_common::wire::EVENT_NAMES;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_portwatch");

/// No process has it: above what any Linux allows.
const NO_PID: &str = "4194305";

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().expect("portwatch starts")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("portwatch writes UTF-8")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

/// The command failed with `code`, wrote no data, and said what happened and what to do next, once each.
fn assert_refused(output: &Output, code: i32, what: &str, next: &str) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(message.starts_with("error: "), "{message}");
    assert!(message.contains(what), "no `{what}` in: {message}");
    assert_eq!(message.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{message}");
    let advice = message.split_once("\n  next: ").map(|(_, advice)| advice);
    assert!(
        advice.is_some_and(|advice| advice.contains(next)),
        "no `{next}` as what to do next in: {message}"
    );
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    let table: &[(&str, &str, &str)] = &[
        (
            "trace --rung sideways",
            "unknown rung `sideways`; there are `fentry`, `kprobe` and `tracepoint`",
            "trace --help",
        ),
        ("trace --dst 10.0.0.0/33", "`10.0.0.0/33` is not a network", "trace --help"),
        ("trace --src fd00::/129", "`fd00::/129` is not a network", "trace --help"),
        ("trace --dport 80,x", "`x` is not a port", "trace --help"),
        ("trace --dport 65536", "`65536` is not a port", "trace --help"),
        ("trace --lport 2000-1000", "the range `2000-1000` is empty", "trace --help"),
        ("trace -e opened", "unknown event `opened`", "port_allocated"),
        ("trace -Z -e closed", "leaves nothing", "leave one of them out"),
        ("trace --proto udp", "UDP is not traced", "--proto tcp"),
        ("trace --proto dccp", "unknown protocol `dccp`", "--proto tcp"),
        ("trace -p self", "`self` is not a process id", "trace --help"),
        ("trace -p 0", "`0` is not a process id", "trace --help"),
        ("trace --uid nobody", "`nobody` is not a user id", "trace --help"),
        ("trace -f", "--pid", "trace --help"),
        ("trace -4 -6", "cannot be used with", "trace --help"),
        ("trace -d 0", "`0` is not a time", "trace --help"),
        ("trace --count 0", "0 is not in 1..", "trace --help"),
        ("trace --ring-mib 3", "`3` is not a size", "trace --help"),
        ("trace --comm [a", "opens a `[` that it does not close", "write `\\[`"),
        ("trace --format xml", "invalid value 'xml'", "trace --help"),
        ("record -d 1", "--output", "record --help"),
        ("record -o log.csv", "cannot tell the format of `log.csv`", "`.jsonl.zst`"),
        ("record -o log", "cannot tell the format of `log`", "`.jsonl`"),
        ("demo storm", "invalid value 'storm'", "demo --help"),
        ("demo churn --connections 0", "0 is not in 1..", "demo --help"),
        ("watch", "unrecognized subcommand 'watch'", "portwatch --help"),
    ];
    let directory = directory();
    for (command, what, next) in table {
        let mut portwatch = Command::new(PROGRAM);
        let output =
            portwatch.args(command.split(' ')).current_dir(&directory).output().expect("portwatch starts");
        assert_refused(&output, 2, what, next);
    }
    assert_eq!(fs::read_dir(&directory).expect("directory").count(), 0, "nothing is left behind");
}

#[test]
fn a_target_that_is_not_there_is_1() {
    let not_a_namespace = directory().path().join("ns");
    let table: &[(&[&str], &str, &str)] = &[
        (&["trace", "-p", NO_PID], "there is no such process", "pgrep"),
        (&["trace", "--netns", NO_PID], "cannot use `--netns 4194305`", "give the PID"),
        (&["trace", "--netns", "nonsense"], "cannot use `--netns nonsense`", "/run/netns/NAME"),
        (&["trace", "--netns", "/proc/self/status"], "not a network namespace", "/run/netns/NAME"),
        (&["trace", "--netns", not_a_namespace.to_str().expect("UTF-8")], "No such file", "/run/netns/NAME"),
    ];
    for (args, what, next) in table {
        assert_refused(&run(*args), 1, what, next);
    }
}

#[test]
fn hostile_arguments_do_nothing_to_the_terminal() {
    let output = run(["trace", "--netns", "\x1b]0;owned\x07", "-e", "\x1b[2J"]);
    let message = text(&output.stderr);
    assert!(!message.contains('\x1b') && message.contains("\\u{1b}"), "{message:?}");
    for flag in ["-e", "--rung", "--dst", "--\x1b[2J", "--format"] {
        let output = run(["trace", flag, "\x1b[2J"]);
        assert!(!text(&output.stderr).contains('\x1b'), "{flag}: {:?}", text(&output.stderr));
    }
}

/// A portwatch that anybody can run, and a directory that anybody can enter.
fn for_everybody() -> (TempDir, PathBuf) {
    // The build directory may be out of reach for others.
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let program = directory.path().join("portwatch");
    fs::copy(PROGRAM, &program).expect("copy");
    (directory, program)
}

#[test]
fn without_privilege_it_is_77_and_nothing_is_left_behind() {
    if !geteuid().is_root() {
        println!("SKIP without_privilege_it_is_77: only root can become somebody else");
        return;
    }
    let (directory, program) = for_everybody();
    let place = directory.path().join("open");
    fs::create_dir(&place).expect("directory");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).expect("permissions");
    for args in [&["trace", "-d", "1"][..], &["record", "-o", "a.jsonl", "-d", "1"], &["demo", "churn"]] {
        let mut portwatch = Command::new(&program);
        let output = portwatch.args(args).current_dir(&place).uid(65534).gid(65534).output();
        assert_refused(&output.expect("portwatch starts"), 77, "cannot trace on any rung", "run it as root");
    }
    assert_eq!(fs::read_dir(&place).expect("directory").count(), 0, "nothing is left behind");
}

/// The rungs that this host can do and those that it cannot, as `doctor` says; empty without privilege.
fn rungs() -> (Vec<String>, Vec<String>) {
    let report: serde_json::Value = serde_json::from_slice(&run(["doctor", "--json"]).stdout).expect("JSON");
    let rungs = report["rungs"].as_array().expect("rungs").iter().filter(|rung| rung["traces"] == true);
    let (can, cannot): (Vec<_>, Vec<_>) = rungs.partition(|rung| rung["possible"] == true);
    let names = |rungs: Vec<&serde_json::Value>| {
        rungs.iter().map(|rung| rung["rung"].as_str().expect("name").to_owned()).collect()
    };
    (names(can), names(cannot))
}

#[test]
fn a_forced_rung_that_the_host_cannot_do_is_77() {
    let (_, cannot) = rungs();
    if cannot.is_empty() {
        println!("SKIP a_forced_rung_that_the_host_cannot_do_is_77: this host can do every one");
    }
    for rung in cannot {
        let output = run(["trace", "--rung", &rung, "-d", "1"]);
        assert_refused(&output, 77, &format!("cannot trace on rung `{rung}`"), "portwatch doctor");
    }
}

/// Whether tracing works here; says that a test is skipped where it does not.
fn can_trace(test: &str) -> bool {
    let (can, _) = rungs();
    if can.is_empty() {
        println!("SKIP {test}: this process may not trace; run it as root");
    }
    !can.is_empty()
}

#[test]
fn a_file_that_cannot_be_written_is_1_and_stays_as_it_was() {
    if !can_trace("a_file_that_cannot_be_written_is_1") {
        return;
    }
    let directory = directory();
    let full = directory.path().join("full.jsonl");
    fs::write(&full, "precious").expect("write");
    let full = full.to_str().expect("UTF-8");
    assert_refused(&run(["record", "-o", full, "-d", "1"]), 1, "is not empty", "--force");
    assert_eq!(fs::read_to_string(full).expect("still there"), "precious");

    let nowhere = directory.path().join("no/such/place/a.jsonl");
    let nowhere = nowhere.to_str().expect("UTF-8");
    assert_refused(&run(["record", "-o", nowhere, "-d", "1"]), 1, "cannot create", "choose a place");
    // Not even root writes here.
    assert_refused(&run(["record", "-o", "/proc/a.jsonl", "-d", "1"]), 1, "cannot create", "choose a place");
}

#[test]
fn a_forced_file_is_overwritten_by_a_whole_log() {
    if !can_trace("a_forced_file_is_overwritten") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    fs::write(&path, "old\n").expect("write");
    let output = run(["record", "--force", "-d", "0.1", "-o", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "data goes to the file alone");
    let log = fs::read_to_string(&path).expect("log");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["type"], &lines[0]["schema"]), (&"header".into(), &"portwatch".into()));
    let last = lines.last().expect("summary");
    assert_eq!((&last["type"], &last["ended_by"]), (&"summary".into(), &"duration".into()));
}

#[test]
fn a_closed_pipe_is_success() {
    if !can_trace("a_closed_pipe_is_success") {
        return;
    }
    for format in ["text", "jsonl"] {
        let mut portwatch = Command::new(PROGRAM);
        let mut portwatch = portwatch
            .args(["trace", "--format", format, "-d", "60"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("portwatch starts");
        // The header is written to nobody, or the next line is: whichever comes, it ends the run long before its time.
        drop(portwatch.stdout.take());
        // Something to tell of.
        let begun = Instant::now();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let ended = loop {
            if let Some(status) = portwatch.try_wait().expect("wait") {
                break status;
            }
            drop(std::net::TcpStream::connect(address).expect("connect"));
            drop(listener.accept().expect("accept"));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(ended.code(), Some(0), "{format}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{format}: it ended by its own time limit");
    }
}

#[test]
fn the_commands_own_status_is_passed_on() {
    if !can_trace("the_commands_own_status_is_passed_on") {
        return;
    }
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        let output = run(["trace", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("portwatch: tracing rung="), "{}", text(&output.stderr));
    }
    let output = run(["trace", "--", "/no/such/program"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("cannot run `/no/such/program`") && message.contains("\n  next: "), "{message}");
}

#[test]
fn help_is_on_stdout_with_examples_and_fits_a_terminal() {
    let version = run(["--version"]);
    assert_eq!(text(&version.stdout), format!("portwatch {}\n", env!("CARGO_PKG_VERSION")));
    for args in [
        &["--help"][..],
        &["trace", "--help"],
        &["record", "--help"],
        &["demo", "--help"],
        &["doctor", "--help"],
    ] {
        let output = run(args);
        let help = text(&output.stdout);
        assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true), "{args:?}");
        assert!(help.contains("Examples:"), "{args:?}: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{args:?}: {line}");
        }
    }
    let output = run::<&str>([]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("portwatch doctor"), "no arguments: the help");
}

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Documents for users, all of them.
fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<String> = ["README.md", "ARCHITECTURE.md"].map(str::to_owned).to_vec();
    for place in ["docs", "docs/commands", "docs/events"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(place);
        let names =
            fs::read_dir(directory).expect("documents").map(|entry| entry.expect("entry").file_name());
        let names = names.map(|name| name.into_string().expect("UTF-8")).filter(|name| name.ends_with(".md"));
        paths.extend(names.map(|name| format!("{place}/{name}")));
    }
    paths.into_iter().map(|path| (document(&path), path)).map(|(text, path)| (path, text)).collect()
}

#[test]
fn every_event_has_a_page() {
    let index = document("docs/events/README.md");
    for name in EVENT_NAMES {
        assert!(document(&format!("docs/events/{name}.md")).starts_with(&format!("# {name}\n")), "{name}");
        assert!(index.contains(&format!("[{name}]({name}.md)")), "{name}");
    }
}

#[test]
fn every_reason_for_a_loss_is_explained() {
    let page = document("docs/how-it-works.md");
    for reason in MISS_NAMES.into_iter().chain(["not_run"]) {
        assert!(page.contains(&format!("| `{reason}` |")), "{reason}");
    }
}

#[test]
fn the_table_of_rungs_is_what_logs_say_of_themselves() {
    for page in ["README.md", "docs/rungs.md"] {
        let text = document(page);
        for (at, name) in EVENT_NAMES.into_iter().enumerate() {
            let expected: Vec<&str> =
                Rung::ALL.into_iter().map(|rung| session::coverage(rung)[name]).collect();
            let row = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{page} has no row for {name}, event {at}"));
            let cells: Vec<&str> = row.trim_matches('|').split('|').skip(1).map(str::trim).collect();
            assert_eq!(cells, expected, "{page}: {name}");
        }
    }
}

/// TODO: empty this when the page is in the repository.
const COMING: [&str; 0] = [];

#[test]
fn no_document_links_to_what_is_not_there() {
    for (path, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let link = link.split('#').next().unwrap_or_default();
            if link.is_empty() || link.contains("://") || COMING.iter().any(|page| link.ends_with(page)) {
                continue;
            }
            let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&path).with_file_name(link);
            assert!(target.exists(), "{path} links to {link}");
        }
    }
}

/// Lines of `portwatch …` in shell blocks of the documents, as arguments up to a pipe or comment.
fn examples() -> Vec<(String, Vec<String>)> {
    let mut examples = Vec::new();
    for (path, text) in documents() {
        for block in text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let lines = block.replace("\\\n", " ");
            for line in lines.lines().filter_map(|line| line.strip_prefix("portwatch ")) {
                let line =
                    line.split(" #").next().unwrap_or_default().split(" | ").next().unwrap_or_default();
                let args = line.replace("\"$(pgrep -o nginx)\"", &std::process::id().to_string());
                let args = args.split_whitespace().map(|arg| arg.trim_matches(['\'', '"']).to_owned());
                examples.push((path.clone(), args.collect()));
            }
        }
    }
    examples
}

#[test]
fn examples_in_documents_are_understood() {
    let examples = examples();
    assert!(examples.len() >= 10, "only {} were found", examples.len());
    let directory = directory();
    for (path, args) in examples {
        if args.iter().any(|arg| arg == "--help") || args[0] == "doctor" {
            continue;
        }
        // A process that does not exist is the last thing that is looked at before anything is loaded: whatever is
        // wrong with the other arguments is said first, with another code.
        let at = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        if args[0] == "demo" {
            continue;
        }
        if args[0] == "explain" {
            let output = Command::new(PROGRAM).args(&args).output().expect("portwatch starts");
            assert_eq!(output.status.code(), Some(0), "{path}: portwatch {}", args.join(" "));
            continue;
        }
        let (ours, _) = args.split_at(at);
        let mut ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        // Names on the writer's host.
        for (flag, here) in [("--netns", "self"), ("--container", ""), ("--cgroup", ""), ("-p", "")] {
            if let Some(at) = ours.iter().position(|arg| *arg == flag) {
                match here {
                    "self" => ours[at + 1] = "/proc/self/ns/net",
                    _ => drop(ours.drain(at..at + 2)),
                }
            }
        }
        ours.extend(["-p", NO_PID]);
        // These trace, or read; without the command there must be something that says which.
        if at < args.len() && ["report", "check"].contains(&ours[0]) {
            ours.extend(["-d", "1"]);
        }
        let mut portwatch = Command::new(PROGRAM);
        let output = portwatch.args(&ours).current_dir(&directory).output().expect("portwatch starts");
        let message = text(&output.stderr);
        assert!(
            output.status.code() == Some(1)
                && (message.contains("there is no such process") || message.contains("cannot read `")),
            "{path}: portwatch {}: {message}",
            args.join(" ")
        );
    }
}

/// What the recipes of README do with a log.
#[test]
fn recipes_work_on_the_example_log() {
    if Command::new("jq").arg("--version").output().is_err() {
        println!("SKIP recipes_work_on_the_example_log: no jq here");
        return;
    }
    let log = document("docs/schema/log.v1.example.jsonl");
    let readme = document("README.md").replace("\\\n", " ");
    let filters: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.split_once("| jq "))
        .map(|(_, rest)| rest.split("' ").next().unwrap_or(rest).trim_end_matches('\''))
        .collect();
    assert!(filters.len() >= 4, "{filters:?}");
    for filter in filters {
        let (flags, filter) = filter.split_once('\'').expect("a quoted filter");
        let mut jq = Command::new("jq");
        jq.args(flags.split_whitespace()).arg(filter).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut jq = jq.spawn().expect("jq starts");
        jq.stdin.take().expect("pipe").write_all(log.as_bytes()).expect("write");
        let output = jq.wait_with_output().expect("wait");
        assert!(output.status.success() && !output.stdout.is_empty(), "{filter}");
    }
}
