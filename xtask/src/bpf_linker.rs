//! `bpf-linker`, which turns the compiler's bitcode into a BPF object.
//!
//! Order: `BPF_LINKER`; the one in the cache; one built from source into the cache, against an LLVM that is at least
//! as new as the compiler's.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Need};
use crate::process;
use crate::workspace::Workspace;

const VERSION: &str = "0.13.0";

/// LLVM versions that this version of bpf-linker can be built with, oldest first.
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];

/// The linker and where it came from.
pub struct BpfLinker {
    pub path: PathBuf,
    pub origin: String,
}

/// Finds or builds a linker for code made by LLVM `llvm_major`.
pub fn find_or_install(workspace: &Workspace, llvm_major: u32) -> Result<BpfLinker> {
    if let Some(path) = env::var_os("BPF_LINKER").filter(|value| !value.is_empty()).map(PathBuf::from) {
        version(&path).context("cannot use the linker named by `BPF_LINKER`")?;
        return Ok(BpfLinker { path, origin: "named by `BPF_LINKER`".into() });
    }
    let tools = workspace.cache.join("tools");
    let path = tools.join("bin/bpf-linker");
    let origin = format!("bpf-linker {VERSION} in the cache");
    if version(&path).is_ok_and(|found| found == format!("bpf-linker {VERSION}"))
        && linked_llvm_major(&path).is_some_and(|linked| linked >= llvm_major)
    {
        return Ok(BpfLinker { path, origin });
    }
    build(workspace, &tools, llvm_major)?;
    version(&path)?;
    Ok(BpfLinker { path, origin: format!("{origin}, just built") })
}

fn build(workspace: &Workspace, tools: &Path, llvm_major: u32) -> Result<()> {
    // LLVM is C++, whose library the linker of a machine with only C lacks.
    apt::provision(&[Need { program: "c++", package: "g++" }], "building `bpf-linker`")?;
    let (linked, prefix) = llvm(llvm_major)?;
    eprintln!(
        "xtask: building bpf-linker {VERSION} with LLVM {linked} into {} (once, about a minute)",
        tools.display()
    );
    process::run(
        workspace
            .cargo()
            // Outside the workspace, or its configuration and lock file would take part.
            .current_dir("/")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR")
            .env("LLVM_PREFIX", &prefix)
            .args(["install", "--quiet", "--force", "--locked", "--no-default-features", "--features"])
            .arg(format!("llvm-{linked}"))
            .arg("--root")
            .arg(tools)
            .arg(format!("bpf-linker@{VERSION}")),
    )
    .with_context(|| format!("cannot build `bpf-linker`; one of your own can be named in `BPF_LINKER`, it must be {VERSION} or newer"))
}

/// An LLVM to link against: the oldest that is new enough, from what is installed or what apt offers.
fn llvm(compiler_major: u32) -> Result<(u32, PathBuf)> {
    let prefix = |major: &u32| PathBuf::from(format!("/usr/lib/llvm-{major}"));
    let usable: Vec<u32> = LLVM_MAJORS.into_iter().filter(|major| *major >= compiler_major).collect();
    if usable.is_empty() {
        bail!(
            "the compiler uses LLVM {compiler_major}, bpf-linker {VERSION} knows none newer than {}\n  \
             next: name an older compiler in `PORTWATCH_BPF_RUSTC`, or a newer linker in `BPF_LINKER`",
            LLVM_MAJORS[LLVM_MAJORS.len() - 1]
        );
    }
    let installed = |major: &&u32| prefix(major).join("include/llvm-c/Core.h").exists();
    if let Some(major) = usable.iter().find(installed) {
        return Ok((*major, prefix(major)));
    }
    let package = |major: &u32| format!("llvm-{major}-dev");
    let wanted = usable.iter().find(|major| apt::offers(&[&package(major)])).unwrap_or(&usable[0]);
    apt::install(&[&package(wanted)], "building `bpf-linker`")?;
    Ok((*wanted, prefix(wanted)))
}

fn version(linker: &Path) -> Result<String> {
    process::output(Command::new(linker).arg("--version"))
}

/// The LLVM a linker of ours uses, from the name of the library it loads.
fn linked_llvm_major(linker: &Path) -> Option<u32> {
    // Reading the file is enough, and works where `ldd` does not.
    let bytes = std::fs::read(linker).ok()?;
    let marker = b"libLLVM.so.";
    let at = bytes.windows(marker.len()).position(|window| window == marker)? + marker.len();
    let digits: Vec<u8> = bytes[at..].iter().copied().take_while(u8::is_ascii_digit).collect();
    String::from_utf8(digits).ok()?.parse().ok()
}
