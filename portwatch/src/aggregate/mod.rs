//! What follows from events: joined records, and the ledger of who held which ports for how long.
//!
//! Nothing here does I/O or reads a clock. Time comes in the events, so a log read later gives the same answer as the
//! run that wrote it.

pub mod capacity;
pub mod holds;
pub mod ledger;
pub mod names;
pub mod pool;
pub mod quantiles;
pub mod recent;
pub mod sightings;
pub mod site;
pub mod timeline;
