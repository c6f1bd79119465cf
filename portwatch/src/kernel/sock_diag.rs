//! Lists the sockets of the current thread's network namespace through `NETLINK_SOCK_DIAG`.
//!
//! A request for a protocol whose diag module is not loaded makes the kernel load it
//! (`sock_load_diag_module`), and portwatch changes nothing on a host. So a dump needs a [`Permit`], and
//! [`Permit::obtain`] gives one only where nothing can be loaded. [`super::proc_net`] is the way without.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::OnceLock;
use std::{fmt, fs, io};

use anyhow::{Context, Result};
use nix::sys::socket::SockProtocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::netlink::{self, NLM_F_DUMP};
use super::socket_row::{SocketRow, State, Timer};
use crate::event::{Family, Protocol};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
// Attributes of `linux/inet_diag.h`.
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Every state there is, the bound-only ones of Linux 6.8 and later included; older kernels ignore that bit.
const STATES_ALL: u32 = (1 << 14) - 1;

/// `struct inet_diag_sockid`. Ports and addresses are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct SocketId {
    local_port_be: [u8; 2],
    remote_port_be: [u8; 2],
    local_be: [u8; 16],
    remote_be: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// `struct inet_diag_msg`
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Row {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires_ms: u32,
    queue_receive: u32,
    queue_send: u32,
    uid: u32,
    inode: u32,
}

const _: () = assert!(size_of::<Request>() == 56 && size_of::<Row>() == 72);

/// What a dump says besides its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub rows: usize,
    /// Messages that were no socket row of a known family.
    pub refused: usize,
    /// The kernel says that its table changed under the dump: rows may be missing or doubled.
    pub is_torn: bool,
}

/// Proof that a dump of `protocol` loads no module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    protocol: Protocol,
}

impl Permit {
    /// Looks whether the modules behind a dump are there. Reads files only, and only the first time: that may be the
    /// kernel's whole type information. The answer stays true unless somebody loads or unloads a module meanwhile.
    pub fn obtain(protocol: Protocol) -> Result<Permit, Refusal> {
        static TCP: OnceLock<Result<(), Refusal>> = OnceLock::new();
        static UDP: OnceLock<Result<(), Refusal>> = OnceLock::new();
        let (known, modules) = match protocol {
            Protocol::Tcp => (&TCP, [&INET_DIAG, &TCP_DIAG]),
            Protocol::Udp => (&UDP, [&INET_DIAG, &UDP_DIAG]),
        };
        known.get_or_init(|| permit(modules, Host::running())).map(|()| Permit { protocol })
    }
}

/// Why no dump is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotLoaded(&'static str),
    /// Neither a sign that the module is there nor one that it is not.
    NotKnown(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotLoaded(module) => write!(
                f,
                "kernel module `{module}` is not loaded, and portwatch does not load it; \
                 `modprobe {module}` makes socket listings complete"
            ),
            Refusal::NotKnown(module) => write!(
                f,
                "it cannot be seen whether kernel module `{module}` is loaded, and a socket listing might load it; \
                 `modprobe {module}` settles it"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

struct Module {
    name: &'static str,
    /// A function of the module that no compiler can inline away, since a table holds its address.
    function: &'static str,
}

const INET_DIAG: Module = Module { name: "inet_diag", function: "inet_diag_handler_cmd" };
const TCP_DIAG: Module = Module { name: "tcp_diag", function: "tcp_diag_dump" };
const UDP_DIAG: Module = Module { name: "udp_diag", function: "udp_diag_dump" };

/// The files that tell about modules, so that tests can show other hosts.
struct Host<'a> {
    root: &'a Path,
    release: String,
}

impl Host<'_> {
    fn running() -> Host<'static> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host { root: Path::new("/"), release: release.trim().to_owned() }
    }

    fn text(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(path))
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

fn permit(modules: [&Module; 2], host: Host<'_>) -> Result<(), Refusal> {
    if cannot_load_anything(&host) {
        return Ok(());
    }
    // Read once: it has several megabytes.
    let mut types = None;
    for module in modules {
        if is_loaded(module, &host) || is_in_builtin_list(module, &host) {
            continue;
        }
        // A built-in module without parameters has no directory in /sys/module, but its functions are
        // among the types of the kernel image; those of a loadable one are not.
        let types = types
            .get_or_insert_with(|| fs::read(host.root.join("sys/kernel/btf/vmlinux")).unwrap_or_default());
        if contains_name(types, module.function) {
            continue;
        }
        let is_certain =
            !types.is_empty() || host.has(&format!("lib/modules/{}/modules.builtin", host.release));
        return Err(if is_certain {
            Refusal::NotLoaded(module.name)
        } else {
            Refusal::NotKnown(module.name)
        });
    }
    Ok(())
}

