//! `build`: the kernel programs, then the command that embeds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::bpf_toolchain::{self, BpfToolchain};
use crate::workspace::Workspace;
use crate::{bpf_linker, bpf_strip, process};

#[derive(clap::Args)]
pub struct Args {
    /// Build the optimised command; this is the default.
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build the command without optimisation (target/debug/portwatch); the kernel programs are always optimised.
    #[arg(long)]
    debug: bool,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let binary = build(workspace, !args.debug)?;
    eprintln!("xtask: built {}", binary.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds everything; returns the path of the command.
pub fn build(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    bpf_objects(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "portwatch", "--bin", "portwatch"]);
    if release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    Ok(workspace.target.join(if release { "release/portwatch" } else { "debug/portwatch" }))
}

/// File below `target/bpf`, features of the crate: the kernel programs in the two ways of walking stacks. The crate that
/// embeds them looks for both there.
const BPF_OBJECTS: [(&str, &[&str]); 2] =
    [("portwatch.bpf.o", &[]), ("portwatch-loop.bpf.o", &["--features", "loop"])];

/// Builds the kernel programs into `target/bpf`, where `portwatch/build.rs` finds them.
pub fn bpf_objects(workspace: &Workspace) -> Result<()> {
    let toolchain = BpfToolchain::find_or_install()?;
    let linker = bpf_linker::find_or_install(workspace, toolchain.llvm_major)?;
    BPF_OBJECTS
        .iter()
        .try_for_each(|(file, features)| bpf_object(workspace, &toolchain, &linker.path, file, features))
}

fn bpf_object(
    workspace: &Workspace,
    toolchain: &BpfToolchain,
    linker: &Path,
    file: &str,
    features: &[&str],
) -> Result<()> {
    let target = workspace.target.join("bpf");
    let mut cargo = bpf_toolchain::clean(&toolchain.cargo);
    cargo
        .current_dir(&workspace.root)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", bpf_rustflags())
        .args(["build", "-Zbuild-std=core", "--profile", "bpf", "--target", "bpfel-unknown-none"])
        .args(["--package", "portwatch-ebpf", "--bin", "portwatch-ebpf"])
        .args(features)
        .arg("--target-dir")
        .arg(&target);
    if toolchain.needs_bootstrap() {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    process::run(&mut cargo).context("cannot build the kernel programs")?;

    let object = workspace.bpf_object(file);
    let built = target.join("bpfel-unknown-none/bpf/portwatch-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("cannot read `{}`", built.display()))?;
    let bytes = bpf_strip::without_debug(&bytes)
        .with_context(|| format!("cannot take debug information out of `{}`", built.display()))?;
    // An unchanged file keeps its time stamp, so the command is not built again.
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("cannot write `{}`", object.display()))?;
    }
    Ok(())
}

fn bpf_rustflags() -> String {
    // Unit separator: how cargo keeps flags with spaces and quotes apart.
    [&bpf_arch_flag(), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\u{1f}")
}

/// Tells aya-ebpf whose registers a probe sees: the kernel programs run where portwatch does.
pub fn bpf_arch_flag() -> String {
    format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH)
}
