//! `--comm GLOB`: patterns over task names, as an automaton that runs in the kernel.

use anyhow::{Result, bail};
use portwatch_common::config::CommGlob;
use portwatch_common::limits::COMM_GLOB_STATES_MAX;

/// Any number of patterns. `*` matches any bytes, `?` one byte, `[a-z]` and `[!a-z]` one of a set, `\` the next byte itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommPatterns {
    glob: CommGlob,
    accepts: Box<[u64; 256]>,
}

/// One thing a pattern asks for.
enum Element {
    Byte(u8),
    Any,
    Set(Box<[bool; 256]>),
    Star,
}

impl CommPatterns {
    /// # Errors
    /// When a pattern is malformed, or all of them together are longer than the automaton has states.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        let mut glob = CommGlob { start: 0, stars: 0, accept: 0 };
        let mut accepts = Box::new([0u64; 256]);
        let mut state = 0u32;
        for pattern in patterns {
            let elements = parse(pattern.as_ref())?;
            if state as usize + elements.len() + 1 > COMM_GLOB_STATES_MAX {
                bail!(
                    "the patterns of `--comm` are longer than {COMM_GLOB_STATES_MAX} characters together; \
                     use fewer or shorter ones"
                );
            }
            glob.start |= 1 << state;
            for element in elements {
                match element {
                    Element::Star => {
                        glob.stars |= 1 << state;
                        continue;
                    }
                    Element::Byte(byte) => accepts[usize::from(byte)] |= 1 << state,
                    Element::Any => accepts.iter_mut().for_each(|states| *states |= 1 << state),
                    Element::Set(set) => {
                        accepts.iter_mut().zip(set.iter()).for_each(|(states, is_in)| {
                            if *is_in {
                                *states |= 1 << state;
                            }
                        });
                    }
                }
                state += 1;
            }
            glob.accept |= 1 << state;
            state += 1;
        }
        Ok(CommPatterns { glob, accepts })
    }

    pub fn glob(&self) -> CommGlob {
        self.glob
    }

    /// For every byte, the states that it leads on from.
    pub fn accepts(&self) -> &[u64; 256] {
        &self.accepts
    }

    /// What the kernel side computes; for tasks that user space knows of otherwise.
    pub fn matches(&self, comm: &[u8]) -> bool {
        let mut states = self.glob.start;
        for &byte in comm.iter().take_while(|byte| **byte != 0) {
            states = ((states & self.accepts[usize::from(byte)]) << 1) | (states & self.glob.stars);
        }
        states & self.glob.accept != 0
    }
}

fn parse(pattern: &str) -> Result<Vec<Element>> {
    if pattern.is_empty() {
        bail!("an empty `--comm` pattern matches nothing\n  next: leave the flag out to match everything");
    }
    let mut elements = Vec::new();
    let mut bytes = pattern.bytes().peekable();
    while let Some(byte) = bytes.next() {
        elements.push(match byte {
            b'*' => Element::Star,
            b'?' => Element::Any,
            b'\\' => match bytes.next() {
                Some(byte) => Element::Byte(byte),
                None => bail!("`--comm {pattern}` ends in a lone backslash\n  next: write `\\\\` for one"),
            },
            b'[' => set(pattern, &mut bytes)?,
            byte => Element::Byte(byte),
        });
    }
    Ok(elements)
}

fn set(pattern: &str, bytes: &mut std::iter::Peekable<std::str::Bytes<'_>>) -> Result<Element> {
    let mut set = Box::new([false; 256]);
    let is_negated = bytes.next_if(|byte| matches!(byte, b'!' | b'^')).is_some();
    let mut is_first = true;
    loop {
        let Some(low) = bytes.next() else {
            bail!(
                "`--comm {pattern}` opens a `[` that it does not close\n  next: write `\\[` for the bracket itself"
            );
        };
        if low == b']' && !is_first {
            break;
        }
        is_first = false;
        let mut high = low;
        if bytes.peek() == Some(&b'-') {
            bytes.next();
            match bytes.peek() {
                Some(b']') | None => set[usize::from(b'-')] = true,
                Some(&byte) => {
                    high = byte;
                    bytes.next();
                }
            }
        }
        (low..=high).for_each(|byte| set[usize::from(byte)] = true);
    }
    if is_negated {
        set.iter_mut().for_each(|is_in| *is_in = !*is_in);
    }
    Ok(Element::Set(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_a_shell_does() {
        let cases: &[(&str, &str, bool)] = &[
            ("curl", "curl", true),
            ("curl", "curl2", false),
            ("curl", "cur", false),
            ("c*", "curl", true),
            ("*l", "curl", true),
            ("*l", "curly", false),
            ("c*r*", "curl", true),
            ("*", "", true),
            ("*", "anything", true),
            ("**", "anything", true),
            ("c?rl", "curl", true),
            ("c?rl", "crl", false),
            ("python[23]*", "python3.11", true),
            ("python[!2]*", "python2", false),
            ("[a-c]x", "bx", true),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("*ab*ab", "xabyabab", true),
        ];
        for (pattern, comm, expected) in cases {
            let patterns = CommPatterns::new(&[pattern]).unwrap();
            assert_eq!(patterns.matches(comm.as_bytes()), *expected, "{pattern} against {comm}");
        }
    }

    #[test]
    fn any_of_several_patterns_is_enough() {
        let patterns = CommPatterns::new(&["nginx", "redis*", "?"]).unwrap();
        for (comm, expected) in
            [("nginx", true), ("redis-server", true), ("x", true), ("node", false), ("", false)]
        {
            assert_eq!(patterns.matches(comm.as_bytes()), expected, "{comm}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["", "[abc", "a\\", &"x".repeat(COMM_GLOB_STATES_MAX)] {
            assert!(CommPatterns::new(&[pattern]).is_err(), "{pattern}");
        }
    }
}
