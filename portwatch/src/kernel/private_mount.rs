//! A kernel file system that this host does not have mounted, for the length of one closure and for one thread.
//!
//! The thread gets a mount namespace of its own first, so nobody else sees the mount, and it is gone with the
//! thread, whatever ends it.

use std::{path::Path, thread};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::mountinfo;

/// Runs `f` in a new thread that has a file system of type `fs_type` mounted at the existing directory `dir`.
///
/// # Errors
/// Those of `f`; and when this may not be mounted: CAP_SYS_ADMIN is missing, the kernel does not know the type,
/// or a security module forbids it.
pub fn with<T: Send>(fs_type: &str, dir: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("private mount".to_owned()).spawn_scoped(scope, || {
            prepare(fs_type, dir)?;
            f()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn prepare(fs_type: &str, dir: &Path) -> Result<()> {
    // Ends the sharing of root and working directory with the other threads too (`ksys_unshare`), which is what
    // lets one thread of many have mounts of its own.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // A new namespace starts with the propagation of the old one: without this the mount would show up there.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot keep mounts from spreading out of the mount namespace")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = options_elsewhere(fs_type);
    mount(Some(fs_type), dir, Some(fs_type), flags, options.as_deref())
        .with_context(|| format!("cannot mount `{fs_type}` at `{}`", dir.display()))
}

/// Access options of the same file system where the first process sees it mounted.
///
/// There is one tracefs, however often it is mounted, and up to Linux 6.8 mounting it sets its options anew
/// (`mount_single`, `reconfigure_single`): without them this would undo an administrator's `gid=` and `mode=`.
fn options_elsewhere(fs_type: &str) -> Option<String> {
    let mounts = mountinfo::read(Path::new("/proc/1/mountinfo")).ok()?;
    let mount = mounts.into_iter().find(|mount| mount.fs_type == fs_type)?;
    let is_access = |option: &&str| ["uid=", "gid=", "mode="].iter().any(|key| option.starts_with(key));
    Some(mount.super_options.split(',').filter(is_access).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernel::testing::skip;

    fn is_mounted(thread: &str, dir: &Path) -> bool {
        let mounts = mountinfo::read(Path::new(&format!("/proc/{thread}/mountinfo"))).unwrap();
        mounts.iter().any(|mount| mount.point == dir)
    }

    #[test]
    fn mount_is_seen_by_its_thread_alone_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::write(path.join("below"), "").unwrap();
        let result = with("tmpfs", &path, || {
            assert!(is_mounted("thread-self", &path));
            assert!(!path.join("below").exists());
            fs::write(path.join("inside"), "").unwrap();
            // Another thread of this process, started before or after, sees what the host sees.
            for process in ["self", "1"] {
                assert!(!is_mounted(process, &path), "{process}");
            }
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(error) if format!("{error:#}").contains("EPERM") => return skip(&format!("{error:#}")),
            Err(error) => panic!("{error:#}"),
        }
        assert!(!is_mounted("self", &path) && path.join("below").exists() && !path.join("inside").exists());
    }

    #[test]
    fn error_says_what_could_not_be_mounted() {
        let error = with("nosuchfs", Path::new("/proc"), || Ok(())).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("cannot mount `nosuchfs` at `/proc`: ENODEV") || text.contains("EPERM"),
            "{text}"
        );
    }
}
