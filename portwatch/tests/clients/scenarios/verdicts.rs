//! What `portwatch report` says of real clients: bad habits get their verdict, the same clients without them none.

use std::process::Command;

use serde_json::Value;

use crate::Stopped;
use crate::http::{Closed, Server};
use crate::programs;
use crate::stage::Stage;
use crate::tracer;

const UNABLE: i32 = 77;

/// A live report of a command and its children.
fn report(stage: &Stage, command: &[String]) -> Result<Value, Stopped> {
    let output = Command::new(tracer::binary())
        .args(["report", "--format", "json", "--rung", stage.rung, "--"])
        .args(command)
        .env("no_proxy", "*")
        .output()
        .map_err(|error| format!("cannot run portwatch: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => {}
        Some(UNABLE) => return Err(Stopped::Skipped(stderr)),
        _ => return Err(Stopped::Failed(format!("portwatch ended with {}: {stderr}", output.status))),
    }
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("the report is not JSON ({error}): {stderr}"))?;
    if report["lost"].as_object().is_none_or(|lost| !lost.is_empty()) {
        return Err(Stopped::Failed(format!("events were lost: {}", report["lost"])));
    }
    Ok(report)
}

fn verdicts(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    findings.iter().filter_map(|finding| finding["verdict"].as_str()).collect()
}

fn expect(report: &Value, wanted: &[&str], what: &str) -> Result<(), Stopped> {
    if verdicts(report) == wanted {
        return Ok(());
    }
    let (findings, rows) = (&report["findings"], &report["call_sites"]);
    Err(Stopped::Failed(format!(
        "{what}: {:?} instead of {wanted:?}: {findings:#} {rows:#}",
        verdicts(report)
    )))
}

fn python_habit(stage: &Stage, habit: &str, wanted: &[&str]) -> Result<Value, Stopped> {
    let python = programs::python()?;
    let script = stage.write("habits.py", include_str!("../programs/habits.py"));
    let (server, closed) = (Server::start(), Closed::new());
    let to = if matches!(habit, "storm" | "patient") { closed.address } else { server.address };
    let command = [python, script, habit.to_owned(), to.ip().to_string(), to.port().to_string()];
    let report = report(stage, &command)?;
    expect(&report, wanted, habit)?;
    Ok(report)
}

pub fn python_http(stage: &Stage) -> Result<(), Stopped> {
    let report = python_habit(stage, "http-each", &["connect-per-request"])?;
    assert_eq!(report["findings"][0]["evidence"]["connections"], 60.0);
    python_habit(stage, "http-kept", &[])?;
    Ok(())
}

/// Whoever ends the connection.
pub fn server_closes_or_resets(stage: &Stage) -> Result<(), Stopped> {
    python_habit(stage, "server-closes", &["connect-per-request"])?;
    python_habit(stage, "server-resets", &["connect-per-request"])?;
    python_habit(stage, "reconnects", &[])?;
    python_habit(stage, "health-check", &[])?;
    Ok(())
}

pub fn leak_and_pools(stage: &Stage) -> Result<(), Stopped> {
    python_habit(stage, "leak", &["connection-leak"])?;
    python_habit(stage, "pool", &[])?;
    python_habit(stage, "ramp", &[])?;
    Ok(())
}

pub fn storm_and_patience(stage: &Stage) -> Result<(), Stopped> {
    python_habit(stage, "storm", &["refused-storm"])?;
    python_habit(stage, "patient", &[])?;
    Ok(())
}

pub fn spread_is_information(stage: &Stage) -> Result<(), Stopped> {
    let report = python_habit(stage, "spread", &["spread"])?;
    assert_eq!(report["findings"][0]["severity"], "info");
    Ok(())
}

/// Threads are one process, and forks one crowd.
pub fn threads_and_forks(stage: &Stage) -> Result<(), Stopped> {
    let threads = python_habit(stage, "threads-each", &["connect-per-request"])?;
    assert!(threads["findings"][0]["pid"].is_u64(), "{}", threads["findings"][0]);
    let forks = python_habit(stage, "forks-each", &["connect-per-request"])?;
    let finding = &forks["findings"][0];
    assert_eq!((&finding["pid"], &finding["children"]), (&Value::Null, &Value::from(30)), "{finding:#}");
    // The parent may be gone before its name is read; what it ran was followed.
    let parent = &finding["parent"];
    assert!(parent["exe"].as_str().is_some_and(|exe| exe.contains("python")), "{finding:#}");
    Ok(())
}

pub fn node_agent(stage: &Stage) -> Result<(), Stopped> {
    let node = programs::find("node")?;
    let script = stage.write("habits.js", include_str!("../programs/habits.js"));
    for (habit, wanted) in [("connects", &["connect-per-request"][..]), ("keeps", &[])] {
        let server = Server::start();
        let command = [&node, &script, habit, &server.url()].map(str::to_owned);
        let report = report(stage, &command)?;
        expect(&report, wanted, habit)?;
        if let Some(finding) = report["findings"].get(0) {
            assert_eq!(finding["advice_id"], "node-agent");
        }
    }
    Ok(())
}

/// A process for each request, behind a shell or behind a wrapper behind a shell; and one process for all.
pub fn curl_loop(stage: &Stage) -> Result<(), Stopped> {
    let curl = programs::find("curl")?;
    let script =
        |one: &str| format!("n=0; while [ $n -lt 25 ]; do {one} -sSf \"$0\" >\"$1\"; n=$((n+1)); done");
    for one in [curl.clone(), format!("timeout 60 {curl}")] {
        let server = Server::start();
        let command = ["sh", "-c", &script(&one), &server.url(), &stage.path_text("answer")];
        let report = report(stage, &command.map(str::to_owned))?;
        expect(&report, &["connect-per-request"], &one)?;
        let finding = &report["findings"][0];
        assert_eq!((&finding["pid"], &finding["children"]), (&Value::Null, &Value::from(25)), "{finding:#}");
        // The shell may be gone before its name is read; what it ran was followed.
        let parent = &finding["parent"];
        let name = parent["comm"].as_str().or(parent["exe"].as_str());
        assert!(name.is_some_and(|name| name.ends_with("sh")), "{finding:#}");
        assert_eq!(finding["advice_id"], "curl-loop");
    }
    let server = Server::start();
    let mut command = vec![curl, "-sSf".to_owned()];
    command.extend((0..25).map(|_| server.url()));
    expect(&report(stage, &command)?, &[], "one curl for all")
}

pub fn redis_benchmark(stage: &Stage) -> Result<(), Stopped> {
    let (server, benchmark) = (programs::find("redis-server")?, programs::find("redis-benchmark")?);
    let port = crate::stage::free_port();
    let mut running = stage.start(
        "redis-server",
        Command::new(server).args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"]),
    )?;
    running.wait_for_port(port)?;
    for (keeps, wanted) in [("0", &["connect-per-request"][..]), ("1", &[])] {
        let port = port.to_string();
        let args = [&benchmark, "-p", &port, "-n", "400", "-c", "8", "-t", "ping", "-q", "-k", keeps];
        expect(&report(stage, &args.map(str::to_owned))?, wanted, &format!("redis-benchmark -k {keeps}"))?;
    }
    Ok(())
}
