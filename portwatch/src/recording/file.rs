//! The file under a recording: made carefully, and gone again if nothing was ever written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::Error;

/// A file that only a first write changes: until then an older recording stays as it was, and a new file is
/// removed when it is dropped. So a start that fails leaves nothing behind.
pub(super) struct RecordingFile {
    file: File,
    path: PathBuf,
    /// Did not exist before.
    is_new: bool,
    is_written: bool,
}

impl RecordingFile {
    /// Opens or makes `path`, readable by its owner alone. A file that is not empty needs `force`.
    ///
    /// portwatch runs as root and may be pointed at a directory that others can write to, so the last part of
    /// the path is never followed as a link, and a pipe or device is refused without waiting for its other end.
    pub fn create(path: &Path, force: bool) -> Result<Self, Error> {
        let create_error = |source: io::Error| Error::Create { path: path.into(), source };
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);

        let (file, is_new) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = options.open(path).map_err(|source| match source.raw_os_error() {
                    Some(libc::ELOOP) => Error::SymbolicLink { path: path.into() },
                    // A directory; a pipe without a reader; a socket.
                    Some(libc::EISDIR | libc::ENXIO) => Error::NotAFile { path: path.into() },
                    _ => create_error(source),
                })?;
                (file, false)
            }
            Err(error) => return Err(create_error(error)),
        };
        let metadata = file.metadata().map_err(create_error)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.into() });
        }
        if metadata.len() > 0 && !force {
            return Err(Error::NotEmpty { path: path.into() });
        }
        Ok(RecordingFile { file, path: path.into(), is_new, is_written: false })
    }

    /// Cuts the file to its first `bytes`; the next write continues there.
    pub fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// For messages.
    pub fn name(&self) -> String {
        format!("`{}`", self.path.display())
    }

    /// Waits until everything is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Whether the path still names this file, and not one that somebody put in its place.
    fn is_at_its_path(&self) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

impl Write for RecordingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_written && !bytes.is_empty() {
            self.truncate(0)?;
            self.is_written = true;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for RecordingFile {
    fn drop(&mut self) {
        if self.is_new && !self.is_written && self.is_at_its_path() {
            // Nobody is left to tell, and an empty file does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}
