use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use super::*;
use crate::kernel::socket_row::Timer;
use crate::kernel::testing;

fn row(state: State, local: &str, local_port: u16, is_v6_only: Option<bool>) -> SocketRow {
    SocketRow {
        protocol: Protocol::Tcp,
        family: Family::Ipv6,
        state,
        local: local.parse().unwrap(),
        remote: Ipv6Addr::UNSPECIFIED,
        local_port,
        remote_port: 9,
        interface: 0,
        uid: 0,
        inode: 0,
        cookie: None,
        cgroup_id: None,
        is_v6_only,
        timer: Timer::None,
        expires_ms: 0,
    }
}

#[test]
fn connections_to_a_listeners_address_and_port_are_incoming() {
    let listeners = Listeners::among(&[
        row(State::Listen, "::ffff:0.0.0.0", 80, None),
        row(State::Listen, "::", 81, Some(true)),
        row(State::Listen, "::", 82, Some(false)),
        row(State::Listen, "::ffff:10.0.0.1", 83, None),
        row(State::Listen, "::1", 83, Some(true)),
    ]);
    let table = [
        ("::ffff:10.0.0.9", 80, Direction::In),
        ("2001:db8::1", 80, Direction::Out),
        ("::ffff:10.0.0.9", 81, Direction::Out),
        ("2001:db8::1", 81, Direction::In),
        ("::ffff:10.0.0.9", 82, Direction::In),
        ("2001:db8::1", 82, Direction::In),
        ("::ffff:10.0.0.1", 83, Direction::In),
        ("::ffff:10.0.0.2", 83, Direction::Out),
        ("::1", 83, Direction::In),
        ("::1", 84, Direction::Out),
    ];
    for (local, port, expected) in table {
        for state in [State::Established, State::TimeWait, State::CloseWait] {
            let row = row(state, local, port, None);
            assert_eq!(listeners.direction(&row), expected, "{local} {port} {state:?}");
        }
    }
    assert_eq!(listeners.direction(&row(State::NewSynReceived, "::1", 9, None)), Direction::In);
    assert_eq!(listeners.direction(&row(State::SynSent, "::1", 83, None)), Direction::Out);
}

#[test]
fn own_number_is_the_last_of_the_list() {
    assert_eq!(parse_ns_tgid("Name:\tx\nNSpid:\t4711\t12\t1\nNSpgid:\t3\n"), Some(1));
    assert_eq!(parse_ns_tgid("NSpid:\t4711\n"), Some(4711));
    for status in ["", "NSpid:\n", "NSpid:\tx\n"] {
        assert_eq!(parse_ns_tgid(status), None, "{status:?}");
    }
}

#[test]
fn notes_are_said_once_and_counts_are_summed() {
    let mut notes = Notes::default();
    for _ in 0..2 {
        let mut other = Notes::default();
        other.add("once".to_owned());
        other.add_count(2, "things");
        other.add_count(0, "nothings");
        notes.merge(other);
    }
    assert_eq!(notes.into_sentences(), ["once", "4 things"]);
}

fn seen_now() -> Seen {
    let inode = Namespace::current().unwrap().inode();
    Seen { inode, path: PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), tid())) }
}

fn tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

fn selection(namespaces: Option<Vec<Seen>>) -> Selection {
    Selection { namespaces, protocols: vec![Protocol::Tcp, Protocol::Udp], owners: Among::All }
}

fn find(baseline: &Baseline, local: SocketAddr) -> Vec<&OpenSocket> {
    let is_local = |socket: &&OpenSocket| {
        socket.endpoints.local_ip() == local.ip() && socket.endpoints.local_port == Some(local.port())
    };
    baseline.sockets.iter().filter(is_local).collect()
}

