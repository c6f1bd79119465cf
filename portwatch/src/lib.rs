//! Who is eating this host's ports, and from which line of code.
//!
//! Modules in the order data flows through them.

// A test may panic.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod event;
pub mod kernel;
pub mod output;
