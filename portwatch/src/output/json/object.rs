//! Writes one flat JSON object into a byte buffer.
//!
//! By hand because event lines are the one place where it pays: no map, no allocation, and addresses and
//! times go straight into the buffer. Strings that need escaping are left to serde_json.

use std::io::Write;
use std::net::IpAddr;

/// An object under construction; [`Object::end`] closes it and its line.
pub(super) struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    /// Every line begins with its type, which lets readers choose before they parse.
    pub fn begin(line: &'a mut Vec<u8>, kind: &'static str) -> Self {
        line.extend_from_slice(b"{\"type\":\"");
        line.extend_from_slice(kind.as_bytes());
        line.push(b'"');
        Object(line)
    }

    pub fn end(self) {
        self.0.extend_from_slice(b"}\n");
    }

    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    pub fn null(&mut self, key: &'static str) {
        self.key(key);
        self.0.extend_from_slice(b"null");
    }

    pub fn yes(&mut self, key: &'static str) {
        self.key(key);
        self.0.extend_from_slice(b"true");
    }

    pub fn number(&mut self, key: &'static str, number: impl itoa::Integer) {
        self.key(key);
        push_number(self.0, number);
    }

    pub fn number_or_null(&mut self, key: &'static str, number: Option<impl itoa::Integer>) {
        match number {
            Some(number) => self.number(key, number),
            None => self.null(key),
        }
    }

    /// Leaves the field out when there is nothing to say.
    pub fn number_if_known(&mut self, key: &'static str, number: Option<impl itoa::Integer>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    /// A number that may pass 2^53, as a string: many readers keep numbers as doubles.
    pub fn big(&mut self, key: &'static str, number: u64) {
        self.key(key);
        self.0.push(b'"');
        push_number(self.0, number);
        self.0.push(b'"');
    }

    /// A word of the schema, which needs no escaping.
    pub fn name(&mut self, key: &'static str, name: &'static str) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'"');
    }

    pub fn name_or_null(&mut self, key: &'static str, name: Option<&'static str>) {
        match name {
            Some(name) => self.name(key, name),
            None => self.null(key),
        }
    }

    pub fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        push_text(self.0, text);
    }

    pub fn text_if_known(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    pub fn texts(&mut self, key: &'static str, texts: &[String]) {
        self.key(key);
        self.0.push(b'[');
        for (index, text) in texts.iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            push_text(self.0, text);
        }
        self.0.push(b']');
    }

    pub fn address(&mut self, key: &'static str, address: IpAddr) {
        self.key(key);
        self.0.push(b'"');
        match address {
            IpAddr::V4(v4) => {
                for (index, octet) in v4.octets().into_iter().enumerate() {
                    if index > 0 {
                        self.0.push(b'.');
                    }
                    push_number(self.0, octet);
                }
            }
            // The standard library abbreviates as RFC 5952 wants it.
            IpAddr::V6(v6) => write!(self.0, "{v6}").expect("a vector takes every write"),
        }
        self.0.push(b'"');
    }

    /// Whatever `write` appends, in quotes; it must not need escaping.
    pub fn quoted(&mut self, key: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.0.push(b'"');
        write(self.0);
        self.0.push(b'"');
    }
}

fn push_number(line: &mut Vec<u8>, number: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn push_text(line: &mut Vec<u8>, text: &str) {
    let needs_escape = text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\');
    if needs_escape {
        serde_json::to_writer(line, text).expect("a string is valid JSON and a vector takes every write");
    } else {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
    }
}
