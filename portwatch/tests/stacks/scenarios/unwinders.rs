//! Stacks of other people's programs, walked by portwatch and by framehop over the same bytes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portwatch::stack::unwind::Outcome;

use super::paths::report;
use crate::oracle::Oracle;
use crate::stage::{self, Running, Stage};
use crate::tap::{Taken, Tap};
use crate::wait::PATIENCE;
use crate::{Stopped, many};

/// Times that each program is started.
const RUNS: usize = 5;
/// Fewer programs than these prove little.
const PROGRAMS_MIN: usize = 4;

/// Shares that must be reached, in thousandths.
const DIRECT_MIN: usize = 999;
const WHOLE_MIN: usize = 990;

const GO: &str = include_str!("../programs/dial.go");
const JAVA: &str = include_str!("../programs/Dial.java");

const NGINX: &str = "
daemon off; master_process on; worker_processes 1; pid DIR/nginx.pid; error_log stderr crit;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
    server { listen 127.0.0.1:FRONT; location / { proxy_pass http://127.0.0.1:PORT; } }
}
";

/// What came of one program's stacks.
#[derive(Default)]
struct Compared {
    stacks: usize,
    /// Second address the same: who called the function that made the system call.
    direct: usize,
    whole: usize,
    complete: usize,
    frames: usize,
}

pub fn framehop(stage: &Stage) -> Result<(), Stopped> {
    let (port, accepted) = silent_server();
    let mut tap = Tap::open(stage.rung)?;
    let mut oracle = Oracle::default();
    let mut table: BTreeMap<&str, Compared> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut missing = Vec::new();
    for (name, command) in commands(stage, port)? {
        for _ in 0..many(RUNS) {
            let Some(mut command) = command(stage) else {
                missing.push(name);
                break;
            };
            let before = accepted.load(Ordering::Acquire);
            // Whoever it is waits for an answer, so that its files and mappings can be read.
            let program = stage.start(name, &mut command)?;
            let taken = until_connected(
                &mut tap,
                program,
                || accepted.load(Ordering::Acquire) > before,
                |taken| {
                    compare(&mut oracle, taken, table.entry(name).or_default(), &mut problems);
                },
            );
            taken.map_err(|why| format!("`{name}`: {why}"))?;
        }
    }
    show(&table);
    for name in missing {
        println!("{name:<14} is not installed");
    }
    let sum = |of: fn(&Compared) -> usize| table.values().map(of).sum::<usize>();
    let stacks = sum(|compared| compared.stacks);
    if table.len() < PROGRAMS_MIN {
        return Err(Stopped::Skipped(format!("only {} of the programs are installed", table.len())));
    }
    for (what, same, least) in
        [("direct callers", sum(|c| c.direct), DIRECT_MIN), ("stacks", sum(|c| c.whole), WHOLE_MIN)]
    {
        if same * 1000 < stacks * least {
            problems.insert(0, format!("{same} of {stacks} {what} are framehop's"));
        } else {
            println!("{same} of {stacks} {what} are framehop's");
        }
    }
    let is_within = problems.first().is_none_or(|problem| !problem.contains("framehop's"));
    if is_within { Ok(()) } else { report(&problems) }
}

/// Hands over stacks until the program has connected and nothing more comes.
fn until_connected(
    tap: &mut Tap,
    program: Running,
    is_connected: impl Fn() -> bool,
    mut each: impl FnMut(&Taken),
) -> Result<(), String> {
    const QUIET: Duration = Duration::from_millis(60);
    let deadline = Instant::now() + PATIENCE;
    let mut has_stack = false;
    loop {
        let was_connected = is_connected();
        let taken = tap.take(QUIET)?;
        taken.iter().for_each(&mut each);
        has_stack |= !taken.is_empty();
        if taken.is_empty() && was_connected && has_stack {
            drop(program);
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("it does not connect".to_owned());
        }
    }
}

fn compare(oracle: &mut Oracle, taken: &Taken, compared: &mut Compared, problems: &mut Vec<String>) {
    let Taken { raw, unwound } = taken;
    let prefix = raw.addresses.len().saturating_sub(1);
    let ours = &unwound.addresses[prefix..];
    // Such as the curl that waits for nginx.
    let Some(theirs) = oracle.walk(raw) else { return };
    compared.stacks += 1;
    compared.frames = compared.frames.max(unwound.addresses.len());
    compared.complete += usize::from(unwound.outcome == Outcome::Complete);
    compared.direct += usize::from(ours.get(1) == theirs.get(1));
    if *ours == theirs[..] {
        compared.whole += 1;
    } else {
        problems.push(format!("{:?} {ours:x?}\n  framehop {theirs:x?}", unwound.outcome));
    }
}

fn show(table: &BTreeMap<&str, Compared>) {
    println!(
        "{:<14} {:>7} {:>14} {:>12} {:>9} {:>7}",
        "program", "stacks", "direct caller", "whole stack", "complete", "frames"
    );
    for (name, Compared { stacks, direct, whole, complete, frames }) in table {
        println!("{name:<14} {stacks:>7} {direct:>14} {whole:>12} {complete:>9} {frames:>7}");
    }
}

/// Accepts and never answers: its port, and how many came.
fn silent_server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port to listen on");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    // Ends with the test: nobody waits for it, and its sockets go with the namespace.
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            open.push(stream);
            count.fetch_add(1, Ordering::AcqRel);
        }
    });
    (port, accepted)
}

