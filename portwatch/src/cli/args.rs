//! Flag groups that tracing commands share, and their conversion into a checked [`Request`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use ipnet::IpNet;
use portwatch_common::wire::{EVENT_NAMES, kind};
use serde_json::{Value, json};

use super::failure::Failure;
use crate::bpf::{KernelFilters, Protocols, Rung, Sizes, StackWalk};
use crate::filters::comm::CommPatterns;
use crate::filters::ports::PortSet;
use crate::filters::replay::Replay;
use crate::kernel::cgroups::Cgroups;
use crate::kernel::netns::Namespace;
use crate::recording::format::Proto;
use crate::session::Request;

/// Which sockets, and which of their events.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters (a socket must pass all of them)")]
pub struct FilterArgs {
    /// Only these processes; ends when the last of them is gone
    #[arg(short = 'p', long = "pid", value_name = "PID", value_delimiter = ',', value_parser = pid)]
    pids: Vec<u32>,
    /// Their children too, from birth
    #[arg(short, long, requires = "pids")]
    follow: bool,
    /// Only tasks whose name matches, as in `nginx*`
    #[arg(long, value_name = "GLOB")]
    comm: Vec<String>,
    /// Only this user id
    #[arg(long, value_name = "UID", value_delimiter = ',', value_parser = uid)]
    uid: Vec<u32>,
    /// Only tasks in this cgroup (version 2) or below it
    #[arg(long, value_name = "PATH", conflicts_with = "container")]
    cgroup: Option<PathBuf>,
    /// Only this container, by the beginning of its id
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Only this network namespace: a process that is in it, or a file such as /run/netns/NAME
    #[arg(long, value_name = "PID|PATH")]
    netns: Vec<String>,
    /// Only these destination ports, as in `80,443,8000-8099`
    #[arg(short = 'P', long = "dport", value_name = "LIST")]
    dport: Vec<PortSet>,
    /// Only these local ports
    #[arg(long, value_name = "LIST")]
    lport: Vec<PortSet>,
    /// Only destinations in this network, as in `10.0.0.0/8`
    #[arg(long, value_name = "CIDR", value_parser = network)]
    dst: Vec<IpNet>,
    /// Only source addresses in this network
    #[arg(long, value_name = "CIDR", value_parser = network)]
    src: Vec<IpNet>,
    /// Only IPv4 addresses, also on IPv6 sockets
    #[arg(short = '4', conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6 addresses
    #[arg(short = '6')]
    ipv6: bool,
    /// Only these protocols, tcp or udp [default: both]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    proto: Vec<String>,
    /// Only these events, as in `connect_failed,time_wait`
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    events: Vec<String>,
    /// Only failed connects, binds and listens
    #[arg(short = 'Z', long)]
    failed_only: bool,
    /// Connections that were accepted, too
    #[arg(long)]
    accepted: bool,
}

/// A process id. Process 0 is the idle loop, which asks for no port.
fn pid(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| format!("`{}` is not a process id; `pgrep -a NAME` looks one up", text.escape_debug()))
}

/// A user id.
fn uid(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("`{}` is not a user id; `id -u NAME` gives the number", text.escape_debug()))
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_| {
        format!(
            "`{}` is not a network; write one as in `10.0.0.0/8`, `fd00::/8` or `192.0.2.7`",
            text.escape_debug()
        )
    })
}

/// When to end.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// End after this time
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// End after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl LimitArgs {
    pub fn has_duration(&self) -> bool {
        self.duration.is_some()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e9 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("`{}` is not a time; write seconds, as in `10` or `0.5`", text.escape_debug())),
    }
}

/// How to observe.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Tracing")]
pub struct TraceSetup {
    /// Way of observing: fentry, kprobe or tracepoint [default: the first that works]
    #[arg(long, value_name = "RUNG")]
    rung: Option<Rung>,
    /// Do not take stacks: no call sites
    #[arg(long)]
    no_stacks: bool,
    /// Show the kernel's frames in stacks, too: innermost, before the program's
    #[arg(long, conflicts_with = "no_stacks")]
    kernel_stack: bool,
    /// How the kernel side walks stacks: loop (from Linux 5.17) or plain [default: the first that works]
    #[arg(long, value_name = "WAY", hide = true)]
    stack_walk: Option<StackWalk>,
    /// A function or module that is never the call site, as in `libmyclient.so*` or `mylib::*`
    #[arg(long, value_name = "PATTERN")]
    library: Vec<String>,
    /// Write the owners' command lines, which may hold secrets, into the log
    #[arg(long)]
    cmdline: bool,
    /// Size of the buffer between kernel and portwatch, in MiB: a power of two
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = ring_mib)]
    ring_mib: u32,
    /// Sockets that are tracked at once; 300 bytes of kernel memory each
    #[arg(long, value_name = "N", default_value_t = Sizes::default().sockets, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    max_sockets: u32,
    /// Say more; show what the kernel programs log
    #[arg(short, long)]
    verbose: bool,
}

