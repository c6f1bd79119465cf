//! Where a test plays: a network namespace and a directory of its own, and no process that stays behind.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Stopped;
use crate::namespace::Namespace;
use crate::tracer::{NotStarted, Tracer};
use crate::wait::{self, PATIENCE};

pub struct Stage {
    pub rung: &'static str,
    pub netns: u64,
    directory: tempfile::TempDir,
    _namespace: Namespace,
}

impl Stage {
    /// Moves the calling thread into a new namespace.
    pub fn set_up(rung: &'static str) -> Result<Stage, String> {
        let namespace = Namespace::enter_new(&[])?;
        let directory = tempfile::tempdir().map_err(|error| format!("no directory to play in: {error}"))?;
        Ok(Stage { rung, netns: namespace.era().inode, directory, _namespace: namespace })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same for a command line.
    pub fn path_text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file that a program here is to read.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path_text(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write `{path}`: {error}"));
        path
    }

    pub fn read(&self, name: &str) -> Result<String, String> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))
    }

    /// Starts `portwatch record -- COMMAND`. The command finds no proxy in its environment, and its process id is in
    /// the file `pid`.
    pub fn record(&self, command: &[String]) -> Result<Tracer, Stopped> {
        const AS_ITSELF: &str = "export no_proxy='*' NO_PROXY='*'; echo $$ >\"$0\" && exec \"$@\"";
        let mut args: Vec<OsString> = ["--", "sh", "-c", AS_ITSELF].map(OsString::from).to_vec();
        args.push(self.path("pid").into());
        args.extend(command.iter().map(OsString::from));
        self.trace(&args)
    }

    /// Starts `portwatch record --netns …` for everything that happens here.
    pub fn record_all(&self) -> Result<Tracer, Stopped> {
        self.record_all_with(&[])
    }

    /// The same with more arguments.
    pub fn record_all_with(&self, more: &[&str]) -> Result<Tracer, Stopped> {
        let this_thread = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        let mut args: Vec<OsString> = vec!["--netns".into(), this_thread.into()];
        args.extend(more.iter().map(OsString::from));
        self.trace(&args)
    }

    fn trace(&self, args: &[OsString]) -> Result<Tracer, Stopped> {
        Tracer::start(self.rung, args).map_err(|error| match error {
            NotStarted::CannotRun(why) => Stopped::Skipped(why),
            failed @ NotStarted::Failed { .. } => Stopped::Failed(failed.to_string()),
        })
    }

    /// Of the last command that `record` started.
    pub fn command_pid(&self) -> Result<u32, String> {
        self.pid_in("pid")
    }

    /// A process id that somebody wrote down.
    pub fn pid_in(&self, name: &str) -> Result<u32, String> {
        let text = self.read(name)?;
        text.trim().parse().map_err(|error| format!("`{text}` is not a process id: {error}"))
    }

    /// Starts a program; what it says goes to the file `NAME.out`.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Running, String> {
        let path = self.path(&format!("{name}.out"));
        let output =
            fs::File::create(&path).map_err(|error| format!("cannot make `{}`: {error}", path.display()))?;
        let errors = output.try_clone().map_err(|error| format!("cannot share a file: {error}"))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(|error| format!("cannot start `{name}`: {error}"))?;
        Ok(Running { name: name.to_owned(), child, output: path })
    }
}

impl Drop for Stage {
    /// Ends what was started here and is still there, also after a failure: nobody else lives in this namespace.
    fn drop(&mut self) {
        let gone = wait::until(PATIENCE, || {
            let left = processes_in(self.netns);
            for &pid in &left {
                // Gone since, at worst.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        if gone.is_none() {
            eprintln!("processes stay behind: {:?}", processes_in(self.netns));
        }
    }
}

/// Processes of a namespace, ourselves left out.
fn processes_in(netns: u64) -> Vec<i32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| pid != std::process::id().cast_signed())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| file.ino() == netns))
        .collect()
}

/// A program that was started here.
pub struct Running {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it listens on `port`, in the calling thread's namespace.
    pub fn wait_for_port(&mut self, port: u16) -> Result<(), String> {
        self.wait_until(&format!("listens on port {port}"), |_| is_listening(port))
    }

    /// Waits until it has said something.
    pub fn wait_for_words(&mut self, words: &str) -> Result<(), String> {
        self.wait_until(&format!("says `{words}`"), |output| read_lossy(output).contains(words))
    }

    fn wait_until(&mut self, what: &str, is_so: impl Fn(&Path) -> bool) -> Result<(), String> {
        let answer = wait::until(PATIENCE, || match self.child.try_wait() {
            Ok(None) => is_so(&self.output).then_some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("it ended: {status}"))),
            Err(error) => Some(Err(error.to_string())),
        });
        let answer = answer.unwrap_or_else(|| Err(format!("not within {PATIENCE:?}")));
        answer.map_err(|why| {
            format!("waiting until `{}` {what}: {why}\n{}", self.name, read_lossy(&self.output))
        })
    }

    pub fn stop(mut self, signal: Signal) -> Result<ExitStatus, String> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .map_err(|errno| format!("kill: {errno}"))?;
        self.end()
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Result<ExitStatus, String> {
        self.end()
    }

    fn end(&mut self) -> Result<ExitStatus, String> {
        let ended = wait::until(PATIENCE, || self.child.try_wait().expect("our own child"));
        ended.ok_or_else(|| {
            format!("`{}` did not end within {PATIENCE:?}\n{}", self.name, read_lossy(&self.output))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lossy(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => panic!("cannot read `{}`: {error}", path.display()),
    }
}

/// Whether somebody listens; asked of the kernel, since a connection to find out would count.
fn is_listening(port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    rows().iter().any(|row| row.state == LISTEN && row.local.ends_with(&suffix))
}

/// Connections of the calling thread's namespace that are neither closed nor waiting out their time.
pub fn open_connections() -> Vec<String> {
    let open = rows().into_iter().filter(|row| ![LISTEN, FIN_WAIT2, TIME_WAIT].contains(&row.state.as_str()));
    open.map(|row| format!("{} {} {}", row.local, row.remote, row.state)).collect()
}

// As the kernel's table has them; a time-wait entry shows either of the last two.
const LISTEN: &str = "0A";
const FIN_WAIT2: &str = "05";
const TIME_WAIT: &str = "06";

/// A row of /proc/net/tcp or tcp6, in its words.
struct Row {
    local: String,
    remote: String,
    state: String,
}

fn rows() -> Vec<Row> {
    let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    // A kernel without IPv6 has no second one.
    let text = table("tcp").expect("the table of TCP sockets") + &table("tcp6").unwrap_or_default();
    let rows = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next()?.ends_with(':').then_some(())?;
        let mut word = || words.next().map(str::to_owned);
        Some(Row { local: word()?, remote: word()?, state: word()? })
    });
    rows.collect()
}

/// A port that a server here can have.
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.local_addr().expect("a bound socket has an address").port()
}
