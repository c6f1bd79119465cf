//! Interpreters to test with: what this machine happens to have.

use std::path::PathBuf;
use std::process::Command;

pub const VERSIONS: [&str; 5] = ["3.9", "3.10", "3.11", "3.12", "3.13"];

/// An interpreter of that version: in `PATH`, from Debian, or built by pyenv.
pub fn interpreter(version: &str) -> Option<PathBuf> {
    let name = format!("python{version}");
    let pyenv = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let built = pyenv.and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let mut candidates = vec![PathBuf::from("/usr/bin").join(&name), PathBuf::from(&name)];
    candidates.extend(built.map(|entry| entry.path().join("bin").join(&name)));
    candidates.into_iter().find(|python| {
        let run = Command::new(python).args(["-c", "import sys; print(sys.version_info[:2])"]).output();
        run.is_ok_and(|out| {
            String::from_utf8_lossy(&out.stdout).trim() == format!("({})", version.replace('.', ", "))
        })
    })
}
