//! What to change, by runtime and library: words and links stand in `advice.json`, the first entry that fits is taken.

use std::sync::LazyLock;

use serde::Deserialize;

use super::report::Finding;
use crate::recording::format::Frame;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    pub id: String,
    pub verdicts: Vec<String>,
    /// The program's path contains one of these behind its last `/`, as a beginning.
    #[serde(default)]
    exe: Vec<String>,
    /// A frame's function, file or module contains one of these.
    #[serde(default)]
    frames: Vec<String>,
    /// What the rule found to be the cause.
    #[serde(default)]
    causes: Vec<String>,
    /// Ports of the destination.
    #[serde(default)]
    ports: Vec<u16>,
    pub advice: String,
    pub links: Vec<String>,
}

pub static ALL: LazyLock<Vec<Advice>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("advice.json")).expect("the advice was read by a test")
});

/// Adds the words to a finding.
pub fn advise(mut finding: Finding, frames: &[Frame], cause: &str) -> Finding {
    let port = finding.destination.as_deref().and_then(|to| to.rsplit(':').next()?.parse::<u16>().ok());
    let exe = finding.exe.as_deref().or(finding.comm.as_deref()).unwrap_or_default();
    let fits = |advice: &&Advice| {
        advice.verdicts.iter().any(|verdict| verdict == finding.verdict)
            && advice.fits(exe, frames, cause, port)
    };
    if let Some(advice) = ALL.iter().find(fits) {
        finding.advice.clone_from(&advice.advice);
        finding.advice_id.clone_from(&advice.id);
        finding.links.clone_from(&advice.links);
    }
    finding
}

impl Advice {
    fn fits(&self, exe: &str, frames: &[Frame], cause: &str, port: Option<u16>) -> bool {
        if !self.causes.is_empty() && !self.causes.iter().any(|wanted| wanted == cause) {
            return false;
        }
        if !self.ports.is_empty() && !port.is_some_and(|port| self.ports.contains(&port)) {
            return false;
        }
        if self.exe.is_empty() && self.frames.is_empty() {
            return true;
        }
        // `/usr/bin/python3.11 (deleted)` is Python, too.
        let name = exe.rsplit('/').next().unwrap_or(exe);
        let is_exe = |wanted: &String| match wanted.strip_prefix('/') {
            Some(wanted) => {
                name.strip_prefix(wanted).is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
            }
            None => name.contains(wanted.as_str()),
        };
        let is_frame = |frame: &Frame| {
            let texts = [&frame.function, &frame.file, &frame.module];
            let mut texts = texts.into_iter().filter_map(|text| text.as_deref());
            texts.any(|text| self.frames.iter().any(|wanted| text.contains(wanted.as_str())))
        };
        self.exe.iter().any(is_exe) || frames.iter().any(is_frame)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_advice_has_words_and_links_and_every_verdict_an_advice_for_all() {
        let mut ids = BTreeSet::new();
        for advice in ALL.iter() {
            assert!(ids.insert(&advice.id), "{} twice", advice.id);
            assert!(!advice.links.is_empty() && advice.links.iter().all(|link| link.starts_with("https://")));
            assert!(!advice.advice.ends_with('.') && advice.advice.len() < 400, "{}", advice.id);
        }
        for verdict in crate::diagnosis::VERDICTS {
            let is_general = |advice: &Advice| {
                advice.verdicts.iter().any(|it| it == verdict) && advice.fits("", &[], "", None)
            };
            assert!(ALL.iter().any(is_general), "{verdict}");
        }
    }

    #[test]
    fn programs_are_known_by_their_names() {
        let id = |exe: &str| {
            let fits = |advice: &&Advice| {
                advice.verdicts[0] == "connect-per-request" && advice.fits(exe, &[], "", None)
            };
            ALL.iter().find(fits).unwrap().id.as_str()
        };
        for (exe, expected) in [
            ("/usr/bin/python3.11", "python"),
            ("/usr/bin/curl", "curl-loop"),
            ("/usr/sbin/nginx (deleted)", "nginx-upstream"),
            ("/usr/sbin/php-fpm8.2", "php"),
            ("/opt/nodemon", "keep-connections"),
            ("node", "node-agent"),
            ("/usr/lib/jvm/java-17/bin/java", "java"),
            ("/srv/about", "keep-connections"),
        ] {
            assert_eq!(id(exe), expected, "{exe}");
        }
    }
}
