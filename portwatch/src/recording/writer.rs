//! Bytes of a log → a file in the format that its name asks for.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::file::RecordingFile;
use super::{Error, Sink, Stdout};

/// What a recording's name can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    JsonLines,
    /// Compressed with zstd.
    JsonLinesZstd,
}

/// Extensions of recordings, without the first dot.
pub const EXTENSIONS: [(&str, Format); 2] =
    [("jsonl", Format::JsonLines), ("jsonl.zst", Format::JsonLinesZstd)];

/// Smaller files than level 1 in no more time, since lines repeat so much; level 6 takes twice as long for nothing
/// (`output::json::bench`).
const ZSTD_LEVEL: i32 = 3;

/// What a crash may cost at most.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

impl Format {
    /// The format that a path asks for by its extension; `-`, standard output, is plain.
    pub fn of(path: &Path) -> Result<Format, Error> {
        if path == Path::new("-") {
            return Ok(Format::JsonLines);
        }
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        EXTENSIONS
            .into_iter()
            .find(|(extension, _)| {
                name.strip_suffix(extension.as_bytes()).is_some_and(|stem| stem.ends_with(b"."))
            })
            .map(|(_, format)| format)
            .ok_or_else(|| Error::UnknownExtension { path: path.into() })
    }
}

/// Opens a recording for writing; `-` is standard output. `force` allows a file that is not empty.
///
/// Nothing on the disk changes before the first write, except that a new file is there, which goes again if
/// the sink is dropped without one.
pub fn create(path: &Path, force: bool) -> Result<Box<dyn Sink>, Error> {
    let format = Format::of(path)?;
    if path == Path::new("-") {
        let stdout = Stdout::new().map_err(|source| Error::Create { path: path.into(), source })?;
        return Ok(Box::new(stdout));
    }
    let file = RecordingFile::create(path, force)?;
    Ok(match format {
        Format::JsonLines => Box::new(PlainFile::new(file)),
        Format::JsonLinesZstd => {
            Box::new(ZstdFile::new(file).map_err(|source| Error::Create { path: path.into(), source })?)
        }
    })
}

/// Uncompressed lines.
struct PlainFile {
    file: RecordingFile,
    bytes: u64,
    /// Bytes up to the end of the last whole line.
    whole_bytes: u64,
}

impl PlainFile {
    fn new(file: RecordingFile) -> Self {
        PlainFile { file, bytes: 0, whole_bytes: 0 }
    }
}

impl Write for PlainFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(written) => {
                if let Some(newline) = bytes[..written].iter().rposition(|&byte| byte == b'\n') {
                    self.whole_bytes = self.bytes + newline as u64 + 1;
                }
                self.bytes += written as u64;
                Ok(written)
            }
            Err(error) => {
                let is_final = error.kind() != io::ErrorKind::Interrupted;
                // A full disk takes half a line. Readers cope with that, other people's tools may not.
                // If even this fails, the log is still readable up to its last line.
                if is_final && self.whole_bytes < self.bytes && self.file.truncate(self.whole_bytes).is_ok() {
                    self.bytes = self.whole_bytes;
                }
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for PlainFile {
    fn name(&self) -> String {
        self.file.name()
    }

    fn end(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

/// One zstd frame with a checksum. Every flush ends a block, and after a crash readers get all whole blocks.
struct ZstdFile {
    encoder: zstd::Encoder<'static, RecordingFile>,
    has_unflushed: bool,
    flushed_at: Instant,
}

impl ZstdFile {
    fn new(file: RecordingFile) -> io::Result<Self> {
        let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(ZstdFile { encoder, has_unflushed: false, flushed_at: Instant::now() })
    }
}

impl Write for ZstdFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        self.has_unflushed = true;
        if self.flushed_at.elapsed() >= FLUSH_INTERVAL {
            self.flush()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // An empty block would cost bytes for nothing.
        if self.has_unflushed {
            self.encoder.flush()?;
            self.has_unflushed = false;
        }
        self.flushed_at = Instant::now();
        Ok(())
    }
}

impl Sink for ZstdFile {
    fn name(&self) -> String {
        self.encoder.get_ref().name()
    }

    fn end(&mut self) -> io::Result<()> {
        self.encoder.do_finish()?;
        self.encoder.get_ref().sync()
    }
}
