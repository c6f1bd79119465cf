//! Error numbers as the event log names them.

use std::borrow::Cow;

use crate::event::Errno;

/// Name of an error number, say `EADDRNOTAVAIL`; `E<number>` when it has none.
///
/// The table is nix's, which is the C library's of the machine portwatch was built for.
pub fn name(errno: Errno) -> Cow<'static, str> {
    match known(errno) {
        // Failures come in storms, and these make most of them.
        Some(nix::errno::Errno::EADDRNOTAVAIL) => "EADDRNOTAVAIL".into(),
        Some(nix::errno::Errno::ECONNREFUSED) => "ECONNREFUSED".into(),
        Some(nix::errno::Errno::EADDRINUSE) => "EADDRINUSE".into(),
        Some(known) => format!("{known:?}").into(),
        None => format!("E{}", errno.0).into(),
    }
}

/// What the manual says about an error number, say `Invalid argument`.
pub fn description(errno: Errno) -> String {
    known(errno).map_or("unknown error", |known| known.desc()).to_string()
}

fn known(errno: Errno) -> Option<nix::errno::Errno> {
    let known = nix::errno::Errno::from_raw(i32::try_from(errno.0).ok()?);
    (known != nix::errno::Errno::UnknownErrno).then_some(known)
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
