//! Filters and limits: tests that need a tracer of their own.
//!
//! A filter's log must hold exactly what an unfiltered one would, less what the filter is to leave out.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use crate::check::{self, Leeway};
use crate::log::Log;
use crate::namespace::{Era, Namespace};
use crate::run::{Outcome, report};
use crate::scenarios::mixed::{OTHER_ADDRESS, Ready, SYSCTLS};
use crate::sockets::Family;
use crate::stage::{self, Part};
use crate::tracer::{Ended, NotStarted, Tracer};
use crate::truth::{How, Kind, Story, Truth};
use crate::{play, stacks, whole};

/// A test of one rung.
pub type Test = fn(&str) -> Result<Outcome, String>;

const TESTS: &[(&str, Test)] = &[
    ("flag_pid", |rung| filter(rung, &BY_PID)),
    ("flag_pid_follow", |rung| filter(rung, &BY_PID_FOLLOW)),
    ("flag_comm", |rung| filter(rung, &BY_COMM)),
    ("flag_uid", |rung| filter(rung, &BY_UID)),
    ("flag_netns", |rung| filter(rung, &BY_NETNS)),
    ("flag_dport", |rung| filter(rung, &BY_PORT)),
    ("flag_dst", |rung| filter(rung, &BY_ADDRESS)),
    ("flag_ipv4", |rung| filter(rung, &BY_IPV4)),
    ("flag_ipv6", |rung| filter(rung, &BY_IPV6)),
    ("flag_failed_only", |rung| filter(rung, &FAILED_ONLY)),
    ("flag_events", |rung| filter(rung, &EVENTS)),
    ("command_status", |rung| command(rung, "7", 7)),
    ("command_signal", |rung| command(rung, "signal", 128 + Signal::SIGTERM as i32)),
    ("count", count),
    ("duration", duration),
    ("interrupted", interrupted),
    ("no_such_pid", no_such_pid),
    ("inside_pid_namespace", inside_pid_namespace),
    ("stacks_of_every_path", stacks::of_every_path),
    ("stacks_of_every_path_plainly", stacks::of_every_path_plainly),
    ("stacks_with_kernel_frames", stacks::with_kernel_frames),
    ("stacks_planted_row_is_found", stacks::planted_row_is_found),
];

pub const PARTS: &[(&str, ReportFn)] = &[("trace_inside", trace_inside)];

/// A part that judges for itself: the problems, or why it was skipped.
pub type ReportFn = fn(&[String]) -> Judged;
pub type Judged = Result<Vec<String>, String>;

/// What is tried on rungs that share most of their code with a better one, which is here too.
const SHORT: [&str; 5] =
    ["flag_pid_follow", "flag_dport", "command_status", "interrupted", "stacks_of_every_path"];

/// The tests for a rung. A tracer each takes long on an emulated machine; `PORTWATCH_ALL=1` makes it all of them.
pub fn tests(rung: &str) -> impl Iterator<Item = &'static (&'static str, Test)> {
    let has_kprobes = std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists();
    let best = if has_kprobes { "fentry" } else { "tracepoint" };
    let is_full = rung == best || std::env::var("PORTWATCH_ALL").is_ok_and(|value| value == "1");
    TESTS.iter().filter(move |(name, _)| is_full || SHORT.contains(name))
}

struct Filter {
    args: fn(&Ready) -> Vec<String>,
    /// What is left of a story.
    keep: fn(Story, &Ready) -> Option<Story>,
    /// The tracer ends with the processes that it traces.
    ends_by_itself: bool,
}

const BY_PID: Filter = Filter {
    args: |ready| words(&["-p", &ready.main.to_string()]),
    keep: |story, ready| (story.owner.pid == ready.main).then_some(story),
    ends_by_itself: true,
};

const BY_PID_FOLLOW: Filter = Filter {
    args: |ready| words(&["-p", &ready.main.to_string(), "-f"]),
    keep: |story, _| Some(story),
    ends_by_itself: true,
};

const BY_COMM: Filter = Filter {
    args: |_| words(&["--comm", "kt-o*r_child"]),
    keep: |story, ready| (story.owner.pid == ready.older_child).then_some(story),
    ends_by_itself: false,
};

