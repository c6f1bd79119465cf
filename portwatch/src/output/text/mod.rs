//! For people: one aligned line per event, and a few sentences at the end.
//!
//! The layout may change with every version; programs read [`super::json`]. All text from outside goes through
//! [`super::escape`].

mod row;
mod summary;
mod tally;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashMap;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::row::Row;
use self::tally::Tally;
use super::{Header, Netns, Output, Process, Stack, Summary, escape};
use crate::event::{Confidence, Direction, Endpoints, Event, Hold, Owner, What};

/// When to use color: `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` or `TERM=dumb` is set.
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether `stream` is to be colored.
    pub fn is_on(self, stream: &impl anstream::stream::RawStream) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                stream.is_terminal() && anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never
            }
        }
    }
}

const PLAIN: Style = Style::new();
const TITLE: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WAITING: Style = AnsiColor::Yellow.on_default();
const CODE: Style = AnsiColor::Cyan.on_default();

/// Bytes gathered before they are written without being asked to.
const BLOCK_BYTES: usize = 64 * 1024;

/// Namespaces whose port ranges are remembered, so that only changes are told.
const NETNS_MAX: usize = 4096;

/// Columns that fit all times and event names.
const EVENT_AT: usize = 13;
const PID_AT: usize = EVENT_AT + 14 + 1;

/// Widths that follow what was seen, within limits: narrow lines for most, aligned lines for all.
#[derive(Clone, Copy)]
struct Widths {
    pid: usize,
    comm: usize,
    local: usize,
    remote: usize,
}

impl Widths {
    const FIRST: Widths = Widths { pid: 5, comm: 7, local: 14, remote: 14 };
    /// The longest PIDs and names; the longest IPv4 address with a port. IPv6 addresses may be longer and stand out.
    const MAX: Widths = Widths { pid: 7, comm: 15, local: 21, remote: 21 };

    fn grow(&mut self, pid: &str, comm: &str, local: &str, remote: &str) {
        let grown = |width: usize, text: &str, max| width.max(text.chars().count().min(max));
        self.pid = grown(self.pid, pid, Self::MAX.pid);
        self.comm = grown(self.comm, comm, Self::MAX.comm);
        self.local = grown(self.local, local, Self::MAX.local);
        self.remote = grown(self.remote, remote, Self::MAX.remote);
    }

    fn pid_end(&self) -> usize {
        PID_AT + self.pid
    }

    fn comm_at(&self) -> usize {
        self.pid_end() + 1
    }

    fn local_at(&self) -> usize {
        self.comm_at() + self.comm + 1
    }

    fn arrow_at(&self) -> usize {
        self.local_at() + self.local + 1
    }

    fn what_at(&self) -> usize {
        self.arrow_at() + 3 + self.remote + 1
    }

    /// Behind all but the longest words.
    fn call_site_at(&self) -> usize {
        self.what_at() + 26
    }
}

/// Writes text to `out`, with colors or without.
pub struct Text<W> {
    out: W,
    has_color: bool,
    block: String,
    clock: Clock,
    widths: Widths,
    /// By inode: what was last told about a namespace's ports.
    netns: HashMap<u32, String>,
    failures: Tally,
}

impl<W: Write + Send> Text<W> {
    /// Times are those of the host's time zone.
    pub fn new(out: W, has_color: bool) -> Self {
        Text::with_zone(out, has_color, TimeZone::system())
    }

    fn with_zone(out: W, has_color: bool, zone: TimeZone) -> Self {
        Text {
            out,
            has_color,
            block: String::with_capacity(BLOCK_BYTES + 4096),
            clock: Clock {
                zone,
                anchor_mono_ns: 0,
                anchor_wall_ns: 0,
                second: i64::MIN,
                text: String::new(),
            },
            widths: Widths::FIRST,
            netns: HashMap::new(),
            failures: Tally::default(),
        }
    }

    /// `what` is already printable.
    fn line(&mut self, mono_ns: u64, event: &str, style: Style, hold: &Hold, what: &str, call_site: &str) {
        let pid = hold.owner.as_ref().and_then(|owner| owner.tgid).map_or("?".into(), |pid| pid.to_string());
        let comm = hold.owner.as_ref().map_or("?".into(), comm);
        let (local, remote) = (local(&hold.endpoints), remote(&hold.endpoints));
        self.widths.grow(&pid, &comm, &local, &remote);
        let widths = self.widths;

        let time = self.clock.text(mono_ns);
        let mut row = Row::new(&mut self.block, self.has_color);
        row.cell(0, DIM, &time);
        row.cell(EVENT_AT, style, event);
        row.cell_right(widths.pid_end(), PLAIN, &pid);
        row.cell(widths.comm_at(), PLAIN, &comm);
        row.cell(widths.local_at(), PLAIN, &local);
        if !remote.is_empty() {
            let arrow = match hold.direction {
                Direction::Out => "->",
                Direction::In => "<-",
            };
            row.cell(widths.arrow_at(), DIM, arrow);
            row.cell(0, PLAIN, &remote);
        }
        row.cell(widths.what_at(), if style == BAD { BAD } else { PLAIN }, what);
        if !call_site.is_empty() {
            row.gap();
            row.cell(widths.call_site_at(), CODE, call_site);
        } else if let Some(gap) = hold.stack_state.gap() {
            row.gap();
            row.cell(widths.call_site_at(), DIM, &format!("({})", gap.text()));
        }
        row.end();
    }

