//! Event logs in files: how they are made, kept whole, and read back.
//!
//! What a line says is [`crate::output::json`]'s business when writing and [`format`]'s when reading.

mod sink;

pub use sink::{Sink, Stdout};
