//! `portwatch demo`.
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
/// Reproduces one port problem on loopback, bounded
#[derive(Debug, Args)]
pub struct DemoArgs {
    name: String,
}
pub fn run(_: DemoArgs) -> Result<ExitCode> {
    anyhow::bail!("x")
}
