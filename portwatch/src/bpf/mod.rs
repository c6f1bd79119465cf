//! The kernel programs: loading, attaching, reading what they send and what they count.
//! Nothing outside of this module names aya.

mod attach;
mod counters;
mod load;
mod object;
pub mod probe;
mod programs;
mod reader;
mod settings;

pub use counters::{NotRun, Totals};
pub use load::{Disabled, LoadError, Plan, Tracing, load};
pub use object::StackWalk;
pub use programs::{Protocols, Rung};
pub use reader::{Queue, Reader, Received};
pub use settings::{KernelFilters, Sizes};
