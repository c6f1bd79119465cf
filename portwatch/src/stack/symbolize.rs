//! Addresses → functions and lines, or the reason there is none.
//!
//! The parsing is `blazesym`'s, on the copies of [`super::elf`], so an answer stays right when the process or its
//! file is gone. Answers are kept per module and address: the same call site is asked for again and again.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer};

use super::debug_file::DebugFiles;
use super::elf::Module;
use super::opener::Opener;

/// Functions that one address may stand for when some were inlined.
const INLINED_MAX: usize = 32;

/// Characters of a name that are kept. C++ templates can have names of many kilobytes.
const NAME_CHARS_MAX: usize = 1024;

/// A function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    pub function: Option<String>,
    /// From the start of the function, bytes; `None` for an inlined one.
    pub function_offset: Option<u64>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub is_inlined: bool,
    /// Why `function` is unknown.
    pub reason: Option<String>,
}

impl Symbol {
    pub fn unknown(reason: impl Into<String>) -> Symbol {
        Symbol { reason: Some(reason.into()), ..Symbol::default() }
    }
}

/// What was refused or given up, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that all answers were forgotten to make room.
    pub flushed: u64,
    /// Files that the symboliser gave up on.
    pub failed: u64,
}

/// Symbols by module and address, bounded. Not `Send`: make it in the thread that uses it.
pub struct SymbolTable {
    symbolizer: Symbolizer,
    known: HashMap<(u64, u64), Arc<[Symbol]>>,
    debug_files: DebugFiles,
    capacity: usize,
    counters: Counters,
}

