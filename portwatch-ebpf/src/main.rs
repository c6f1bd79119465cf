//! The kernel side of portwatch: an index of hooks, and nothing else.
//!
//! Every hook has one body, `observe_*` in `hooks/`, that works on plain addresses; the programs below are doors
//! to it, one per rung that can carry the hook. The loader picks the rung and loads only its doors.

#![no_std]
#![no_main]
// For one atomic add, see `counters`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod counters;
mod emit;
mod filter;
mod hooks;
mod kernel_stack;
mod life;
mod maps;
mod owner;
mod python;
mod read;
mod registers;
mod repeat;
mod settings;
mod slot;
mod sock;
mod stack;

/// The verifier refuses any program that could reach it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
