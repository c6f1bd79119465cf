//! What can be wrong with a recording's file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::writer::EXTENSIONS;

#[derive(Debug)]
pub enum Error {
    /// The name does not say which format is wanted.
    UnknownExtension {
        path: PathBuf,
    },
    /// There is something in the file, and nobody said that it may go.
    NotEmpty {
        path: PathBuf,
    },
    /// A link that somebody else may have put there.
    SymbolicLink {
        path: PathBuf,
    },
    /// A directory, device, pipe or socket.
    NotAFile {
        path: PathBuf,
    },
    Create {
        path: PathBuf,
        source: io::Error,
    },
    Read {
        name: String,
        source: io::Error,
    },
    /// The file is there, but it is no event log.
    NotALog {
        name: String,
        why: String,
    },
    /// An event log of a version that this portwatch cannot read.
    Version {
        name: String,
        found: u64,
        known: u32,
    },
    /// Line `line` makes no sense, and there are more behind it.
    Malformed {
        name: String,
        line: u64,
        why: String,
    },
}

impl Error {
    /// The command's exit code: 2 for wrong usage and malformed input, 1 where the host failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::UnknownExtension { .. }
            | Error::NotALog { .. }
            | Error::Version { .. }
            | Error::Malformed { .. } => 2,
            // Without an error number it was the decompressor that could not go on.
            Error::Read { source, .. } if source.raw_os_error().is_none() => 2,
            Error::NotEmpty { .. }
            | Error::SymbolicLink { .. }
            | Error::NotAFile { .. }
            | Error::Create { .. }
            | Error::Read { .. } => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnknownExtension { path } => {
                write!(
                    f,
                    "cannot tell the format of `{}` from its name\n  next: use one of the known extensions ",
                    path.display()
                )?;
                for (index, (extension, _)) in EXTENSIONS.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}`.{extension}`")?;
                }
                Ok(())
            }
            Error::NotEmpty { path } => {
                let path = path.display();
                write!(f, "`{path}` is not empty\n  next: give `--force` to overwrite it, or another name")
            }
            Error::SymbolicLink { path } => {
                let path = path.display();
                write!(
                    f,
                    "`{path}` is a symbolic link, and recordings do not follow links\n  next: give the real path"
                )
            }
            Error::NotAFile { path } => {
                write!(
                    f,
                    "`{}` is not a regular file\n  next: give another name, or `-` for standard output",
                    path.display()
                )
            }
            Error::Create { path, .. } => {
                write!(f, "cannot create `{}`\n  next: choose a place that can be written", path.display())
            }
            Error::Read { name, .. } => write!(f, "cannot read `{name}`"),
            Error::NotALog { name, why } => {
                write!(
                    f,
                    "`{name}` is not an event log: {why}\n  next: `portwatch record -o FILE` writes one"
                )
            }
            Error::Version { name, found, known } => write!(
                f,
                "`{name}` is an event log of version {found}, and this portwatch reads version {known}\
                 \n  next: read it with the portwatch that wrote it, or a newer one"
            ),
            Error::Malformed { name, line, why } => {
                write!(f, "cannot read `{name}` past line {line}: {why}; the file was changed or damaged")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Create { source, .. } | Error::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}
