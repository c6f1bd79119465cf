//! Address spaces that become others, and files that are not where they were.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{chdir, pivot_root};

use super::paths::report;
use crate::Stopped;
use crate::compile;
use crate::log::Log;
use crate::stage::Stage;
use crate::tracer::Tracer;
use crate::wait::{self, PATIENCE};

const PORT: u16 = 7300;

/// `simple.c` under other names of its functions: (program's name, function that connects, its caller).
pub(super) fn simple(
    stage: &Stage,
    directory: &str,
    name: &str,
    dial: &str,
    flags: &[&str],
) -> Result<PathBuf, Stopped> {
    let directory = stage.path(directory);
    fs::create_dir_all(&directory).map_err(|error| format!("cannot make a directory: {error}"))?;
    let names = [format!("-DDIAL={dial}"), format!("-DCALLER={dial}_caller")];
    let flags: Vec<&str> = names.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    // Lines are told by the source's name.
    compile::c_as(&directory, name, "simple", compile::SIMPLE, &flags)
}

/// Whether each connect to `port` was made by these functions of modules called `module`.
fn expect(log: &Log, port: u16, count: usize, module: &str, functions: &[&str], problems: &mut Vec<String>) {
    let events: Vec<_> = log.connects_to(port).collect();
    if events.len() != count {
        problems.push(format!("port {port}: {} events of {count} connects", events.len()));
    }
    for event in events {
        // A static program has the C library's functions, too.
        let found = log.functions(event, module);
        let found = &found[found.iter().position(|name| *name == functions[0]).unwrap_or(0)..];
        let site = event.call_site.as_deref().unwrap_or("none");
        if !found.starts_with(functions) || !site.starts_with(&format!("{}+0x", functions[0])) {
            problems.push(format!(
                "port {port}: {found:?} and not {functions:?} at `{site}`: {:?}",
                log.frames(event)
            ));
        }
    }
}

/// Libraries of the same layout and of another one take each other's place in a running process.
pub fn dlopen_at_the_same_address(stage: &Stage) -> Result<(), Stopped> {
    const ROUNDS: usize = 20;
    // Two of the same frames under other names, one with other frames.
    let kinds = [("alpha", 256), ("beta", 256), ("gamma", 4000)];
    let mut libraries = Vec::new();
    for (name, frame) in kinds {
        let flags =
            ["-shared".to_owned(), "-fPIC".to_owned(), format!("-DDIAL={name}"), format!("-DFRAME={frame}")];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        libraries.push(compile::on_stage(stage, &format!("lib{name}.so"), compile::PLUGIN, &flags)?);
    }
    let program = compile::on_stage(stage, "plugins", compile::PLUGINS, &[])?;
    let tracer = stage.record_all()?;
    let mut command = Command::new(&program);
    command.arg(PORT.to_string()).arg(ROUNDS.to_string()).args(&libraries);
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let log = stopped(tracer)?;
    let elsewhere = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if elsewhere != "0" {
        return Err(Stopped::Skipped(format!("the loader put a library elsewhere {elsewhere} times")));
    }
    let mut problems = Vec::new();
    for (at, (name, _)) in kinds.iter().enumerate() {
        let port = PORT + at as u16;
        // The kernel side may have walked by the rows of what was there a moment before. Where those differ, the stack
        // ends at the frame whose caller is not known: the direct caller is always right.
        expect(&log, port, ROUNDS, &format!("lib{name}.so"), &[name], &mut problems);
        let expected = ["run", "with_library", "main", "_start"];
        for event in log.connects_to(port) {
            let frames = log
                .frames(event)
                .iter()
                .filter(|frame| !frame.module.as_ref().is_some_and(|path| path.contains("libc.so")));
            let found: Vec<_> = frames.map(|frame| frame.function.as_deref().unwrap_or("?")).collect();
            if !expected.starts_with(&found[1.min(found.len())..]) {
                problems.push(format!("port {port}: {found:?}"));
            }
        }
    }
    report(&problems)
}

