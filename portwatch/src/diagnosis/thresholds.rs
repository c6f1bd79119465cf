//! Every number that decides on a finding, with its reason.

/// Connections that a pool of the same size would have saved. A program that starts up connects a dozen times.
pub const CHURN_AVOIDABLE_MIN: u64 = 15;

/// Of all connections. A pool whose connections are replaced now and then saves less.
pub const CHURN_AVOIDABLE_SHARE_MIN: f64 = 0.7;

/// Connections a second. Health checks and heartbeats come every few seconds, and one port each for a minute is cheap.
pub const CHURN_RATE_MIN_PER_S: f64 = 3.0;

/// Connections a second where a connection is open most of the time: a loop that connects as fast as it can, on a slow
/// host or to a slow server.
pub const CHURN_BUSY_RATE_MIN_PER_S: f64 = 0.5;
/// Mean number of open connections from which on a loop is busy.
pub const CHURN_BUSY_LIVE_MIN: f64 = 0.2;

/// Half of the connections live no longer. Pools keep theirs for a minute and more.
pub const CHURN_LIFETIME_MAX_S: f64 = 10.0;

/// Bytes sent per connection, on average. More is many requests, or one transfer: a server that ends a connection after
/// a thousand requests is no fault of the client.
pub const CHURN_SENT_MAX_BYTES: u64 = 16 << 10;
/// With more sent, only a load on the ports that matters is told.
pub const CHURN_SENT_LOAD_MIN: f64 = 0.1;

/// Fewer connections than this, followed by a long silence, are a start-up.
pub const BURST_CONNECTIONS_MAX: u64 = 100;
/// The silence, and the same in lengths of the burst.
pub const BURST_SILENCE_MIN_S: f64 = 10.0;
pub const BURST_SILENCE_RATIO: f64 = 5.0;

/// Share of the range, held or to be held at this rate, from which on churn is critical.
pub const LOAD_CRITICAL: f64 = 0.8;

/// A pool that runs out sooner is worth waking somebody up.
pub const EXHAUSTION_SOON_S: f64 = 600.0;
