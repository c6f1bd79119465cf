//! Frames → the one line a report shows: where in the application a port was asked for.
//!
//! It is the first frame, from the inside out, that no rule of [`super::libraries`] or of the user calls a library.
//! When all are libraries, say because an interpreter's own frames are not known, it is the outermost frame of a
//! client library, which is where the application came in; else the innermost frame outside the C library.

use crate::output::{Frame, FrameKind};

use super::libraries::{GROUPS, Layer, SOURCES, SourceGroup};

/// Tells libraries from the application.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// The user's, compared with file name, whole path and function.
    patterns: Vec<String>,
}

/// A frame and how far behind the start of its function it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacedFrame {
    pub frame: Frame,
    pub function_offset: Option<u64>,
}

impl Libraries {
    /// With patterns of the user on top of the table.
    pub fn new(patterns: Vec<String>) -> Libraries {
        Libraries { patterns }
    }

    /// Which kind of library the frame is in; `None` for the application.
    pub fn layer(&self, frame: &Frame) -> Option<Layer> {
        if frame.kind == FrameKind::Python {
            return self.layer_of_source(frame);
        }
        let module = frame.module.as_deref().unwrap_or_default();
        let file_name = file_name(module);
        let function = frame.function.as_deref().map(qualified_name).unwrap_or_default();
        let is_users = |pattern: &String| {
            let fits = |text: &str| !text.is_empty() && matches(pattern, text);
            fits(file_name) || fits(module) || fits(function)
        };
        if self.patterns.iter().any(is_users) {
            return Some(Layer::Client);
        }
        let fits = |pattern: &&str, text: &str| !text.is_empty() && matches(pattern, text);
        let of_group = GROUPS.iter().find(|group| {
            group.modules.iter().any(|pattern| fits(pattern, file_name))
                || group.functions.iter().any(|pattern| fits(pattern, function))
        });
        // Packages of interpreters bring machine code along.
        of_group.map(|group| group.layer).or_else(|| layer_of_path(module))
    }

    /// The same for code that is known by its source file.
    fn layer_of_source(&self, frame: &Frame) -> Option<Layer> {
        let file = frame.file.as_deref().unwrap_or_default();
        let function = frame.function.as_deref().unwrap_or_default();
        let fits = |pattern: &str, text: &str| !text.is_empty() && matches(pattern, text);
        let is_users =
            |pattern: &String| [file, file_name(file), function].iter().any(|text| fits(pattern, text));
        if self.patterns.iter().any(is_users) {
            return Some(Layer::Client);
        }
        layer_of_path(file)
    }

    /// The call site of a stack, innermost frame first; `None` when nothing but the C library is known of it.
    pub fn call_site(&self, frames: &[PlacedFrame]) -> Option<String> {
        let layers: Vec<Option<Layer>> = frames.iter().map(|placed| self.layer(&placed.frame)).collect();
        // A frame of which not even the module is known says nothing.
        let is_known =
            |at: &usize| frames[*at].frame.function.is_some() || frames[*at].frame.module.is_some();
        let mut all = (0..frames.len()).filter(is_known);
        let of_client = |at: &usize| layers[*at] == Some(Layer::Client);
        let at = all
            .clone()
            .find(|&at| layers[at].is_none())
            .or_else(|| all.clone().rev().find(of_client))
            .or_else(|| all.find(|&at| layers[at] != Some(Layer::System)))?;
        text(&frames[at])
    }
}

/// Which kind of library a path belongs to, by [`SOURCES`].
fn layer_of_path(path: &str) -> Option<Layer> {
    let is_path_of = |group: &&SourceGroup| group.files.iter().any(|pattern| matches(pattern, path));
    SOURCES.iter().find(is_path_of).map(|group| group.layer)
}

