//! The end-to-end tests: programs from ordinary packages, traced.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Need};
use crate::expected_skips::ExpectedSkips;
use crate::results::Results;
use crate::summary::Summary;
use crate::workspace::Workspace;
use crate::{process, test_run};

const NAME: &str = "real clients";

const NEEDS: [Need; 5] = [
    Need { program: "curl", package: "curl" },
    Need { program: "nginx", package: "nginx-light" },
    Need { program: "python3", package: "python3" },
    Need { program: "redis-benchmark", package: "redis-tools" },
    Need { program: "redis-server", package: "redis-server" },
];

/// Large ones, which the tests use where they are there, and which `--all` brings.
const MORE_NEEDS: [Need; 3] = [
    Need { program: "node", package: "nodejs" },
    Need { program: "psql", package: "postgresql" },
    Need { program: "javac", package: "default-jdk-headless" },
];

/// What the clients written in Python import.
const PYTHON_PACKAGES: [&str; 6] = ["requests", "httpx", "aiohttp", "redis", "psycopg[binary]", "gevent"];

/// Provisions and runs the integration test `clients`, told by `PORTWATCH_BIN`, `PORTWATCH_PYTHON` (an interpreter
/// that has `PYTHON_PACKAGES`) and, where the long ones are wanted, `PORTWATCH_ALL=1`.
pub fn run(
    workspace: &Workspace,
    all: bool,
    filter: &[String],
    portwatch: &Path,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) {
    let more = if all { &MORE_NEEDS[..] } else { &[] };
    let provision = |needs| apt::provision(needs, "the end-to-end tests");
    let python = match provision(&NEEDS).and_then(|()| provision(more)).and_then(|()| python(workspace)) {
        Ok(python) => python,
        Err(error) => return summary.add(NAME, Results::failure(format!("{error:#}")), None),
    };
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--no-fail-fast", "--package", "portwatch", "--test", "clients", "--"])
        .args(filter)
        .env("PORTWATCH_BIN", portwatch)
        .env("PORTWATCH_PYTHON", python)
        .env("PORTWATCH_REQUIRE_CLIENTS", "1");
    if all {
        cargo.env("PORTWATCH_ALL", "1");
    }
    test_run::part(summary, expected, NAME, &mut cargo);
}

/// An interpreter of our own, in the cache: the system's is nobody's to install into.
fn python(workspace: &Workspace) -> Result<PathBuf> {
    let environment = workspace.cache.join("python");
    let python = environment.join("bin/python");
    // Without the parts that are chosen in brackets.
    let modules = PYTHON_PACKAGES.map(|package| package.split('[').next().unwrap_or(package));
    let imports = || Command::new(&python).args(["-c", &format!("import {}", modules.join(", "))]).output();
    if imports().is_ok_and(|output| output.status.success()) {
        return Ok(python);
    }
    eprintln!("xtask: installing {} into {} (once)", PYTHON_PACKAGES.join(" "), environment.display());
    if process::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        apt::install(&["python3-venv"], "the end-to-end tests")?;
    }
    if environment.exists() {
        fs::remove_dir_all(&environment)
            .with_context(|| format!("cannot empty `{}`", environment.display()))?;
    }
    process::output(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    process::output(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PACKAGES))?;
    Ok(python)
}
