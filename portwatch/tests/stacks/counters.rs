//! What the kernel side of a running portwatch has counted of stacks, read from its own map while it works.

use std::fs;
use std::mem::offset_of;

use aya::maps::{Map, MapData, MapInfo, PerCpuArray};
use portwatch_common::counters::Counters;

const WORDS: usize = size_of::<Counters>() / 8;

/// Sums over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stacks {
    /// Walked to their end by the kernel side alone.
    pub walked: u64,
    /// Sent to user space to be walked there.
    pub snapshots: u64,
    /// Not sent: too many of one process.
    pub limited: u64,
    /// Not sent: no room.
    pub missed: u64,
}

impl Stacks {
    /// Of the portwatch that runs as process `pid`.
    pub fn of(pid: u32) -> Result<Stacks, String> {
        let map = counters_map(pid)?;
        let per_cpu = map.get(&0, 0).map_err(|error| format!("cannot read the counters: {error}"))?;
        let sum = |offset: usize| per_cpu.iter().map(|words| words[offset / 8]).sum();
        Ok(Stacks {
            walked: sum(offset_of!(Counters, stacks_walked)),
            snapshots: sum(offset_of!(Counters, snapshots)),
            limited: sum(offset_of!(Counters, snapshots_limited)),
            missed: sum(offset_of!(Counters, stacks_missed)),
        })
    }
}

/// Among the maps that the process holds open.
fn counters_map(pid: u32) -> Result<PerCpuArray<MapData, [u64; WORDS]>, String> {
    let directory = format!("/proc/{pid}/fdinfo");
    let files = fs::read_dir(&directory).map_err(|error| format!("cannot list `{directory}`: {error}"))?;
    let ids = files.flatten().filter_map(|file| {
        let text = fs::read_to_string(file.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok())
    });
    let is_ours = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some("COUNTERS"));
    let id = ids.into_iter().find(is_ours).ok_or("portwatch has no map of counters")?;
    let map = MapData::from_id(id).map_err(|error| format!("cannot open the counters: {error}"))?;
    PerCpuArray::try_from(Map::PerCpuArray(map))
        .map_err(|error| format!("the counters are another map: {error}"))
}
