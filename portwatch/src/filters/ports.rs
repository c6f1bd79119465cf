//! Lists of ports: `80,443,8000-8099`.

use std::fmt;
use std::str::FromStr;

use portwatch_common::limits::PORT_BITMAP_WORDS;

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet {
    words: Vec<u64>,
}

impl PortSet {
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64] & (1 << (port % 64)) != 0
    }

    /// The union of both.
    pub fn union(mut self, other: &PortSet) -> PortSet {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
        self
    }

    /// One bit per port.
    pub fn bitmap(&self) -> &[u64] {
        &self.words
    }
}

/// As the list that it was read from, in order and without repetition.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ports = (1..=u16::MAX).filter(|&port| self.contains(port)).peekable();
        let mut separator = "";
        while let Some(low) = ports.next() {
            let mut high = low;
            while let Some(next) = ports.next_if(|&next| next == high + 1) {
                high = next;
            }
            write!(f, "{separator}{low}")?;
            if high > low {
                write!(f, "-{high}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = vec![0u64; PORT_BITMAP_WORDS];
        for part in text.split(',').map(str::trim) {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let port = |text: &str| match text.trim().parse::<u16>() {
                Ok(port) if port > 0 => Ok(port),
                _ => Err(format!(
                    "`{}` is not a port; write numbers from 1 to 65535, as in `80,443,8000-8099`",
                    text.escape_debug()
                )),
            };
            let (low, high) = (port(low)?, port(high)?);
            if low > high {
                return Err(format!("the range `{low}-{high}` is empty; write the lower port first"));
            }
            (low..=high).for_each(|port| words[usize::from(port) / 64] |= 1 << (port % 64));
        }
        Ok(PortSet { words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read() {
        let ports: PortSet = "80, 443,8000-8002,65535".parse().unwrap();
        let within: Vec<u16> = (1..=u16::MAX).filter(|&port| ports.contains(port)).collect();
        assert_eq!(within, [80, 443, 8000, 8001, 8002, 65535]);
        assert_eq!(ports.to_string(), "80,443,8000-8002,65535");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "0", "65536", "http", "80,", "90-80", "-1"] {
            assert!(text.parse::<PortSet>().is_err(), "{text}");
        }
    }
}
