//! What the running kernel is and can do. Everything here reads; nothing changes the host.

pub mod btf;
pub mod offsets;
