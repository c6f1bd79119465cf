//! Where the bytes of a log go.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// A destination of log bytes that can be brought to a proper end.
///
/// Writers hand over blocks of whole lines. `flush` makes everything written so far visible to readers, also
/// to those that come after a crash. Dropping a sink without [`Sink::end`] leaves a log that readers report as
/// cut short.
pub trait Sink: Write + Send {
    /// Ends the stream after its last byte: writes what the format needs at the end and waits for the disk.
    /// Nothing may be written afterwards.
    fn end(&mut self) -> io::Result<()>;

    /// What to call it in a message, say `` `web.jsonl` ``.
    fn name(&self) -> String;
}

impl Sink for Box<dyn Sink> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn end(&mut self) -> io::Result<()> {
        (**self).end()
    }
}

impl<S: Sink> Sink for &mut S {
    fn name(&self) -> String {
        (**self).name()
    }

    fn end(&mut self) -> io::Result<()> {
        (**self).end()
    }
}

impl Sink for Vec<u8> {
    fn name(&self) -> String {
        "memory".into()
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output without the line buffering of [`io::stdout`]: blocks arrive as they were handed over.
pub struct Stdout(File);

impl Stdout {
    pub fn new() -> io::Result<Self> {
        Ok(Stdout(io::stdout().as_fd().try_clone_to_owned()?.into()))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sink for Stdout {
    fn name(&self) -> String {
        "stdout".into()
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
