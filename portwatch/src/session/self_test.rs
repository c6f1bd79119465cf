//! One own connection per address family, compared with what the hooks saw of it. In no log, total or ledger: the
//! kernel side counts portwatch's own sockets apart and sends nothing of them.

use std::thread;
use std::time::{Duration, Instant};

use portwatch_common::counters::{HOOK_NAMES, HOOKS, hook};

use crate::bpf::{Protocols, Rung, Tracing};
use crate::kernel::self_net::{self, Done};

/// The last segments of the connections are handled in softirq, shortly after.
const DEADLINE: Duration = Duration::from_millis(250);
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Notes about hooks that missed calls, or why the test could not run. Empty: all is well.
pub fn run(tracing: &Tracing, rung: Rung, protocols: Protocols) -> Vec<String> {
    let before = match tracing.totals() {
        Ok(totals) => totals.self_test_hits,
        Err(error) => return vec![format!("the self-test could not run: {error:#}")],
    };
    let done = match self_net::connect_to_self() {
        Ok(done) => done,
        Err(error) => return vec![format!("the self-test could not run, tracing goes on: {error:#}")],
    };
    let expected = expected(rung, protocols, &done, tracing);
    let started = Instant::now();
    loop {
        let after = match tracing.totals() {
            Ok(totals) => totals.self_test_hits,
            Err(error) => return vec![format!("the self-test could not run: {error:#}")],
        };
        let mut notes = Vec::new();
        for at in 0..HOOKS {
            let (saw, made) = (after[at] - before[at], u64::from(expected[at]));
            if saw < made {
                notes.push(format!(
                    "hook `{}` saw {saw} of {made} own calls: it misses events",
                    HOOK_NAMES[at]
                ));
            }
        }
        if notes.is_empty() || started.elapsed() > DEADLINE {
            return notes;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// At least how often each hook must have seen what was done.
fn expected(rung: Rung, protocols: Protocols, done: &Done, tracing: &Tracing) -> [u32; HOOKS] {
    let mut expected = [0; HOOKS];
    let mut expect = |hook: usize, calls: u32| expected[hook] += calls;
    if protocols.tcp {
        expect_tcp(rung, done, &mut expect);
    }
    if protocols.udp {
        expect_udp(rung, done, &mut expect);
    }
    // What is known not to be hooked was said already.
    for disabled in &tracing.disabled {
        for (at, name) in HOOK_NAMES.iter().enumerate() {
            if name.split(", ").any(|name| name == disabled.hook) {
                expected[at] = 0;
            }
        }
    }
    expected
}

fn expect_tcp(rung: Rung, done: &Done, expect: &mut impl FnMut(usize, u32)) {
    let connects = done.connects_v4 + done.connects_v6;
    expect(hook::STATE_SYN_SENT, connects);
    expect(hook::STATE_ESTABLISHED, connects);
    expect(hook::STATE_CLOSE, connects);
    match rung {
        Rung::Fentry | Rung::Kprobe => {
            expect(hook::HASH_CONNECT, done.connects_v4);
            expect(hook::HASH_CONNECT_V6, done.connects_v6);
            expect(hook::GET_PORT, done.binds.min(done.listens));
            expect(hook::TWSK_ALLOC, done.time_waits);
            expect(hook::PUT_PORT, connects);
            expect(hook::RELEASE, connects);
            expect(hook::TCP_CONNECT, connects);
            expect(hook::BIND, done.binds);
            expect(hook::LISTEN, done.listens);
        }
        Rung::Tracepoint => {
            expect(hook::EXIT_CONNECT, connects);
            expect(hook::EXIT_BIND, done.binds);
            expect(hook::EXIT_LISTEN, done.listens);
        }
    }
}

fn expect_udp(rung: Rung, done: &Done, expect: &mut impl FnMut(usize, u32)) {
    match rung {
        Rung::Fentry | Rung::Kprobe => {
            expect(hook::UDP_GET_PORT, done.udp_binds + done.udp_connects + done.udp_sends);
            expect(hook::UDP_CONNECT, done.udp_connects);
            expect(hook::UDP_AUTOBIND, done.udp_connects + done.udp_sends);
            expect(hook::UDP_UNHASH, done.udp_binds + done.udp_connects + done.udp_sends);
            expect(hook::BIND, done.udp_binds);
        }
        Rung::Tracepoint => {
            expect(hook::EXIT_CONNECT, done.udp_connects);
            expect(hook::EXIT_BIND, done.udp_binds);
        }
    }
}