fn ring_mib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mib) if mib.is_power_of_two() && mib <= 1024 => Ok(mib),
        _ => Err(format!("`{}` is not a size; write a power of two from 1 to 1024", text.escape_debug())),
    }
}

/// The same filters for a log that is read, where /proc of this host means nothing.
pub fn replay(filters: &FilterArgs) -> Result<Replay> {
    for protocol in &filters.proto {
        if !matches!(protocol.as_str(), "tcp" | "udp") {
            return Err(Failure::usage(anyhow!(
                "unknown protocol `{}`\n  next: use `tcp`, `udp`, or leave it out",
                protocol.escape_debug()
            )));
        }
    }
    let comm = match filters.comm.as_slice() {
        [] => None,
        comm => Some(CommPatterns::new(comm).map_err(Failure::usage)?),
    };
    // A log names a namespace by its inode; a process or a file of this host may be another one by now.
    let inode = |text: &String| {
        text.parse().map_err(|_| {
            Failure::usage(anyhow!(
                "`--netns {}` is no inode number\n  next: with a log, give the number that its `netns` lines have",
                text.escape_debug()
            ))
        })
    };
    Ok(Replay {
        pids: filters.pids.clone(),
        follow: filters.follow,
        comm,
        uids: filters.uid.clone(),
        cgroup: filters.cgroup.as_ref().map(|path| path.to_string_lossy().into_owned()),
        container: filters.container.clone(),
        netns: filters.netns.iter().map(inode).collect::<Result<_>>()?,
        ports_remote: union(&filters.dport),
        ports_local: union(&filters.lport),
        addrs_remote: filters.dst.clone(),
        addrs_local: filters.src.clone(),
        ipv4_only: filters.ipv4,
        ipv6_only: filters.ipv6,
        protos: filters
            .proto
            .iter()
            .map(|protocol| if protocol == "udp" { Proto::Udp } else { Proto::Tcp })
            .collect(),
        ..Replay::default()
    })
}

impl FilterArgs {
    /// Refuses, for commands that look at sockets, the flags that choose events.
    pub fn must_be_for_sockets(&self) -> Result<()> {
        let chooses_events = [
            (!self.events.is_empty(), "--events"),
            (self.failed_only, "--failed-only"),
            (self.accepted, "--accepted"),
        ];
        match chooses_events.into_iter().find(|(is_on, _)| *is_on) {
            None => Ok(()),
            Some((_, flag)) => Err(Failure::usage(anyhow!(
                "`{flag}` chooses events, and this command shows none\n  next: leave it out, or use `portwatch trace`"
            ))),
        }
    }
}

/// The filters that the kernel side judges.
pub fn kernel_filters(filters: &FilterArgs) -> Result<KernelFilters> {
    let comm = if filters.comm.is_empty() {
        None
    } else {
        Some(CommPatterns::new(&filters.comm).map_err(Failure::usage)?)
    };
    Ok(KernelFilters {
        pids: filters.pids.clone(),
        parents: Vec::new(),
        follow: filters.follow,
        comm,
        uids: filters.uid.clone(),
        cgroup: cgroup(filters)?,
        netns: filters.netns.iter().map(|text| netns(text)).collect::<Result<_>>()?,
        ports_remote: union(&filters.dport),
        ports_local: union(&filters.lport),
        addrs_remote: filters.dst.clone(),
        addrs_local: filters.src.clone(),
        ipv4_only: filters.ipv4,
        ipv6_only: filters.ipv6,
    })
}

/// Turns what was typed into what a run needs, and checks everything that can be checked before anything is loaded.
pub fn request(
    filters: &FilterArgs,
    limits: &LimitArgs,
    setup: &TraceSetup,
    command: Vec<String>,
) -> Result<Request> {
    Ok(Request {
        rung: setup.rung,
        filters: kernel_filters(filters)?,
        protocols: protocols(filters)?,
        kinds: kinds(filters)?,
        accepted: filters.accepted,
        stacks: !setup.no_stacks,
        kernel_stacks: setup.kernel_stack,
        stack_walk: setup.stack_walk,
        library_patterns: setup.library.clone(),
        cmdline: setup.cmdline,
        sizes: Sizes {
            ring_bytes: setup.ring_mib << 20,
            sockets: setup.max_sockets,
            time_waits: setup.max_sockets.saturating_mul(2),
            preexisting: setup.max_sockets,
        },
        duration: limits.duration,
        count: limits.count,
        verbose: setup.verbose,
        command,
        is_stdout_taken: false,
        typed: typed(filters, limits),
    })
}

fn union(sets: &[PortSet]) -> Option<PortSet> {
    sets.iter().cloned().reduce(|all, more| all.union(&more))
}

