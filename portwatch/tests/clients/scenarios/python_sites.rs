//! Call sites in Python: file, line and function of every connect, against the source of the program that made it.

use std::collections::BTreeMap;

use crate::Stopped;
use crate::judge::Traced;
use crate::log::Line;
use crate::programs;
use crate::stage::Stage;

/// Where a connect stands.
#[derive(Debug, PartialEq)]
struct Site {
    /// `None`: versions disagree on whether it is one of its own.
    function: Option<String>,
    line: usize,
}

/// The sites that a program's comments tell of, by port.
fn sites(source: &str) -> BTreeMap<u16, Site> {
    let told = source.lines().zip(1..).filter_map(|(text, line)| {
        let (port, function) = text.rsplit_once("  # ")?.1.split_once(' ')?;
        let function = (function != "-").then(|| function.to_owned());
        Some((port.parse().ok()?, Site { function, line }))
    });
    told.collect()
}

/// Whether a version tells a function's name with what it is inside of.
fn is_qualified(version: &str) -> bool {
    !matches!(version, "3.9" | "3.10")
}

/// What is wrong with a call site.
fn defect(line: &Line, file: &str, site: &Site, is_qualified: bool) -> Option<String> {
    let text = line.call_site.clone().unwrap_or_default();
    let function = site.function.as_deref().map(|function| match is_qualified {
        true => function,
        false => function.rsplit('.').next().unwrap_or(function),
    });
    let behind = format!(" ({file}:{})", site.line);
    let is_right = match function {
        Some(function) => text == format!("{function}{behind}"),
        None => text.ends_with(&behind),
    };
    (!is_right).then(|| format!("`{}` to {:?}: `{text}`, and not {site:?}", line.kind, line.rport))
}

/// Lines that may lack Python's frames, of a hundred. None may have a wrong one.
const ABSENT_PERCENT: usize = 5;

/// Plays `source` and compares every line of its connects.
fn compare(stage: &Stage, python: &str, version: &str, source: &str) -> Result<(), Stopped> {
    const FILE: &str = "application.py";
    let script = stage.write(FILE, source);
    let told = stage.path_text("told");
    let run = Traced::command(stage, &[python.to_owned(), script, told])?.wait()?;
    stage.read("told").map_err(|error| format!("the program did not end well: {error}\n{}", run.stderr()))?;
    let sites = sites(source);
    assert!(sites.len() > 8, "a program without comments would agree with anything");
    let (mut problems, mut absent) = (Vec::new(), Vec::new());
    let mut compared: BTreeMap<u16, usize> = BTreeMap::new();
    for line in &run.log().lines {
        let Some(port) = line.rport else { continue };
        let (file, made);
        let site = match sites.get(&port) {
            Some(site) => {
                file = FILE;
                site
            }
            // Made at run time, as many lines further down as the port says.
            None if (22_000..23_000).contains(&port) => {
                file = "made.py";
                made = Site { function: Some("<module>".to_owned()), line: usize::from(port - 22_000) + 1 };
                &made
            }
            None => continue,
        };
        *compared.entry(port).or_default() += 1;
        let defect = defect(line, file, site, is_qualified(version));
        let shows_python = line.call_site.as_deref().is_some_and(|text| text.contains(".py:"));
        match defect {
            // A page that is not in memory just then: the interpreter is shown, and no line of Python.
            Some(defect) if !shows_python => absent.push(defect),
            defect => problems.extend(defect),
        }
    }
    if absent.len() * 100 > compared.values().sum::<usize>() * ABSENT_PERCENT {
        problems.append(&mut absent);
    }
    let unseen = sites.keys().filter(|port| !compared.contains_key(port));
    problems.extend(unseen.map(|port| format!("no line of a connect to {port}")));
    match problems.as_slice() {
        [] => Ok(()),
        problems => Err(Stopped::Failed(format!(
            "{} problems of {} lines\n{}",
            problems.len(),
            compared.values().sum::<usize>(),
            problems.join("\n")
        ))),
    }
}

/// Everything that the standard library alone can do.
pub fn of_version(stage: &Stage, version: &str) -> Result<(), Stopped> {
    let python = programs::python_of(version)?;
    compare(stage, &python, version, programs::PYTHON_SITES)
}

/// Clients that connect somewhere inside: the application's line is meant.
pub fn above_packages(stage: &Stage) -> Result<(), Stopped> {
    let python = programs::python()?;
    let check = "import aiohttp, gevent, httpx, psycopg, redis, requests, urllib3; \
                 import sys; print('%d.%d' % sys.version_info[:2])";
    let asked = std::process::Command::new(&python).args(["-c", check]).output();
    let version = match asked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => return Err(Stopped::Skipped(format!("`{python}` cannot import all packages"))),
    };
    compare(stage, &python, &version, programs::PYTHON_PACKAGES)
}

/// Programs that connect and end at once, one after the other.
pub fn one_shots(stage: &Stage) -> Result<(), Stopped> {
    const RUNS: usize = 40;
    /// Of a machine that may be busy.
    const PRESENT_PERCENT: usize = 95;
    let python = programs::python_of("3.11").or_else(|_| programs::python_of("3.13"))?;
    let source = "import os, socket\nsocket.socket().connect_ex(('127.0.0.1', 21001))\nos._exit(0)\n";
    let script = stage.write("once.py", source);
    let each = "for i in $(seq \"$2\"); do \"$0\" \"$1\"; done".to_owned();
    let command = ["sh".to_owned(), "-c".to_owned(), each, python, script, RUNS.to_string()];
    let run = Traced::command(stage, &command)?.wait()?;
    let site = Site { function: Some("<module>".to_owned()), line: 2 };
    let failed = |line: &&Line| line.kind == "connect_failed" && line.rport == Some(21_001);
    let lines: Vec<&Line> = run.log().lines.iter().filter(failed).collect();
    if lines.len() != RUNS {
        return Err(Stopped::Failed(format!("{} lines of {RUNS} runs", lines.len())));
    }
    let (mut present, mut wrong) = (0, Vec::new());
    for line in lines {
        match defect(line, "once.py", &site, true) {
            None => present += 1,
            // One that nobody had time to learn of shows the interpreter, and no line of Python.
            Some(defect) if line.call_site.as_deref().is_some_and(|text| text.contains(".py:")) => {
                wrong.push(defect);
            }
            Some(_) => {}
        }
    }
    if !wrong.is_empty() {
        return Err(Stopped::Failed(wrong.join("\n")));
    }
    if present * 100 < RUNS * PRESENT_PERCENT {
        return Err(Stopped::Failed(format!("{present} of {RUNS} have a line of Python")));
    }
    Ok(())
}
