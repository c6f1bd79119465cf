//! Who is eating this host's ports, and from which line of code.
//!
//! Modules in the order data flows through them.

// A test may panic, and its tables need no names for their types.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::type_complexity))]

pub mod aggregate;
pub mod bpf;
pub mod cli;
pub mod diagnosis;
pub mod event;
pub mod filters;
pub mod kernel;
pub mod output;
pub mod recording;
pub mod session;
pub mod stack;
