//! Facts that both sides of portwatch agree on: what the ring buffer carries, what the loader tells
//! the kernel programs, how misses are numbered, and the sizes that both sides need.
//!
//! `no_std`, no `unsafe`, no features and no dependency on aya: cargo unifies features over a workspace,
//! so anything optional here would leak from one side into the other.

#![no_std]
#![forbid(unsafe_code)]

pub mod config;
pub mod counters;
pub mod limits;
pub mod python;
pub mod wire;
