//! Event logs in files: how they are made, kept whole, and read back.
//!
//! What a line says is [`crate::output::json`]'s business when writing and [`mod@format`]'s when reading.

mod error;
mod file;
pub mod format;
pub mod live;
mod reader;
mod sink;
#[cfg(test)]
mod tests;
mod writer;

pub use error::Error;
pub use reader::{Ending, Reader};
pub use sink::{Sink, Stdout};
pub use writer::{EXTENSIONS, Format, create};
