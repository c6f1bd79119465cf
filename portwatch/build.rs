//! Finds the kernel programs that `cargo xtask build` made and tells the crate where they are, as
//! `PORTWATCH_BPF_OBJECT`.
//!
//! They are not built from here: they need another compiler, and settings that must not reach this crate's
//! dependencies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let candidates = candidates();
    let Some(object) = candidates.iter().find(|path| path.is_file()) else {
        // Without a file to watch cargo runs this script again next time, which is wanted.
        eprintln!(
            "error: the kernel programs are not built: no `bpf/portwatch.bpf.o` in the target directory"
        );
        eprintln!("  next: cargo xtask build");
        return ExitCode::FAILURE;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rustc-env=PORTWATCH_BPF_OBJECT={}", object.display());
    ExitCode::SUCCESS
}

/// Where the object may be. `OUT_DIR` lies below the target directory in use, wherever that is; the other two serve
/// editors and builds that keep a directory of their own.
fn candidates() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let mut targets: Vec<PathBuf> = Vec::new();
    if let Some(out) = variable("OUT_DIR") {
        targets.extend(out.ancestors().skip(1).map(Path::to_path_buf));
    }
    targets.extend(variable("CARGO_TARGET_DIR"));
    if let Some(manifest) = variable("CARGO_MANIFEST_DIR") {
        targets.push(manifest.join("../target"));
    }
    targets.iter().map(|target| target.join("bpf/portwatch.bpf.o")).collect()
}
