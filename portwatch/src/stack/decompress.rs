//! Compressed sections, unpacked here because the symboliser would believe whatever length a file claims.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::ZlibDecoder;
use object::elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD};

/// Length of `Elf64_Chdr`, which stands before the compressed bytes.
const HEADER_BYTES: u64 = 24;

/// Unpacks the section `[offset, offset + bytes)` of a 64-bit little-endian file to `to` at `at`, and gives its length.
///
/// # Errors
/// When it is longer than `bytes_max` or than it says, is in a format that is not known, or is malformed.
pub(super) fn unpack(
    file: &File,
    (offset, bytes): (u64, u64),
    to: &File,
    at: u64,
    bytes_max: u64,
) -> io::Result<u64> {
    let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let packed = bytes.checked_sub(HEADER_BYTES).ok_or_else(|| malformed("too short"))?;
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, offset)?;
    let (kind, rest) = header.split_first_chunk::<4>().ok_or_else(|| malformed("too short"))?;
    let length = rest[4..].first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    if length > bytes_max {
        return Err(malformed("too long"));
    }
    let section = BufReader::new(Range { file, at: offset + HEADER_BYTES, left: packed });
    match u32::from_le_bytes(*kind) {
        ELFCOMPRESS_ZLIB => write(ZlibDecoder::new(section), length, to, at)?,
        ELFCOMPRESS_ZSTD => write(zstd::stream::read::Decoder::with_buffer(section)?, length, to, at)?,
        _ => return Err(malformed("an unknown format")),
    }
    Ok(length)
}

/// Writes the `length` bytes that `from` must have.
fn write(mut from: impl Read, length: u64, to: &File, at: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done).unwrap_or(buffer.len()).min(buffer.len());
        from.read_exact(&mut buffer[..wanted])?;
        to.write_all_at(&buffer[..wanted], at + done)?;
        done += wanted as u64;
    }
    Ok(())
}

/// A part of a file.
struct Range<'f> {
    file: &'f File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(buffer.len()).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
