//! Opens the file behind a mapping, and only that file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open as nix_open, openat2};
use nix::sys::stat::{Mode, makedev};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, fstatfs};

use super::elf::{Unreadable, failed};
use super::elf_copy;
use super::mapping::{self, Backing, FileId, Mapping};

/// Pages of a vdso that are read at most. It has two to four.
const VDSO_BYTES_MAX: u64 = 64 << 10;

/// Opens the file that `mapping` of process `tgid` maps, for reading.
///
/// The kernel's own link to a mapped file comes first: it is right also when the file was deleted or replaced, or
/// belongs to another mount namespace. Then the path, looked up inside the process's root, or its parent's if it is gone
/// itself; then in portwatch's own.
pub(super) fn open(
    tgid: u32,
    parent: Option<u32>,
    mapping: &Mapping,
    id: FileId,
    path: &Path,
) -> Result<File, Unreadable> {
    let mut why = Unreadable::Gone;
    let mut note = |unreadable: Unreadable| {
        if unreadable != Unreadable::Gone {
            why = unreadable;
        }
    };
    let link = format!("/proc/{tgid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    // Gone, or another idea of where the mapping ends, or not permitted: the path may still do.
    if let Ok(found) = nix_open(link.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        match checked(found, id) {
            Ok(file) => return Ok(file),
            Err(unreadable) => note(unreadable),
        }
    }
    let of_process = |tgid: u32| format!("/proc/{tgid}/root");
    let roots = [Some(of_process(tgid)), parent.map(of_process), Some("/".to_owned())];
    for root in roots.iter().flatten() {
        let found = open_below(Path::new(root), path);
        match found.map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH | Errno::ENOTDIR => Unreadable::Gone,
            errno => Unreadable::Failed("open", errno as i32),
        }) {
            Ok(found) => match checked(found, id) {
                Ok(file) => return Ok(file),
                Err(unreadable) => note(unreadable),
            },
            Err(unreadable) => note(unreadable),
        }
    }
    Err(why)
}

/// A handle on `path` as seen from the directory `root`, which no link leads out of. Nothing is opened yet.
pub(super) fn open_below(root: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let directory = nix_open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(directory, path, how)
}

/// Opens `found` if it is the regular file `id`.
fn checked(found: OwnedFd, id: FileId) -> Result<File, Unreadable> {
    let metadata = metadata(&found)?;
    if !metadata.file_type().is_file() {
        return Err(Unreadable::NotRegular);
    }
    let device = makedev(id.major.into(), id.minor.into());
    let is_same_device = metadata.dev() == device || has_other_device_numbers(&found);
    if metadata.ino() != id.inode || !is_same_device {
        return Err(Unreadable::Replaced);
    }
    reopen(&found)
}

/// Opens `found`, whatever regular file it is.
pub(super) fn any_regular(found: OwnedFd) -> Result<File, Unreadable> {
    if !metadata(&found)?.file_type().is_file() {
        return Err(Unreadable::NotRegular);
    }
    reopen(&found)
}

fn metadata(found: &OwnedFd) -> Result<fs::Metadata, Unreadable> {
    fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(|error| failed("inspect", &error))
}

/// A handle cannot be read from; its file is opened through it once it is known to be an ordinary one.
fn reopen(found: &OwnedFd) -> Result<File, Unreadable> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits())
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(|error| failed("open", &error))
}

/// File systems whose `stat` says another device than the kernel's list of mappings.
fn has_other_device_numbers(found: &OwnedFd) -> bool {
    let magic = |kind: FsType| kind == OVERLAYFS_SUPER_MAGIC || kind == BTRFS_SUPER_MAGIC;
    fstatfs(found.as_fd()).is_ok_and(|file_system| magic(file_system.filesystem_type()))
}

/// Portwatch's own vdso as a file, and how much memory it is mapped in.
pub(super) fn own_vdso() -> Result<(File, u64), Unreadable> {
    let read = || -> io::Result<Option<(File, u64)>> {
        let maps = mapping::parse(&fs::read("/proc/self/maps")?);
        let Some(mapping) = maps.iter().find(|mapping| mapping.backing == Backing::Vdso) else {
            return Ok(None);
        };
        let length = mapping.end - mapping.start;
        let mut memory = File::open("/proc/self/mem")?;
        memory.seek(SeekFrom::Start(mapping.start))?;
        let mut bytes = Vec::new();
        memory.take(length.min(VDSO_BYTES_MAX)).read_to_end(&mut bytes)?;
        let mut file = elf_copy::memory_file()?;
        file.write_all(&bytes)?;
        Ok(Some((file, length)))
    };
    read().map_err(|error| failed("read", &error))?.ok_or(Unreadable::Gone)
}
