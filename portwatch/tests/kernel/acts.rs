//! System calls that tell what they did: each makes its call, checks its result, and adds the story.

use std::net::SocketAddr;

use nix::errno::Errno;

use crate::sockets::Socket;
use crate::truth::{Failure, Happened, How, Id, Reason, Story, Truth, now_ns};

impl Truth {
    fn begin(&mut self, socket: &Socket, how: How, begun_ns: u64, events: Vec<Happened>) -> Id {
        let owner = self.me().clone();
        self.add(Story {
            owner,
            how,
            family: socket.family,
            protocol: socket.protocol,
            local: None,
            port: None,
            peer: None,
            call_ns: (begun_ns, now_ns()),
            listens: false,
            told_at_connect: false,
            is_long: false,
            events,
        })
    }

    /// A connect that gets a port and, sooner or later, a connection.
    pub fn connected(&mut self, socket: &Socket, peer: SocketAddr) -> Id {
        let id = self.connecting(socket, peer);
        self.then(id, [Happened::Established]);
        id
    }

    /// A blocking connect that may find no port.
    pub fn attempt(&mut self, socket: &Socket, peer: SocketAddr) -> Result<Id, Errno> {
        let begun_ns = now_ns();
        let result = socket.connect(peer);
        match result {
            Ok(()) => {
                let id = self.got_port(socket, peer, begun_ns);
                self.then(id, [Happened::Established]);
                Ok(id)
            }
            Err(errno) => {
                self.no_port(socket, peer, begun_ns, errno);
                Err(errno)
            }
        }
    }

    /// A connect that gets a port; what comes of it is the caller's to tell.
    pub fn connecting(&mut self, socket: &Socket, peer: SocketAddr) -> Id {
        let begun_ns = now_ns();
        match socket.connect(peer) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => panic!("connect to {peer}: {errno}"),
        }
        self.got_port(socket, peer, begun_ns)
    }

    /// A connect that gets a port and is then refused with `errno`, at once or later.
    pub fn refused(&mut self, socket: &Socket, peer: SocketAddr, errno: Errno) -> Id {
        let begun_ns = now_ns();
        let result = match socket.connect(peer) {
            Err(Errno::EINPROGRESS) => socket.wait_for_error(),
            result => result,
        };
        assert_eq!(result, Err(errno), "connect to {peer}");
        // The name stays after the port went.
        let id = self.got_port(socket, peer, begun_ns);
        let failed = Happened::ConnectFailed(Failure::Errno(errno as i32));
        self.then(id, [failed, Happened::Released { reason: vec![Reason::Closed] }]);
        id
    }

    fn got_port(&mut self, socket: &Socket, peer: SocketAddr, begun_ns: u64) -> Id {
        let id = self.begin(socket, How::Connect, begun_ns, vec![Happened::Allocated]);
        let local = socket.local();
        // A failed connect leaves the port to be read, but not the address; loopback talks to itself.
        let address = if local.ip().is_unspecified() { peer.ip() } else { local.ip() };
        let story = self.story(id);
        (story.local, story.port, story.peer) = (Some(address), Some(local.port()), Some(peer));
        id
    }

    /// A connect that gets no port.
    pub fn connect_fails(&mut self, socket: &Socket, peer: SocketAddr, errno: Errno) -> Id {
        let begun_ns = now_ns();
        assert_eq!(socket.connect(peer), Err(errno), "connect to {peer}");
        self.no_port(socket, peer, begun_ns, errno)
    }

    fn no_port(&mut self, socket: &Socket, peer: SocketAddr, begun_ns: u64, errno: Errno) -> Id {
        let failed = vec![Happened::ConnectFailed(Failure::Errno(errno as i32))];
        let id = self.begin(socket, How::Connect, begun_ns, failed);
        self.story(id).peer = Some(peer);
        id
    }

    /// A bind that gets its port.
    pub fn bound(&mut self, socket: &Socket, address: SocketAddr) -> Id {
        let begun_ns = now_ns();
        socket.bind(address).unwrap_or_else(|errno| panic!("bind to {address}: {errno}"));
        let id = self.begin(socket, How::Bind, begun_ns, vec![Happened::Allocated]);
        let local = socket.local();
        let story = self.story(id);
        (story.local, story.port) = (Some(local.ip()), Some(local.port()));
        id
    }

    pub fn bind_fails(&mut self, socket: &Socket, address: SocketAddr, errno: Errno) -> Id {
        let begun_ns = now_ns();
        assert_eq!(socket.bind(address), Err(errno), "bind to {address}");
        let failed = vec![Happened::BindFailed(Failure::Errno(errno as i32))];
        let id = self.begin(socket, How::Bind, begun_ns, failed);
        let story = self.story(id);
        (story.local, story.port) = (Some(address.ip()), (address.port() != 0).then_some(address.port()));
        id
    }

    /// The connect of a UDP socket without a port, which gets one. There is nobody to refuse it.
    pub fn udp_connected(&mut self, socket: &Socket, peer: SocketAddr) -> Id {
        let begun_ns = now_ns();
        socket.connect(peer).unwrap_or_else(|errno| panic!("connect to {peer}: {errno}"));
        self.got_port(socket, peer, begun_ns)
    }

    /// The same towards nowhere: the port is got first, and kept.
    pub fn udp_connect_has_no_route(&mut self, socket: &Socket, peer: SocketAddr, errno: Errno) -> Id {
        let begun_ns = now_ns();
        assert_eq!(socket.connect(peer), Err(errno), "connect to {peer}");
        let failed = Happened::ConnectFailed(Failure::Errno(errno as i32));
        let id = self.begin(socket, How::Connect, begun_ns, vec![Happened::Allocated, failed]);
        let local = socket.local();
        let story = self.story(id);
        (story.local, story.port, story.peer) = (Some(local.ip()), Some(local.port()), Some(peer));
        id
    }

    /// The first datagram of a UDP socket without a port.
    pub fn sent(&mut self, socket: &Socket, peer: SocketAddr) -> Id {
        let begun_ns = now_ns();
        socket.send_to(peer).unwrap_or_else(|errno| panic!("send to {peer}: {errno}"));
        let id = self.begin(socket, How::Autobind, begun_ns, vec![Happened::Allocated]);
        let local = socket.local();
        let story = self.story(id);
        (story.local, story.port, story.peer) = (Some(local.ip()), Some(local.port()), Some(peer));
        id
    }

    pub fn send_fails(&mut self, socket: &Socket, peer: SocketAddr, errno: Errno) -> Id {
        let begun_ns = now_ns();
        assert_eq!(socket.send_to(peer), Err(errno), "send to {peer}");
        let failed = vec![Happened::ConnectFailed(Failure::Errno(errno as i32))];
        let id = self.begin(socket, How::Autobind, begun_ns, failed);
        self.story(id).peer = Some(peer);
        id
    }

    /// A listen on a socket that has no port yet.
    pub fn listens_unbound(&mut self, socket: &Socket) -> Id {
        let begun_ns = now_ns();
        socket.listen(8).expect("listen without bind");
        let id = self.begin(socket, How::Listen, begun_ns, vec![Happened::Allocated]);
        let local = socket.local();
        let story = self.story(id);
        (story.local, story.port, story.listens) = (Some(local.ip()), Some(local.port()), true);
        id
    }

    pub fn listen_fails(&mut self, socket: &Socket, errno: Errno) -> Id {
        let begun_ns = now_ns();
        assert_eq!(socket.listen(8), Err(errno), "listen");
        let failed = vec![Happened::BindFailed(Failure::Errno(errno as i32))];
        self.begin(socket, How::Listen, begun_ns, failed)
    }
}