/// The protocols that are wanted.
pub fn protocols(filters: &FilterArgs) -> Result<Protocols> {
    if filters.proto.is_empty() {
        return Ok(Protocols::ALL);
    }
    let mut protocols = Protocols { tcp: false, udp: false };
    for protocol in &filters.proto {
        match protocol.as_str() {
            "tcp" => protocols.tcp = true,
            "udp" => protocols.udp = true,
            other => {
                return Err(Failure::usage(anyhow!(
                    "unknown protocol `{}`\n  next: use `--proto tcp` or `--proto udp`, or leave it out",
                    other.escape_debug()
                )));
            }
        }
    }
    Ok(protocols)
}

/// The event kinds that are wanted, one bit each.
fn kinds(filters: &FilterArgs) -> Result<u32> {
    const ALL: u32 = (1 << EVENT_NAMES.len()) - 1;
    const FAILED: u32 = 1 << kind::CONNECT_FAILED | 1 << kind::BIND_FAILED;
    let mut kinds = if filters.events.is_empty() { ALL } else { 0 };
    for name in &filters.events {
        let Some(at) = EVENT_NAMES.iter().position(|known| known == name) else {
            let error = anyhow!(
                "unknown event `{}`\n  next: use any of {}",
                name.escape_debug(),
                EVENT_NAMES.join(", ")
            );
            return Err(Failure::usage(error));
        };
        kinds |= 1 << at;
    }
    if filters.failed_only {
        kinds &= FAILED;
        if kinds == 0 {
            let error = anyhow!(
                "`--failed-only` with `--events {}` leaves nothing\n  next: leave one of them out",
                filters.events.join(",")
            );
            return Err(Failure::usage(error));
        }
    }
    Ok(kinds)
}

fn cgroup(filters: &FilterArgs) -> Result<Option<(u64, u32)>> {
    let cgroup = match (&filters.cgroup, &filters.container) {
        (Some(path), _) => Cgroups::find()?.resolve(path)?,
        (None, Some(id)) => {
            let mut found = Cgroups::find()?.of_container(id)?;
            match found.len() {
                0 => bail!(
                    "no container's id begins with `{}`\n  next: list them with `docker ps` or `crictl ps`",
                    id.escape_debug()
                ),
                1 => found.remove(0),
                n => bail!(
                    "the ids of {n} containers begin with `{}`\n  next: type more of it",
                    id.escape_debug()
                ),
            }
        }
        (None, None) => return Ok(None),
    };
    let Some(level) = cgroup.level else {
        bail!(
            "cannot filter by cgroup: only a part of the hierarchy is mounted here\n  next: run portwatch in the host's cgroup namespace"
        );
    };
    Ok(Some((cgroup.id, level)))
}

fn netns(text: &str) -> Result<u32> {
    let namespace = match text.parse::<u32>() {
        Ok(pid) => Namespace::of_process(pid),
        Err(_) => Namespace::at(Path::new(text)),
    };
    let namespace = namespace.with_context(|| {
        let hint = "give the PID of a process that is in it, or a file such as `/run/netns/NAME`; \
                    `lsns -t net` lists processes";
        format!("cannot use `--netns {}`\n  next: {hint}", text.escape_debug())
    })?;
    Ok(namespace.inode())
}

/// The filters for the log's header, by flag name.
fn typed(filters: &FilterArgs, limits: &LimitArgs) -> BTreeMap<String, Value> {
    let mut typed = BTreeMap::new();
    let mut put = |name: &str, is_on: bool, value: Value| {
        if is_on {
            typed.insert(name.to_owned(), value);
        }
    };
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    put("pid", !filters.pids.is_empty(), json!(filters.pids));
    put("follow", filters.follow, json!(true));
    put("comm", !filters.comm.is_empty(), json!(filters.comm));
    put("uid", !filters.uid.is_empty(), json!(filters.uid));
    put("cgroup", filters.cgroup.is_some(), json!(filters.cgroup));
    put("container", filters.container.is_some(), json!(filters.container));
    put("netns", !filters.netns.is_empty(), json!(filters.netns));
    let ports = |sets: &[PortSet]| sets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    put("dport", !filters.dport.is_empty(), json!(ports(&filters.dport)));
    put("lport", !filters.lport.is_empty(), json!(ports(&filters.lport)));
    put("dst", !filters.dst.is_empty(), json!(texts(&filters.dst)));
    put("src", !filters.src.is_empty(), json!(texts(&filters.src)));
    put("ipv4", filters.ipv4, json!(true));
    put("ipv6", filters.ipv6, json!(true));
    put("proto", !filters.proto.is_empty(), json!(filters.proto));
    put("events", !filters.events.is_empty(), json!(filters.events));
    put("failed_only", filters.failed_only, json!(true));
    put("accepted", filters.accepted, json!(true));
    put("duration_s", limits.duration.is_some(), json!(limits.duration.map(|d| d.as_secs_f64())));
    put("count", limits.count.is_some(), json!(limits.count));
    typed
}
