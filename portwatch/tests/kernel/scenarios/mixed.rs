//! A workload with something for every filter: several processes, users, addresses, ports and failures.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};

use super::owner::churn;
use super::{NARROW, NO_REUSE, PartFn};
use crate::play::say;
use crate::sockets::Socket;
use crate::stage::{Connection, NOBODY, Part, Server, V4, V6, address};
use crate::truth::{Happened, Truth};

pub const SYSCTLS: &[(&str, &str)] = &[NARROW, NO_REUSE];
pub const OTHER_PORT: &str = "127.0.0.1:7001";
pub const OTHER_ADDRESS: &str = "127.0.1.1:7000";

pub const PARTS: &[(&str, PartFn)] =
    &[("mixed", mixed), ("older_child", older_child), ("command", command), ("bystander", bystander)];

/// The processes that are there before the workload begins.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    pub main: u32,
    pub older_child: u32,
}

/// Says who is there, waits until it is told to go, does everything.
fn mixed(_: &[String]) -> Truth {
    let mut older = Part::with_stdin("older_child", &[V4, "2"], Stdio::piped());
    let ready = Ready { main: std::process::id(), older_child: older.pid() };
    say(&ready);
    wait_to_be_told();

    let mut truth = Truth::new();
    let server = Server::start(&mut truth, V4);
    of_one_process(&mut truth, &server);

    older.tell();
    server.serve_here(2);
    truth.extend(older.finish());
    for (name, args, connects) in [("connect_many", &[V4, "2"][..], 2), ("connect_as_nobody", &[V4], 3)] {
        let part = Part::start(name, args);
        server.serve_here(connects);
        truth.extend(part.finish());
    }
    truth
}

fn of_one_process(truth: &mut Truth, server: &Server) {
    let other_port = Server::start(truth, OTHER_PORT);
    let other_address = Server::start(truth, OTHER_ADDRESS);
    server.connect_v4(truth).close_client_first(truth);
    server.connect_v4(truth).close_server_first(truth);
    other_port.connect_v4(truth).close_client_first(truth);
    other_address.connect_v4(truth).close_client_first(truth);

    if let Ok(client) = Socket::v6() {
        let server_v6 = Server::start(truth, V6);
        server_v6.connect(truth, client).close_client_first(truth);
        server.connect(truth, Socket::v6().expect("IPv6")).close_client_first(truth);
    }

    let client = Socket::v4();
    let id = truth.bound(&client, address("127.0.0.1:0"));
    client.connect(other_port.address).expect("connect");
    truth.story(id).peer = Some(other_port.address);
    truth.then(id, [Happened::Established]);
    let accepted = other_port.socket.accept(client.local());
    Connection { client, accepted, id }.close_client_first(truth);

    truth.refused(&Socket::v4(), address(NOBODY), Errno::ECONNREFUSED);
    truth.connect_fails(&Socket::v4(), address("192.0.2.1:80"), Errno::ENETUNREACH);
    truth.bind_fails(&Socket::v4(), address(V4), Errno::EADDRINUSE);
}

/// Is there before the tracer, and acts when it is told.
fn older_child(args: &[String]) -> Truth {
    wait_to_be_told();
    let mut truth = Truth::new();
    churn(&mut truth, address(&args[0]), args[1].parse().expect("a count"));
    truth
}

fn wait_to_be_told() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("somebody tells");
    assert_eq!(line, "go\n", "told nothing");
}

/// What stands behind `--`. Arguments: file for the truth, how to end (an exit status, or `signal`).
fn command(args: &[String]) -> Truth {
    let mut truth = Truth::new();
    let server = Server::start(&mut truth, V4);
    server.connect_v4(&mut truth).close_client_first(&mut truth);
    let child = Part::start("connect_many", &[V4, "3"]);
    server.serve_here(3);
    truth.extend(child.finish());
    drop(server);
    let text = serde_json::to_string(&truth).expect("a truth is JSON");
    std::fs::write(&args[0], text).expect("the truth can be written");
    match args[1].parse() {
        Ok(status) => std::process::exit(status),
        Err(_) => raise(Signal::SIGTERM).expect("a process may end itself"),
    }
    unreachable!("SIGTERM was not deadly")
}

/// Does what no filter is to show, until nobody listens any more.
fn bystander(_: &[String]) -> Truth {
    let mut stdout = std::io::stdout();
    while writeln!(stdout, "1").is_ok() {
        assert_eq!(Socket::v4().connect(address(NOBODY)), Err(Errno::ECONNREFUSED));
        std::thread::sleep(Duration::from_millis(20));
    }
    Truth::new()
}