/// One program becomes another whose code stands at the same addresses.
pub fn exec(stage: &Stage) -> Result<(), Stopped> {
    const PROCESSES: usize = 20;
    let before = simple(stage, "", "before", "first", &["-no-pie"])?;
    let after = simple(stage, "", "after", "later", &["-no-pie"])?;
    let tracer = stage.record_all()?;
    for _ in 0..PROCESSES {
        let mut command = Command::new(&before);
        command.arg(PORT.to_string()).arg("-").arg(&after);
        command.status().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    }
    let log = stopped(tracer)?;
    let mut problems = Vec::new();
    expect(&log, PORT, PROCESSES, "before", &["first", "first_caller", "main", "_start"], &mut problems);
    expect(&log, PORT + 1, PROCESSES, "after", &["later", "later_caller", "main", "_start"], &mut problems);
    report(&problems)
}

/// Children of a process that was there before the tracer connect and end at once.
pub fn fork_without_exec(stage: &Stage) -> Result<(), Stopped> {
    const CHILDREN: usize = 20;
    let program = compile::on_stage(stage, "forks", compile::FORKS, &[])?;
    let mut forks = Waiting::start(Command::new(&program).args([PORT.to_string(), CHILDREN.to_string()]))?;
    let tracer = stage.record_all()?;
    forks.tell()?;
    // Its children are gone when it waits again.
    forks.finish()?;
    let log = stopped(tracer)?;
    let mut problems = Vec::new();
    expect(&log, PORT, 1, "forks", &["dial", "main", "_start"], &mut problems);
    expect(&log, PORT + 1, CHILDREN, "forks", &["dial", "child", "main", "_start"], &mut problems);
    expect(
        &log,
        PORT + 2,
        CHILDREN,
        "forks",
        &["dial", "grandchild", "child", "main", "_start"],
        &mut problems,
    );
    report(&problems)
}

/// Another program took its place on disk while it runs, before and after the tracer came.
pub fn replaced_on_disk(stage: &Stage) -> Result<(), Stopped> {
    let mut problems = Vec::new();
    let old = simple(stage, "", "app", "old", &[])?;
    let new = simple(stage, "new", "app", "new", &[])?;
    let start =
        |program: &Path, port: u16| Waiting::start(Command::new(program).args([&port.to_string(), "w"]));
    let mut early = start(&old, PORT)?;
    let tracer = stage.record_all()?;
    let mut late = start(&old, PORT + 1)?;
    fs::rename(&new, &old).map_err(|error| format!("cannot rename: {error}"))?;
    let mut fresh = start(&old, PORT + 2)?;
    for (running, port) in [(&mut early, PORT), (&mut fresh, PORT + 2), (&mut late, PORT + 1)] {
        running.tell()?;
        wait_for_connect(&tracer, port)?;
    }
    [early, late, fresh].into_iter().try_for_each(Waiting::finish)?;
    let log = stopped(tracer)?;
    for (port, name) in [(PORT, "old"), (PORT + 1, "old"), (PORT + 2, "new")] {
        expect(&log, port, 1, "app", &[name, &format!("{name}_caller"), "main", "_start"], &mut problems);
    }
    report(&problems)
}

/// Its program is on no disk any more.
pub fn deleted(stage: &Stage) -> Result<(), Stopped> {
    let program = simple(stage, "", "app", "gone", &[])?;
    let start = |port: u16| Waiting::start(Command::new(&program).args([&port.to_string(), "w"]));
    let mut early = start(PORT)?;
    let tracer = stage.record_all()?;
    let mut late = start(PORT + 1)?;
    fs::remove_file(&program).map_err(|error| format!("cannot remove: {error}"))?;
    for (running, port) in [(&mut early, PORT), (&mut late, PORT + 1)] {
        running.tell()?;
        wait_for_connect(&tracer, port)?;
    }
    [early, late].into_iter().try_for_each(Waiting::finish)?;
    let log = stopped(tracer)?;
    let mut problems = Vec::new();
    for port in [PORT, PORT + 1] {
        expect(&log, port, 1, "app", &["gone", "gone_caller", "main", "_start"], &mut problems);
    }
    report(&problems)
}

