use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

use super::*;
use crate::kernel::{proc_net, testing};

/// An answer of Linux 6.18: 127.0.0.1:50000 in TIME_WAIT towards port 8080.
fn time_wait_row() -> Vec<u8> {
    let row = Row {
        family: AF_INET,
        state: 6,
        timer: 3,
        retransmits: 0,
        id: SocketId {
            local_port_be: 50000u16.to_be_bytes(),
            remote_port_be: 8080u16.to_be_bytes(),
            local_be: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            remote_be: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            interface: 0,
            cookie: [0x5001, 0x1],
        },
        expires_ms: 59_990,
        queue_receive: 0,
        queue_send: 0,
        uid: 0,
        inode: 0,
    };
    let mut bytes = row.as_bytes().to_vec();
    bytes.extend([12, 0, 21, 0]);
    bytes.extend(77u64.to_ne_bytes());
    bytes
}

#[test]
fn row_decodes_with_its_attributes() {
    let row = decode(Protocol::Tcp, &time_wait_row()).unwrap();
    assert_eq!(row.state, State::TimeWait);
    assert_eq!((row.local_port, row.remote_port), (50000, 8080));
    assert_eq!(row.local, Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    assert_eq!((row.cookie, row.cgroup_id), (Some(0x1_0000_5001), Some(77)));
    assert_eq!((row.timer, row.expires_ms), (Timer::TimeWait, 59_990));
}

#[test]
fn any_bytes_decode_to_a_row_or_nothing() {
    let whole = time_wait_row();
    for len in 0..whole.len() {
        let row = decode(Protocol::Tcp, &whole[..len]);
        assert_eq!(row.is_some(), len >= size_of::<Row>(), "{len} bytes");
    }
    for position in 0..whole.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = value;
            decode(Protocol::Tcp, &bytes);
        }
    }
}

#[test]
fn permit_is_given_only_where_nothing_can_be_loaded() {
    let release = "6.1.0-42-amd64";
    let builtin = "kernel/net/ipv4/inet_diag.ko\nkernel/net/ipv4/tcp_diag.ko\n";
    let modprobe = ("proc/sys/kernel/modprobe", "/sbin/modprobe\n");
    let ostype = ("proc/sys/kernel/ostype", "Linux\n");
    let list = ("lib/modules/6.1.0-42-amd64/modules.builtin", builtin);
    let other = ("lib/modules/6.1.0-42-amd64/modules.builtin", "kernel/net/ipv4/tcp_diag.ko.old\n");
    let btf = ("sys/kernel/btf/vmlinux", "\0inet_diag_handler_cmd\0tcp_diag_dump\0tcp_sock\0");
    let btf_without = ("sys/kernel/btf/vmlinux", "\0inet_diag_handler_cmd\0tcp_diag_dump_one\0");
    let inet = ("sys/module/inet_diag/initstate", "live\n");
    let tcp = ("sys/module/tcp_diag/initstate", "live\n");
    let going = ("sys/module/tcp_diag/initstate", "going\n");
    let locked = ("proc/sys/kernel/modules_disabled", "1\n");
    let unlocked = ("proc/sys/kernel/modules_disabled", "0\n");
    let table: [(&str, &[(&str, &str)], Result<(), Refusal>); 12] = [
        ("loaded", &[modprobe, ostype, inet, tcp], Ok(())),
        ("one loaded", &[modprobe, ostype, inet, other], Err(Refusal::NotLoaded("tcp_diag"))),
        ("being unloaded", &[modprobe, ostype, inet, going, list], Ok(())),
        (
            "being unloaded, not listed",
            &[modprobe, ostype, inet, going, other],
            Err(Refusal::NotLoaded("tcp_diag")),
        ),
        ("built in, listed", &[modprobe, ostype, list], Ok(())),
        ("built in, no list", &[modprobe, ostype, btf], Ok(())),
        ("module, no list", &[modprobe, ostype, btf_without], Err(Refusal::NotLoaded("tcp_diag"))),
        ("nothing to see", &[modprobe, ostype], Err(Refusal::NotKnown("inet_diag"))),
        ("no proc at all", &[], Err(Refusal::NotKnown("inet_diag"))),
        ("no module support", &[ostype], Ok(())),
        ("locked", &[modprobe, ostype, locked], Ok(())),
        ("no loader", &[("proc/sys/kernel/modprobe", "\n"), ostype, unlocked], Ok(())),
    ];
    for (name, files, expected) in table {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host { root: root.path(), release: release.to_owned() };
        assert_eq!(permit([&INET_DIAG, &TCP_DIAG], host), expected, "{name}");
    }
}

fn rows_now(protocol: Protocol, family: Family) -> Option<Vec<SocketRow>> {
    let permit = match Permit::obtain(protocol) {
        Ok(permit) => permit,
        Err(refusal) => {
            testing::skip(&refusal.to_string());
            return None;
        }
    };
    let mut rows = Vec::new();
    let dump = dump(permit, family, |row| rows.push(*row)).unwrap();
    assert_eq!((dump.rows, dump.refused), (rows.len(), 0));
    Some(rows)
}

