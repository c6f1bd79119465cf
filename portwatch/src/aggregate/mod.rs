//! What follows from events. No I/O, no clock: time comes in the events.

pub mod capacity;
pub mod holds;
pub mod sightings;
