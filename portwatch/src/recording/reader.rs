//! File → lines, one at a time, in bounded memory.
//!
//! Recordings end in crashes, on full disks and in copies that were interrupted, so everything up to a cut is
//! returned and the cut is reported. A line in the middle that makes no sense is an error: nothing behind it
//! could be trusted.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Error;
use super::format::{Header, Line};
use crate::output::json::VERSION;

/// Longest line that is read. The longest that is written lists 65 536 ports or a process's whole command line.
const LINE_BYTES_MAX: u64 = 16 << 20;

const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// How a log ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its summary.
    Complete,
    /// Without one; `why` says how that shows.
    Cut { why: &'static str },
}

/// Reads an event log, compressed or not: an iterator over the lines after the header, which ends at the first
/// error.
pub struct Reader {
    lines: Lines,
    header: Header,
    /// Lines of types that this portwatch does not know.
    skipped: u64,
    has_summary: bool,
    ending: Option<Ending>,
    has_failed: bool,
}

impl Reader {
    /// Opens a recording; `-` is standard input. Its extension does not matter: compression shows in the content.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path == Path::new("-") {
            return Reader::new("stdin", io::stdin());
        }
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Reader::new(&name, file),
            Err(source) => Err(Error::Read { name, source }),
        }
    }

    /// Reads the header from `input`; `name` is for messages.
    pub fn new(name: &str, input: impl Read + Send + 'static) -> Result<Self, Error> {
        let mut lines = Lines::new(name, input)?;
        let header = read_header(&mut lines)?;
        Ok(Reader { lines, header, skipped: 0, has_summary: false, ending: None, has_failed: false })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How the log ended; `None` until the iterator has come to that end.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Lines passed over because this portwatch does not know their type.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn next_line(&mut self) -> Result<Option<Line>, Error> {
        while self.ending.is_none() {
            let tail = self.lines.read()?;
            let parsed = match tail {
                Tail::End => {
                    self.end("it has no summary");
                    break;
                }
                Tail::Cut { why } if self.lines.line.is_empty() => {
                    self.end(why);
                    break;
                }
                _ if self.has_summary => return Err(self.lines.malformed("it follows the summary")),
                Tail::Newline | Tail::Cut { .. } => parse(&self.lines.line),
            };
            // The last line is whatever the crash left of it, also a block of zeros and a newline.
            match (parsed, tail) {
                (Err(_), Tail::Cut { why }) => self.end(why),
                (Err(why), Tail::Newline | Tail::End) => {
                    if !self.lines.is_last()? {
                        return Err(self.lines.malformed(&why));
                    }
                    self.end("its last line is damaged");
                }
                (Ok(None), _) => self.skipped += 1,
                (Ok(Some(line)), _) => {
                    self.has_summary = matches!(line, Line::Summary(_));
                    return Ok(Some(line));
                }
            }
        }
        Ok(None)
    }

    fn end(&mut self, why: &'static str) {
        self.ending = Some(if self.has_summary { Ending::Complete } else { Ending::Cut { why } });
    }
}

impl Iterator for Reader {
    type Item = Result<Line, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let next = self.next_line();
        self.has_failed = next.is_err();
        next.transpose()
    }
}

/// Lines of text under the log's meaning.
struct Lines {
    /// For messages.
    name: String,
    input: Box<dyn BufRead + Send>,
    /// The line read last, without its newline.
    line: Vec<u8>,
    number: u64,
}

/// What came after a line.
#[derive(Clone, Copy)]
enum Tail {
    Newline,
    /// Nothing; the line may be anything from empty to whole.
    Cut {
        why: &'static str,
    },
    /// Nothing, and there was no line either.
    End,
}

