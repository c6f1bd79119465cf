//! The checked-in list of tests that may be skipped, and where. Any other skip is a failure.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::results::{Results, Skip};
use crate::workspace::Workspace;

/// Name under which a whole kernel series that cannot be fetched is listed.
pub const WHOLE_SERIES: &str = "(series)";

/// The list, from `xtask/expected-skips.txt`.
pub struct ExpectedSkips {
    rows: Vec<Row>,
}

struct Row {
    test: String,
    place: String,
}

impl ExpectedSkips {
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root.join("xtask/expected-skips.txt");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("cannot use `{}`", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let cells: Vec<&str> = line.splitn(3, '|').map(str::trim).collect();
            let [test, place, reason] = cells[..] else {
                bail!("line {} is not `test | kernel | reason`: `{line}`", number + 1);
            };
            if [test, place, reason].contains(&"") {
                bail!("line {} has an empty cell: `{line}`", number + 1);
            }
            rows.push(Row { test: test.into(), place: place.into() });
        }
        Ok(Self { rows })
    }

    /// Turns every skip of `results` that is not listed into a failure.
    ///
    /// `place` is where they ran: `native` or a series, with the rung after a slash where there is one.
    pub fn judge(&self, place: &str, results: &mut Results) {
        let (expected, surprising) =
            std::mem::take(&mut results.skipped).into_iter().partition(|skip| self.allows(place, skip));
        results.skipped = expected;
        results.failed.extend(surprising.into_iter().map(|skip: Skip| {
            format!("{} was skipped, which is not expected on {place}: {}", skip.test, skip.reason)
        }));
    }

    fn allows(&self, place: &str, skip: &Skip) -> bool {
        self.rows.iter().any(|row| matches(&row.test, &skip.test) && place_matches(&row.place, place))
    }
}

/// `5.10` covers every rung of 5.10, `5.10/fentry` one, `*/tracepoint` that rung everywhere.
fn place_matches(pattern: &str, place: &str) -> bool {
    let (kernel, rung) = place.split_once('/').unwrap_or((place, ""));
    match pattern.split_once('/') {
        None => matches(pattern, kernel),
        Some((kernel_pattern, rung_pattern)) => {
            matches(kernel_pattern, kernel) && matches(rung_pattern, rung)
        }
    }
}

/// Whether `text` is `pattern`, in which each `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    // The literal before the star is fixed; what follows may begin anywhere after it.
    text.strip_prefix(first).is_some_and(|tail| {
        tail.char_indices().map(|(at, _)| at).chain([tail.len()]).any(|at| matches(rest, &tail[at..]))
    })
}

#[cfg(test)]
mod tests {
    use super::{ExpectedSkips, matches};
    use crate::results::{Results, Skip};

    fn judged(table: &str, place: &str, test: &str) -> Results {
        let skip = Skip { test: test.into(), reason: "why".into() };
        let mut results = Results { passed: 1, failed: vec![], skipped: vec![skip] };
        ExpectedSkips::parse(table).expect("a valid table").judge(place, &mut results);
        results
    }

    #[test]
    fn only_listed_skips_stay_skips() {
        let table = "# comment\n\nbind::a | 5.10 | no such option\nudp* | native/tracepoint | cannot be seen\nc | */kprobe | x\n";
        let cases = [
            ("5.10/fentry", "bind::a", true),
            ("5.10", "bind::a", true),
            ("5.1/fentry", "bind::a", false),
            ("6.1/fentry", "bind::a", false),
            ("5.10/fentry", "bind::ab", false),
            ("native/tracepoint", "udp::query", true),
            ("native/kprobe", "udp::query", false),
            ("7.2/kprobe", "c", true),
            ("7.2", "c", false),
        ];
        for (place, test, expected) in cases {
            let results = judged(table, place, test);
            assert_eq!(results.skipped.len() == 1, expected, "{place} {test}");
            assert_eq!(results.failed.is_empty(), expected, "{place} {test}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*::bind", "kprobe::bind", true),
            ("*::bind", "kprobe::bind_v6", false),
            ("kprobe::*", "kprobe::x", true),
            ("k*::b*6", "kprobe::bind_v6", true),
            ("k*::b*6", "kprobe::bind_v4", false),
            ("*é*", "né", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_row_without_reason_is_refused() {
        for table in ["a | 5.10", "a | 5.10 | ", "a"] {
            assert!(ExpectedSkips::parse(table).is_err(), "{table}");
        }
    }
}