const BY_UID: Filter = Filter {
    args: |_| words(&["--uid", "65534"]),
    keep: |story, _| (story.owner.uid == 65_534).then_some(story),
    ends_by_itself: false,
};

const BY_NETNS: Filter = Filter { args: of_namespace, keep: |story, _| Some(story), ends_by_itself: false };

const BY_PORT: Filter = Filter {
    args: |_| words(&["--dport", "7001,9"]),
    keep: |story, _| (story.peer?.port() == 7001).then(|| told_at_connect(story)),
    ends_by_itself: false,
};

const BY_ADDRESS: Filter = Filter {
    args: |_| words(&["--dst", "127.0.1.0/24"]),
    keep: |story, _| (story.peer? == stage::address(OTHER_ADDRESS)).then(|| told_at_connect(story)),
    ends_by_itself: false,
};

const BY_IPV4: Filter = Filter {
    args: |ready| [of_namespace(ready), words(&["-4"])].concat(),
    keep: |story, _| is_ipv4(&story).then_some(story),
    ends_by_itself: false,
};

const BY_IPV6: Filter = Filter {
    args: |ready| [of_namespace(ready), words(&["-6"])].concat(),
    keep: |story, _| (!is_ipv4(&story)).then_some(story),
    ends_by_itself: false,
};

const FAILED_ONLY: Filter = Filter {
    args: |ready| [of_namespace(ready), words(&["-Z"])].concat(),
    keep: |story, _| only(story, &[Kind::ConnectFailed, Kind::BindFailed]),
    ends_by_itself: false,
};

const EVENTS: Filter = Filter {
    args: |ready| [of_namespace(ready), words(&["-e", "established,time_wait"])].concat(),
    keep: |story, _| only(story, &[Kind::Established, Kind::TimeWait]),
    ends_by_itself: false,
};

pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn of_namespace(ready: &Ready) -> Vec<String> {
    words(&["--netns", &format!("/proc/{}/ns/net", ready.main)])
}

/// Only then is it known whether the hold is wanted.
fn told_at_connect(mut story: Story) -> Story {
    story.told_at_connect = story.how == How::Bind;
    story
}

/// The address decides: an IPv4-mapped one is IPv4.
fn is_ipv4(story: &Story) -> bool {
    match story.peer {
        Some(peer) => peer.is_ipv4(),
        None => story.family == Family::Ipv4,
    }
}

/// A story of which only some kinds of lines are wanted.
fn only(mut story: Story, kinds: &[Kind]) -> Option<Story> {
    story.events.retain(|event| kinds.contains(&event.kind()));
    // The line that would tell when the hold began may be gone.
    story.call_ns.1 = u64::MAX;
    (!story.events.is_empty()).then_some(story)
}

/// Runs the mixed workload under a filter.
fn filter(rung: &str, filter: &Filter) -> Result<Outcome, String> {
    in_namespace(|namespace| {
        let mut workload = Part::piped("mixed");
        let ready: Ready = workload.hear();
        let tracer = match Tracer::start(rung, &(filter.args)(&ready)) {
            Ok(tracer) => tracer,
            Err(NotStarted::CannotRun(why)) => return Ok(Outcome::Skipped(why)),
            Err(failed) => return Err(failed.to_string()),
        };
        let tracer_pid = tracer.pid();
        workload.tell();
        let truth = workload.finish();
        let ended = if filter.ends_by_itself { tracer.wait() } else { tracer.stop(Signal::SIGTERM) }?;

        let ended_by = if filter.ends_by_itself { "exit" } else { "signal" };
        let mut problems = ended_well(&ended, 0, ended_by);
        problems.extend(whole::log(&ended.log, rung, tracer_pid));
        let kept = truth.stories.into_iter().filter_map(|story| (filter.keep)(story, &ready));
        let stories: Vec<Story> = kept.map(without_the_end_of_time_wait).collect();
        if stories.is_empty() {
            problems.push("the workload has nothing that the filter is to keep".to_owned());
        }
        let leeway = Leeway::of(rung, &ended.log, &stories, 0);
        problems.extend(check::stories(rung, &ended.log, &namespace.era(), &stories, leeway));
        let is_of_one_namespace = (filter.args)(&ready).iter().any(|arg| arg == "--netns" || arg == "-p");
        if is_of_one_namespace {
            problems.extend(lines_of_others(&ended.log, &namespace.era()));
        }
        report(problems)
    })
}

