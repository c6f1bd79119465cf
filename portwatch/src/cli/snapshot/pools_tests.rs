use super::*;
use crate::event::{Comm, Endpoints, Family, Owner};
use crate::output::Netns;

const NETNS: u32 = 7;

struct Host {
    baseline: Baseline,
}

impl Host {
    fn new(range: (u16, u16)) -> Host {
        let namespaces =
            vec![Netns { inode: NETNS, port_range: Some(range), reserved: Some(vec![]), ..Netns::default() }];
        Host { baseline: Baseline { namespaces, ..Baseline::default() } }
    }

    fn with(mut self, protocol: Protocol, state: State, local: &str, remote: Option<&str>) -> Host {
        let split = |text: &str| -> (std::net::Ipv6Addr, u16) {
            let at: std::net::SocketAddr = text.parse().unwrap();
            let ip = match at.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            (ip, at.port())
        };
        let (local_ip, local_port) = split(local);
        let remote = remote.map(split);
        let owner = Owner {
            tgid: Some(42),
            tid: None,
            ppid: None,
            uid: 0,
            ns_tgid: None,
            start_boot_ns: 0,
            cgroup_id: 0,
            comm: Comm(*b"client\0\0\0\0\0\0\0\0\0\0"),
            is_kernel: false,
        };
        self.baseline.sockets.push(OpenSocket {
            endpoints: Endpoints {
                netns: NETNS,
                family: Family::Ipv4,
                protocol,
                local: local_ip,
                remote: remote.map_or(std::net::Ipv6Addr::UNSPECIFIED, |(ip, _)| ip),
                local_port: Some(local_port),
                remote_port: remote.map(|(_, port)| port),
            },
            direction: if state == State::Listen { Direction::In } else { Direction::Out },
            state,
            state_name: state.name(),
            inode: None,
            cookie: None,
            cgroup_id: None,
            uid: None,
            time_wait_left_ms: None,
            owner: (state != State::TimeWait).then_some(owner),
            holders: 1,
        });
        self
    }

    fn pools(&self) -> Pools {
        count(&self.baseline, |_| true)
    }
}

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;

#[test]
fn a_port_counts_for_each_destination_and_once_for_each() {
    let host = Host::new((40000, 40009))
        .with(TCP, State::Established, "10.0.0.1:40000", Some("10.0.0.2:80"))
        .with(TCP, State::Established, "10.0.0.1:40001", Some("10.0.0.2:80"))
        .with(TCP, State::TimeWait, "10.0.0.1:40002", Some("10.0.0.2:80"))
        .with(TCP, State::Established, "10.0.0.1:40000", Some("10.0.0.3:80"))
        // Bound by number, outside of the range.
        .with(TCP, State::Established, "10.0.0.1:8080", Some("10.0.0.3:80"));
    let pools = host.pools().pools;
    let rows: Vec<_> =
        pools.iter().map(|pool| (pool.live, pool.time_wait, pool.others, pool.capacity)).collect();
    assert_eq!(rows, [(2, 1, 0, Some(10)), (1, 0, 1, Some(10))]);
    assert_eq!(pools[0].utilization(), Some(0.3));
    assert_eq!(pools[0].holders, [Holder { pid: 42, comm: "client".to_owned(), sockets: 2 }]);
}

#[test]
fn bound_ports_are_missing_everywhere() {
    let mut host = Host::new((40000, 40009))
        .with(TCP, State::Listen, "0.0.0.0:40004", None)
        .with(TCP, State::Close, "10.0.0.1:40006", None)
        .with(TCP, State::Listen, "0.0.0.0:80", None)
        .with(TCP, State::Established, "10.0.0.1:40000", Some("10.0.0.2:80"));
    let pools = host.pools();
    assert_eq!((pools.pools[0].capacity, pools.pools[0].bound), (Some(8), None), "an upper bound");
    assert_eq!(pools.listeners.len(), 1, "{:?}", pools.listeners);
    assert_eq!(pools.listeners[0].port, 40004);
    host.baseline.namespaces[0].port_range = None;
    assert_eq!((host.pools().pools[0].capacity, host.pools().pools[0].utilization()), (None, None));
}

#[test]
fn a_udp_port_is_one_socket_of_an_address() {
    let pools = Host::new((40000, 40009))
        .with(UDP, State::Established, "10.0.0.1:40000", Some("10.0.0.2:53"))
        .with(UDP, State::Close, "10.0.0.1:40001", None)
        .with(UDP, State::Close, "0.0.0.0:40002", None)
        .with(UDP, State::Close, "0.0.0.0:53", None)
        .pools()
        .pools;
    let row = |local: &str| {
        let local: IpAddr = local.parse().unwrap();
        let pool = pools.iter().find(|pool| pool.key.local == local).unwrap();
        (pool.live, pool.bound, pool.capacity, pool.others, pool.key.remote)
    };
    assert_eq!(pools.len(), 2);
    assert_eq!(row("10.0.0.1"), (2, Some(1), Some(9), 0, None));
    // Who asks for a port on all addresses must find one that is free on each.
    assert_eq!(row("0.0.0.0"), (1, Some(2), Some(8), 1, None));
}

#[test]
fn the_fullest_comes_first() {
    let host = Host::new((40000, 40009))
        .with(TCP, State::Established, "10.0.0.1:40000", Some("10.0.0.2:80"))
        .with(TCP, State::Established, "10.0.0.1:40001", Some("10.0.0.3:80"))
        .with(TCP, State::TimeWait, "10.0.0.1:40002", Some("10.0.0.3:80"));
    let ports: Vec<_> = host.pools().pools.iter().map(|pool| pool.in_use()).collect();
    assert_eq!(ports, [2, 1]);
}
