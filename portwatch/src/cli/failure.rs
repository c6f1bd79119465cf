//! Errors that know their exit code, and how an error is printed.

use std::fmt;
use std::io;

use anyhow::Error;

use crate::output::escape;

/// The exit code of an error, where it is not the ordinary 1.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: Error,
}

impl Failure {
    /// Malformed input: exit code 2.
    pub fn usage(error: impl Into<Error>) -> Error {
        Error::new(Failure { code: 2, error: error.into() })
    }

    /// This host cannot do it: no permission, or the kernel lacks something. Exit code 77.
    pub fn unable(error: impl Into<Error>) -> Error {
        Error::new(Failure { code: 77, error: error.into() })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// The exit code that an error asks for.
pub fn code(error: &Error) -> u8 {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.code;
    }
    match error.downcast_ref::<crate::recording::Error>() {
        Some(error) => error.exit_code(),
        None => 1,
    }
}

/// Whether an error only says that nobody reads our output any more.
pub fn is_closed_pipe(error: &Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The message for people: what we were doing, the causes, what to do next.
pub fn message(error: &Error) -> String {
    let mut text = String::new();
    let mut next = Vec::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // `{:#}` of some libraries says its source again.
        if cause == last {
            continue;
        }
        let mut lines = cause.lines();
        let first = lines.next().unwrap_or_default();
        text.push_str(if text.is_empty() { "error: " } else { "\n  cause: " });
        text.push_str(&printable(first));
        for line in lines {
            match line.trim().strip_prefix("next: ") {
                Some(hint) => next.push(printable(hint)),
                None => {
                    text.push_str("\n  ");
                    text.push_str(&printable(line.trim()));
                }
            }
        }
        last = cause;
    }
    for hint in next {
        text.push_str("\n  next: ");
        text.push_str(&hint);
    }
    text
}

/// Safe for a terminal. Backslashes stay as they are: names in messages were escaped where they came in.
pub(super) fn printable(text: &str) -> String {
    text.split('\\').map(escape::printable).collect::<Vec<_>>().join("\\")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_message_has_its_cause_before_what_to_do_next() {
        let error = anyhow!("no such device").context("cannot open `x`\n  next: plug it in");
        assert_eq!(message(&error), "error: cannot open `x`\n  cause: no such device\n  next: plug it in");
    }

    #[test]
    fn a_message_is_escaped_once_and_not_twice() {
        let hostile = "a\x1b[2J\\".escape_debug();
        let error = anyhow!("no `{hostile}`\n  tracepoint: side's\x1b\n  next: write `\\[`\x07");
        let expected = "error: no `a\\u{1b}[2J\\\\`\n  tracepoint: side's\\u{1b}\n  next: write `\\[`\\u{7}";
        assert_eq!(message(&error), expected);
    }

    #[test]
    fn codes_survive_more_context() {
        assert_eq!(code(&anyhow!("x")), 1);
        assert_eq!(code(&Failure::usage(anyhow!("x"))), 2);
        assert_eq!(code(&Failure::unable(anyhow!("x")).context("y")), 77);
    }

    #[test]
    fn a_closed_pipe_is_seen_through_its_context() {
        let error = Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert!(is_closed_pipe(&error));
        assert!(!is_closed_pipe(&anyhow!("x")));
    }
}
