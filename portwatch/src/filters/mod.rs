//! Filters as the user types them, made into what the kernel side judges by.

pub mod comm;
pub mod ports;
pub mod replay;
