//! Test output → what passed, failed and was skipped.
//!
//! Understands the lines of Rust's own test harness and of libtest-mimic, which agree.

/// The outcome of one or more test programs that wrote to the same output.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Results {
    pub passed: usize,
    /// Names of what failed, or a sentence where no test can be named.
    pub failed: Vec<String>,
    pub skipped: Vec<Skip>,
}

/// A test that did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    pub test: String,
    /// As the test gave it; empty when it gave none.
    pub reason: String,
}

impl Results {
    /// One step that is no test program, such as a lint.
    pub fn of_step(name: &str, passed: bool) -> Self {
        if passed { Self { passed: 1, ..Self::default() } } else { Self::failure(name) }
    }

    /// A single failure that `what` describes.
    pub fn failure(what: impl Into<String>) -> Self {
        Self { failed: vec![what.into()], ..Self::default() }
    }

    /// Adds `other` to this.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

/// Reads the output of test programs; `exited_well` is whether the command that ran them said so.
///
/// The counts come from the lines of the tests and must agree with each program's own summary, so a program that dies
/// half-way, or whose output was garbled, is a failure and never a smaller success.
pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>, exited_well: bool) -> Results {
    let mut all = Results::default();
    let mut program = Program::default();
    for line in lines {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("test result: ") {
            all.add(std::mem::take(&mut program).finish(rest));
        } else if line
            .strip_prefix("running ")
            .is_some_and(|rest| rest.ends_with(" tests") || rest.ends_with(" test"))
        {
            if program.started {
                all.add(std::mem::take(&mut program).cut_short());
            }
            program.started = true;
        } else if let Some(rest) = line.strip_prefix("test ") {
            program.test_line(rest);
        }
    }
    if program.started || program.seen() > 0 {
        all.add(program.cut_short());
    }
    if !exited_well && all.failed.is_empty() {
        all.add(Results::failure("the test program failed without naming a test"));
    }
    all
}

/// What one test program has said so far.
#[derive(Default)]
struct Program {
    started: bool,
    results: Results,
}

impl Program {
    /// `NAME ... ok`, `NAME ... FAILED`, `NAME ... ignored, why`, `NAME ... ignored (why)`
    fn test_line(&mut self, line: &str) {
        let Some((name, outcome)) = line.rsplit_once(" ... ") else { return };
        // libtest-mimic shows a test's kind in brackets in front and pads names to a common width.
        let name = name.trim().to_owned();
        match outcome.trim() {
            "ok" => self.results.passed += 1,
            "FAILED" | "failed" => self.results.failed.push(name),
            outcome => {
                if let Some(reason) = outcome.strip_prefix("ignored") {
                    let reason = reason.trim_matches([',', ' ', '(', ')']).to_owned();
                    self.results.skipped.push(Skip { test: name, reason });
                }
            }
        }
    }

    fn seen(&self) -> usize {
        self.results.passed + self.results.failed.len() + self.results.skipped.len()
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`
    fn finish(mut self, summary: &str) -> Results {
        let count = |what: &str| {
            let part = summary.split([';', '.']).find(|part| part.trim().ends_with(what))?;
            part.trim().split(' ').next()?.parse::<usize>().ok()
        };
        let told = [count("passed"), count("failed"), count("ignored")];
        let seen = [self.results.passed, self.results.failed.len(), self.results.skipped.len()];
        if told != seen.map(Some) {
            self.results.failed.push(format!(
                "the summary `{summary}` does not match the lines before it: {} ok, {} failed, {} ignored",
                seen[0], seen[1], seen[2]
            ));
        }
        self.results
    }

    fn cut_short(mut self) -> Results {
        let seen = self.seen();
        self.results.failed.push(format!("a test program ended without a summary, after {seen} tests"));
        self.results
    }
}

#[cfg(test)]
mod tests {
    use super::{Results, Skip, parse};

    fn of(text: &str, exited_well: bool) -> Results {
        parse(text.lines(), exited_well)
    }

    #[test]
    fn several_programs_are_added_up() {
        let results = of(
            "     Running unittests src/lib.rs\n\
             running 2 tests\ntest a::b ... ok\ntest c - should panic ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             running 3 tests\r\ntest fentry::x ... ok\r\ntest y    ... ignored, no IPv6\r\ntest z ... ignored (no BTF)\r\n\
             test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\r\n",
            true,
        );
        let skip = |test: &str, reason: &str| Skip { test: test.into(), reason: reason.into() };
        assert_eq!(
            results,
            Results { passed: 3, failed: vec![], skipped: vec![skip("y", "no IPv6"), skip("z", "no BTF")] }
        );
    }

    #[test]
    fn failures_are_named_once() {
        let results = of(
            "running 2 tests\ntest good ... ok\ntest bad ... FAILED\n\nfailures:\n\n---- bad ----\ntest text that is not a line\n\n\
             failures:\n    bad\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s",
            false,
        );
        assert_eq!(results, Results { passed: 1, failed: vec!["bad".into()], skipped: vec![] });
    }

    #[test]
    fn a_program_without_summary_is_a_failure() {
        let results = of("running 5 tests\ntest a ... ok\ntest b ... ok\n", false);
        assert_eq!((results.passed, results.failed.len()), (2, 1));
        let two = of(
            "running 5 tests\ntest a ... ok\nrunning 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n",
            true,
        );
        assert_eq!((two.passed, two.failed.len()), (1, 1));
    }

    #[test]
    fn a_summary_that_contradicts_its_lines_is_a_failure() {
        let results =
            of("running 2 tests\ntest a ... ok\ntest result: ok. 2 passed; 0 failed; 0 ignored\n", true);
        assert_eq!((results.passed, results.failed.len()), (1, 1));
    }

    #[test]
    fn a_bad_exit_status_is_a_failure_even_if_all_lines_are_good() {
        let text = "running 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(of(text, false).failed.len(), 1);
        assert_eq!(of(text, true).failed.len(), 0);
        assert_eq!(of("", false).failed.len(), 1);
    }
}
