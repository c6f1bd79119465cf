//! nginx as a proxy that opens a connection to its upstream for every request, judged by its own access log.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Stopped;
use crate::http::{Closed, Server};
use crate::judge::{Expected, Outcome, Traced};
use crate::programs::{self, many};
use crate::stage::{self, Running, Stage};

const COMM: &str = "nginx";

/// `DIR`, `PORT` and `UPSTREAM` are filled in. Nothing of the machine's own configuration is read.
const CONFIGURATION: &str = "
daemon off;
worker_processes 2;
pid DIR/nginx.pid;
error_log stderr warn;
events { worker_connections 256; }
http {
    log_format told '$pid $status $remote_addr:$remote_port';
    access_log DIR/access.log told;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    server {
        listen 127.0.0.1:PORT;
        location / { proxy_pass http://UPSTREAM; }
    }
}
";

/// Both connections of a request, each with its own owner.
pub fn proxy(stage: &Stage) -> Result<(), Stopped> {
    let server = Server::start();
    let nginx = Nginx::start(stage, server.address)?;
    let traced = Traced::everything(stage)?;
    let curls = nginx.ask(stage, many(40))?;
    let (frontend, requests) = nginx.stop(stage)?;
    let run = traced.stop()?;
    let seen = server.seen();
    assert!(requests.iter().all(|request| request.status == 200), "nginx could not reach its upstream");
    assert_eq!((requests.len(), seen.peers.len()), (many(40), many(40)));
    let upstream = Expected {
        comm: COMM.to_owned(),
        to: server.address,
        begun: per_worker(&requests),
        outcome: Outcome::Accepted(Some(seen.peers)),
    };
    Ok(run.check(0, &[upstream, of_clients(frontend, &curls, &requests)])?)
}

/// An upstream that refuses: one failure for every 502 that a client got.
pub fn upstream_down(stage: &Stage) -> Result<(), Stopped> {
    let closed = Closed::new();
    let nginx = Nginx::start(stage, closed.address)?;
    let traced = Traced::everything(stage)?;
    let curls = nginx.ask(stage, many(16))?;
    let (frontend, requests) = nginx.stop(stage)?;
    let run = traced.stop()?;
    assert!(
        requests.iter().all(|request| request.status == 502),
        "somebody answered in the upstream's place"
    );
    assert_eq!(requests.len(), many(16));
    let upstream = Expected {
        comm: COMM.to_owned(),
        to: closed.address,
        begun: per_worker(&requests),
        outcome: Outcome::Refused,
    };
    Ok(run.check(0, &[upstream, of_clients(frontend, &curls, &requests)])?)
}

/// A line of the access log.
struct Request {
    worker: u32,
    status: u16,
    client: SocketAddr,
}

fn per_worker(requests: &[Request]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts.entry(request.worker).or_default() += 1;
    }
    counts
}

/// The other side: one connection from every curl to nginx.
fn of_clients(frontend: SocketAddr, curls: &[u32], requests: &[Request]) -> Expected {
    Expected {
        comm: "curl".to_owned(),
        to: frontend,
        begun: curls.iter().map(|&pid| (pid, 1)).collect(),
        outcome: Outcome::Accepted(Some(requests.iter().map(|request| request.client).collect())),
    }
}

struct Nginx {
    running: Running,
    address: SocketAddr,
    curl: String,
}

impl Nginx {
    fn start(stage: &Stage, upstream: SocketAddr) -> Result<Nginx, Stopped> {
        let (nginx, curl) = (programs::find(COMM)?, programs::find("curl")?);
        let port = stage::free_port();
        let directory = stage.path("nginx");
        std::fs::create_dir(&directory).map_err(|error| format!("no directory for nginx: {error}"))?;
        let directory = directory.display().to_string();
        let configuration = CONFIGURATION
            .replace("DIR", &directory)
            .replace("PORT", &port.to_string())
            .replace("UPSTREAM", &upstream.to_string());
        let configuration = stage.write("nginx.conf", &configuration);
        let mut command = Command::new(nginx);
        // Before its configuration is read it would write where the package says.
        command.args(["-c", &configuration, "-p", &directory, "-e", "stderr"]);
        let mut running = stage.start(COMM, &mut command)?;
        running.wait_for_port(port)?;
        Ok(Nginx { running, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), curl })
    }

    /// One curl after the other; their process ids.
    fn ask(&self, stage: &Stage, count: usize) -> Result<Vec<u32>, String> {
        let ask = |_| {
            let mut command = Command::new(&self.curl);
            command.args(["-sS", "--noproxy", "*", &format!("http://{}/", self.address)]);
            let running = stage.start("curl", &mut command)?;
            let pid = running.pid();
            let status = running.wait()?;
            if status.success() { Ok(pid) } else { Err(format!("curl ended with {status}")) }
        };
        (0..count).map(ask).collect()
    }

    /// Ends it, so that its access log is whole; where it listened, and what it served.
    fn stop(self, stage: &Stage) -> Result<(SocketAddr, Vec<Request>), String> {
        let status = self.running.stop(Signal::SIGTERM)?;
        if !status.success() {
            return Err(format!("nginx ended with {status}"));
        }
        let text = stage.read("nginx/access.log")?;
        let requests = text.lines().map(|line| request(line).ok_or_else(|| format!("nginx logs `{line}`")));
        Ok((self.address, requests.collect::<Result<_, _>>()?))
    }
}

fn request(line: &str) -> Option<Request> {
    let mut words = line.split(' ');
    Some(Request {
        worker: words.next()?.parse().ok()?,
        status: words.next()?.parse().ok()?,
        client: words.next()?.parse().ok()?,
    })
}
