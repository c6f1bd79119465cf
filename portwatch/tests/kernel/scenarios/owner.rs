//! Whose port it is, whoever closes it, and whatever became of its owner.

use std::io::Read;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgid, setuid};

use super::{NARROW, NO_REUSE, PartFn, Scenario};
use crate::sockets::Socket;
use crate::stage::{
    Connection, Part, Server, V4, address, closed_into_time_wait, released, time_wait_ends, wait_for_client,
};
use crate::truth::{Reason, Substate, Truth};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::with(
        "owner_exits_in_time_wait",
        &[NARROW, NO_REUSE, ("tcp_fin_timeout", "1")],
        exits_in_time_wait,
    ),
    Scenario::new("owner_exits_without_close", exits_without_close),
    Scenario::new("owner_is_not_the_last_closer", is_not_the_last_closer),
    Scenario::with("owner_is_a_thread", &[NO_REUSE], is_a_thread),
    Scenario::new("owner_is_unprivileged", is_unprivileged),
    Scenario::new("owner_in_nested_pid_namespace", in_nested_pid_namespace),
];

pub const PARTS: &[(&str, PartFn)] = &[
    ("connect_and_exit", connect_and_exit),
    ("half_close_and_exit", half_close_and_exit),
    ("connect_as_nobody", connect_as_nobody),
    ("connect_many", connect_many),
    ("hold_inherited", hold_inherited),
];

fn exits_without_close(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let part = Part::start("connect_and_exit", &[V4]);
        let accepted = server.socket.accept_any();
        let connected = part.finish();
        accepted.wait_for_end();
        truth.extend(connected);
    }
}

fn connect_and_exit(args: &[String]) -> Truth {
    let mut truth = Truth::new();
    let client = Socket::v4();
    let id = truth.connected(&client, address(&args[0]));
    // The kernel closes it.
    std::mem::forget(client);
    truth.then(id, closed_into_time_wait(None));
    truth.then(id, [time_wait_ends()]);
    truth
}

/// The same, with the FIN sent and acknowledged before the end.
fn half_close_and_exit(args: &[String]) -> Truth {
    let mut truth = Truth::new();
    let (client, peer) = (Socket::v4(), address(&args[0]));
    let id = truth.connected(&client, peer);
    client.half_close(peer.port());
    std::mem::forget(client);
    truth.then(id, closed_into_time_wait(Some(Substate::FinWait2)));
    truth.then(id, [time_wait_ends()]);
    truth
}

/// The entry outlives its process and still names it.
fn exits_in_time_wait(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let part = Part::start("half_close_and_exit", &[V4]);
    let accepted = server.socket.accept_any();
    accepted.wait_for_end();
    let mut connected = part.finish();
    let story = &mut connected.stories[0];
    story.events.pop();
    story.events.push(released(Reason::TwExpired));
    let port = story.port.expect("it connected");
    wait_for_client(port, server.address.port(), None);
    drop(accepted);
    truth.extend(connected);
}

/// A child that inherits the socket closes it last, and owns nothing.
fn is_not_the_last_closer(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    for _ in 0..3 {
        let Connection { client, accepted, id } = server.connect_v4(truth);
        let heir = Part::with_socket("hold_inherited", client.into_fd());
        accepted.send(b"close").expect("send");
        heir.finish();
        accepted.wait_for_end();
        drop(accepted);
        truth.then(id, closed_into_time_wait(None));
        truth.then(id, [time_wait_ends()]);
    }
}

fn hold_inherited(_: &[String]) -> Truth {
    let mut word = [0; 5];
    std::io::stdin().read_exact(&mut word).expect("the server says when to close");
    Truth::new()
}

fn is_a_thread(truth: &mut Truth) {
    const THREADS: usize = 8;
    const CONNECTS: usize = 50;
    let server = Server::start(truth, V4);
    let peer = server.address;
    let serving = server.serve(THREADS * CONNECTS);
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            std::thread::spawn(move || {
                crate::play::set_comm(&format!("kt-thread-{number}"));
                let mut truth = Truth::new();
                churn(&mut truth, peer, CONNECTS);
                truth
            })
        })
        .collect();
    for thread in threads {
        truth.extend(thread.join().expect("a thread ends well"));
    }
    serving.join().expect("the server ends well");
}

/// Connects and closes at once, again and again.
pub fn churn(truth: &mut Truth, peer: std::net::SocketAddr, count: usize) {
    for _ in 0..count {
        let client = Socket::v4();
        let id = truth.connected(&client, peer);
        drop(client);
        truth.then(id, closed_into_time_wait(None));
        truth.then(id, [time_wait_ends()]);
    }
}

/// Arguments: address, count.
fn connect_many(args: &[String]) -> Truth {
    let mut truth = Truth::new();
    churn(&mut truth, address(&args[0]), args[1].parse().expect("a count"));
    truth
}

fn is_unprivileged(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let serving = server.serve(3);
    truth.extend(Part::start("connect_as_nobody", &[V4]).finish());
    serving.join().expect("the server ends well");
}

fn connect_as_nobody(args: &[String]) -> Truth {
    const NOBODY: u32 = 65_534;
    setgid(Gid::from_raw(NOBODY)).expect("root may become anybody");
    setuid(Uid::from_raw(NOBODY)).expect("root may become anybody");
    let mut truth = Truth::new();
    churn(&mut truth, address(&args[0]), 3);
    truth.bind_fails(&Socket::v4(), address("127.0.0.1:80"), Errno::EACCES);
    truth
}

/// Known to portwatch by one number, and to itself by another.
fn in_nested_pid_namespace(truth: &mut Truth) {
    let server = Server::start(truth, V4);
    let serving = server.serve(6);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWPID) {
        return truth.skip = Some(format!("cannot make a PID namespace: {errno}"));
    }
    let part = Part::start("connect_many", &[V4, "6"]).finish();
    assert!(
        part.stories.iter().all(|story| story.owner.ns_pid == Some(1)),
        "it is the first of its namespace"
    );
    truth.extend(part);
    serving.join().expect("the server ends well");
}
