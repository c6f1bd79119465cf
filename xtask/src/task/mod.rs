//! One file per task.

pub mod bench;
pub mod build;
pub mod check;
pub mod dist;
pub mod run;
pub mod setup;
pub mod test;
pub mod vm;
