//! `setup`: find or install the compiler and the linker for the kernel side.

use std::process::ExitCode;

use anyhow::Result;

use crate::bpf_linker;
use crate::bpf_toolchain::BpfToolchain;
use crate::workspace::Workspace;

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let toolchain = BpfToolchain::find_or_install()?;
    println!("compiler  {} ({})", toolchain.rustc.display(), toolchain.version);
    println!("          {}", toolchain.origin);
    let linker = bpf_linker::find_or_install(workspace, toolchain.llvm_major)?;
    println!("linker    {}", linker.path.display());
    println!("          {}", linker.origin);
    println!("cache     {}", workspace.cache.display());
    println!("target    {}", workspace.target.display());
    Ok(ExitCode::SUCCESS)
}
