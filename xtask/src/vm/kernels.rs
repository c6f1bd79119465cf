//! Kernels for the virtual machines: Debian's cloud builds, fetched once and kept in the cache.
//!
//! Nothing is installed. apt is pointed at package lists of its own, so a machine on any Debian release (or another
//! system with apt and Debian's keys) can fetch from all of them, with signatures checked.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// A series we test on, and the Debian release that carries it.
struct Series {
    name: &'static str,
    suite: &'static str,
}

const SERIES: [Series; 4] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "7.2", suite: "sid" },
];

/// Modules that a dump of sockets needs, in the order they are loaded.
pub const MODULES: [&str; 3] = ["inet_diag", "tcp_diag", "udp_diag"];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel in the cache.
pub struct Kernel {
    /// Holds `vmlinuz`, `release` and a `.ko` for each of `MODULES` that this kernel has as a module.
    pub directory: PathBuf,
    /// What `uname -r` says on it.
    pub release: String,
}

/// Names of all series, oldest first.
pub fn series() -> impl Iterator<Item = &'static str> {
    SERIES.iter().map(|series| series.name)
}

/// The kernel of `series`, from the cache or from the archive.
pub fn find_or_fetch(workspace: &Workspace, series: &str) -> Result<Kernel> {
    let Some(series) = SERIES.iter().find(|known| known.name == series) else {
        let known: Vec<&str> = self::series().collect();
        bail!("no kernel series `{series}`; known: {}", known.join(", "));
    };
    let kernels = workspace.cache.join("kernels");
    let directory = kernels.join(series.name);
    if !directory.join("release").exists() {
        // Complete or absent: fetched aside, then renamed. Another checkout may do the same at the same time.
        let aside = kernels.join(format!(".{}.{}", series.name, std::process::id()));
        let fetched =
            fetch(series, &aside.join("work"), &aside.join("done")).and_then(|()| {
                match fs::rename(aside.join("done"), &directory) {
                    Err(_) if directory.join("release").exists() => Ok(()),
                    renamed => renamed.with_context(|| format!("cannot write `{}`", directory.display())),
                }
            });
        let _ = fs::remove_dir_all(&aside);
        fetched.with_context(|| format!("cannot fetch a kernel of series {}", series.name))?;
    }
    let release = fs::read_to_string(directory.join("release"))
        .with_context(|| format!("cannot read `{}/release`", directory.display()))?;
    Ok(Kernel { directory, release: release.trim().to_owned() })
}

fn fetch(series: &Series, work: &Path, done: &Path) -> Result<()> {
    eprintln!("xtask: fetching a kernel of series {} (once)", series.name);
    let archive = Archive::open(series.suite, work)?;
    let names = archive.package_names()?;
    let image = newest_image(names.lines(), series.name)
        .with_context(|| format!("Debian's {} no longer carries it", series.suite))?;
    let unpacked = work.join("unpacked");
    archive.unpack(image, &unpacked)?;
    // Newer packaging keeps the modules apart.
    if let Some(rest) = image.strip_prefix("linux-binary-") {
        archive.unpack(&format!("linux-modules-{rest}"), &unpacked)?;
    }

    fs::create_dir_all(done).with_context(|| format!("cannot create `{}`", done.display()))?;
    let files = files_below(&unpacked)?;
    let named = |wanted: &dyn Fn(&str) -> bool| {
        files.iter().find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(wanted))
    };
    let vmlinuz =
        named(&|name| name.starts_with("vmlinuz")).with_context(|| format!("`{image}` holds no vmlinuz"))?;
    fs::copy(vmlinuz, done.join("vmlinuz")).context("cannot copy the kernel")?;
    for module in MODULES {
        let stem = format!("{module}.ko");
        if let Some(found) =
            named(&|name| name.strip_suffix(".xz").or(name.strip_suffix(".zst")).unwrap_or(name) == stem)
        {
            decompress(found, &done.join(stem))?;
        }
    }
    // Every kernel's modules lie in a directory named by its release.
    let release = files
        .iter()
        .find_map(|path| path.to_str()?.split_once("/lib/modules/")?.1.split('/').next())
        .with_context(|| format!("`{image}` holds no modules"))?;
    // Written last: it marks the directory as complete.
    fs::write(done.join("release"), release).context("cannot write the kernel's release")
}

/// Package lists of one Debian release, apart from this machine's own.
struct Archive {
    options: Vec<String>,
    debs: PathBuf,
}