/// In a root of its own another program stands at the path that the host has one at, too.
pub fn container(stage: &Stage) -> Result<(), Stopped> {
    const SHORT_LIVED: usize = 10;
    let outside = simple(stage, "", "app", "outside", &[])?;
    let root = stage.path("root");
    let below = stage.path_text("root") + &stage.path_text("");
    fs::create_dir_all(&below).map_err(|error| format!("cannot make `{below}`: {error}"))?;
    let inside = simple(stage, "inside", "app", "inside", &["-static"])?;
    fs::rename(&inside, Path::new(&below).join("app")).map_err(|error| format!("cannot rename: {error}"))?;
    // A parent in there, whose children are gone at once.
    let shell = compile::on_stage(stage, "shell", compile::SHELL, &["-static"])?;
    fs::rename(&shell, Path::new(&below).join("shell")).map_err(|error| format!("cannot rename: {error}"))?;

    let tracer = stage.record_all()?;
    let mut long = Waiting::start(contained(Command::new(&outside).args([&PORT.to_string(), "w"]), &root))?;
    long.tell()?;
    wait_for_connect(&tracer, PORT)?;
    long.finish()?;
    let many = [PORT + 1].map(|port| port.to_string());
    let mut command = Command::new(&shell);
    command.arg(SHORT_LIVED.to_string()).arg(&outside).args(&many);
    let status =
        contained(&mut command, &root).status().map_err(|error| format!("cannot start a shell: {error}"))?;
    if !status.success() {
        return Err(Stopped::Failed(format!("the shell ended with {status}")));
    }
    let mut host = Waiting::start(Command::new(&outside).args([&(PORT + 2).to_string(), "w"]))?;
    host.tell()?;
    host.finish()?;
    let log = stopped(tracer)?;
    let mut problems = Vec::new();
    for (port, count, name) in
        [(PORT, 1, "inside"), (PORT + 1, SHORT_LIVED, "inside"), (PORT + 2, 1, "outside")]
    {
        let functions = [name, &format!("{name}_caller"), "main"];
        expect(&log, port, count, "app", &functions, &mut problems);
    }
    report(&problems)
}

/// Makes a command run with `root` as its whole file system.
pub(super) fn contained<'c>(command: &'c mut Command, root: &Path) -> &'c mut Command {
    let root = root.to_path_buf();
    let enter = move || {
        const NOTHING: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
        mount(Some(&root), &root, NOTHING, MsFlags::MS_BIND, NOTHING)?;
        chdir(&root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls, with paths that were made before.
    unsafe { command.pre_exec(enter) }
}

/// The log of a tracer that must still be well.
pub fn stopped(tracer: Tracer) -> Result<Log, String> {
    let ended = tracer.stop(Signal::SIGTERM)?;
    if ended.status.success() {
        Ok(ended.log)
    } else {
        Err(format!("portwatch ended with {}: {}", ended.status, ended.stderr))
    }
}

/// Waits until a connect to `port` is in the growing log, and so its stack, too.
pub(super) fn wait_for_connect(tracer: &Tracer, port: u16) -> Result<(), String> {
    let mark = format!("\"rport\":{port},");
    let is_told = || fs::read_to_string(tracer.log_path()).is_ok_and(|log| log.contains(&mark)).then_some(());
    wait::until(PATIENCE, is_told).ok_or_else(|| format!("the log never tells of a connect to port {port}"))
}

/// A program that says `ready`, and goes on when it is told to.
pub(super) struct Waiting(Child);

impl Waiting {
    pub(super) fn start(command: &mut Command) -> Result<Waiting, String> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut waiting = Waiting(child.map_err(|error| format!("cannot start {command:?}: {error}"))?);
        let mut line = String::new();
        let stdout = waiting.0.stdout.take().ok_or("no output")?;
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| format!("it cannot be heard: {error}"))?;
        if line == "ready\n" { Ok(waiting) } else { Err(format!("{command:?} says `{line}`")) }
    }

    pub(super) fn tell(&mut self) -> Result<(), String> {
        let stdin = self.0.stdin.as_mut().ok_or("no input")?;
        stdin.write_all(b"!").map_err(|error| format!("it does not listen: {error}"))
    }

    /// Closes its input and waits for its end.
    pub(super) fn finish(mut self) -> Result<(), String> {
        let status = self.0.wait().map_err(|error| format!("cannot wait: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Already gone, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
