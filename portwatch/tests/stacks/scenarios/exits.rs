//! Processes that are gone as soon as they have connected.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::generations::stopped;
use super::paths::report;
use crate::compile::{self, line_of};
use crate::stage::Stage;
use crate::{Stopped, many};

const PORT: u16 = 7200;
const PROCESSES: usize = 300;
const AT_A_TIME: usize = 4;

/// Each has its call site, with line.
pub fn connect_and_exit(stage: &Stage) -> Result<(), Stopped> {
    let program =
        compile::on_stage(stage, "simple", compile::SIMPLE, &["-g", "-DDIAL=dial", "-DCALLER=caller"])?;
    let tracer = stage.record_all()?;
    let mut pids = Vec::new();
    let mut running = std::collections::VecDeque::new();
    for _ in 0..many(PROCESSES) {
        if running.len() == AT_A_TIME {
            running.pop_front().map(wait).transpose()?;
        }
        let child = start(&program)?;
        pids.push(child.id());
        running.push_back(child);
    }
    running.into_iter().try_for_each(wait)?;
    let log = stopped(tracer)?;

    let mut problems = Vec::new();
    let site = format!("dial (simple.c:{})", line_of(compile::SIMPLE, "ATTEMPT(port)"));
    for pid in pids {
        let events: Vec<_> = log.connects_to(PORT).filter(|event| event.pid == Some(pid)).collect();
        let [event] = events[..] else {
            problems.push(format!("{} events of process {pid}", events.len()));
            continue;
        };
        let functions = log.functions(event, "simple");
        if event.call_site.as_deref() != Some(&site) || functions != ["dial", "caller", "main", "_start"] {
            problems.push(format!(
                "process {pid}: {:?}, {functions:?} {:?}",
                event.call_site,
                log.frames(event)
            ));
        }
        if event.exe.as_deref() != program.to_str() {
            problems.push(format!("process {pid}: it ran {:?}", event.exe));
        }
    }
    report(&problems)
}

fn start(program: &Path) -> Result<Child, String> {
    let mut command = Command::new(program);
    let child = command.arg(PORT.to_string()).stdin(Stdio::null()).spawn();
    child.map_err(|error| format!("cannot start {command:?}: {error}"))
}

fn wait(mut child: Child) -> Result<(), String> {
    let status = child.wait().map_err(|error| format!("cannot wait: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) }
}
