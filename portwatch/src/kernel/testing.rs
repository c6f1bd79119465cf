//! What tests on the running kernel share.

use crate::kernel::self_net;

/// Runs `test` in a network namespace of its own, whose loopback is up; says why when that is not possible.
pub fn in_new_netns<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    match self_net::in_new_netns(test) {
        Ok(value) => Some(value),
        Err(error) => {
            skip(&format!("{error:#}"));
            None
        }
    }
}

/// Says why a test does not run; a failure where the kernel tests are required.
pub fn skip(reason: &str) {
    println!("SKIP {reason}");
    assert!(
        std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none_or(|value| value != "1"),
        "skipped: {reason}"
    );
}
