//! What ran where, and the closing line that continuous integration reads.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::results::Results;

/// Results of all parts of one run, in the order they ran.
#[derive(Default)]
pub struct Summary {
    parts: Vec<Part>,
}

struct Part {
    name: String,
    results: Results,
    took: Option<Duration>,
}

impl Summary {
    /// Adds a part; `took` is `None` where it has no time of its own.
    pub fn add(&mut self, name: impl Into<String>, results: Results, took: Option<Duration>) {
        self.parts.push(Part { name: name.into(), results, took });
    }

    pub fn failed(&self) -> usize {
        self.total(|results| results.failed.len())
    }

    fn total(&self, count: impl Fn(&Results) -> usize) -> usize {
        self.parts.iter().map(|part| count(&part.results)).sum()
    }
}

impl Display for Summary {
    /// A table, the names of what failed or was skipped, and as the very last line `N passed, N failed, N skipped`.
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let width = self.parts.iter().map(|part| part.name.len()).max().unwrap_or(0).max("part".len());
        writeln!(out, "{:width$}  passed  failed  skipped  seconds", "part")?;
        for Part { name, results, took } in &self.parts {
            let seconds = took.map(|took| format!("{:.1}", took.as_secs_f64())).unwrap_or_default();
            let (failed, skipped) = (results.failed.len(), results.skipped.len());
            writeln!(out, "{name:width$}  {:>6}  {failed:>6}  {skipped:>7}  {seconds:>7}", results.passed)?;
        }
        for Part { name, results, .. } in &self.parts {
            for skip in &results.skipped {
                let reason = if skip.reason.is_empty() { "no reason given" } else { &skip.reason };
                writeln!(out, "SKIPPED {name}: {}: {reason}", skip.test)?;
            }
        }
        for Part { name, results, .. } in &self.parts {
            for failure in &results.failed {
                writeln!(out, "FAILED {name}: {failure}")?;
            }
        }
        let (passed, skipped) =
            (self.total(|results| results.passed), self.total(|results| results.skipped.len()));
        write!(out, "{passed} passed, {} failed, {skipped} skipped", self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;
    use crate::results::{Results, Skip};

    #[test]
    fn the_last_line_adds_everything_up() {
        let mut summary = Summary::default();
        summary.add("one", Results { passed: 3, failed: vec!["a".into()], skipped: vec![] }, None);
        let skip = Skip { test: "b".into(), reason: "no IPv6".into() };
        summary.add("two", Results { passed: 4, failed: vec![], skipped: vec![skip] }, None);
        let text = summary.to_string();
        assert_eq!(text.lines().last(), Some("7 passed, 1 failed, 1 skipped"));
        assert!(text.contains("SKIPPED two: b: no IPv6\nFAILED one: a\n"), "{text}");
        assert_eq!(summary.failed(), 1);
    }
}
