//! Error numbers as the event log names them.

use std::borrow::Cow;

use crate::event::Errno;

/// Name of an error number, say `EADDRNOTAVAIL`; `E<number>` when it has none.
///
/// The table is nix's, which is the C library's of the machine portwatch was built for.
pub fn name(errno: Errno) -> Cow<'static, str> {
    let known = i32::try_from(errno.0).map(nix::errno::Errno::from_raw);
    match known {
        Ok(known) if known != nix::errno::Errno::UnknownErrno => Cow::Owned(format!("{known:?}")),
        _ => Cow::Owned(format!("E{}", errno.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_names_of_the_manual() {
        let cases = [
            (1, "EPERM"),
            (4, "EINTR"),
            (11, "EAGAIN"),
            (13, "EACCES"),
            (22, "EINVAL"),
            (35, "EDEADLK"),
            (95, "EOPNOTSUPP"),
            (97, "EAFNOSUPPORT"),
            (98, "EADDRINUSE"),
            (99, "EADDRNOTAVAIL"),
            (101, "ENETUNREACH"),
            (104, "ECONNRESET"),
            (110, "ETIMEDOUT"),
            (111, "ECONNREFUSED"),
            (113, "EHOSTUNREACH"),
            (133, "EHWPOISON"),
        ];
        for (number, expected) in cases {
            assert_eq!(name(Errno(number)), expected);
        }
    }

    #[test]
    fn numbers_without_a_name_stay_numbers() {
        for (number, expected) in [(0, "E0"), (512, "E512"), (524, "E524"), (u32::MAX, "E4294967295")] {
            assert_eq!(name(Errno(number)), expected);
        }
    }

    #[test]
    fn every_number_up_to_the_last_one_has_a_name() {
        for number in 1..=133 {
            let is_unassigned = number == 41 || number == 58;
            assert_eq!(name(Errno(number)) == format!("E{number}"), is_unassigned, "errno {number}");
        }
    }
}
