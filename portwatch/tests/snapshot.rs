//! `portwatch snapshot` against sockets that were counted when they were made.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const PORTWATCH: &str = env!("CARGO_BIN_EXE_portwatch");

fn snapshot(args: &[&str]) -> Output {
    Command::new(PORTWATCH).arg("snapshot").args(args).output().expect("portwatch starts")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Runs in a thread with a network namespace of its own; what it starts is in it, too.
fn in_new_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIP snapshot in a namespace of its own: {errno}");
            return;
        }
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        if !up.is_ok_and(|status| status.success()) {
            println!("SKIP snapshot in a namespace of its own: `ip` (iproute2) is not installed");
            return;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40099").expect("an own namespace");
        std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0").expect("an own namespace");
        test();
    });
    thread.join().expect("the test");
}

#[test]
fn pools_are_what_was_opened() {
    in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:7000").expect("listen");
        let other = TcpListener::bind("127.0.0.1:40050").expect("listen");
        let connect = |to: &TcpListener| {
            let client = TcpStream::connect(to.local_addr().expect("address")).expect("connect");
            (client, to.accept().expect("accept").0)
        };
        let mut held: Vec<_> = (0..10).map(|_| connect(&listener)).collect();
        held.push(connect(&other));
        for _ in 0..20 {
            let (client, mut accepted) = connect(&listener);
            drop(client);
            std::io::Read::read(&mut accepted, &mut [0]).expect("the client's FIN");
        }
        let bound = UdpSocket::bind("127.0.0.1:0").expect("bind");
        bound.connect("127.0.0.1:53").expect("connect");

        let pools = |args: &[&str]| {
            let args = [&["--netns", "/proc/self/ns/net", "--format", "json", "--top", "0"], args].concat();
            let snapshot = json(&snapshot(&args));
            assert_eq!((&snapshot["type"], &snapshot["version"]), (&json!("snapshot"), &json!(1)));
            snapshot
        };
        let all = pools(&[]);
        let pool = |to: SocketAddr| {
            let mut rows = all["pools"].as_array().expect("pools").iter();
            let is_meant = |row: &&Value| row["rport"] == to.port() && row["proto"] == "tcp";
            rows.find(is_meant).cloned().expect("the pool")
        };
        let main = pool("127.0.0.1:7000".parse().expect("address"));
        assert_eq!(
            (&main["in_use"]["live"], &main["in_use"]["time_wait"]),
            (&json!(10), &json!(20)),
            "{all}"
        );
        // The other listener's port is nobody's any more.
        assert_eq!(main["capacity"], 99, "{all}");
        assert_eq!(main["utilization"], json!(30.0 / 99.0));
        assert_eq!(main["owners"][0]["pid"], std::process::id());
        assert_eq!(pool("127.0.0.1:40050".parse().expect("address"))["in_use"]["live"], 1);
        assert_eq!(all["listeners_in_range"][0]["lport"], 40050);
        assert_eq!(all["accepted"], 11);
        let udp = all["pools"].as_array().expect("pools").iter().find(|row| row["proto"] == "udp");
        assert_eq!(udp.expect("udp")["in_use"]["live"], 1);

        let ports = |snapshot: &Value| {
            let rows = snapshot["pools"].as_array().expect("pools").iter();
            rows.map(|row| row["rport"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ports(&pools(&["--dport", "40050"])), [json!(40050)]);
        assert_eq!(ports(&pools(&["--proto", "udp"])), [Value::Null]);
        assert_eq!(pools(&["-6"])["pools"], json!([]));

        let text = snapshot(&["--netns", "/proc/self/ns/net"]);
        let text = String::from_utf8(text.stdout).expect("UTF-8");
        assert!(text.contains("    30     99   30     10        20"), "{text}");
        assert!(text.contains("listener inside the automatic range: 127.0.0.1:40050"), "{text}");
    });
}

#[test]
fn flags_that_choose_events_are_refused() {
    for flag in ["--failed-only", "--accepted", "--events=closed"] {
        let output = snapshot(&[flag]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("chooses events"), "{output:?}");
    }
}