impl Lines {
    fn new(name: &str, input: impl Read + Send + 'static) -> Result<Self, Error> {
        let read_error = |source| Error::Read { name: name.into(), source };
        let mut input = BufReader::new(input);
        let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
        input.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut magic).map_err(read_error)?;
        let is_compressed = magic == ZSTD_MAGIC;
        let whole = io::Cursor::new(magic).chain(input);
        let input: Box<dyn BufRead + Send> = if is_compressed {
            // The decoder refuses windows above 128 MiB by itself.
            Box::new(BufReader::new(zstd::Decoder::with_buffer(whole).map_err(read_error)?))
        } else {
            Box::new(whole)
        };
        Ok(Lines { name: name.into(), input, line: Vec::new(), number: 0 })
    }

    fn read(&mut self) -> Result<Tail, Error> {
        self.line.clear();
        let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        self.number += u64::from(!self.line.is_empty());
        match read {
            Ok(0) => Ok(Tail::End),
            Ok(_) if self.line.last() == Some(&b'\n') => {
                self.line.pop();
                Ok(Tail::Newline)
            }
            Ok(bytes) if bytes as u64 == LINE_BYTES_MAX => {
                Err(self.malformed(&format!("it is longer than {LINE_BYTES_MAX} bytes")))
            }
            Ok(_) => Ok(Tail::Cut { why: "it ends within a line" }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Tail::Cut { why: "its compressed data ends early" })
            }
            Err(source) => Err(Error::Read { name: self.name.clone(), source }),
        }
    }

    /// Whether nothing follows the line read last.
    fn is_last(&mut self) -> Result<bool, Error> {
        match self.input.fill_buf() {
            Ok(rest) => Ok(rest.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(source) => Err(Error::Read { name: self.name.clone(), source }),
        }
    }

    fn malformed(&self, why: &str) -> Error {
        Error::Malformed { name: self.name.clone(), line: self.number, why: why.into() }
    }
}

fn read_header(lines: &mut Lines) -> Result<Header, Error> {
    let name = lines.name.clone();
    let not_a_log = |why: &str| Err(Error::NotALog { name: name.clone(), why: why.into() });
    match lines.read()? {
        Tail::End => return not_a_log("it is empty"),
        Tail::Cut { why } if lines.line.is_empty() => return not_a_log(why),
        Tail::Cut { .. } | Tail::Newline => {}
    }

    /// What every version says about itself.
    #[derive(Deserialize)]
    struct Identity {
        r#type: String,
        schema: String,
        version: u64,
    }
    let identity: Identity = match serde_json::from_slice(&lines.line) {
        Ok(identity) => identity,
        Err(_) => return not_a_log("its first line is not a header"),
    };
    if identity.r#type != "header" || identity.schema != "portwatch" {
        return not_a_log("its first line is not a header");
    }
    if identity.version != u64::from(VERSION) {
        return Err(Error::Version { name, found: identity.version, known: VERSION });
    }
    serde_json::from_slice(&lines.line).map_err(|error| lines.malformed(&error.to_string()))
}

/// Nothing: of a type that a later version may have brought.
fn parse(line: &[u8]) -> Result<Option<Line>, String> {
    fn as_line<T: DeserializeOwned>(
        line: &[u8],
        make: impl FnOnce(T) -> Line,
    ) -> Result<Option<Line>, String> {
        serde_json::from_slice(line).map(|it| Some(make(it))).map_err(|error| error.to_string())
    }
    match kind(line)?.as_ref() {
        "port_allocated" | "connect_failed" | "bind_failed" | "established" | "time_wait" | "closed"
        | "port_released" => as_line(line, |event| Line::Event(Box::new(event))),
        "preexisting" => as_line(line, |event| Line::Preexisting(Box::new(event))),
        "netns" => as_line(line, Line::Netns),
        "stack" => as_line(line, Line::Stack),
        "process" => as_line(line, Line::Process),
        "summary" => as_line(line, Line::Summary),
        "header" => Err("another log begins here; give the logs one by one".into()),
        _ => match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
            Ok(_) => Ok(None),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Type of a line.
fn kind(line: &[u8]) -> Result<Cow<'_, str>, String> {
    // Our own writer puts it first, which saves parsing the line twice.
    if let Some(rest) = line.strip_prefix(b"{\"type\":\"")
        && let Some(end) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))
        && rest[end] == b'"'
        && let Ok(kind) = std::str::from_utf8(&rest[..end])
    {
        return Ok(kind.into());
    }
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    match serde_json::from_slice::<Kind>(line) {
        Ok(kind) => Ok(kind.r#type.into()),
        Err(error) => Err(error.to_string()),
    }
}
