//! Parts of `cargo xtask bench`: what traces, what is measured, what is told.

pub mod log;
pub mod machine;
pub mod proc;
pub mod report;
pub mod tracer;
