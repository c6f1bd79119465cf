//! Read-only globals that the loader fills in before the programs are loaded.
//!
//! Read field by field and volatile: the compiler must not know the values, the verifier must. It follows
//! read-only maps, so what a rung does not need is dead code to it and may call helpers that the kernel lacks.

use portwatch_common::config::{Config, Offsets};

#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = zerocopy::transmute!([0u32; size_of::<Offsets>() / 4]);

#[unsafe(no_mangle)]
pub static CONFIG: Config = zerocopy::transmute!([0u64; size_of::<Config>() / 8]);

/// Byte offset of a kernel structure member on the running kernel.
macro_rules! offset {
    ($member:ident) => {
        // SAFETY: a field of a static, aligned and always initialised.
        unsafe { core::ptr::read_volatile(&raw const $crate::settings::OFFSETS.$member) }
    };
}

/// A setting of this run.
macro_rules! setting {
    ($($field:ident).+) => {
        // SAFETY: a field of a static, aligned and always initialised.
        unsafe { core::ptr::read_volatile(&raw const $crate::settings::CONFIG.$($field).+) }
    };
}

pub(crate) use {offset, setting};
