//! Wall-clock times as RFC 3339 in UTC with nanoseconds.

use jiff::Timestamp;

const NS_PER_S: i128 = 1_000_000_000;

/// Turns monotonic times into text. Events come about in order, so the text of the last second is kept and
/// only its nanoseconds are written anew.
pub(crate) struct Clock {
    /// Monotonic and wall-clock time of the same moment.
    anchor_mono_ns: u64,
    anchor_wall_ns: i128,
    second: i128,
    /// `2026-11-21T09:27:34.`, of `second`.
    prefix: String,
}

impl Clock {
    pub fn new(anchor_mono_ns: u64, anchor_wall_ns: i128) -> Self {
        let second = anchor_wall_ns.div_euclid(NS_PER_S);
        Clock { anchor_mono_ns, anchor_wall_ns, second, prefix: prefix(second) }
    }

    /// Nanoseconds since the anchor; negative for what began before.
    pub fn relative(&self, mono_ns: u64) -> i64 {
        // Wraps to the right difference as long as both lie within 292 years of each other.
        mono_ns.wrapping_sub(self.anchor_mono_ns).cast_signed()
    }

    /// Appends the wall-clock time of `mono_ns`.
    pub fn push(&mut self, line: &mut Vec<u8>, mono_ns: u64) {
        let wall_ns = self.anchor_wall_ns + i128::from(self.relative(mono_ns));
        let second = wall_ns.div_euclid(NS_PER_S);
        if second != self.second {
            self.second = second;
            self.prefix = prefix(second);
        }
        line.extend_from_slice(self.prefix.as_bytes());
        let mut rest = wall_ns.rem_euclid(NS_PER_S) as u32;
        let mut digits = [b'0'; 9];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        line.extend_from_slice(&digits);
        line.push(b'Z');
    }

    pub fn text(&mut self, mono_ns: u64) -> String {
        let mut bytes = Vec::with_capacity(30);
        self.push(&mut bytes, mono_ns);
        String::from_utf8(bytes).expect("only ASCII was written")
    }
}

fn prefix(second: i128) -> String {
    // A clock set outside the years that can be written shows as the nearest year that can.
    let nearest = if second < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let timestamp =
        i64::try_from(second).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(nearest);
    let whole = Timestamp::from_second(timestamp.as_second()).unwrap_or(timestamp);
    let mut text = whole.to_string();
    text.pop();
    text.push('.');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_the_anchor_with_all_nine_digits() {
        let wall: Timestamp = "2026-11-21T23:59:59.999999999Z".parse().unwrap();
        let mut clock = Clock::new(5_000, wall.as_nanosecond());
        let cases = [
            (5_000, "2026-11-21T23:59:59.999999999Z"),
            (5_001, "2026-11-22T00:00:00.000000000Z"),
            (5_043, "2026-11-22T00:00:00.000000042Z"),
            (5_000 + 3_600_000_000_000, "2026-11-22T00:59:59.999999999Z"),
            (0, "2026-11-21T23:59:59.999994999Z"),
        ];
        for (mono_ns, expected) in cases {
            assert_eq!(clock.text(mono_ns), expected);
        }
    }

    #[test]
    fn times_before_the_epoch_and_past_year_9999_do_not_panic() {
        assert_eq!(Clock::new(0, -1).text(0), "1969-12-31T23:59:59.999999999Z");
        assert!(Clock::new(0, i128::from(u64::MAX) * 1000).text(7).starts_with("9999-12-"));
        assert!(Clock::new(0, -i128::from(u64::MAX) * 1000).text(7).starts_with("-009999-"));
    }

    #[test]
    fn agrees_with_jiff_on_many_times() {
        let mut clock = Clock::new(0, 1_700_000_000_123_456_789);
        for step in 0..2_000u64 {
            let mono_ns = step * 98_765_432_101;
            let expected =
                Timestamp::from_nanosecond(1_700_000_000_123_456_789 + i128::from(mono_ns)).unwrap();
            assert_eq!(clock.text(mono_ns), format!("{expected:.9}"));
        }
    }
}
