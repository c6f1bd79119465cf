//! `portwatch snapshot`: which ports are in use now, without tracing.

mod json;
mod pools;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::args::{FilterArgs, kernel_filters, protocols};
use crate::kernel::baseline::{Baseline, Selection};
use crate::kernel::process_tree;
use crate::kernel::socket_owners::Among;
use crate::output::text::Color;
use crate::session::baseline;

/// Ports in use now, per destination, without tracing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch snapshot                       the fullest destinations of every network namespace
  portwatch snapshot --netns 1234          of the namespace that process 1234 is in
  portwatch snapshot -P 5432 --top 5       towards databases
  portwatch snapshot --format json | jq '.pools[0]'

Only looks: no programs are loaded, nothing is changed. Without privilege it shows its own namespace, and owners of
one's own processes.")]
pub struct SnapshotArgs {
    #[command(flatten)]
    filters: FilterArgs,
    /// How many destinations to show; 0: all of them
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Colours in text; auto: on a terminal and without NO_COLOR
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

pub fn run(args: SnapshotArgs) -> Result<ExitCode> {
    args.filters.must_be_for_sockets()?;
    let filters = kernel_filters(&args.filters)?;
    let pids = if filters.pids.is_empty() { None } else { Some(selected(&filters.pids, filters.follow)?) };
    let namespaces = match filters.netns.as_slice() {
        [] => None,
        inodes => Some(baseline::listed(|seen| inodes.contains(&seen.inode))?),
    };
    let owners = pids.clone().map_or(Among::All, Among::Only);
    let protocols = baseline::protocols(protocols(&args.filters)?);
    let baseline = Baseline::take(&Selection { namespaces, protocols, owners })?;
    let pools = pools::count(&baseline, |socket| baseline::wants(&filters, pids.as_deref(), socket));

    let mut out = std::io::stdout().lock();
    let written = match args.format {
        Format::Text => text::page(&baseline, &pools, args.top, args.color.is_on(&out)),
        Format::Json => json::object(&baseline, &pools, args.top)?,
    };
    out.write_all(written.as_bytes()).and_then(|()| out.flush()).context("cannot write the snapshot")?;
    if args.format == Format::Text {
        for note in &baseline.notes {
            eprintln!("portwatch: note: {note}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn selected(pids: &[u32], with_children: bool) -> Result<Vec<u32>> {
    let mut selected = pids.to_vec();
    for &pid in pids {
        crate::session::must_exist(pid)?;
    }
    if with_children {
        selected.extend(process_tree::descendants(pids)?);
    }
    Ok(selected)
}