impl SymbolTable {
    /// Remembers at most `capacity` addresses.
    pub fn new(capacity: usize, opener: Opener) -> SymbolTable {
        SymbolTable {
            symbolizer: symbolizer(),
            known: HashMap::new(),
            debug_files: DebugFiles::new(opener),
            capacity: capacity.max(1),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is at `address` of `module`, in the ELF file's own terms: innermost first, never empty. The functions that
    /// were inlined there come before the one that really is there.
    ///
    /// `tgid` and `path` say where the process sees the file, to look for its debug file beside it.
    pub fn at(
        &mut self,
        module: &Arc<Module>,
        address: u64,
        tgid: u32,
        path: &std::path::Path,
    ) -> Arc<[Symbol]> {
        let key = (module.serial, address);
        if let Some(symbols) = self.known.get(&key) {
            return Arc::clone(symbols);
        }
        let symbols: Arc<[Symbol]> = self.look_up(module, address, tgid, path).into();
        if self.known.len() >= self.capacity {
            self.known.clear();
            self.counters.flushed += 1;
        }
        self.known.insert(key, Arc::clone(&symbols));
        symbols
    }

    /// Lets go of what was read from copies that were dropped.
    pub fn forget(&mut self, modules: &[Arc<Module>]) {
        if !modules.is_empty() {
            // Rare: the table of modules is full, or a program was rebuilt.
            self.symbolizer = symbolizer();
            self.known.clear();
            modules.iter().for_each(|module| self.debug_files.forget(module));
            self.counters.flushed += 1;
        }
    }

    fn look_up(
        &mut self,
        module: &Arc<Module>,
        address: u64,
        tgid: u32,
        path: &std::path::Path,
    ) -> Vec<Symbol> {
        let debug_file = self.debug_files.get(module, tgid, path);
        let from_debug = debug_file.and_then(|debug| self.ask(&debug.path(), address).ok());
        if let Some(symbols) = from_debug {
            return symbols;
        }
        self.ask(&module.path(), address).unwrap_or_else(|reason| vec![Symbol::unknown(reason)])
    }

    /// # Errors
    /// Why there is no symbol.
    fn ask(&mut self, path: &std::path::Path, address: u64) -> Result<Vec<Symbol>, String> {
        let mut why = String::new();
        for debug_syms in [true, false] {
            match self.ask_once(path, address, debug_syms) {
                Ok(mut symbols) => {
                    if debug_syms && symbols.iter().any(|symbol| symbol.function.is_none()) {
                        self.fill_in(path, address, &mut symbols);
                    }
                    return Ok(symbols);
                }
                Err(Some(reason)) => return Err(text_of(reason).to_owned()),
                Err(None) => "the symbols of the program file are malformed".clone_into(&mut why),
            }
            self.counters.failed += 1;
        }
        Err(why)
    }

    /// # Errors
    /// Why there is no symbol; nothing where the file is malformed.
    fn ask_once(
        &mut self,
        path: &std::path::Path,
        address: u64,
        debug_syms: bool,
    ) -> Result<Vec<Symbol>, Option<Reason>> {
        let mut elf = Elf::new(path);
        elf.debug_syms = debug_syms;
        let source = Source::Elf(elf);
        // The file is a stranger's, and a flaw in a parser must not end the run.
        let asked = catch_unwind(AssertUnwindSafe(|| {
            match self.symbolizer.symbolize_single(&source, Input::VirtOffset(address)) {
                Ok(Symbolized::Sym(symbol)) => Ok(symbols(&symbol)),
                Ok(Symbolized::Unknown(reason)) => Err(Some(reason)),
                Err(error) => {
                    log::debug!("cannot symbolise {address:#x}: {error}");
                    Err(None)
                }
            }
        }));
        asked.unwrap_or_else(|_| {
            self.symbolizer = symbolizer();
            Err(None)
        })
    }

    /// Debug information that `dwz` has moved elsewhere leaves functions without names. The symbol table has that of
    /// the one which really is there; of inlined ones only where they are is known.
    fn fill_in(&mut self, path: &std::path::Path, address: u64, symbols: &mut [Symbol]) {
        let from_table = self.ask_once(path, address, false).ok().and_then(|mut symbols| symbols.pop());
        if let (Some(outermost), Some(known)) = (symbols.last_mut(), from_table)
            && outermost.function.is_none()
        {
            outermost.function = known.function;
            outermost.function_offset = known.function_offset;
        }
        for symbol in symbols.iter_mut().filter(|symbol| symbol.function.is_none()) {
            symbol.reason = Some("its name is in a file that it shares with other programs".to_owned());
        }
    }
}

fn symbolizer() -> Symbolizer {
    // No directories: debug files are looked up in `debug_file`, which follows no link that a stranger wrote.
    Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .enable_demangling(false)
        .set_debug_dirs(Some(std::iter::empty::<&std::path::Path>()))
        .build()
}

/// Reported outermost first; ours are innermost first.
fn symbols(symbol: &Sym<'_>) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = symbol
        .inlined
        .iter()
        .rev()
        .take(INLINED_MAX)
        .map(|inlined| Symbol {
            function: named(&inlined.name),
            is_inlined: true,
            ..place(inlined.code_info.as_ref())
        })
        .collect();
    symbols.push(Symbol {
        function: named(&symbol.name),
        function_offset: Some(symbol.offset as u64),
        ..place(symbol.code_info.as_deref())
    });
    symbols
}

fn place(info: Option<&CodeInfo<'_>>) -> Symbol {
    let Some(info) = info else { return Symbol::default() };
    // Line 0 stands for code that belongs to no line.
    let line = info.line.filter(|&line| line != 0);
    Symbol { file: Some(short(&info.to_path().to_string_lossy())), line, ..Symbol::default() }
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| short(&demangled(name)))
}

/// The name as written in the source. blazesym would do it, but for any name that parses: a C function `f` would become
/// `float`, which is what a lone `f` stands for within a mangled name.
fn demangled(name: &str) -> String {
    if !name.starts_with("_Z") && !name.starts_with("_R") {
        return name.to_owned();
    }
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    let cpp = cpp_demangle::Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok());
    cpp.unwrap_or_else(|| name.to_owned())
}

fn short(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn text_of(reason: Reason) -> &'static str {
    match reason {
        Reason::MissingSyms => "the program file has no symbols",
        Reason::UnknownAddr => "no symbol covers the address",
        _ => "the symbols of the program file could not be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mangled_names_are_demangled() {
        for (name, expected) in [
            ("f", "f"),
            ("i", "i"),
            ("ngx_event_connect_peer", "ngx_event_connect_peer"),
            ("_start", "_start"),
            ("_ZN3app6Client4dialEi", "app::Client::dial(int)"),
            ("_ZN3app5fetch17h0123456789abcdefE", "app::fetch"),
            ("_RNvC3app5fetch", "app::fetch"),
            ("_Znonsense", "_Znonsense"),
            ("net/http.(*Transport).dialConn", "net/http.(*Transport).dialConn"),
        ] {
            assert_eq!(demangled(name), expected);
        }
    }
}
