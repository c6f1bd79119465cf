//! Where names come from: the program, its debug file in each of its places, or nowhere.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::generations::{Waiting, contained, simple, stopped, wait_for_connect};
use super::paths::report;
use crate::compile::{self, run};
use crate::log::{Event, Log};
use crate::stage::Stage;
use crate::{Stopped, tracer};

const PORT: u16 = 7400;

/// Compresses debug information of several programs into a file that they share.
const DWZ: &str = "dwz";

fn line() -> usize {
    compile::line_of(compile::SIMPLE, "ATTEMPT(port)")
}

/// Lets `program` connect under a tracer; the log.
fn trace(stage: &Stage, program: &Path, args: &[&str]) -> Result<Log, Stopped> {
    let tracer = stage.record_all_with(args)?;
    run(Command::new(program).arg(PORT.to_string()).stdin(Stdio::null()))?;
    Ok(stopped(tracer)?)
}

fn the_event(log: &Log) -> Result<&Event, String> {
    let events: Vec<_> = log.connects_to(PORT).collect();
    match events[..] {
        [event] => Ok(event),
        _ => Err(format!("{} events of one connect", events.len())),
    }
}

/// Whether the call site is `dial` with its line.
fn expect_line(log: &Log, what: &str, problems: &mut Vec<String>) -> Result<(), String> {
    let event = the_event(log)?;
    let expected = format!("dial (simple.c:{})", line());
    if event.call_site.as_deref() != Some(&expected) {
        problems.push(format!("{what}: {:?} and not `{expected}`: {:?}", event.call_site, log.frames(event)));
    }
    Ok(())
}

/// Moves what `program` knows of its source into a file of its own; `debug` is where it lies.
fn strip(program: &Path, debug: &Path) -> Result<(), Stopped> {
    fs::create_dir_all(debug.parent().expect("it lies somewhere"))
        .map_err(|error| format!("no directory: {error}"))?;
    run(Command::new("objcopy").arg("--only-keep-debug").args([program, debug]))?;
    run(Command::new("objcopy").arg("--strip-all").arg(program))
}

fn link(program: &Path, debug: &Path) -> Result<(), Stopped> {
    let mut link = OsStr::new("--add-gnu-debuglink=").to_owned();
    link.push(debug);
    run(Command::new("objcopy").arg(link).arg(program))
}

/// Beside the program, below it, by build id or by checksum.
pub fn debug_link(stage: &Stage) -> Result<(), Stopped> {
    let mut problems = Vec::new();
    for (name, below, flags) in [
        ("beside", "", &["-g"][..]),
        ("below", ".debug", &["-g"]),
        ("by-checksum", "", &["-g", "-Wl,--build-id=none"]),
        ("compressed", "", &["-g", "-gz=zlib"]),
    ] {
        let program = simple(stage, name, "app", "dial", flags)?;
        let debug = stage.path(name).join(below).join("app.debug");
        strip(&program, &debug)?;
        link(&program, &debug)?;
        expect_line(&trace(stage, &program, &[])?, name, &mut problems)?;
    }
    // Another program's debug file is none of its own.
    let program = simple(stage, "wrong", "app", "dial", &["-g"])?;
    let other = simple(stage, "other", "app", "other", &["-g"])?;
    let debug = stage.path("wrong").join("app.debug");
    strip(&program, &debug)?;
    link(&program, &debug)?;
    strip(&other, &debug)?;
    let log = trace(stage, &program, &[])?;
    let site = the_event(&log)?.call_site.clone().unwrap_or_default();
    if !site.starts_with("app+0x") {
        problems.push(format!("by another program's debug file it is `{site}`"));
    }
    report(&problems)
}

/// In the build-id directory of the root that the program sees.
pub fn build_id_directory(stage: &Stage) -> Result<(), Stopped> {
    let program = simple(stage, "", "app", "dial", &["-g", "-static", "-Wl,--build-id"])?;
    let root = stage.path("root");
    let id = build_id(&program)?;
    let debug = root.join(format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]));
    strip(&program, &debug)?;
    fs::rename(&program, root.join("app")).map_err(|error| format!("cannot rename: {error}"))?;
    let tracer = stage.record_all()?;
    let mut app = Waiting::start(contained(Command::new("/app").args([&PORT.to_string(), "w"]), &root))?;
    app.tell()?;
    wait_for_connect(&tracer, PORT)?;
    app.finish()?;
    let mut problems = Vec::new();
    expect_line(&stopped(tracer)?, "build id", &mut problems)?;
    report(&problems)
}

