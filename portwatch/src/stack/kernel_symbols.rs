//! Kernel addresses → function names, by `/proc/kallsyms`.
//!
//! Whether that file has addresses is the host's decision (`kernel.kptr_restrict`), which is respected: where it has
//! none there are no kernel frames. No address leaves this module.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::output::{Frame, FrameKind};

const KALLSYMS: &str = "/proc/kallsyms";

/// Functions between a hook and its program: neither is a part of what the kernel was doing.
const MACHINERY: &[&str] = &[
    "bpf_prog_",
    "bpf_trace_run",
    "bpf_trampoline_",
    "bpf_get_stack",
    "bpf_fentry_",
    "__bpf_",
    "__traceiter_",
    "__probestub_",
    "trace_call_bpf",
    "perf_trace_run_bpf_submit",
    "perf_call_bpf_enter",
    "perf_syscall_",
    "kprobe_",
    "kretprobe_",
    "kretprobe_trampoline",
    "__kretprobe_",
    "arch_rethook_",
    "rethook_",
    "aggr_pre_handler",
    "optimized_callback",
    "ftrace_",
    "fprobe_",
];

/// The functions of the running kernel.
#[derive(Debug)]
pub struct KernelSymbols {
    /// Sorted by address.
    functions: Vec<Function>,
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    start: u64,
    name: Box<str>,
    /// `None`: the kernel itself.
    module: Option<Box<str>>,
}

impl KernelSymbols {
    /// Reads the table. Call it when the programs are attached: it has their names, too.
    ///
    /// # Errors
    /// When there is none, or the host hides the addresses.
    pub fn of_running_kernel() -> Result<KernelSymbols> {
        let text = fs::read_to_string(KALLSYMS).with_context(|| format!("cannot read `{KALLSYMS}`"))?;
        KernelSymbols::parse(&text)
    }

    fn parse(text: &str) -> Result<KernelSymbols> {
        let mut functions: Vec<_> = text.lines().filter_map(function).collect();
        if functions.iter().all(|function| function.start == 0) {
            bail!(
                "`{KALLSYMS}` hides the addresses\n  next: run as root; `kernel.kptr_restrict` of 2 hides them from root, too"
            );
        }
        functions.sort_unstable_by_key(|function| function.start);
        Ok(KernelSymbols { functions })
    }

    /// Frames of a kernel stack, innermost first, without the machinery of tracing above the hook.
    pub fn frames(&self, addresses: &[u64]) -> Vec<Frame> {
        // The address is that of the instruction after the call, except for the innermost, which is machinery.
        let found: Vec<_> = addresses.iter().map(|address| self.find(address.wrapping_sub(1))).collect();
        let is_machinery = |function: &&Option<&Function>| {
            function.is_some_and(|function| MACHINERY.iter().any(|start| function.name.starts_with(start)))
        };
        let behind = found.iter().rposition(|function| is_machinery(&function)).map_or(0, |last| last + 1);
        // Machinery farther out belongs to whatever else is being traced.
        let behind = if behind > MACHINERY_FRAMES_MAX { 0 } else { behind };
        found[behind..].iter().map(|function| frame(*function)).collect()
    }

    fn find(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        // Behind the last function of the kernel or a module there is nothing.
        (address - function.start < FUNCTION_BYTES_MAX).then_some(function)
    }
}

/// Frames that can stand between a hook and its program.
const MACHINERY_FRAMES_MAX: usize = 10;

/// No function is longer.
const FUNCTION_BYTES_MAX: u64 = 1 << 20;

fn frame(function: Option<&Function>) -> Frame {
    let kind = FrameKind::Kernel;
    match function {
        Some(Function { name, module, .. }) => Frame {
            function: Some(name.to_string()),
            module: module.as_deref().map(str::to_owned),
            kind,
            ..Frame::default()
        },
        None => {
            let reason = Some("the address is in no function that the kernel names".to_owned());
            Frame { kind, reason, ..Frame::default() }
        }
    }
}

/// `ffffffff81000000 T name [module]`; `None` for data.
fn function(line: &str) -> Option<Function> {
    let mut words = line.split_ascii_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    if !matches!(words.next()?, "t" | "T" | "w" | "W") {
        return None;
    }
    let name = words.next()?.into();
    let module = words.next().map(|module| module.trim_matches(['[', ']']).into());
    Some(Function { start, name, module })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81000000 T startup_64
ffffffff81200000 T tcp_v4_connect
ffffffff81200400 t inet_stream_connect
ffffffff81200800 D some_data
ffffffff81300000 T bpf_trace_run3
ffffffffc0001000 t bpf_prog_1234_inet_sock_set_state\t[bpf]
ffffffffc0100000 t e1000_xmit\t[e1000]
";

    fn names(frames: &[Frame]) -> Vec<&str> {
        frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
    }

    #[test]
    fn frames_begin_behind_the_machinery_of_tracing() {
        let symbols = KernelSymbols::parse(TABLE).unwrap();
        let stack = [0xffffffffc0001080, 0xffffffff81300020, 0xffffffff81200010, 0xffffffff81200410];
        let frames = symbols.frames(&stack);
        assert_eq!(names(&frames), ["tcp_v4_connect", "inet_stream_connect"]);
        assert!(frames.iter().all(|frame| frame.kind == FrameKind::Kernel && frame.offset.is_none()));
    }

    #[test]
    fn a_call_at_the_end_of_a_function_belongs_to_it() {
        let symbols = KernelSymbols::parse(TABLE).unwrap();
        assert_eq!(names(&symbols.frames(&[0xffffffff81200400])), ["tcp_v4_connect"]);
        assert_eq!(names(&symbols.frames(&[0xffffffff90000000])), ["?"]);
        assert_eq!(symbols.frames(&[0xffffffffc0100010])[0].module.as_deref(), Some("e1000"));
    }

    #[test]
    fn hidden_addresses_are_an_error() {
        let hidden = "0000000000000000 T startup_64\n0000000000000000 T tcp_v4_connect\n";
        assert!(KernelSymbols::parse(hidden).unwrap_err().to_string().contains("kptr_restrict"));
        assert!(KernelSymbols::parse("").is_err());
    }
}
