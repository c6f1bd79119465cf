//! The compiler for the kernel side.
//!
//! Rust ships no `core` for the BPF target, so it is built from the library source, which must be of exactly the
//! compiler's version. Where several compilers would do, the first of these is taken:
//! 1. `PORTWATCH_BPF_CARGO`, `PORTWATCH_BPF_RUSTC`;
//! 2. rustup's nightly, if it has `rust-src`;
//! 3. the toolchain that runs xtask, if it has `rust-src`;
//! 4. Debian's `rustc-web`, `cargo-web`, `rust-web-src`, installed through apt if need be and we are root.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, process};

/// A compiler with its library source.
pub struct BpfToolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// `rustc --version`, for people.
    pub version: String,
    /// Major version of the compiler's LLVM; the linker's must not be older.
    pub llvm_major: u32,
    /// Where it comes from and why it was chosen.
    pub origin: String,
}

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

impl BpfToolchain {
    /// Finds a toolchain, installing Debian's as the last resort.
    pub fn find_or_install() -> Result<Self> {
        let mut rejected = String::new();
        if let Some(found) = find(&mut rejected)? {
            return Ok(found);
        }
        if process::is_root() && apt::offers(&DEBIAN_PACKAGES) {
            apt::install(&DEBIAN_PACKAGES, "compiling the kernel programs")?;
            return debian().context("the packages are installed, but their compiler cannot be used");
        }
        bail!(
            "no compiler for the kernel programs: `core` for the BPF target is built from source{rejected}\n  \
             next: one of\n    \
             rustup toolchain install nightly --profile minimal --component rust-src\n    \
             rustup component add rust-src\n    \
             sudo apt-get install {}",
            DEBIAN_PACKAGES.join(" ")
        )
    }

    /// Whether `-Z build-std` needs the switch that lets a stable compiler use unstable options.
    pub fn needs_bootstrap(&self) -> bool {
        !self.version.contains("nightly") && !self.version.contains("-dev")
    }
}

fn find(rejected: &mut String) -> Result<Option<BpfToolchain>> {
    // What was asked for is used or fails; falling back silently would build with another compiler than wanted.
    if let Some(explicit) = from_environment()? {
        return Ok(Some(explicit));
    }
    for (name, candidate) in [
        ("rustup's nightly", nightly()),
        ("the default toolchain", default_toolchain()),
        ("Debian's set", debian()),
    ] {
        match candidate {
            Ok(found) => return Ok(Some(found)),
            // Writing to a String cannot fail.
            Err(why) => _ = write!(rejected, "\n  {name}: {why:#}"),
        }
    }
    Ok(None)
}

fn from_environment() -> Result<Option<BpfToolchain>> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let sibling = |path: &Path, name: &str| {
        path.parent().map(|directory| directory.join(name)).unwrap_or_else(|| name.into())
    };
    let (cargo, rustc) = match (variable("PORTWATCH_BPF_CARGO"), variable("PORTWATCH_BPF_RUSTC")) {
        (None, None) => return Ok(None),
        (Some(cargo), Some(rustc)) => (cargo, rustc),
        (Some(cargo), None) => (cargo.clone(), sibling(&cargo, "rustc")),
        (None, Some(rustc)) => (sibling(&rustc, "cargo"), rustc),
    };
    let found = inspect(cargo, rustc, "named by `PORTWATCH_BPF_CARGO` or `PORTWATCH_BPF_RUSTC`".into());
    found.map(Some).context("cannot use the compiler named in the environment")
}

fn nightly() -> Result<BpfToolchain> {
    // Looking at files instead of asking rustup: asking may make it download.
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")))
        .context("neither `RUSTUP_HOME` nor `HOME` is set")?;
    let bin = rustup.join(format!("toolchains/nightly-{}-unknown-linux-gnu/bin", env::consts::ARCH));
    if !bin.exists() {
        bail!("not installed");
    }
    inspect(bin.join("cargo"), bin.join("rustc"), "rustup's nightly".into())
}

fn default_toolchain() -> Result<BpfToolchain> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let bin = Path::new(&sysroot).join("bin");
    inspect(bin.join("cargo"), bin.join("rustc"), "the default toolchain".into())
}

fn debian() -> Result<BpfToolchain> {
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    if !cargo.exists() || !rustc.exists() {
        bail!("not installed");
    }
    let found = inspect(cargo, rustc, format!("Debian's {}", DEBIAN_PACKAGES.join(", ")))?;
    // The source package can be upgraded apart from the compiler; its directory carries the version.
    let source = Path::new("/usr/lib/rustlib/src/rust").canonicalize().context("no library source")?;
    let source_version =
        source.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("rustc-"));
    match source_version {
        Some(version) if !found.version.starts_with(&format!("rustc {version} ")) => {
            bail!("library source is of version {version}, the compiler is `{}`", found.version)
        }
        _ => Ok(found),
    }
}

fn inspect(cargo: PathBuf, rustc: PathBuf, origin: String) -> Result<BpfToolchain> {
    let sysroot = process::output(clean(&rustc).args(["--print", "sysroot"]))?;
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        bail!("lacks the library source (`rust-src`)");
    }
    process::output(clean(&cargo).arg("--version"))?;
    let verbose = process::output(clean(&rustc).arg("-vV"))?;
    let version = verbose.lines().next().unwrap_or_default().to_owned();
    let llvm_major =
        llvm_major(&verbose).with_context(|| format!("`{} -vV` names no LLVM version", rustc.display()))?;
    Ok(BpfToolchain { cargo, rustc, version, llvm_major, origin })
}

fn llvm_major(verbose_version: &str) -> Option<u32> {
    verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// `program` without what rustup and `cargo run` put into the environment for another toolchain.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in [
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command.env_remove("RUSTC_BOOTSTRAP");
    command
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn llvm_major_is_read_from_the_verbose_version() {
        assert_eq!(
            llvm_major("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8"),
            Some(22)
        );
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