fn find(rows: &[SocketRow], local: SocketAddr) -> Vec<&SocketRow> {
    rows.iter()
        .filter(|row| row.local_port == local.port() && row.local.to_canonical() == local.ip())
        .collect()
}

fn inode(socket: &impl AsRawFd) -> u64 {
    fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
}

#[test]
fn dump_shows_each_end_of_a_connection_with_its_inode() {
    testing::in_new_netns(|| {
        for (addr, family) in [("127.0.0.1:0", Family::Ipv4), ("[::1]:0", Family::Ipv6)] {
            let listener = TcpListener::bind(addr).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let Some(rows) = rows_now(Protocol::Tcp, family) else { return };
            assert!(rows.iter().all(|row| row.family == family));
            let found = find(&rows, client.local_addr().unwrap());
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].inode, found[0].state), (inode(&client), State::Established));
            assert_eq!(found[0].remote_port, listener.local_addr().unwrap().port());
            assert_ne!(found[0].cookie, Some(0));
            let states: BTreeSet<_> = find(&rows, listener.local_addr().unwrap())
                .iter()
                .map(|row| (row.state.name(), row.inode))
                .collect();
            assert_eq!(
                states,
                BTreeSet::from([("listen", inode(&listener)), ("established", inode(&server))])
            );
        }
    });
}

#[test]
fn time_wait_keeps_the_cookie_of_its_connection() {
    testing::in_new_netns(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let local = client.local_addr().unwrap();
        let Some(before) = rows_now(Protocol::Tcp, Family::Ipv4) else { return };
        drop(client);
        assert_eq!(std::io::Read::read(&mut server, &mut [0]).unwrap(), 0);
        drop(server);
        let deadline = Instant::now() + Duration::from_secs(5);
        let after = loop {
            let rows = rows_now(Protocol::Tcp, Family::Ipv4).unwrap();
            let found = find(&rows, local);
            if found.iter().any(|row| row.state == State::TimeWait) {
                break *found[0];
            }
            assert!(Instant::now() < deadline, "no TIME_WAIT row within 5 s: {found:?}");
        };
        assert_eq!(after.cookie, find(&before, local)[0].cookie);
        assert_eq!((after.inode, after.timer), (0, Timer::TimeWait));
        assert!((50_000..=60_000).contains(&after.expires_ms), "{} ms", after.expires_ms);
    });
}

#[test]
fn bound_sockets_show_where_the_kernel_lists_them() {
    testing::in_new_netns(|| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 4711)).unwrap();
        let Some(rows) = rows_now(Protocol::Tcp, Family::Ipv4) else { return };
        let states: Vec<_> = rows.iter().map(|row| (row.local_port, row.state_name(), row.inode)).collect();
        let expected = [(4711, "bound", inode(&fd))];
        assert_eq!(states, if lists_bound_sockets() { &expected[..] } else { &[] });
    });
}

#[test]
fn udp_sockets_are_bound_or_connected() {
    testing::in_new_netns(|| {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let Some(rows) = rows_now(Protocol::Udp, Family::Ipv4) else { return };
        let state = |socket: &UdpSocket| find(&rows, socket.local_addr().unwrap())[0].state_name();
        assert_eq!((state(&server), state(&client)), ("bound", "established"));
    });
}

#[test]
fn only_dual_stack_listeners_say_so() {
    testing::in_new_netns(|| {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let Some(rows) = rows_now(Protocol::Tcp, Family::Ipv6) else { return };
        assert_eq!(find(&rows, listener.local_addr().unwrap())[0].is_v6_only, Some(false));
    });
}

/// Leaves `count` time-wait entries in the current network namespace, which is the test's own.
fn make_time_waits(count: usize) {
    for (name, value) in
        [("tcp_max_tw_buckets", "100000"), ("tcp_tw_reuse", "0"), ("ip_local_port_range", "1024 65535")]
    {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:1023").unwrap();
    let addr = listener.local_addr().unwrap();
    for _ in 0..count {
        let client = TcpStream::connect(addr).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        drop(client);
        // The client closes first: its FIN must be here before the server's goes out.
        assert_eq!(std::io::Read::read(&mut server, &mut [0]).unwrap(), 0);
    }
}

#[test]
fn twenty_thousand_time_waits_are_listed_in_well_under_300_ms() {
    const COUNT: usize = 20_000;
    testing::in_new_netns(|| {
        make_time_waits(COUNT);
        let key = |row: &SocketRow| (row.local_port, row.remote_port);
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let Some(rows) = rows_now(Protocol::Tcp, Family::Ipv4) else { return };
            best = best.min(start.elapsed());
            let waiting: BTreeSet<_> =
                rows.iter().filter(|row| row.state == State::TimeWait).map(key).collect();
            assert_eq!(waiting.len(), COUNT);
        }
        let start = Instant::now();
        let mut text = BTreeSet::new();
        proc_net::list(Protocol::Tcp, Family::Ipv4, |row| {
            if row.state == State::TimeWait {
                text.insert(key(row));
            }
        })
        .unwrap();
        println!("{COUNT} TIME_WAIT rows: sock_diag {best:?}, /proc/net {:?}", start.elapsed());
        assert_eq!(text.len(), COUNT, "/proc/net lists the same");
        assert!(best < Duration::from_millis(300), "{best:?}");
    });
}
