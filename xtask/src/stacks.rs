//! The tests of call sites: programs whose call paths are known, and other people's.

use std::path::Path;

use crate::apt::{self, Need};
use crate::expected_skips::ExpectedSkips;
use crate::results::Results;
use crate::summary::Summary;
use crate::test_run;
use crate::workspace::Workspace;

const NAME: &str = "call sites";

/// What builds the programs, and those that are walked twice; others are walked where they are there.
const NEEDS: [Need; 8] = [
    Need { program: "cc", package: "gcc" },
    Need { program: "objcopy", package: "binutils" },
    Need { program: "dwz", package: "dwz" },
    Need { program: "curl", package: "curl" },
    Need { program: "nginx", package: "nginx-light" },
    Need { program: "perl", package: "perl-base" },
    Need { program: "python3", package: "python3" },
    Need { program: "redis-cli", package: "redis-tools" },
];

/// Large ones.
const MORE_NEEDS: [Need; 6] = [
    Need { program: "git", package: "git" },
    Need { program: "go", package: "golang-go" },
    Need { program: "javac", package: "default-jdk-headless" },
    Need { program: "node", package: "nodejs" },
    Need { program: "psql", package: "postgresql-client" },
    Need { program: "wget", package: "wget" },
];

/// A C library to build with, static ones included. Asked for by a file that it brings.
const C_LIBRARY: (&str, &str) = ("/usr/include/stdio.h", "libc6-dev");

/// Provisions and runs the integration test `stacks`, told by `PORTWATCH_BIN` and, where more is wanted,
/// `PORTWATCH_ALL=1`.
pub fn run(
    workspace: &Workspace,
    all: bool,
    filter: &[String],
    portwatch: &Path,
    expected: &ExpectedSkips,
    summary: &mut Summary,
) {
    let more = if all { &MORE_NEEDS[..] } else { &[] };
    let provision = |needs| apt::provision(needs, "the tests of call sites");
    let (header, package) = C_LIBRARY;
    let library = || {
        if Path::new(header).exists() { Ok(()) } else { apt::install(&[package], "the tests of call sites") }
    };
    if let Err(error) = provision(&NEEDS).and_then(|()| provision(more)).and_then(|()| library()) {
        return summary.add(NAME, Results::failure(format!("{error:#}")), None);
    }
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--no-fail-fast", "--package", "portwatch", "--test", "stacks", "--"])
        .args(filter)
        .env("PORTWATCH_BIN", portwatch)
        .env("PORTWATCH_REQUIRE_STACKS", "1");
    if all {
        cargo.env("PORTWATCH_ALL", "1");
    }
    test_run::part(summary, expected, NAME, &mut cargo);
}
