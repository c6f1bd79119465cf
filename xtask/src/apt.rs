//! Packages from apt, where it is there and we may use it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process;

/// Installs `packages`, or says what to type. `purpose` completes "… is needed for".
pub fn install(packages: &[&str], purpose: &str) -> Result<()> {
    let by_hand = format!("install `{}` (Debian's names), it is needed for {purpose}", packages.join(" "));
    if process::find_program("apt-get").is_none() {
        bail!("this machine has no apt: {by_hand}");
    }
    if !process::is_root() {
        bail!(
            "not root: {by_hand}\n  next: sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    eprintln!("xtask: installing {} for {purpose}", packages.join(" "));
    if !packages.iter().all(|package| is_offered(package)) {
        update()?;
    }
    let _quiet = NoServices::begin();
    let install = || process::run(apt_get().args(["install", "--no-install-recommends"]).args(packages));
    // Package lists older than the archive name files that are gone: refresh them and try once more.
    install().or_else(|_| update().and_then(|()| install()))
}

/// Whether apt knows a version of `package` it could install; refreshes the package lists if it does not and may.
pub fn offers(packages: &[&str]) -> bool {
    if process::find_program("apt-get").is_none() {
        return false;
    }
    let all = || packages.iter().all(|package| is_offered(package));
    all() || (process::is_root() && update().is_ok() && all())
}

fn is_offered(package: &str) -> bool {
    process::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).is_ok_and(
        |policy| policy.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)")),
    )
}

fn update() -> Result<()> {
    process::run(apt_get().arg("update"))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "--yes", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Standard output belongs to the task's results.
        .stdout(std::io::stderr());
    command
}

/// While this lives, packages that bring a service do not start it: a test machine asked for nginx the program,
/// not for a web server on port 80.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Self {
        // Debian's invoke-rc.d asks this script; an administrator's own is left as it is.
        let created = OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        let ours = created.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n")).is_ok();
        Self { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && Path::new(POLICY).exists() {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// A program some task runs, and the package that brings it.
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

/// Installs what of `needs` is not there. A program from elsewhere than apt is as good.
pub fn provision(needs: &[Need], purpose: &str) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .filter(|need| process::find_program(need.program).is_none())
        .map(|need| need.package)
        .collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { install(&missing, purpose) }
}
