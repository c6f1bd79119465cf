//! Where things are: the repository, cargo's target directory, the per-user cache.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Directories that the tasks read and write.
pub struct Workspace {
    /// Root of the repository.
    pub root: PathBuf,
    /// Cargo's target directory, as cargo itself sees it (`CARGO_TARGET_DIR`, configuration files).
    pub target: PathBuf,
    /// What is kept between runs and shared by all checkouts: tools, kernels.
    pub cache: PathBuf,
    cargo: OsString,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent directory")?
            .to_path_buf();
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let target = target_dir(&cargo, &root)?;
        Ok(Self { root, target, cache: cache_dir()?, cargo })
    }

    /// Cargo of the toolchain that runs xtask, for everything that is not a kernel program.
    ///
    /// `RUSTC_BOOTSTRAP` is taken away: crates probe it and would compile differently.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root).env_remove("RUSTC_BOOTSTRAP");
        command
    }

    /// Names of portwatch's integration tests, sorted.
    pub fn tests(&self) -> Result<Vec<String>> {
        let directory = self.root.join("portwatch/tests");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read `{}`", directory.display()))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read `{}`", directory.display()))?.path();
            // As cargo finds them: a file, or a directory with a `main.rs`.
            if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
                names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is an integration test `name`.
    pub fn has_test(&self, name: &str) -> bool {
        self.tests().is_ok_and(|tests| tests.iter().any(|test| test == name))
    }

    /// Where kernel programs that are ready to be embedded lie.
    pub fn bpf_object(&self, file: &str) -> PathBuf {
        self.target.join("bpf").join(file)
    }
}

fn target_dir(cargo: &OsString, root: &Path) -> Result<PathBuf> {
    let output = Command::new(cargo)
        .current_dir(root)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .with_context(|| format!("cannot run `{} metadata`", cargo.display()))?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata = String::from_utf8(output.stdout).context("`cargo metadata` is not UTF-8")?;
    let target =
        json_string(&metadata, "target_directory").context("`cargo metadata` names no target directory")?;
    Ok(PathBuf::from(target))
}

/// The last string value of `key` in `json`; enough for one path, and spares the first build a JSON parser.
pub fn json_string(json: &str, key: &str) -> Option<String> {
    let marker = format!("\"{key}\":\"");
    let mut rest = json[json.rfind(&marker)? + marker.len()..].chars();
    let mut value = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(value),
            '\\' => match rest.next()? {
                character @ ('"' | '\\' | '/') => value.push(character),
                // Control characters in a path of the target directory: not worth supporting.
                _ => return None,
            },
            character => value.push(character),
        }
    }
}

fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("portwatch"))
        .context("no cache directory: set `HOME` or `XDG_CACHE_HOME` to an absolute path")
}

#[cfg(test)]
mod tests {
    use super::json_string;

    #[test]
    fn json_string_takes_the_last_value_and_undoes_escapes() {
        let json = r#"{"a":{"dir":"/first"},"dir":"/with \"quotes\" and \\","z":1}"#;
        assert_eq!(json_string(json, "dir").as_deref(), Some(r#"/with "quotes" and \"#));
        assert_eq!(json_string(json, "missing"), None);
        assert_eq!(json_string(r#"{"dir":"/cut off"#, "dir"), None);
    }
}
