//! A machine's console output → results per rung.

use crate::results::{self, Results};

/// What one machine reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry for each rung that was begun, in order.
    pub rungs: Vec<(String, Results)>,
    /// Trouble that belongs to no rung: complaints of the kernel, an early end.
    pub trouble: Vec<String>,
}

/// Reads a whole console log. `expected_rungs` that were never begun are failures, and unless the tests were
/// `filtered` so is a rung without any.
pub fn parse(log: &str, expected_rungs: &[String], filtered: bool) -> Report {
    let mut report = Report::default();
    let mut current: Option<(String, Vec<&str>)> = None;
    let mut ended = false;
    for line in log.lines() {
        // Serial consoles end lines with a carriage return too.
        let line = line.trim_end_matches('\r');
        let Some(marker) = line.strip_prefix("@vm ") else {
            if let Some((_, lines)) = &mut current {
                lines.push(line);
            }
            continue;
        };
        match marker.split_once(' ').unwrap_or((marker, "")) {
            ("rung", rung) => {
                close(&mut report, current.replace((rung.to_owned(), Vec::new())), None);
            }
            ("exit", code) => close(&mut report, current.take(), Some(code)),
            ("complaint", what) => report.trouble.push(format!("the kernel complained: {what}")),
            ("end", _) => ended = true,
            _ => {}
        }
    }
    close(&mut report, current, None);
    if !ended {
        report.trouble.push("the machine stopped before the end of the tests".into());
    }
    if !filtered {
        for (_, results) in report.rungs.iter_mut().filter(|(_, results)| *results == Results::default()) {
            *results = Results::failure("no test ran");
        }
    }
    for rung in expected_rungs {
        if !report.rungs.iter().any(|(begun, _)| begun == rung) {
            report.rungs.push((rung.clone(), Results::failure("the tests did not start")));
        }
    }
    report
}

/// The log for a terminal: without the firmware's screen, and without the control characters that would clear ours.
pub fn readable(log: &str) -> String {
    let begin = log.find("@vm kernel").unwrap_or(0);
    let mut text = String::with_capacity(log.len() - begin);
    for character in log[begin..].chars() {
        match character {
            '\r' => {}
            '\n' | '\t' => text.push(character),
            _ if character.is_control() => text.extend(character.escape_default()),
            _ => text.push(character),
        }
    }
    text
}

fn close(report: &mut Report, rung: Option<(String, Vec<&str>)>, code: Option<&str>) {
    let Some((rung, lines)) = rung else { return };
    report.rungs.push((rung, results::parse(lines.iter().copied(), code == Some("0"))));
}

#[cfg(test)]
mod tests {
    use super::{parse, readable};
    use crate::results::Results;

    const GOOD: &str = "SeaBIOS\r\n@vm kernel 6.1.0\r\n\
        @vm rung fentry\r\nrunning 2 tests\r\ntest a ... ok\r\ntest b ... FAILED\r\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored\r\n@vm exit 101\r\n\
        @vm rung kprobe\r\nrunning 1 test\r\ntest a ... ok\r\ntest result: ok. 1 passed; 0 failed; 0 ignored\r\n@vm exit 0\r\n\
        @vm end\r\n";

    fn rungs(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn results_are_kept_apart_by_rung() {
        let report = parse(GOOD, &rungs(&["fentry", "kprobe"]), false);
        assert_eq!(
            report.rungs[0],
            ("fentry".into(), Results { passed: 1, failed: vec!["b".into()], skipped: vec![] })
        );
        assert_eq!(report.rungs[1], ("kprobe".into(), Results { passed: 1, ..Results::default() }));
        assert!(report.trouble.is_empty());
    }

    #[test]
    fn a_rung_that_never_began_is_a_failure() {
        let report = parse(GOOD, &rungs(&["fentry", "kprobe", "tracepoint"]), false);
        assert_eq!(report.rungs[2].1.failed.len(), 1);
    }

    #[test]
    fn a_machine_that_dies_is_a_failure_of_its_rung_and_of_itself() {
        let cut = GOOD.find("test b").expect("in the text");
        let report = parse(&GOOD[..cut], &rungs(&["fentry"]), false);
        assert_eq!((report.rungs[0].1.passed, report.rungs[0].1.failed.len()), (1, 1));
        assert_eq!(report.trouble.len(), 1);
    }

    #[test]
    fn no_output_and_no_tests_are_failures() {
        let nothing = parse("", &rungs(&["kprobe"]), false);
        assert_eq!((nothing.rungs.len(), nothing.rungs[0].1.failed.len(), nothing.trouble.len()), (1, 1, 1));
        let silent = parse("@vm rung kprobe\n@vm exit 0\n@vm end\n", &rungs(&["kprobe"]), false);
        assert_eq!(silent.rungs[0].1.failed.len(), 1);
        let none_match = parse("@vm rung kprobe\n@vm exit 0\n@vm end\n", &rungs(&["kprobe"]), true);
        assert_eq!(none_match.rungs[0].1, Results::default());
    }

    #[test]
    fn a_log_cannot_change_the_terminal() {
        assert_eq!(
            readable("\u{1b}[2JBIOS\r\n@vm kernel 6\r\na\u{1b}[2J\tb\r\n"),
            "@vm kernel 6\na\\u{1b}[2J\tb\n"
        );
        assert_eq!(readable("\u{1b}c"), "\\u{1b}c");
    }

    #[test]
    fn a_complaint_of_the_kernel_is_trouble() {
        let report = parse("@vm rung k\n@vm complaint BUG: x\n@vm end\n", &rungs(&[]), false);
        assert_eq!(report.trouble, ["the kernel complained: BUG: x"]);
    }
}
