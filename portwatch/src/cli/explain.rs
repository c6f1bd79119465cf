//! `portwatch explain TOPIC`: an error, a sysctl or a verdict in a few sentences, with this host's values.

use std::io::Write;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Deserialize;

use super::failure::Failure;
use crate::diagnosis::VERDICTS;
use crate::diagnosis::pools::TIME_WAIT_S;
use crate::kernel::netns;
use crate::output::escape::printable;

/// An error number, a sysctl or a verdict in a few sentences, with this host's values
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  portwatch explain EADDRNOTAVAIL
  portwatch explain tcp_fin_timeout
  portwatch explain connect-per-request")]
pub struct ExplainArgs {
    /// Name of an error, a sysctl or a verdict; without, all topics
    #[arg(value_name = "TOPIC")]
    topic: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    name: String,
    kind: String,
    text: String,
    /// Settings whose values are shown, below `net.ipv4`.
    sysctls: Vec<String>,
    see: Vec<String>,
}

static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../diagnosis/explain.json")).expect("the topics were read by a test")
});

/// The pages of the verdicts, which the documentation has too.
const PAGES: [(&str, &str); VERDICTS.len()] = [
    ("connect-per-request", include_str!("../../../docs/verdicts/connect-per-request.md")),
    ("connection-leak", include_str!("../../../docs/verdicts/connection-leak.md")),
    ("exhaustion", include_str!("../../../docs/verdicts/exhaustion.md")),
    ("refused-storm", include_str!("../../../docs/verdicts/refused-storm.md")),
    ("spread", include_str!("../../../docs/verdicts/spread.md")),
    ("bind-conflict", include_str!("../../../docs/verdicts/bind-conflict.md")),
    ("udp-per-query", include_str!("../../../docs/verdicts/udp-per-query.md")),
];

const WIDTH: usize = 92;

pub fn run(args: ExplainArgs) -> Result<ExitCode> {
    let text = match &args.topic {
        None => index(),
        Some(topic) => explain(topic).ok_or_else(|| {
            Failure::usage(anyhow!(
                "there is no topic `{}`\n  next: `portwatch explain` lists them all",
                printable(topic)
            ))
        })?,
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write the explanation")?;
    Ok(ExitCode::SUCCESS)
}

fn index() -> String {
    let of = |kind: &str| {
        let names: Vec<&str> =
            TOPICS.iter().filter(|topic| topic.kind == kind).map(|topic| topic.name.as_str()).collect();
        wrapped(&names.join(", "), "  ")
    };
    format!(
        "Errors:\n{}Settings:\n{}Verdicts:\n{}Else:\n{}",
        of("errno"),
        of("sysctl"),
        wrapped(&VERDICTS.join(", "), "  "),
        of("state")
    )
}

/// `net.ipv4.` and upper or lower case do not matter.
fn explain(topic: &str) -> Option<String> {
    let name = topic.trim_start_matches("net.ipv4.");
    if let Some((_, page)) = PAGES.iter().find(|(verdict, _)| verdict.eq_ignore_ascii_case(name)) {
        return Some((*page).to_owned());
    }
    let topic = TOPICS.iter().find(|topic| topic.name.eq_ignore_ascii_case(name))?;
    let mut text = format!("{}\n\n{}", topic.name, wrapped(&topic.text, ""));
    let values: Vec<String> = topic.sysctls.iter().map(|name| here(name)).collect();
    if !values.is_empty() {
        text += "\nHere:\n";
        for value in values {
            text += &format!("  {value}\n");
        }
    }
    if topic.sysctls.iter().any(|name| name == "ip_local_port_range")
        && let Some(room) = room()
    {
        text += &format!("  {room}\n");
    }
    if !topic.see.is_empty() {
        text += &format!("\nSee: portwatch explain {}\n", topic.see.join(", "));
    }
    Some(text)
}

/// A setting of the namespace that this command runs in.
fn here(name: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    match value.as_deref().map(str::trim) {
        Ok("") => format!("net.ipv4.{name} is empty"),
        Ok(value) => format!("net.ipv4.{name} = {}", printable(value.replace('\t', " "))),
        Err(_) => format!("net.ipv4.{name}: this kernel does not have it"),
    }
}

/// What the range here is good for.
fn room() -> Option<String> {
    let (low, high) = netns::settings(0).ok()?.port_range?;
    let ports = u32::from(high.checked_sub(low)?) + 1;
    let per_s = f64::from(ports) / TIME_WAIT_S;
    Some(format!(
        "{ports} ports: {per_s:.0} connects a second to one destination for ever, if each leaves a TIME_WAIT"
    ))
}

fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = String::new();
    let mut line = indent.to_owned();
    for word in text.split(' ') {
        if line.len() > indent.len() && line.len() + 1 + word.len() > WIDTH {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line = indent.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_and_verdict_is_explained_and_all_that_it_names_is_there() {
        for topic in TOPICS.iter() {
            let text = explain(&topic.name).unwrap();
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            for see in &topic.see {
                assert!(explain(see).is_some(), "{see}");
            }
            if topic.kind == "errno" {
                let is_known = (1..134)
                    .any(|number| crate::output::errno::name(crate::event::Errno(number)) == topic.name);
                assert!(is_known, "{}", topic.name);
            }
        }
        for verdict in VERDICTS {
            let page = explain(verdict).unwrap();
            assert!(page.starts_with(&format!("# {verdict}\n")), "{verdict}");
        }
        assert!(explain("net.ipv4.TCP_FIN_TIMEOUT").unwrap().contains("does NOT"));
        assert_eq!(explain("nothing"), None);
    }
}