fn build_id(program: &Path) -> Result<String, Stopped> {
    let output = Command::new("readelf").arg("-n").arg(program).output();
    let output = output.map_err(|_| Stopped::Skipped("no `readelf` on this machine".to_owned()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = text.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
    id.map(str::to_owned).ok_or_else(|| Stopped::Failed("no build id".to_owned()))
}

/// Most of the debug information is in other files, which are not read: functions and lines are in the program still.
pub fn split_dwarf(stage: &Stage) -> Result<(), Stopped> {
    let mut problems = Vec::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let program = simple(stage, version, "app", "dial", &["-g", version, "-gsplit-dwarf"])?;
        let log = trace(stage, &program, &[])?;
        let event = the_event(&log)?;
        let functions = log.functions(event, "app");
        let site = event.call_site.as_deref().unwrap_or("none");
        let has_line = site == format!("dial (simple.c:{})", line());
        if functions != ["dial", "dial_caller", "main", "_start"]
            || !(has_line || site.starts_with("dial+0x"))
        {
            problems.push(format!("{version}: {functions:?} at `{site}`"));
        }
    }
    report(&problems)
}

/// Debug information that is shared with another program.
pub fn dwz(stage: &Stage) -> Result<(), Stopped> {
    let one = simple(stage, "one", "app", "dial", &["-g"])?;
    let two = simple(stage, "two", "app", "other", &["-g"])?;
    run(Command::new(DWZ).arg("-m").arg(stage.path("shared.debug")).args([&one, &two]))?;
    let log = trace(stage, &one, &[])?;
    let event = the_event(&log)?;
    let functions = log.functions(event, "app");
    let site = event.call_site.as_deref().unwrap_or("none");
    let is_named = site == format!("dial (simple.c:{})", line());
    if functions == ["dial", "dial_caller", "main", "_start"] && is_named {
        return Ok(());
    }
    Err(Stopped::Failed(format!("{functions:?} at `{site}`: {:?}", log.frames(event))))
}

/// Nothing is known but where: an address that `addr2line` can take, of a file that has a build id.
pub fn stripped(stage: &Stage) -> Result<(), Stopped> {
    let program = simple(stage, "", "app", "dial", &["-g", "-Wl,--build-id"])?;
    let id = build_id(&program)?;
    let whole = stage.path("whole");
    fs::copy(&program, &whole).map_err(|error| format!("cannot copy: {error}"))?;
    run(Command::new("objcopy").arg("--strip-all").arg(&program))?;
    let log = trace(stage, &program, &[])?;
    let event = the_event(&log)?;
    let frames = log.frames(event).iter().filter(|frame| frame.module.as_deref() == program.to_str());
    let frames: Vec<_> = frames.collect();
    let expected = ["dial", "dial_caller", "main", "_start"];
    let mut problems = Vec::new();
    if frames.len() != expected.len() {
        problems.push(format!("{} frames instead of {}", frames.len(), expected.len()));
    }
    for (frame, expected) in frames.iter().zip(expected) {
        let offset = frame.offset.unwrap_or(0);
        let output = Command::new("addr2line").arg("-fe").arg(&whole).arg(format!("{offset:#x}")).output();
        let output = output.map_err(|_| Stopped::Skipped("no `addr2line` on this machine".to_owned()))?;
        let found = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        if found != expected
            || frame.build_id.as_deref() != Some(&id)
            || frame.function.is_some()
            || frame.reason.is_none()
        {
            problems.push(format!("`{found}` and not `{expected}`, build id {id}: {frame:?}"));
        }
    }
    let site = frames.first().and_then(|frame| Some(format!("app+{:#x}", frame.offset?)));
    if event.call_site != site {
        problems.push(format!("{:?} and not {site:?}", event.call_site));
    }
    report(&problems)
}

/// What the user calls a library is none of the application.
pub fn library_pattern(stage: &Stage) -> Result<(), Stopped> {
    let library = compile::on_stage(
        stage,
        "libacme.so",
        compile::PLUGIN,
        &["-shared", "-fPIC", "-DDIAL=acme_dial", "-DFRAME=64"],
    )?;
    let program = compile::on_stage(stage, "plugins", compile::PLUGINS, &[])?;
    let mut problems = Vec::new();
    for (args, expected) in [
        (&[][..], "acme_dial+0x"),
        (&["--library", "libacme.so*"], "with_library+0x"),
        (&["--library", "*/libacme.so"], "with_library+0x"),
        (&["--library", "acme_*"], "run+0x"),
        (&["--library", "acme_*", "--library", "run"], "with_library+0x"),
    ] {
        let tracer = stage.record_all_with(args)?;
        run(Command::new(&program).args([&PORT.to_string(), "1"]).arg(&library))?;
        let log = stopped(tracer)?;
        let site = the_event(&log)?.call_site.as_deref().unwrap_or("none");
        if !site.starts_with(expected) {
            problems.push(format!("{args:?}: `{site}` and not `{expected}…`"));
        }
    }
    report(&problems)
}

/// Names that would do something to a terminal.
pub fn hostile_names(stage: &Stage) -> Result<(), Stopped> {
    const EVIL: &str = "void evil(int port) __asm__(\"\\\"evil\\033[2J\\007\\\"\");\n";
    let source = compile::SIMPLE.replace(
        "NOINLINE static void DIAL(int port) { ATTEMPT(port); }",
        &format!("{EVIL}NOINLINE void evil(int port) {{ ATTEMPT(port); }}"),
    );
    assert!(source.contains("evil"), "the source has changed");
    let directory = stage.path("").join(OsStr::from_bytes(b"a\x1b]0;owned\x07\nb"));
    fs::create_dir_all(&directory).map_err(|error| format!("cannot make a directory: {error}"))?;
    let built = compile::on_stage(stage, "app", &source, &["-DDIAL=evil", "-DCALLER=caller", "-fPIE"])?;
    let program: PathBuf = directory.join("app");
    fs::rename(built, &program).map_err(|error| format!("cannot rename: {error}"))?;
    let netns = fs::metadata("/proc/thread-self/ns/net").map_err(|error| error.to_string())?.ino();
    assert_eq!(netns, stage.netns);
    let output = Command::new(tracer::binary())
        .args(["trace", "--rung", stage.rung, "--"])
        .arg(&program)
        .arg(PORT.to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start portwatch: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !text.contains("evil") {
        return Err(Stopped::Failed(format!(
            "there is no such call site: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    let bad: Vec<char> = text.chars().filter(|c| c.is_control() && *c != '\n').collect();
    if bad.is_empty() {
        Ok(())
    } else {
        Err(Stopped::Failed(format!("control characters {bad:?} in `{text:?}`")))
    }
}