/// The tracer ends while the entry still waits.
fn without_the_end_of_time_wait(mut story: Story) -> Story {
    if story.has(Kind::TimeWait) {
        story.events.retain(|event| event.kind() != Kind::PortReleased);
    }
    story
}

fn lines_of_others(log: &Log, era: &Era) -> Vec<String> {
    let others = log.lines.iter().filter(|line| line.netns != Some(era.inode));
    others.map(|line| format!("of another namespace: {line}")).collect()
}

fn ended_well(ended: &Ended, status: i32, ended_by: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if ended.status.code() != Some(status) {
        problems.push(format!("ended with {} instead of {status}: {}", ended.status, ended.stderr.trim()));
    }
    let said = ended.log.summary.as_ref().map(|summary| summary.ended_by.as_str());
    if said != Some(ended_by) {
        problems.push(format!("`ended_by` is {said:?} instead of {ended_by:?}"));
    }
    problems
}

/// Calls `test` in a thread that has a network namespace of its own.
fn in_namespace(test: impl FnOnce(&Namespace) -> Result<Outcome, String> + Send) -> Result<Outcome, String> {
    let run = || {
        let namespace = Namespace::enter_new(SYSCTLS)?;
        test(&namespace)
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// `record -- CMD`: CMD and its children are traced, and its end is ours.
fn command(rung: &str, end: &str, status: i32) -> Result<Outcome, String> {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().expect("a directory for the truth");
        let truth_path = directory.path().join("truth.json");
        let command = stage::command("command", &[]);
        let mut args: Vec<OsString> = vec!["--".into(), command.get_program().into()];
        args.extend(command.get_args().map(OsString::from));
        args.extend([truth_path.clone().into_os_string(), end.into()]);

        let mut bystander = Part::start("bystander", &[]);
        bystander.hear::<u32>();
        let tracer = match Tracer::start(rung, &args) {
            Ok(tracer) => tracer,
            Err(NotStarted::CannotRun(why)) => return Ok(Outcome::Skipped(why)),
            Err(failed) => return Err(failed.to_string()),
        };
        let tracer_pid = tracer.pid();
        let ended = tracer.wait();
        bystander.kill();
        let ended = ended?;

        let mut problems = ended_well(&ended, status, "exit");
        problems.extend(whole::log(&ended.log, rung, tracer_pid));
        let told = std::fs::read_to_string(&truth_path)
            .map_err(|error| format!("the command did not run ({error}): {}", ended.stderr))?;
        let truth: Truth = serde_json::from_str(&told).map_err(|error| format!("`{told}`: {error}"))?;
        if truth.stories.first().is_none_or(|story| story.owner.ppid != tracer_pid) {
            problems.push("the command is not a child of portwatch".to_owned());
        }
        let stories: Vec<Story> = truth.stories.into_iter().map(without_the_end_of_time_wait).collect();
        let leeway = Leeway::of(rung, &ended.log, &stories, 0);
        problems.extend(check::stories(rung, &ended.log, &namespace.era(), &stories, leeway));
        problems.extend(lines_of_others(&ended.log, &namespace.era()));
        report(problems)
    })
}

/// `--count N` ends after N events.
fn count(rung: &str) -> Result<Outcome, String> {
    const COUNT: usize = 5;
    in_namespace(|_| {
        let mut bystander = Part::start("bystander", &[]);
        bystander.hear::<u32>();
        let netns = format!("/proc/{}/ns/net", bystander.pid());
        let args = words(&["--netns", &netns, "--count", &COUNT.to_string()]);
        let result = ended_run(
            rung,
            &args,
            |tracer| tracer.wait(),
            "count",
            |ended| {
                let lines = ended.log.lines.len();
                (lines != COUNT).then(|| format!("{lines} events instead of {COUNT}"))
            },
        );
        bystander.kill();
        result
    })
}

