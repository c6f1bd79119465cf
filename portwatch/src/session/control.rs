//! What ends a run: a signal, the time, the count, the end of the command or of the last selected process, a
//! closed pipe.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval, sleep_until};

use super::pipeline::Pipeline;
use super::{Request, Shared};

/// How often the selected processes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// As the log's summary says it.
    pub by: &'static str,
    pub command: Option<ExitStatus>,
}

/// Waits for what ends a run. Made before anything else: from then on a signal ends the run and not the process.
pub struct Control {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Control {
    pub fn new() -> Result<Control> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the event loop")?;
        let entered = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
        drop(entered);
        Ok(Control { runtime, interrupt, terminate, hangup })
    }

    /// Starts the command, if there is one, and waits for the end of the run.
    pub fn wait(&mut self, request: &Request, shared: &Arc<Shared>, pipeline: &Pipeline) -> Result<Ended> {
        let Control { runtime, interrupt, terminate, hangup } = self;
        runtime.block_on(until_end(request, shared, pipeline, (interrupt, terminate, hangup)))
    }
}

async fn until_end(
    request: &Request,
    shared: &Arc<Shared>,
    pipeline: &Pipeline,
    (interrupt, terminate, hangup): (&mut Signal, &mut Signal, &mut Signal),
) -> Result<Ended> {
    let deadline = request.duration.map(|duration| Instant::now() + duration);
    let mut command = if request.command.is_empty() { None } else { Some(spawn(request, shared)?) };
    let mut look = interval(LOOK_INTERVAL);

    let by = loop {
        let stop = tokio::select! {
            signal = any(interrupt, terminate, hangup) => {
                match &command {
                    // The command gets it too, and its end is then the end of the run.
                    Some(child) => { pass_on(child, signal); None }
                    None => Some("signal"),
                }
            }
            () = until(deadline) => Some("duration"),
            by = pipeline.ended() => Some(by),
            status = exit_of(&mut command) => {
                let status = status.context("cannot wait for the command")?;
                return Ok(Ended { by: "exit", command: Some(status) });
            }
            _ = look.tick() => {
                let is_over = command.is_none() && has_ended(request, shared)?;
                is_over.then_some("exit")
            }
        };
        if let Some(by) = stop {
            break by;
        }
    };
    // The limit was ours, not the command's: it goes on without us, or ends with us if it was started for this.
    let status = match command {
        Some(mut child) => Some(end(&mut child).await?),
        None => None,
    };
    Ok(Ended { by, command: status.filter(|_| by == "exit") })
}

/// Refuses a command that cannot be started, before anything is made for it.
pub fn must_be_runnable(program: &str) -> Result<()> {
    use nix::unistd::{AccessFlags, access};
    let is_runnable = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    let is_found = if program.contains('/') {
        is_runnable(Path::new(program))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| is_runnable(&dir.join(program)))
    };
    if !is_found {
        bail!("cannot run `{program}`: there is no such program\n  next: check the name, or give its path");
    }
    Ok(())
}

/// Starts the command. It is selected as a child of ours from its birth; we ourselves never are.
fn spawn(request: &Request, shared: &Arc<Shared>) -> Result<Child> {
    let program = &request.command[0];
    let mut command = Command::new(program);
    command.args(&request.command[1..]);
    if request.is_stdout_taken {
        let stderr = io::stderr().as_fd().try_clone_to_owned().context("cannot duplicate standard error")?;
        command.stdout(stderr);
    }
    let child = command.spawn().with_context(|| format!("cannot run `{program}`"))?;
    shared.tracing().deselect(std::process::id())?;
    Ok(child)
}

async fn any(a: &mut Signal, b: &mut Signal, c: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = a.recv() => SignalKind::interrupt(),
        _ = b.recv() => SignalKind::terminate(),
        _ = c.recv() => SignalKind::hangup(),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn exit_of(command: &mut Option<Child>) -> io::Result<ExitStatus> {
    match command {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn pass_on(child: &Child, kind: SignalKind) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let (Some(pid), Ok(signal)) = (pid, Signal::try_from(kind.as_raw_value())) {
        // Gone already: its end is what we wait for anyway.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends a command whose run is over.
async fn end(child: &mut Child) -> Result<ExitStatus> {
    const PATIENCE: Duration = Duration::from_secs(5);
    pass_on(child, SignalKind::terminate());
    match tokio::time::timeout(PATIENCE, child.wait()).await {
        Ok(status) => status.context("cannot wait for the command"),
        Err(_) => {
            child.start_kill().context("cannot end the command")?;
            child.wait().await.context("cannot wait for the command")
        }
    }
}

/// Whether every process that was selected by number is gone. The kernel side drops them as they exit.
fn has_ended(request: &Request, shared: &Arc<Shared>) -> Result<bool> {
    if request.filters.pids.is_empty() {
        return Ok(false);
    }
    Ok(shared.tracing().selected()?.is_empty())
}

/// Shows what the kernel programs log, while it lives.
pub struct KernelLog {
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Prints log records to standard error.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("portwatch: kernel: {}: {}", record.level(), record.args().to_string().escape_debug());
    }

    fn flush(&self) {}
}

impl KernelLog {
    pub fn start(shared: &Arc<Shared>) -> Result<KernelLog> {
        // Only the first logger of a process is taken, and this is the only one.
        let _ = log::set_logger(&Stderr);
        log::set_max_level(log::LevelFilter::Debug);
        let mut logger = shared.tracing().logger()?;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("kernel-log".to_owned())
            .spawn(move || {
                while !stopping.load(std::sync::atomic::Ordering::Relaxed) {
                    logger.flush();
                    std::thread::sleep(LOOK_INTERVAL);
                }
                logger.flush();
            })
            .context("cannot start the thread for the kernel programs' log")?;
        Ok(KernelLog { stop, thread: Some(thread) })
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}