#[test]
fn open_sockets_have_owner_state_and_direction() {
    testing::in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_addr = listener.local_addr().unwrap();
        let client = TcpStream::connect(server_addr).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let closed = TcpStream::connect(server_addr).unwrap();
        let closed_addr = closed.local_addr().unwrap();
        let (mut accepted_closed, _) = listener.accept().unwrap();
        drop(closed);
        // With the client's FIN here, the client alone is left in TIME_WAIT.
        assert_eq!(std::io::Read::read(&mut accepted_closed, &mut [0]).unwrap(), 0);
        drop(accepted_closed);

        let netns = Namespace::current().unwrap().inode();
        let deadline = Instant::now() + Duration::from_secs(5);
        let baseline = loop {
            let baseline = Baseline::take(&selection(Some(vec![seen_now()]))).unwrap();
            let found = find(&baseline, closed_addr);
            if found.len() == 1 && found[0].state == State::TimeWait {
                break baseline;
            }
            assert!(Instant::now() < deadline, "{found:?}");
        };
        assert_eq!(baseline.namespaces.len(), 1);
        assert_eq!(baseline.namespaces[0].inode, netns);
        assert!(baseline.sockets.iter().all(|socket| socket.endpoints.netns == netns));

        let client_found = find(&baseline, client.local_addr().unwrap());
        let [socket] = client_found[..] else { panic!("{client_found:?}") };
        assert_eq!((socket.direction, socket.state_name), (Direction::Out, "established"));
        let owner = socket.owner.as_ref().unwrap();
        assert_eq!((owner.tgid, owner.ns_tgid), (Some(std::process::id()), None));
        assert_eq!(owner.ppid, Some(std::os::unix::process::parent_id()));
        assert_eq!(owner.uid, std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()));

        let mut at_server: Vec<_> = find(&baseline, server_addr)
            .iter()
            .map(|socket| (socket.state_name, socket.direction.name(), socket.owner.is_some()))
            .collect();
        at_server.sort_unstable();
        assert_eq!(at_server, [("established", "in", true), ("listen", "in", true)]);

        let waiting = find(&baseline, closed_addr)[0];
        assert_eq!((waiting.direction, &waiting.owner, waiting.uid), (Direction::Out, &None, None));
        assert!(waiting.time_wait_left_ms.is_some_and(|left| left > 50_000));

        let udp_found = find(&baseline, udp.local_addr().unwrap());
        assert_eq!((udp_found[0].state_name, udp_found[0].endpoints.remote_port), ("bound", None));
        if let Some(ports) = baseline.ports_bound(netns) {
            assert_eq!(ports, [server_addr.port()]);
        }
    });
}

#[test]
fn inherited_socket_belongs_to_the_oldest_of_its_holders() {
    testing::in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inherited: OwnedFd = listener.try_clone().unwrap().into();
        let mut child = Command::new("sleep").arg("65").stdin(Stdio::from(inherited)).spawn().unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Baseline::take(&selection(Some(vec![seen_now()]))).unwrap();
        drop(listener);
        let left = Baseline::take(&selection(Some(vec![seen_now()]))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let owner = |baseline: &Baseline| {
            let socket = find(baseline, addr)[0].clone();
            (socket.owner.unwrap().tgid, socket.holders)
        };
        assert_eq!(owner(&shared), (Some(std::process::id()), 2));
        assert_eq!(owner(&left), (Some(child.id()), 1));
    });
}

#[test]
fn every_namespace_of_the_host_is_read() {
    // A child stays in the new namespace, so that /proc shows it to a thread outside.
    let inside = testing::in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inherited: OwnedFd = listener.try_clone().unwrap().into();
        let child = Command::new("sleep").arg("66").stdin(Stdio::from(inherited)).spawn().unwrap();
        (child, Namespace::current().unwrap().inode(), listener.local_addr().unwrap())
    });
    let Some((mut child, netns, addr)) = inside else { return };
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let baseline = Baseline::take(&selection(None)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let own = Namespace::current().unwrap().inode();
    let place = |addr| find(&baseline, addr).iter().map(|socket| socket.endpoints.netns).collect::<Vec<_>>();
    assert!(place(addr).contains(&netns));
    assert!(place(outside.local_addr().unwrap()).contains(&own));
    assert!(baseline.namespaces.iter().any(|settings| settings.inode == netns));
    let socket = find(&baseline, addr).into_iter().find(|socket| socket.endpoints.netns == netns).unwrap();
    assert_eq!(socket.owner.as_ref().unwrap().tgid, Some(child.id()));
}

#[test]
fn namespace_that_ended_is_no_error() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(tid())).join().unwrap().unwrap();
    let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), receiver.recv().unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::path::Path::new(&path).exists() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let gone = Seen { inode: 1, path: PathBuf::from(path) };
    let baseline = Baseline::take(&selection(Some(vec![gone]))).unwrap();
    assert_eq!((baseline.sockets.len(), baseline.namespaces.len()), (0, 0));
}

#[test]
fn proc_net_tells_the_same_where_no_dump_is_allowed() {
    testing::in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(
            &std::fs::metadata(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap(),
        );
        let sources = Sources { protocols: vec![(Protocol::Tcp, None)], lists_bound_sockets: true };
        let found = list_in(&Namespace::current().unwrap(), 0, &sources).unwrap();
        let mut states: Vec<_> = found.rows.iter().map(SocketRow::state_name).collect();
        states.sort_unstable();
        assert_eq!(states, ["established", "established", "listen"]);
        assert!(!found.lists_bound_sockets);
        assert!(found.rows.iter().any(|row| row.inode == inode && row.cookie.is_none()));
    });
}
