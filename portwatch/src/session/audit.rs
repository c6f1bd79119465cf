//! Stacks that the kernel side walked by the rows it was taught, walked again from the unwind tables and compared: what
//! share of them is right is measured in every run.

use crate::stack::unwind::{Outcome, Unwound, Why};

/// What came of one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same addresses.
    Matched,
    /// The same addresses, as far as the copy of the stack goes.
    MatchedInPart,
    /// Other addresses from this frame on, 0 being the innermost.
    Mismatched { from: usize },
    /// There is nothing to compare with: the process is gone, or its mappings have changed since.
    Unknown,
}

/// Judges the addresses that the kernel side found by those that the tables lead to.
pub fn judge(walked: &[u64], unwound: &Unwound) -> Verdict {
    let same = walked.iter().zip(&unwound.addresses).take_while(|(one, other)| one == other).count();
    let is_prefix = same == unwound.addresses.len();
    match &unwound.outcome {
        // Without mappings or a program file the tables are not there to say.
        Outcome::Truncated(Why::Unknown(_)) => Verdict::Unknown,
        Outcome::Complete if is_prefix && same == walked.len() => Verdict::Matched,
        Outcome::Truncated(Why::NotCaptured) if is_prefix => Verdict::MatchedInPart,
        Outcome::Complete | Outcome::Truncated(_) => Verdict::Mismatched { from: same },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwound(addresses: &[u64], outcome: Outcome) -> Unwound {
        Unwound { addresses: addresses.to_vec(), rows: Vec::new(), outcome }
    }

    #[test]
    fn equal_stacks_match_and_others_say_where_they_part() {
        let complete = |addresses: &[u64]| judge(&[1, 2, 3], &unwound(addresses, Outcome::Complete));
        assert_eq!(complete(&[1, 2, 3]), Verdict::Matched);
        assert_eq!(complete(&[1, 2, 4]), Verdict::Mismatched { from: 2 });
        assert_eq!(complete(&[1, 2, 3, 4]), Verdict::Mismatched { from: 3 });
        assert_eq!(complete(&[1, 2]), Verdict::Mismatched { from: 2 });
    }

    #[test]
    fn a_walk_that_ran_out_of_copied_bytes_vouches_for_what_it_saw() {
        let cut = |addresses: &[u64], why| judge(&[1, 2, 3], &unwound(addresses, Outcome::Truncated(why)));
        assert_eq!(cut(&[1, 2], Why::NotCaptured), Verdict::MatchedInPart);
        assert_eq!(cut(&[1, 4], Why::NotCaptured), Verdict::Mismatched { from: 1 });
        // The kernel side came to an end that the tables do not know.
        assert_eq!(cut(&[1, 2], Why::NotCode), Verdict::Mismatched { from: 2 });
        assert_eq!(cut(&[1], Why::Unknown("gone".to_owned())), Verdict::Unknown);
    }
}
