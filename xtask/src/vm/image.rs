//! The initial RAM disk: busybox, `init.sh`, the modules and the programs under test. There is nothing else in it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernels::Kernel;
use crate::{process, static_elf};

const INIT: &str = include_str!("init.sh");

/// What is run in the machine.
pub struct Programs<'a> {
    /// Static test program.
    pub test: &'a Path,
    /// Static `portwatch`, where there is one.
    pub portwatch: Option<&'a Path>,
    /// Arguments of the test program.
    pub arguments: &'a [String],
    /// The test program runs once for each, told by `PORTWATCH_RUNGS`.
    pub rungs: &'a [String],
}

/// Writes the image to `directory/initrd`; `directory` is emptied first.
pub fn build(directory: &Path, kernel: &Kernel, programs: &Programs) -> Result<()> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty `{}`", root.display()))?;
    }
    for name in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
    }
    let busybox = process::find_program("busybox").context("no `busybox`; install `busybox-static`")?;
    // Debian has a busybox that needs libraries too.
    static_elf::require(&busybox).context("install `busybox-static`")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    copy(programs.test, &root.join("test"))?;
    if let Some(portwatch) = programs.portwatch {
        copy(portwatch, &root.join("portwatch"))?;
    }
    for entry in fs::read_dir(&kernel.directory).context("cannot list the kernel's modules")? {
        let path = entry.context("cannot list the kernel's modules")?.path();
        if let (Some("ko"), Some(name)) = (path.extension().and_then(|text| text.to_str()), path.file_name())
        {
            copy(&path, &root.join("modules").join(name))?;
        }
    }
    write(&root.join("init"), INIT, 0o755)?;
    write(&root.join("tests"), &test_script(programs), 0o644)?;
    write(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        0o644,
    )?;
    write(&root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n", 0o644)?;
    pack(&root, &directory.join("initrd"))
}

/// Runs the test program once per rung. Its output is piped, so that it does not take the console for a terminal; its
/// errors go to the other serial port, where they cannot break a line of results in two.
fn test_script(programs: &Programs) -> String {
    let rungs: Vec<String> = programs.rungs.iter().map(|rung| quote(rung)).collect();
    let arguments: Vec<String> = programs.arguments.iter().map(|argument| quote(argument)).collect();
    let portwatch = if programs.portwatch.is_some() { "PORTWATCH_BIN=/portwatch " } else { "" };
    format!(
        "for rung in {rungs}; do\n  \
           printf '\\n@vm rung %s\\n' $rung\n  \
           {portwatch}PORTWATCH_RUNGS=$rung PORTWATCH_REQUIRE_KERNEL=1 RUST_BACKTRACE=1 /test {arguments} \
             </dev/null 2>/dev/ttyS1\n  \
           printf '\\n@vm exit %s\\n' $?\n\
         done | cat\n",
        rungs = rungs.join(" "),
        arguments = arguments.join(" "),
    )
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy `{}` to `{}`", from.display(), to.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Packs `root` in the kernel's archive format. Not compressed: the emulated processor would take longer to undo it
/// than it saves.
fn pack(root: &Path, image: &Path) -> Result<()> {
    let mut names = Vec::new();
    list(root, root, &mut names)?;
    let file = fs::File::create(image).with_context(|| format!("cannot write `{}`", image.display()))?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--null", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("cannot start `cpio`")?;
    let written = cpio.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&names));
    let status = cpio.wait().context("cannot wait for `cpio`")?;
    written.context("cannot tell `cpio` what to pack")?;
    if !status.success() {
        bail!("`cpio` failed: {status}");
    }
    Ok(())
}

/// Appends the names below `directory`, relative to `root`, each directory before what it holds.
fn list(root: &Path, directory: &Path, names: &mut Vec<u8>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))? {
        let path = entry.with_context(|| format!("cannot read `{}`", directory.display()))?.path();
        let name = path.strip_prefix(root).context("a name outside the image")?;
        names.extend_from_slice(name.as_os_str().as_encoded_bytes());
        names.push(0);
        if path.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn arguments_reach_the_test_as_they_are() {
        assert_eq!(quote("a b$c"), "'a b$c'");
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
