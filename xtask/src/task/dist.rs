//! `dist`: one file that runs on any Linux machine, kernel programs inside.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::task::build;
use crate::workspace::Workspace;
use crate::{static_build, static_elf};

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    build::bpf_objects(workspace)?;
    let built = static_build::portwatch(workspace, "release")?;
    let dist = workspace.target.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot create `{}`", dist.display()))?;
    let shipped = dist.join("portwatch");
    fs::copy(&built, &shipped).with_context(|| format!("cannot write `{}`", shipped.display()))?;
    static_elf::require(&shipped)?;
    let mib = fs::metadata(&shipped).map_or(0.0, |metadata| metadata.len() as f64 / f64::from(1 << 20));
    println!("{} ({mib:.1} MiB, static)", shipped.display());
    Ok(ExitCode::SUCCESS)
}