impl Archive {
    fn open(suite: &str, work: &Path) -> Result<Self> {
        let debs = work.join("debs");
        for directory in [&debs, &work.join("lists/partial")] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create `{}`", directory.display()))?;
        }
        if !Path::new(KEYRING).exists() {
            bail!("no `{KEYRING}` to check signatures with; install `debian-archive-keyring`");
        }
        let sources = work.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))
            .with_context(|| format!("cannot write `{}`", sources.display()))?;
        let mut options = vec![
            format!("Dir::Etc::sourcelist={}", sources.display()),
            format!("Dir::State::Lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.display()),
        ];
        options.extend(
            [
                "Dir::Etc::sourceparts=-",
                "Dir::State::status=/dev/null",
                "Dir::Cache::pkgcache=",
                "Dir::Cache::srcpkgcache=",
                // The lists lie in a directory of ours, which apt's own user may not enter.
                "APT::Sandbox::User=",
                "Acquire::Languages=none",
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
                "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
                "Acquire::Retries=3",
            ]
            .map(String::from),
        );
        let archive = Self { options, debs };
        process::output(archive.apt("apt-get").args(["-qq", "update"]))?;
        Ok(archive)
    }

    fn package_names(&self) -> Result<String> {
        process::output(self.apt("apt-cache").args(["pkgnames", "linux-"]))
    }

    fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        process::output(self.apt("apt-get").current_dir(&self.debs).args(["-qq", "download", package]))?;
        for deb in files_below(&self.debs)? {
            process::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(into))?;
            fs::remove_file(&deb).with_context(|| format!("cannot remove `{}`", deb.display()))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// A Debian mirror: the one this machine uses, so that proxies and local mirrors are honoured.
fn mirror() -> Result<String> {
    if let Some(mirror) = std::env::var("PORTWATCH_DEBIAN_MIRROR").ok().filter(|mirror| !mirror.is_empty()) {
        return Ok(mirror);
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(files_below(Path::new("/etc/apt/sources.list.d")).unwrap_or_default());
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.into_iter().find_map(|text| mirror_in(&text)).context(
        "apt's sources name no Debian mirror; name one in `PORTWATCH_DEBIAN_MIRROR` (an address that ends in /debian)",
    )
}

/// The first address of the main archive, as opposed to security updates and others, in apt's old or new format.
fn mirror_in(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with("/debian"))
        .map(str::to_owned)
}

fn newest_image<'a>(packages: impl Iterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    packages
        .filter(|package| {
            let version =
                package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"));
            version
                .and_then(|version| version.strip_prefix(series))
                .is_some_and(|rest| rest.starts_with('.') && rest.ends_with("-cloud-amd64"))
        })
        // Where both exist, `linux-image` is a small package that signs or depends on `linux-binary`.
        .max_by(|left, right| {
            let is_binary = |name: &str| name.starts_with("linux-binary-");
            is_binary(left).cmp(&is_binary(right)).then_with(|| version_order(left, right))
        })
}

/// Orders names so that runs of digits count as numbers: `…-9-…` before `…-10-…`.
fn version_order(left: &str, right: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|character: char| !character.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(left).cmp(&numbers(right)).then_with(|| left.cmp(right))
}

fn decompress(from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return fs::copy(from, to)
                .map(|_| ())
                .with_context(|| format!("cannot copy `{}`", from.display()));
        }
    };
    let file = fs::File::create(to).with_context(|| format!("cannot write `{}`", to.display()))?;
    process::run(Command::new(program).args(["--decompress", "--stdout"]).arg(from).stdout(file))
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))? {
        let entry = entry.with_context(|| format!("cannot read `{}`", directory.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot read `{}`", entry.path().display()))?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::{mirror_in, newest_image};

    #[test]
    fn the_newest_cloud_image_of_the_series_is_taken() {
        let packages = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-32-cloud-amd64",
            "linux-image-5.10.0-32-cloud-amd64-dbg",
            "linux-image-5.10.0-32-cloud-amd64-unsigned",
            "linux-image-5.10.0-33-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ];
        let newest = |series| newest_image(packages.into_iter(), series);
        assert_eq!(newest("5.10"), Some("linux-image-5.10.0-32-cloud-amd64"));
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest("6.12"), Some("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest("7.2"), Some("linux-binary-7.2.13+deb14-cloud-amd64"));
        assert_eq!(newest("7.1"), None);
    }

    #[test]
    fn the_mirror_is_found_in_both_formats() {
        let new = "Types: deb\n# http://comment/debian\nURIs: http://mirror.example/debian-security\n\nURIs: http://mirror.example/debian/\n";
        assert_eq!(mirror_in(new).as_deref(), Some("http://mirror.example/debian"));
        let old = "# deb http://no/debian x main\ndeb [arch=amd64] https://old.example/debian stable main\n";
        assert_eq!(mirror_in(old).as_deref(), Some("https://old.example/debian"));
        assert_eq!(mirror_in("deb http://example/ubuntu noble main\n"), None);
    }
}
