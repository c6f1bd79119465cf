use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    pub mono_ns: u64,
    wall: i128,
}
fn ns(id: ClockId) -> Result<i128> {
    let t = clock_gettime(id).context("cannot read the clock")?;
    Ok(i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec()))
}
pub fn mono_now_ns() -> Result<u64> {
    Ok(u64::try_from(ns(ClockId::CLOCK_MONOTONIC)?)?)
}
impl Anchor {
    pub fn now() -> Result<Anchor> {
        Ok(Anchor { mono_ns: mono_now_ns()?, wall: ns(ClockId::CLOCK_REALTIME)? })
    }
    pub fn wall_ns(&self, mono: u64) -> i128 {
        self.wall + i128::from(mono) - i128::from(self.mono_ns)
    }
}
