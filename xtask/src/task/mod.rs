//! One file per task.

pub mod build;
pub mod run;
pub mod setup;
