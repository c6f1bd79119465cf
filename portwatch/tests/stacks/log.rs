//! The event log as far as stacks go, read as any other program would.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// Events and stacks of a log.
#[derive(Debug, Default)]
pub struct Log {
    pub events: Vec<Event>,
    pub stacks: HashMap<String, Vec<Frame>>,
    pub summary: Value,
}

#[derive(Debug, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: String,
    pub pid: Option<u32>,
    pub exe: Option<String>,
    pub rport: Option<u16>,
    pub stack: Option<String>,
    pub call_site: Option<String>,
}

/// A frame as the log has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub module: Option<String>,
    pub build_id: Option<String>,
    pub offset: Option<u64>,
    pub kind: String,
    pub inlined: bool,
    pub reason: Option<String>,
}

impl Log {
    pub fn read(path: &Path) -> Result<Log, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the log `{}`: {error}", path.display()))?;
        let mut log = Log::default();
        for line in text.lines() {
            log.take(line).map_err(|defect| format!("{defect}: `{line}`"))?;
        }
        Ok(log)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        let mut value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON ({error})"))?;
        match value["type"].as_str().ok_or("no `type`")? {
            "header" | "netns" | "preexisting" => {}
            "summary" => self.summary = value,
            "stack" => {
                let id = value["stack"].as_str().ok_or("a stack without its id")?.to_owned();
                let frames =
                    serde_json::from_value(value["frames"].take()).map_err(|error| error.to_string())?;
                self.stacks.insert(id, frames);
            }
            _ => self.events.push(serde_json::from_value(value).map_err(|error| error.to_string())?),
        }
        Ok(())
    }

    /// Ports that were asked for by connects to `port`.
    pub fn connects_to(&self, port: u16) -> impl Iterator<Item = &Event> {
        let is_meant = move |event: &&Event| event.kind == "port_allocated" && event.rport == Some(port);
        self.events.iter().filter(is_meant)
    }

    /// Innermost first; none where the event has no stack.
    pub fn frames(&self, event: &Event) -> &[Frame] {
        event.stack.as_ref().and_then(|id| self.stacks.get(id)).map_or(&[], Vec::as_slice)
    }

    /// Names of the functions of the modules whose file is called `module`, innermost first, `?` for one without.
    pub fn functions<'l>(&'l self, event: &Event, module: &str) -> Vec<&'l str> {
        let end = format!("/{module}");
        let is_own = |frame: &&Frame| frame.module.as_ref().is_some_and(|path| path.ends_with(&end));
        self.frames(event)
            .iter()
            .filter(is_own)
            .map(|frame| frame.function.as_deref().unwrap_or("?"))
            .collect()
    }
}
