//! What both sides are tested with.

mod reader;
mod writer;

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::format::Line;
use super::*;
use crate::output::json::JsonLines;
use crate::output::scene;

pub(super) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub(super) fn record(path: &Path) {
    scene::play(&mut JsonLines::new(create(path, false).unwrap())).unwrap();
}

/// The whole log as text, however it is compressed.
pub(super) fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let bytes =
        if path.extension().unwrap() == "zst" { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
    String::from_utf8(bytes).unwrap()
}

pub(super) fn read_all(reader: &mut Reader) -> Result<Vec<Line>, Error> {
    reader.by_ref().collect()
}

/// Reads bytes as a file would be read.
pub(super) fn read_bytes(bytes: &[u8]) -> Result<(Vec<Line>, Ending), Error> {
    let mut reader = Reader::new("x.jsonl", io::Cursor::new(bytes.to_vec()))?;
    let lines = read_all(&mut reader)?;
    Ok((lines, reader.ending().expect("the end was reached").clone()))
}