    fn write_when_full(&mut self) -> Result<()> {
        if self.block.len() >= BLOCK_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let written = self.out.write_all(self.block.as_bytes());
        self.block.clear();
        written.context("cannot write the events")
    }
}

impl<W: Write + Send> Output for Text<W> {
    fn header(&mut self, header: &Header) -> Result<()> {
        self.clock.anchor_mono_ns = header.mono_ns;
        self.clock.anchor_wall_ns = header.started_wall_ns;
        let widths = self.widths;
        let mut row = Row::new(&mut self.block, self.has_color);
        row.cell(0, TITLE, "TIME");
        row.cell(EVENT_AT, TITLE, "EVENT");
        row.cell_right(widths.pid_end(), TITLE, "PID");
        row.cell(widths.comm_at(), TITLE, "COMM");
        row.cell(widths.local_at(), TITLE, "LOCAL");
        row.cell(widths.arrow_at() + 3, TITLE, "REMOTE");
        row.cell(widths.what_at(), TITLE, "WHAT");
        row.cell(widths.call_site_at(), TITLE, "CALL SITE");
        row.end();
        self.write_when_full()
    }

    /// Tells how many ports there are to choose from, at first and whenever that changes.
    fn netns(&mut self, netns: &Netns) -> Result<()> {
        let Some((low, high)) = netns.port_range else { return Ok(()) };
        let reserved: u32 = netns
            .reserved
            .iter()
            .flatten()
            .map(|&(first, last)| (first.max(low), last.min(high)))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| u32::from(last - first) + 1)
            .sum();
        let ports = u32::from(high.saturating_sub(low)) + 1 - reserved;
        let ports = summary::grouped(ports.into());
        let mut note = format!("-- network namespace {}: {ports} automatic ports, {low}-{high}", netns.inode);
        if reserved > 0 {
            note += &format!(" without {reserved} reserved ones");
        }
        if self.netns.get(&netns.inode) == Some(&note) {
            return Ok(());
        }
        let mut row = Row::new(&mut self.block, self.has_color);
        row.cell(0, DIM, &note);
        row.end();
        if self.netns.len() < NETNS_MAX || self.netns.contains_key(&netns.inode) {
            self.netns.insert(netns.inode, note);
        }
        self.write_when_full()
    }

    /// Shown where it is needed: as the call site of an event.
    fn stack(&mut self, _: &Stack) -> Result<()> {
        Ok(())
    }

    fn preexisting(&mut self, mono_ns: u64, hold: &Hold, _: &Process, state: &str) -> Result<()> {
        let what = format!("in state {}", escape::printable(state));
        self.line(mono_ns, "preexisting", DIM, hold, &what, "");
        self.write_when_full()
    }

    fn event(&mut self, event: &Event, hold: &Hold, _: &Process, call_site: Option<&str>) -> Result<()> {
        let style = match event.what {
            What::ConnectFailed { .. } | What::BindFailed { .. } => BAD,
            What::TimeWait { .. } => WAITING,
            _ => PLAIN,
        };
        let mut what = words::what(event, hold);
        if event.confidence != Confidence::Exact {
            what = format!("{what} ({})", event.confidence.name());
        }
        let place = call_site.map_or(String::new(), escape::printable);
        self.line(event.mono_ns, event.what.name(), style, hold, &what, &place);
        if event.what.is_failure() {
            let endpoints = &hold.endpoints;
            let is_bind = matches!(event.what, What::BindFailed { .. });
            let address = if is_bind { local(endpoints) } else { remote(endpoints) };
            self.failures.count(event, hold, &address, call_site);
        }
        self.write_when_full()
    }

    fn summary(&mut self, summary: &Summary) -> Result<()> {
        summary::push(&mut self.block, self.has_color, summary, &self.failures);
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.write()?;
        self.out.flush().context("cannot write the events")
    }
}

fn comm(owner: &Owner) -> String {
    escape::printable(owner.comm.bytes())
}

/// `-` where there is neither an address nor a port yet.
fn local(endpoints: &Endpoints) -> String {
    let address = endpoints.local_ip();
    match endpoints.local_port {
        None if address.is_unspecified() => "-".into(),
        port => with_port(address, port),
    }
}

/// Empty without a peer.
fn remote(endpoints: &Endpoints) -> String {
    endpoints.remote_ip().map_or(String::new(), |address| with_port(address, endpoints.remote_port))
}

fn with_port(address: std::net::IpAddr, port: Option<u16>) -> String {
    let port = port.map_or("-".into(), |port| port.to_string());
    if address.is_ipv6() { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Monotonic time → local time of day.
struct Clock {
    zone: TimeZone,
    anchor_mono_ns: u64,
    anchor_wall_ns: i128,
    /// The second whose text is kept.
    second: i64,
    text: String,
}

impl Clock {
    /// `HH:MM:SS.mmm`.
    fn text(&mut self, mono_ns: u64) -> String {
        let since_ns = i128::from(mono_ns) - i128::from(self.anchor_mono_ns);
        let wall_ns = self.anchor_wall_ns + since_ns;
        let second = i64::try_from(wall_ns.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
        if second != self.second {
            self.second = second;
            let timestamp = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            self.text = self.zone.to_datetime(timestamp).strftime("%H:%M:%S").to_string();
        }
        format!("{}.{:03}", self.text, wall_ns.rem_euclid(1_000_000_000) / 1_000_000)
    }
}
