//! Clients: where they are, and what those written for this test say at their end.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use crate::Stopped;
use crate::stage::Stage;

pub const PYTHON: &str = include_str!("client.py");
pub const PYTHON_SITES: &str = include_str!("sites.py");
pub const PYTHON_PACKAGES: &str = include_str!("packages.py");
pub const NODE: &str = include_str!("client.js");
pub const JAVA: &str = include_str!("Client.java");

/// What a client says at its end, in the file that it was given.
#[derive(Deserialize)]
pub struct Told {
    pub pid: u32,
    /// Name of the thread that connected.
    pub comm: String,
    pub refused: usize,
}

impl Told {
    pub fn read(stage: &Stage, name: &str) -> Result<Told, String> {
        let text = stage.read(name)?;
        serde_json::from_str(&text).map_err(|error| format!("the client says `{text}`: {error}"))
    }
}

/// Path of a program, also of one that only root's `PATH` has.
pub fn find(name: &str) -> Result<String, Stopped> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = directories.map(|directory| directory.join(name)).find(|path| path.is_file());
    found
        .map(|path| path.display().to_string())
        .ok_or_else(|| Stopped::Skipped(format!("no `{name}` on this machine")))
}

/// An interpreter that has `requests`.
pub fn python() -> Result<String, Stopped> {
    let python = std::env::var("PORTWATCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    // A shim would be another process than the one that is traced.
    let which = Command::new(&python).args(["-c", "import requests, sys; print(sys.executable)"]).output();
    match which {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(_) => Err(Stopped::Skipped(format!("`{python}` cannot import `requests`"))),
        Err(error) => Err(Stopped::Skipped(format!("cannot run `{python}`: {error}"))),
    }
}

/// An interpreter of a version such as `3.12`: Debian's, or one that pyenv built.
pub fn python_of(version: &str) -> Result<String, Stopped> {
    let name = format!("python{version}");
    let pyenv = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let built = pyenv.and_then(|directory| std::fs::read_dir(directory).ok()).into_iter().flatten().flatten();
    let mut candidates =
        vec![PathBuf::from("/usr/bin").join(&name), PathBuf::from("/usr/local/bin").join(&name)];
    candidates.extend(built.map(|entry| entry.path().join("bin").join(&name)));
    let found = candidates.into_iter().find(|path| path.is_file());
    found
        .map(|path| path.display().to_string())
        .ok_or_else(|| Stopped::Skipped(format!("no `{name}` on this machine")))
}

/// A program of PostgreSQL that Debian keeps out of `PATH`, of the newest version there is.
pub fn postgresql(name: &str) -> Result<String, Stopped> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest =
        versions.map(|entry| entry.path()).filter(|path| version(path).is_some()).max_by_key(version);
    match newest.map(|version| version.join("bin").join(name)).filter(|path| path.is_file()) {
        Some(path) => Ok(path.display().to_string()),
        None => find(name),
    }
}

/// So many, or ten times as many where the long tests are wanted.
pub fn many(count: usize) -> usize {
    if std::env::var_os("PORTWATCH_ALL").is_some_and(|value| value == "1") { 10 * count } else { count }
}