/// A kernel without loadable modules, one that is locked against more of them, or one without a program to
/// load them with (`__request_module` returns at once when `modprobe_path` is empty).
fn cannot_load_anything(host: &Host<'_>) -> bool {
    if host.text("proc/sys/kernel/modules_disabled").is_ok_and(|text| text.trim() == "1") {
        return true;
    }
    match host.text("proc/sys/kernel/modprobe") {
        Ok(path) => path.trim().is_empty(),
        // Absent while its neighbours are there: CONFIG_MODULES is off.
        Err(error) => error.kind() == ErrorKind::NotFound && host.has("proc/sys/kernel/ostype"),
    }
}

fn is_loaded(module: &Module, host: &Host<'_>) -> bool {
    // `initstate` exists for loadable modules only; a directory without it is a built-in one's.
    match host.text(&format!("sys/module/{}/initstate", module.name)) {
        Ok(state) => state.trim() == "live",
        Err(_) => host.has(&format!("sys/module/{}", module.name)),
    }
}

fn is_in_builtin_list(module: &Module, host: &Host<'_>) -> bool {
    let file = format!("/{}.ko", module.name);
    !host.release.is_empty()
        && host
            .text(&format!("lib/modules/{}/modules.builtin", host.release))
            .is_ok_and(|list| list.lines().any(|line| line.ends_with(&file)))
}

/// Whether a BTF image's string section holds `name`.
fn contains_name(btf: &[u8], name: &str) -> bool {
    let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
    memchr::memmem::find(btf, &wanted).is_some()
}

/// Whether sock_diag lists TCP sockets that are bound and nothing more (Linux 6.8 and later).
///
/// Told by the kernel's own name for their state, since distributions carry changes to older versions.
pub fn lists_bound_sockets() -> bool {
    static IS_KNOWN: OnceLock<bool> = OnceLock::new();
    *IS_KNOWN.get_or_init(|| {
        fs::read("/sys/kernel/btf/vmlinux").is_ok_and(|btf| contains_name(&btf, "TCP_BOUND_INACTIVE"))
    })
}

/// Hands every socket of the permit's protocol and of one family, in any state, to `on_row`.
///
/// Works on the network namespace that the calling thread is in. Needs no privilege. An error can come after
/// rows were handed over; they are then not all there are.
pub fn dump(permit: Permit, family: Family, mut on_row: impl FnMut(&SocketRow)) -> Result<Dump> {
    let request = Request {
        family: match family {
            Family::Ipv4 => AF_INET,
            Family::Ipv6 => AF_INET6,
        },
        protocol: protocol_number(permit.protocol),
        extensions: 0,
        pad: 0,
        states: STATES_ALL,
        id: SocketId::default(),
    };
    let mut dump = Dump::default();
    let answer = netlink::Socket::open(SockProtocol::NetlinkSockDiag)
        .and_then(|mut socket| {
            socket.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request, |kind, bytes| {
                match (kind == SOCK_DIAG_BY_FAMILY).then(|| decode(permit.protocol, bytes)).flatten() {
                    Some(row) => {
                        dump.rows += 1;
                        on_row(&row);
                    }
                    None => dump.refused += 1,
                }
            })
        })
        .with_context(|| {
            format!("cannot list {} sockets of family {}", permit.protocol.name(), family.name())
        })?;
    dump.is_torn = answer.is_torn;
    Ok(dump)
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// Bytes of one message → row. Total: `None` for what is too short or of another family.
fn decode(protocol: Protocol, bytes: &[u8]) -> Option<SocketRow> {
    let (row, attributes) = Row::read_from_prefix(bytes).ok()?;
    let (family, local, remote) = match row.family {
        AF_INET => (Family::Ipv4, mapped(row.id.local_be), mapped(row.id.remote_be)),
        AF_INET6 => (Family::Ipv6, Ipv6Addr::from(row.id.local_be), Ipv6Addr::from(row.id.remote_be)),
        _ => return None,
    };
    let [low, high] = row.id.cookie;
    let mut cgroup_id = None;
    let mut is_v6_only = None;
    for (kind, value) in netlink::attributes(attributes) {
        match kind {
            INET_DIAG_CGROUP_ID => cgroup_id = u64::read_from_bytes(value).ok(),
            INET_DIAG_SKV6ONLY => is_v6_only = value.first().map(|&flag| flag != 0),
            _ => {}
        }
    }
    Some(SocketRow {
        protocol,
        family,
        state: State::from_number(row.state),
        local,
        remote,
        local_port: u16::from_be_bytes(row.id.local_port_be),
        remote_port: u16::from_be_bytes(row.id.remote_port_be),
        interface: row.id.interface,
        uid: row.uid,
        inode: u64::from(row.inode),
        cookie: Some(u64::from(high) << 32 | u64::from(low)),
        cgroup_id,
        is_v6_only,
        timer: Timer::from_number(row.timer),
        expires_ms: row.expires_ms,
    })
}

/// The first four bytes hold the address; the kernel clears the others.
fn mapped([a, b, c, d, ..]: [u8; 16]) -> Ipv6Addr {
    Ipv4Addr::new(a, b, c, d).to_ipv6_mapped()
}

#[cfg(test)]
#[path = "sock_diag_tests.rs"]
mod tests;
