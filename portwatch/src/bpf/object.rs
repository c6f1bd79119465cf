//! The embedded kernel programs: the same ones twice, with stacks walked in two ways.

use std::fmt;
use std::str::FromStr;

use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use aya_obj::generated::bpf_func_id;

static LOOPED: &[u8] = aya::include_bytes_aligned!(env!("PORTWATCH_BPF_OBJECT_LOOP"));
static PLAIN: &[u8] = aya::include_bytes_aligned!(env!("PORTWATCH_BPF_OBJECT"));

/// How the kernel side walks a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackWalk {
    /// By the helper `bpf_loop`, from Linux 5.17 on: up to 128 frames, and verified in a fraction of the time.
    Loop,
    /// As a loop of its own: up to 64 frames.
    Plain,
}

impl StackWalk {
    pub fn name(self) -> &'static str {
        match self {
            StackWalk::Loop => "loop",
            StackWalk::Plain => "plain",
        }
    }

    /// Those that this kernel may take, in the order to try them. An object with a helper that the kernel lacks cannot
    /// even be tried: the verifier refuses it also where it is never called.
    pub(super) fn possible() -> &'static [StackWalk] {
        match has(bpf_func_id::BPF_FUNC_loop) {
            true => &[StackWalk::Loop, StackWalk::Plain],
            false => &[StackWalk::Plain],
        }
    }

    pub(super) fn object(self) -> &'static [u8] {
        match self {
            StackWalk::Loop => LOOPED,
            StackWalk::Plain => PLAIN,
        }
    }
}

impl fmt::Display for StackWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StackWalk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [StackWalk::Loop, StackWalk::Plain]
            .into_iter()
            .find(|walk| walk.name() == text)
            .ok_or_else(|| format!("unknown way `{text}`; there are `loop` and `plain`"))
    }
}

/// Whether programs may call a helper of this kernel.
pub(super) fn has(helper: bpf_func_id) -> bool {
    is_helper_supported(ProgramType::RawTracePoint, helper).unwrap_or(false)
}