/// Makes the command anew for each run; nothing: it is not installed.
type Make = Box<dyn Fn(&Stage) -> Option<Command>>;

fn commands(stage: &Stage, port: u16) -> Result<Vec<(&'static str, Make)>, Stopped> {
    let url = format!("http://127.0.0.1:{port}/");
    let simple = |name: &'static str, args: Vec<String>| -> (&'static str, Make) {
        (name, Box::new(move |_| Some(with(&find(name)?, &args))))
    };
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let python = format!("import urllib.request; urllib.request.urlopen('{url}')");
    let perl = format!("use IO::Socket::INET; IO::Socket::INET->new('127.0.0.1:{port}')->getline");
    let node = format!("require('http').get('{url}')");
    let port_text = port.to_string();
    let mut all = vec![
        simple("curl", words(&["-s", "--noproxy", "*", &url])),
        simple("wget", words(&["-q", "--no-proxy", "-O", "/dev/null", &url])),
        simple("perl", words(&["-e", &perl])),
        simple("node", words(&["-e", &node])),
        simple("git", words(&["-c", "http.proxy=", "ls-remote", &url])),
        simple("psql", words(&["-h", "127.0.0.1", "-p", &port_text, "-U", "x", "x"])),
        simple("redis-cli", words(&["-p", &port_text, "ping"])),
        simple("ssh", words(&["-F", "none", "-p", &port_text, "127.0.0.1"])),
        simple("openssl", words(&["s_client", "-connect", &format!("127.0.0.1:{port}")])),
        simple("bash", words(&["-c", &format!("read line < /dev/tcp/127.0.0.1/{port}")])),
    ];
    all.push(("python3", Box::new(move |_| Some(with(&interpreter()?, &["-c".to_owned(), python.clone()])))));
    // Without a shim in between.
    all.push(("nginx", nginx(port)));
    let dial = words(&[crate::DIAL, &port_text]);
    all.push(("rust", Box::new(move |_| Some(with(std::env::current_exe().ok()?.to_str()?, &dial)))));
    all.push(("java", java(stage, port)?));
    all.push(("go", go(stage, port)?));
    Ok(all)
}

fn with(program: &str, args: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("no_proxy", "*").env("NO_PROXY", "*");
    command
}

fn find(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
}

/// Python itself and not a shim that starts it.
fn interpreter() -> Option<String> {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|path| !path.is_empty())
}

/// A worker, forked, that passes on what curl asks for.
fn nginx(port: u16) -> Make {
    Box::new(move |stage| {
        let (nginx, curl) = (find("nginx")?, find("curl")?);
        let front = stage::free_port();
        let directory = stage.path(&format!("nginx-{front}"));
        std::fs::create_dir_all(&directory).ok()?;
        let directory = directory.display().to_string();
        let text = NGINX.replace("DIR", &directory).replace("FRONT", &front.to_string());
        let configuration =
            stage.write(&format!("nginx-{front}.conf"), &text.replace("PORT", &port.to_string()));
        // Asks until it is there; the stack of nginx's connect is what counts, and curl's are the same as curl's.
        let script = "\"$0\" -e stderr -p \"$1\" -c \"$2\" & trap 'kill $!; wait' EXIT; \
                      while ! \"$3\" -s --noproxy '*' -o /dev/null \"$4\"; do sleep 0.1; done";
        let url = format!("http://127.0.0.1:{front}/");
        let args = ["-c", script, &nginx, &directory, &configuration, &curl, &url].map(str::to_owned);
        Some(with("sh", &args))
    })
}

fn java(stage: &Stage, port: u16) -> Result<Make, Stopped> {
    let source = stage.write("Dial.java", JAVA);
    let directory = stage.path_text("");
    let is_built = find("javac").is_some_and(|javac| {
        Command::new(javac).args(["-d", &directory, &source]).status().is_ok_and(|status| status.success())
    });
    Ok(Box::new(move |_| {
        let java = find("java").filter(|_| is_built)?;
        Some(with(&java, &["-Xshare:auto", "-cp", &directory, "Dial", &port.to_string()].map(str::to_owned)))
    }))
}

fn go(stage: &Stage, port: u16) -> Result<Make, Stopped> {
    let (source, program) = (stage.write("dial.go", GO), stage.path_text("dial-go"));
    let is_built = find("go").is_some_and(|go| {
        let mut command = Command::new(go);
        command.args(["build", "-o", &program, &source]).env("GOFLAGS", "-mod=mod").env("GO111MODULE", "off");
        command.status().is_ok_and(|status| status.success())
    });
    Ok(Box::new(move |_| is_built.then(|| with(&program, &[port.to_string()]))))
}
