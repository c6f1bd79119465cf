//! Who is eating this host's ports, and from which line of code.
//!
//! Modules in the order data flows through them.

pub mod event;
pub mod kernel;
pub mod output;
