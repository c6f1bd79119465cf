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

/// Held share of a pool from which on it is about to be full whatever the rate.
pub const EXHAUSTION_LOAD: f64 = 0.9;
/// Below this a forecast is a guess about a start-up.
pub const EXHAUSTION_LOAD_MIN: f64 = 0.02;
/// What a forecast must be counted from to make a finding.
pub const FORECAST_TAKES_MIN: u64 = 100;
pub const FORECAST_KNOWN_MIN_S: f64 = 1.5;
/// Nothing is forecast from less.
pub const FORECAST_SHOWN_TAKES_MIN: u64 = 10;
pub const FORECAST_SHOWN_KNOWN_MIN_S: f64 = 0.5;

/// Load from which on a finding lists sysctls.
pub const KNOBS_LOAD_MIN: f64 = 0.05;

/// Destinations of one service behind one name; more is a crawler.
pub const CHURN_DESTINATIONS_MAX: usize = 16;
/// Connections to each of them, on average: less is spread.
pub const CHURN_PER_DESTINATION_MIN: f64 = 5.0;
/// And a second: a balancer checks the health of each of its servers every second or two.
pub const CHURN_PER_DESTINATION_RATE_MIN_PER_S: f64 = 2.0;

/// Of the avoidable connections: a pool that is being replaced has opened many and closed none of the new ones.
pub const CHURN_ENDED_SHARE_MIN: f64 = 0.5;

/// More connections open at the end than at first. Pools of this size exist, and stop growing.
pub const LEAK_GROWTH_MIN: i64 = 20;
/// A pool or a load generator opens all of its connections at once.
pub const LEAK_SPAN_MIN_S: f64 = 1.0;
/// Of what was opened until the peak.
pub const LEAK_ENDED_SHARE_MAX: f64 = 0.5;
/// A pool that has what it needs stays as it is: its plateau soon is longer than its growth.
pub const LEAK_PLATEAU_RATIO_MAX: f64 = 0.5;
/// Of what was opened: an attempt that nobody answers is no connection.
pub const LEAK_CONNECTED_SHARE_MIN: f64 = 0.7;
/// Opens in each quarter of the growth, as a share of an even one.
pub const LEAK_QUARTER_MIN: f64 = 0.4;

/// Failed connects. A program that waits for its database tries every second or so.
pub const REFUSED_MIN: u64 = 20;
pub const REFUSED_RATE_MIN_PER_S: f64 = 3.0;
/// Of all attempts.
pub const REFUSED_SHARE_MIN: f64 = 0.5;
/// Fewer, with a success at the end, was a wait.
pub const REFUSED_WAIT_MAX: u64 = 100;

/// Destinations of one call site.
pub const SPREAD_MIN: u64 = 30;
pub const SPREAD_PER_DESTINATION_MAX: f64 = 3.0;

/// Failed connects from a port that was bound before: one may be a race.
pub const CONFLICTS_CONNECT_MIN: u64 = 3;
/// Failed binds that make a finding although one worked in the end.
pub const CONFLICTS_RESOLVED_MIN: u64 = 20;

/// Ports of the range held by bind() without a number.
pub const HOARD_MIN: u64 = 4;
pub const HOARD_SHARE_MIN: f64 = 0.25;

/// Sockets a second. Every lookup of a name is one, and a few of those a second are usual.
pub const UDP_RATE_MIN_PER_S: f64 = 5.0;
