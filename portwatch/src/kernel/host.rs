//! The host's names, and where in it portwatch runs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

/// What a log says of the host it was made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub host: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
}

pub fn names() -> Result<Names> {
    let names = uname().context("cannot read the host's name")?;
    Ok(Names {
        host: names.nodename().to_string_lossy().into_owned(),
        kernel: names.release().to_string_lossy().into_owned(),
    })
}

/// Inode of the initial PID namespace. Source: `PROC_PID_INIT_INO` of the kernel.
const PID_NAMESPACE_INIT: u64 = 0xEFFF_FFFC;

/// Inode of portwatch's PID namespace; `None` when it is the initial one.
pub fn pid_namespace() -> Result<Option<u32>> {
    let inode = fs::metadata("/proc/self/ns/pid").context("cannot read `/proc/self/ns/pid`")?.ino();
    if inode == PID_NAMESPACE_INIT {
        return Ok(None);
    }
    Ok(Some(u32::try_from(inode).context("inode of a PID namespace has more than 32 bits")?))
}