/// `function (file:line)`, `function+0x… (module)`, or `module+0x…`.
fn text(placed: &PlacedFrame) -> Option<String> {
    let PlacedFrame { frame, function_offset } = placed;
    let module = frame.module.as_deref().map(file_name);
    match (&frame.function, &frame.file, frame.line, module) {
        (Some(function), Some(file), Some(line), _) => {
            Some(format!("{function} ({}:{line})", file_name(file)))
        }
        (Some(function), _, _, Some(module)) => {
            Some(format!("{function}+{:#x} ({module})", function_offset.unwrap_or(0)))
        }
        (Some(function), Some(file), None, None) => Some(format!("{function} ({})", file_name(file))),
        (Some(function), _, _, None) => Some(function.clone()),
        (None, _, _, Some(module)) => Some(format!("{module}+{:#x}", frame.offset?)),
        (None, _, _, None) => None,
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The part of a demangled name that says whose function it is: without a template's result type in front, a trait
/// implementation's brackets, or a marker that the compiler put behind it.
pub fn qualified_name(function: &str) -> &str {
    let mut depth = 0i32;
    let mut start = 0;
    for (at, byte) in function.bytes().enumerate() {
        match byte {
            b'<' | b'[' | b'{' => depth += 1,
            b'>' | b']' | b'}' => depth -= 1,
            // Arguments begin, or Go's receiver.
            b'(' if depth == 0 => break,
            b' ' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    // A name with unbalanced brackets, say `operator<`, is taken as it is.
    let name = if depth == 0 { &function[start..] } else { function };
    let name = name.trim_start_matches(['<', '&', '*']);
    let name = name.strip_prefix("mut ").or_else(|| name.strip_prefix("dyn ")).unwrap_or(name);
    // GCC's partial copies: `f.part.0`, `f.constprop.1`.
    let end = [".part.", ".isra.", ".constprop.", ".cold", ".lto_priv."]
        .iter()
        .filter_map(|mark| name.find(mark))
        .min();
    &name[..end.unwrap_or(name.len())]
}

/// Whether `text` fits `pattern` as a whole: `*` any characters, `?` one, `[0-9]` a digit.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one character of the text further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p..) {
            Some([b'*', ..]) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some([b'[', b'0', b'-', b'9', b']', ..]) => {
                text.get(t).is_some_and(u8::is_ascii_digit).then_some(5)
            }
            Some([b'?', ..]) => text.get(t).map(|_| 1),
            Some([byte, ..]) => (text.get(t) == Some(byte)).then_some(1),
            _ if t == text.len() => return true,
            _ => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((behind, from))) if from < text.len() => {
                retry = Some((behind, from + 1));
                (p, t) = (behind, from + 1);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(module: &str, function: &str) -> PlacedFrame {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        PlacedFrame {
            frame: Frame {
                module: text(module),
                function: text(function),
                offset: Some(0x1234),
                ..Frame::default()
            },
            function_offset: Some(0x10),
        }
    }

    fn site(frames: &[(&str, &str)]) -> Option<String> {
        let frames: Vec<PlacedFrame> =
            frames.iter().map(|(module, function)| frame(module, function)).collect();
        Libraries::default().call_site(&frames)
    }

    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    const CURL: &str = "/usr/lib/x86_64-linux-gnu/libcurl.so.4";

    #[test]
    fn call_site_is_the_first_frame_of_the_application() {
        for (frames, expected) in [
            // A program of one's own.
            (
                &[(LIBC, "connect"), ("/srv/app", "open_session"), ("/srv/app", "main")][..],
                "open_session+0x10 (app)",
            ),
            // Below a client library.
            (&[(LIBC, "connect"), (CURL, "Curl_connect"), ("/usr/bin/curl", ""), (LIBC, "")], "curl+0x1234"),
            // A server's own function is the application.
            (
                &[(LIBC, "connect"), ("/usr/sbin/nginx", "ngx_event_connect_peer")],
                "ngx_event_connect_peer+0x10 (nginx)",
            ),
            // A static binary has the C library's functions in its own module.
            (
                &[("/app", "__libc_connect"), ("/app", "dial"), ("/app", "__libc_start_main")],
                "dial+0x10 (app)",
            ),
            // Go.
            (
                &[("/app", "syscall.RawSyscall6"), ("/app", "net.(*Dialer).Dial"), ("/app", "main.fetch")],
                "main.fetch+0x10 (app)",
            ),
            // Rust, with trait implementations and template results.
            (
                &[
                    (LIBC, "connect"),
                    ("/app", "std::net::tcp::TcpStream::connect"),
                    ("/app", "<tokio::task::Foo as core::future::future::Future>::poll"),
                    ("/app", "<app::Client as app::Fetch>::fetch"),
                ],
                "<app::Client as app::Fetch>::fetch+0x10 (app)",
            ),
            (
                &[("/app", "void boost::asio::detail::run<int>(int)"), ("/app", "Session::start(int)")],
                "Session::start(int)+0x10 (app)",
            ),
        ] {
            assert_eq!(site(frames).as_deref(), Some(expected), "{frames:?}");
        }
    }

    #[test]
    fn without_application_frames_the_way_into_the_library_is_shown() {
        let python = "/usr/bin/python3.11";
        let frames =
            [(LIBC, "connect"), (python, "internal_connect"), (python, "Py_RunMain"), (LIBC, "_start")];
        assert_eq!(site(&frames).as_deref(), Some("internal_connect+0x10 (python3.11)"));
        let go = [
            ("/app", "syscall.Connect"),
            ("/app", "net/http.(*Transport).dialConn"),
            ("/app", "runtime.goexit"),
        ];
        assert_eq!(site(&go).as_deref(), Some("net/http.(*Transport).dialConn+0x10 (app)"));
        assert_eq!(site(&[(LIBC, "connect"), (LIBC, "start_thread")]), None);
        assert_eq!(site(&[]), None);
    }

    #[test]
    fn users_patterns_fit_module_path_or_function() {
        let frames =
            [frame(LIBC, "connect"), frame("/opt/lib/libacme.so.1", "acme_dial"), frame("/srv/app", "run")];
        for pattern in ["libacme.so*", "/opt/lib/*", "acme_*"] {
            let libraries = Libraries::new(vec![pattern.to_owned()]);
            assert_eq!(libraries.call_site(&frames).as_deref(), Some("run+0x10 (app)"), "{pattern}");
        }
        assert_eq!(Libraries::default().call_site(&frames).as_deref(), Some("acme_dial+0x10 (libacme.so.1)"));
    }

    #[test]
    fn line_is_preferred_over_offset() {
        let mut placed = frame("/srv/app", "open_session");
        placed.frame.file = Some("/home/me/src/session.c".to_owned());
        placed.frame.line = Some(42);
        assert_eq!(text(&placed).as_deref(), Some("open_session (session.c:42)"));
    }

    #[test]
    fn patterns_match_as_a_whole() {
        for (pattern, text, expected) in [
            ("libc.so*", "libc.so.6", true),
            ("libc.so*", "xlibc.so.6", false),
            ("*.so", "a.so.so", true),
            ("*.so", "a.so.1", false),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXcYb", false),
            ("?", "", false),
            ("python[0-9]*", "python3.11", true),
            ("python[0-9]*", "pythonx", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn compilers_decorations_do_not_hide_whose_function_it_is() {
        for (function, expected) in [
            ("net.part.0", "net"),
            ("<&mut tokio::io::Foo as X>::poll", "tokio::io::Foo as X>::poll"),
            ("int* std::find<int*, int>(int*, int*)", "std::find<int*, int>(int*, int*)"),
            ("net/http.(*Transport).dial", "net/http.(*Transport).dial"),
            ("operator<", "operator<"),
        ] {
            assert_eq!(qualified_name(function), expected);
        }
    }

    #[test]
    fn every_group_says_why() {
        for group in GROUPS {
            assert!(!group.reason.is_empty());
            assert!(!group.modules.is_empty() || !group.functions.is_empty(), "{}", group.reason);
        }
    }
}
