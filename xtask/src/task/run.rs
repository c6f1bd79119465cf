//! `run`: build, then become `portwatch`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::task::build;
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub struct Args {
    /// What `portwatch` is given.
    #[arg(last = true)]
    args: Vec<OsString>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let binary = build::build(workspace, true)?;
    // Replaced, not wrapped: signals and the exit status are portwatch's own.
    let error = Command::new(&binary).args(&args.args).exec();
    Err(error).with_context(|| format!("cannot start `{}`", binary.display()))
}
