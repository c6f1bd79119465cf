//! Finds the kernel programs that `cargo xtask build` made, in both their forms, and tells the crate where they are.
//!
//! They are not built from here: they need another compiler, and settings that must not reach this crate's
//! dependencies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// File below `bpf/` in the target directory, variable.
const OBJECTS: [(&str, &str); 2] =
    [("portwatch.bpf.o", "PORTWATCH_BPF_OBJECT"), ("portwatch-loop.bpf.o", "PORTWATCH_BPF_OBJECT_LOOP")];

fn main() -> ExitCode {
    for (file, variable) in OBJECTS {
        let candidates = candidates(file);
        let Some(object) = candidates.iter().find(|path| path.is_file()) else {
            // Without a file to watch cargo runs this script again next time, which is wanted.
            eprintln!("error: the kernel programs are not built: no `bpf/{file}` in the target directory");
            eprintln!("  next: cargo xtask build");
            return ExitCode::FAILURE;
        };
        println!("cargo::rerun-if-changed={}", object.display());
        println!("cargo::rustc-env={variable}={}", object.display());
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    ExitCode::SUCCESS
}

/// Where an object may be. `OUT_DIR` lies below the target directory in use, wherever that is; the other two serve
/// editors and builds that keep a directory of their own.
fn candidates(file: &str) -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let mut targets: Vec<PathBuf> = Vec::new();
    if let Some(out) = variable("OUT_DIR") {
        targets.extend(out.ancestors().skip(1).map(Path::to_path_buf));
    }
    targets.extend(variable("CARGO_TARGET_DIR"));
    if let Some(manifest) = variable("CARGO_MANIFEST_DIR") {
        targets.push(manifest.join("../target"));
    }
    targets.iter().map(|target| target.join("bpf").join(file)).collect()
}
