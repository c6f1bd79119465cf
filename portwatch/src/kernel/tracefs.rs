//! Where tracefs is, and making it visible for a moment where nobody has mounted it.
//!
//! Ordinary tracepoints are attached by the id that tracefs shows. aya looks for it once per process, at the two
//! places below, and remembers the answer: the first tracepoint has to be attached inside [`with`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statfs::{TRACEFS_MAGIC, statfs};

use super::{mountinfo, private_mount};

/// The kernel makes this directory wherever it has tracefs.
const MOUNT_POINT: &str = "/sys/kernel/tracing";
/// The place of old, inside debugfs.
const MOUNT_POINT_DEBUGFS: &str = "/sys/kernel/debug/tracing";

/// Runs `f` where tracefs is mounted and hands it the directory: in the calling thread if the host has it
/// mounted, else in a thread of its own with a mount that nobody else sees.
///
/// # Errors
/// Those of `f`; and when tracefs is not mounted and may not be.
pub fn with<T: Send>(f: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    if let Some(dir) = mounted() {
        return f(&dir);
    }
    let dir = Path::new(MOUNT_POINT);
    ensure!(
        dir.is_dir(),
        "this kernel has no tracefs: there is no `{MOUNT_POINT}`\n  \
         next: mount sysfs at /sys, or use a kernel with `CONFIG_TRACING`"
    );
    private_mount::with("tracefs", dir, || Ok(f(dir))).context(
        "tracefs is not mounted\n  next: run as root, or `mount -t tracefs tracefs /sys/kernel/tracing`",
    )?
}

/// Where the host has tracefs mounted, of the places that aya knows.
///
/// The mount table is asked first: a look into the directory in debugfs alone would make the kernel mount it.
pub fn mounted() -> Option<PathBuf> {
    let mounts = mountinfo::read(Path::new("/proc/thread-self/mountinfo")).ok()?;
    [MOUNT_POINT, MOUNT_POINT_DEBUGFS]
        .map(Path::new)
        .into_iter()
        .filter(|dir| mounts.iter().any(|mount| mount.fs_type == "tracefs" && mount.point == *dir))
        // Something else may be mounted over it.
        .find(|dir| statfs(*dir).is_ok_and(|stat| stat.filesystem_type() == TRACEFS_MAGIC))
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::skip;
    use crate::kernel::tracepoint_format::Format;

    #[test]
    fn state_tracepoint_is_there_and_the_host_sees_no_mount() {
        let before = mounted();
        let result = with(|dir| {
            assert_eq!(mounted().as_deref(), Some(dir));
            let format = Format::read(dir, "sock", "inet_sock_set_state")?;
            // `self` is the process's first thread, never the one with a mount of its own.
            let of_process = mountinfo::read(Path::new("/proc/self/mountinfo"))?;
            let is_visible = of_process.iter().any(|mount| mount.fs_type == "tracefs" && mount.point == dir);
            assert_eq!(is_visible, before.is_some());
            Ok(format)
        });
        match result {
            Ok(format) => {
                assert_eq!(format.field("newstate").map(|field| (field.offset, field.size)), Some((20, 4)));
            }
            Err(error) if nix::unistd::geteuid().is_root() => panic!("{error:#}"),
            Err(error) => skip(&format!("{error:#}")),
        }
        assert_eq!(mounted(), before);
    }

    #[test]
    fn error_of_the_closure_comes_through_as_it_is() {
        let result: Result<()> = with(|_| anyhow::bail!("mine"));
        let error = result.unwrap_err().to_string();
        assert!(error == "mine" || error.starts_with("tracefs is not mounted"), "{error}");
    }
}
