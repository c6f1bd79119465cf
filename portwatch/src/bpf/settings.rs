//! From what the user wants to what the kernel programs read.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use ipnet::IpNet;
use portwatch_common::config::{CommGlob, filter, pid_flags};
use portwatch_common::limits::{PORT_BITMAP_WORDS, RING_BYTES_DEFAULT, SOCKETS_DEFAULT, TIME_WAITS_DEFAULT};

use crate::filters::comm::CommPatterns;
use crate::filters::ports::PortSet;

/// Filters that the kernel programs judge. Empty means: no such filter.
#[derive(Clone, Debug, Default)]
pub struct KernelFilters {
    /// Processes, as numbered in portwatch's PID namespace.
    pub pids: Vec<u32>,
    /// Processes whose children are wanted and they themselves are not: portwatch, before it starts a command.
    pub parents: Vec<u32>,
    /// Children of `pids`, from their birth.
    pub follow: bool,
    pub comm: Option<CommPatterns>,
    pub uids: Vec<u32>,
    /// Id and level of a version 2 cgroup.
    pub cgroup: Option<(u64, u32)>,
    /// By inode number.
    pub netns: Vec<u32>,
    pub ports_remote: Option<PortSet>,
    pub ports_local: Option<PortSet>,
    pub addrs_remote: Vec<IpNet>,
    pub addrs_local: Vec<IpNet>,
    pub ipv4_only: bool,
    pub ipv6_only: bool,
}

impl KernelFilters {
    /// Bits of [`filter`].
    pub(super) fn bits(&self) -> u32 {
        let mut bits = 0;
        let mut set = |is_on: bool, bit: u32| bits |= if is_on { bit } else { 0 };
        set(self.selects_processes(), filter::PIDS);
        set(self.follow || !self.parents.is_empty(), filter::FOLLOW);
        set(self.comm.is_some(), filter::COMM);
        set(!self.uids.is_empty(), filter::UID);
        set(self.cgroup.is_some(), filter::CGROUP);
        set(!self.netns.is_empty(), filter::NETNS);
        set(self.ports_remote.is_some(), filter::PORT_REMOTE);
        set(self.ports_local.is_some(), filter::PORT_LOCAL);
        set(!self.addrs_remote.is_empty(), filter::ADDR_REMOTE);
        set(!self.addrs_local.is_empty(), filter::ADDR_LOCAL);
        set(self.ipv4_only, filter::IPV4);
        set(self.ipv6_only, filter::IPV6);
        bits
    }

    /// Whether only certain processes are wanted.
    pub fn selects_processes(&self) -> bool {
        !self.pids.is_empty() || !self.parents.is_empty()
    }

    pub(super) fn comm_glob(&self) -> CommGlob {
        self.comm.as_ref().map_or(CommGlob { start: 0, stars: 0, accept: 0 }, |comm| comm.glob())
    }

    /// Writes the tables that the programs look things up in. Before any program is attached.
    pub(super) fn fill(&self, ebpf: &mut Ebpf) -> Result<()> {
        let mut pids = hash(ebpf, "PIDS")?;
        for &pid in &self.pids {
            let flags =
                if self.follow { pid_flags::SELECTED | pid_flags::CHILDREN } else { pid_flags::SELECTED };
            pids.insert(pid, flags, 0).context("cannot fill the table of processes")?;
        }
        for &pid in &self.parents {
            pids.insert(pid, pid_flags::CHILDREN, 0).context("cannot fill the table of processes")?;
        }
        fill_set(ebpf, "UIDS", &self.uids)?;
        fill_set(ebpf, "NETNSES", &self.netns)?;
        fill_ports(ebpf, "PORTS_REMOTE", self.ports_remote.as_ref())?;
        fill_ports(ebpf, "PORTS_LOCAL", self.ports_local.as_ref())?;
        fill_addresses(ebpf, "ADDRS_REMOTE", &self.addrs_remote)?;
        fill_addresses(ebpf, "ADDRS_LOCAL", &self.addrs_local)?;
        if let Some(comm) = &self.comm {
            let map = ebpf.map_mut("COMM_ACCEPTS").context("no map `COMM_ACCEPTS`")?;
            let mut accepts: Array<&mut MapData, u64> = Array::try_from(map)?;
            for (byte, states) in comm.accepts().iter().enumerate() {
                accepts.set(byte as u32, states, 0).context("cannot fill the table of names")?;
            }
        }
        Ok(())
    }

    /// Entries that the tables need room for: (map, entries).
    pub(super) fn sizes(&self) -> [(&'static str, u32); 5] {
        let room = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        let pids = if self.selects_processes() { PIDS_MAX } else { 1 };
        [
            ("PIDS", pids),
            ("UIDS", room(self.uids.len())),
            ("NETNSES", room(self.netns.len())),
            ("ADDRS_REMOTE", room(self.addrs_remote.len())),
            ("ADDRS_LOCAL", room(self.addrs_local.len())),
        ]
    }
}

/// Processes selected at once, children included. An entry costs about 80 bytes.
const PIDS_MAX: u32 = 65_536;

fn hash<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<HashMap<&'a mut MapData, u32, u32>> {
    let map = ebpf.map_mut(name).with_context(|| format!("the kernel programs have no map `{name}`"))?;
    Ok(HashMap::try_from(map)?)
}

fn fill_set(ebpf: &mut Ebpf, name: &str, values: &[u32]) -> Result<()> {
    let mut set = hash(ebpf, name)?;
    for value in values {
        set.insert(value, 1, 0).with_context(|| format!("cannot fill the map `{name}`"))?;
    }
    Ok(())
}

fn fill_ports(ebpf: &mut Ebpf, name: &str, ports: Option<&PortSet>) -> Result<()> {
    let Some(ports) = ports else { return Ok(()) };
    let map = ebpf.map_mut(name).with_context(|| format!("the kernel programs have no map `{name}`"))?;
    let mut words: Array<&mut MapData, u64> = Array::try_from(map)?;
    let bits = ports.bitmap();
    debug_assert_eq!(bits.len(), PORT_BITMAP_WORDS);
    for (at, word) in bits.iter().enumerate().filter(|(_, word)| **word != 0) {
        words.set(at as u32, word, 0).with_context(|| format!("cannot fill the map `{name}`"))?;
    }
    Ok(())
}

fn fill_addresses(ebpf: &mut Ebpf, name: &str, nets: &[IpNet]) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("the kernel programs have no map `{name}`"))?;
    let mut trie: LpmTrie<&mut MapData, [u8; 16], u32> = LpmTrie::try_from(map)?;
    for net in nets {
        let (bits, address) = match net {
            IpNet::V4(net) => (96 + u32::from(net.prefix_len()), net.network().to_ipv6_mapped()),
            IpNet::V6(net) => (u32::from(net.prefix_len()), net.network()),
        };
        trie.insert(&Key::new(bits, address.octets()), 1, 0)
            .with_context(|| format!("cannot fill the map `{name}`"))?;
    }
    Ok(())
}

/// How much room the kernel side gets.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A power of two, at least a page.
    pub ring_bytes: u32,
    /// Sockets tracked at once.
    pub sockets: u32,
    /// Time-wait entries tracked at once.
    pub time_waits: u32,
    /// Sockets that were open before the start.
    pub preexisting: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            ring_bytes: RING_BYTES_DEFAULT,
            sockets: SOCKETS_DEFAULT,
            time_waits: TIME_WAITS_DEFAULT,
            preexisting: SOCKETS_DEFAULT,
        }
    }
}
