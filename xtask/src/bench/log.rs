//! Whether an event log tells of every connection: its own account of losses, and its lines against the load's count.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The load by its name: other namespaces may use the same port meanwhile.
const LOAD: &str = "\"comm\":\"churn\"";

/// What a log says of the load's connections.
#[derive(Debug, Default)]
pub struct Account {
    /// `established` lines to the load's port.
    pub established: u64,
    pub lines: u64,
    /// The summary's `lost` as it stands there: `{}` is none.
    pub lost: String,
    pub is_complete: bool,
    pub bytes: u64,
}

impl Account {
    pub fn is_whole(&self, connections: u64) -> bool {
        self.is_complete && self.lost == "{}" && self.established == connections
    }
}

/// Reads a log through `zstd`: line by line, since a minute of load is gigabytes.
pub fn read(path: &Path, port: u16) -> Result<Account> {
    let mut zstd = Command::new("zstd")
        .args(["-dcq", "--"])
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `zstd`")?;
    let mut account = Account {
        bytes: path.metadata().with_context(|| format!("cannot look at `{}`", path.display()))?.len(),
        ..Account::default()
    };
    let to_port = format!("\"rport\":{port},");
    let mut lines = BufReader::with_capacity(1 << 20, zstd.stdout.take().context("it is piped")?);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).with_context(|| format!("cannot read `{}`", path.display()))? == 0 {
            break;
        }
        account.lines += 1;
        if line.starts_with("{\"type\":\"established\"") {
            account.established += u64::from(line.contains(&to_port) && line.contains(LOAD));
        } else if line.starts_with("{\"type\":\"summary\"") {
            account.lost =
                object(&line, "lost").with_context(|| format!("no losses in `{line}`"))?.to_owned();
            account.is_complete = line.contains("\"complete\":true");
        }
    }
    let status = zstd.wait().context("cannot wait for `zstd`")?;
    if !status.success() {
        bail!("`zstd -d` of `{}` failed: {status}", path.display());
    }
    Ok(account)
}

/// The object that is the value of `key`, as it stands in `json`. The summary has no brackets in strings.
fn object<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let marker = format!("\"{key}\":{{");
    let start = json.find(&marker)? + marker.len() - 1;
    let mut depth = 0;
    for (at, byte) in json.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return json.get(start..=at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::object;

    #[test]
    fn object_ends_with_its_own_bracket() {
        let json = r#"{"events":{"a":1},"lost":{"a":{"ring_full":2},"b":{}},"kernel_totals":{}}"#;
        assert_eq!(object(json, "lost"), Some(r#"{"a":{"ring_full":2},"b":{}}"#));
        assert_eq!(object(json, "kernel_totals"), Some("{}"));
        assert_eq!(object(json, "filtered"), None);
        assert_eq!(object(r#"{"lost":{"#, "lost"), None);
    }
}