fn duration(rung: &str) -> Result<Outcome, String> {
    ended_run(
        rung,
        &words(&["-d", "1"]),
        |tracer| tracer.wait(),
        "duration",
        |ended| {
            let duration_ns = ended.log.summary.as_ref().map_or(0, |summary| summary.duration_ns);
            (duration_ns < 1_000_000_000).then(|| format!("it took {:?}", Duration::from_nanos(duration_ns)))
        },
    )
}

fn interrupted(rung: &str) -> Result<Outcome, String> {
    ended_run(rung, &[], |tracer| tracer.stop(Signal::SIGINT), "signal", |_| None)
}

fn ended_run(
    rung: &str,
    args: &[String],
    end: impl FnOnce(Tracer) -> Result<Ended, String>,
    ended_by: &str,
    complaint: impl FnOnce(&Ended) -> Option<String>,
) -> Result<Outcome, String> {
    let tracer = match Tracer::start(rung, args) {
        Ok(tracer) => tracer,
        Err(NotStarted::CannotRun(why)) => return Ok(Outcome::Skipped(why)),
        Err(failed) => return Err(failed.to_string()),
    };
    let tracer_pid = tracer.pid();
    let ended = end(tracer)?;
    let mut problems = ended_well(&ended, 0, ended_by);
    problems.extend(whole::log(&ended.log, rung, tracer_pid));
    problems.extend(complaint(&ended));
    report(problems)
}

/// A pid that does not exist is an error of its own, before anything is written.
fn no_such_pid(rung: &str) -> Result<Outcome, String> {
    // Above the highest number that Linux gives out.
    match Tracer::start(rung, &words(&["-p", "4194305"])) {
        Ok(_) => Err("it traces a process that does not exist".to_owned()),
        Err(NotStarted::CannotRun(why)) => Ok(Outcome::Skipped(why)),
        Err(NotStarted::Failed { status, stderr }) => {
            let is_said = status.is_some_and(|status| status.code() == Some(1)) && stderr.contains("4194305");
            if is_said { Ok(Outcome::Passed) } else { Err(format!("it ended with {status:?}: {stderr}")) }
        }
    }
}

/// portwatch in a PID namespace, and a client in one below that: pids are portwatch's, as are those in /proc.
fn inside_pid_namespace(rung: &str) -> Result<Outcome, String> {
    in_namespace(|_| {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
            .map_err(|errno| format!("cannot make namespaces: {errno}"))?;
        let judged: Judged = Part::start("trace_inside", &[rung]).finish_saying();
        judged.map_or_else(|why| Ok(Outcome::Skipped(why)), report)
    })
}

/// The first process of a PID namespace, in a mount namespace of its own.
fn trace_inside(args: &[String]) -> Judged {
    let rung = &args[0];
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("mount");
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("mount /proc");
    assert_eq!(std::process::id(), 1);
    let inode = std::fs::metadata("/proc/self/ns/net").expect("/proc").ino();
    let era = Era { inode, from_ns: 0, until_ns: i128::MAX };

    let tracer = match Tracer::start::<&str>(rung, &[]) {
        Ok(tracer) => tracer,
        Err(NotStarted::CannotRun(why)) => return Err(why),
        Err(failed) => return Ok(vec![failed.to_string()]),
    };
    let tracer_pid = tracer.pid();
    let played = play::scenario("owner_in_nested_pid_namespace");
    let (truth, ended) = match (played, tracer.stop(Signal::SIGTERM)) {
        (Ok(truth), Ok(ended)) => (truth, ended),
        (Err(error), _) | (_, Err(error)) => return Ok(vec![error]),
    };
    let stories: Vec<Story> = truth.stories.into_iter().map(without_the_end_of_time_wait).collect();
    let mut problems = ended_well(&ended, 0, "signal");
    problems.extend(whole::log(&ended.log, rung, tracer_pid));
    let leeway = Leeway::of(rung, &ended.log, &stories, 0);
    problems.extend(check::stories(rung, &ended.log, &era, &stories, leeway));
    Ok(problems)
}
