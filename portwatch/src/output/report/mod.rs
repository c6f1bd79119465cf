//! Reports in their formats: text for people, Markdown for tickets, JSON for programs.

mod markdown;
mod text;
mod words;

use anyhow::{Context, Result};

use crate::diagnosis::report::Report;

pub use text::text;

/// Rows shown of each table unless told otherwise: what fits a screen.
pub const TOP: usize = 10;

pub use markdown::markdown;

/// One object, over several lines.
pub fn json(report: &Report) -> Result<String> {
    let mut text = serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    text.push('\n');
    Ok(text)
}
