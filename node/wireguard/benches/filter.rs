//! What a packet filter costs in the engine: `cargo bench -p mesh-wireguard`. Needs root, for two network namespaces.
//!
//! Two engines carry traffic between two hosts: a TCP stream in full packets, where the filter is asked once for a
//! super-packet on the way out and for every packet on the way in, and datagrams of 64 bytes, where it is asked twice for
//! each. Counted is the processor time of the engines' threads, the kernel's part with it, for each packet that arrives:
//! without a filter, with one that admits all, and with one of 16 rules by protocol and port, the last of which matches.
//! They take turns, and the median of the rounds counts. Last, a question to each filter alone.

#![allow(clippy::unwrap_used, reason = "a bench tells what went wrong by panic")]

#[path = "../tests/hosts/mod.rs"]
mod hosts;

use hosts::{Host, key};
use mesh_types::PublicKey;
use mesh_wireguard::engine::{Direction, PacketFilter};
use std::fs;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PORT: u16 = 7_000;
const ROUNDS: usize = 15;
/// What a tunnel of 1,420 bytes leaves to TCP with timestamps.
const SEGMENT: usize = 1_368;
const STREAM: usize = 40_000 * SEGMENT;
const DATAGRAMS: usize = 40_000;
/// Datagrams under way: fewer than any queue holds.
const WINDOW: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);
const QUESTIONS: u32 = 10_000_000;

type Filter = Option<Arc<dyn PacketFilter>>;

fn main() {
    let (a, b) = Host::pair(None);
    let filters: [(&str, Filter); 3] =
        [("no filter", None), ("admits all", Some(Arc::new(All))), ("16 rules", Some(Arc::new(Rules::realistic())))];
    let (mut stream, mut datagrams) = (Stream::new(&a, &b), Datagrams::new(&a, &b));
    compare("TCP stream", [&a, &b], &filters, || stream.carry());
    compare("64-byte datagrams", [&a, &b], &filters, || datagrams.carry());
    for (name, filter) in &filters {
        if let Some(filter) = filter {
            ask(name, &**filter);
        }
    }
}

/// Prints the median of what a packet costs with each filter. `carry` returns how many it carried.
fn compare(what: &str, hosts: [&Host; 2], filters: &[(&str, Filter); 3], mut carry: impl FnMut() -> usize) {
    carry();
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, filter), costs) in filters.iter().zip(&mut costs) {
            hosts.iter().for_each(|host| host.engine.set_filter(filter.clone()));
            let before = engines_time();
            let packets = carry();
            costs.push((engines_time() - before).as_secs_f64() * 1e9 / packets as f64);
        }
    }
    let medians = costs.map(|mut costs| {
        costs.sort_by(f64::total_cmp);
        costs[ROUNDS / 2]
    });
    for ((name, _), cost) in filters.iter().zip(medians) {
        println!("{what:<20}{name:<12}{cost:8.0} ns a packet, both ends {:8.3}", cost / medians[0]);
    }
}

/// Prints how long a filter takes to answer.
fn ask(name: &str, filter: &dyn PacketFilter) {
    let (packet, peer) = (packet(), key(1).1);
    let start = Instant::now();
    for _ in 0..QUESTIONS {
        black_box(black_box(filter).admits(&peer, Direction::Inbound, black_box(&packet)));
    }
    println!(
        "{:<20}{name:<12}{:8.1} ns a question",
        "alone",
        start.elapsed().as_secs_f64() * 1e9 / f64::from(QUESTIONS)
    );
}

/// Processor time of the engines' threads so far.
fn engines_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let nanoseconds: Option<u64> = read("schedstat").split(' ').next().and_then(|time| time.parse().ok());
        nanoseconds.filter(|_| read("comm").starts_with("wg-"))
    };
    Duration::from_nanos(tasks.filter_map(|task| of(task.ok()?)).sum())
}

struct Stream {
    from: TcpStream,
    to: TcpStream,
}

impl Stream {
    fn new(a: &Host, b: &Host) -> Self {
        let listener = b.within(|| TcpListener::bind(("10.77.0.2", PORT)).unwrap());
        let from = a.within(|| TcpStream::connect(("10.77.0.2", PORT)).unwrap());
        let (to, _) = listener.accept().unwrap();
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { from, to }
    }

    fn carry(&mut self) -> usize {
        std::thread::scope(|scope| {
            scope.spawn(|| self.from.write_all(&[7; STREAM]).unwrap());
            let mut buffer = vec![0; 1 << 20];
            let mut left = STREAM;
            while left > 0 {
                left -= self.to.read(&mut buffer).unwrap();
            }
        });
        STREAM / SEGMENT
    }
}

struct Datagrams {
    from: UdpSocket,
    to: UdpSocket,
}

impl Datagrams {
    fn new(a: &Host, b: &Host) -> Self {
        let from = a.within(|| UdpSocket::bind(("10.77.0.1", PORT)).unwrap());
        let to = b.within(|| UdpSocket::bind(("10.77.0.2", PORT)).unwrap());
        from.connect(("10.77.0.2", PORT)).unwrap();
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { from, to }
    }

    fn carry(&mut self) -> usize {
        let mut buffer = [0; 64];
        for _ in 0..DATAGRAMS / WINDOW {
            for _ in 0..WINDOW {
                self.from.send(&buffer).unwrap();
            }
            for _ in 0..WINDOW {
                self.to.recv(&mut buffer).unwrap();
            }
        }
        DATAGRAMS
    }
}

struct All;

impl PacketFilter for All {
    fn admits(&self, _: &PublicKey, _: Direction, _: &[u8]) -> bool {
        true
    }
}

/// The first rule that matches decides; without one a packet does not pass.
struct Rules(Vec<Rule>);

struct Rule {
    protocol: u8,
    ports: RangeInclusive<u16>,
    admits: bool,
}

impl Rules {
    fn realistic() -> Self {
        let service = |n: u16| Rule {
            protocol: if n.is_multiple_of(3) { 17 } else { 6 },
            ports: 100 * n..=100 * n + n,
            admits: true,
        };
        let last = [6, 17].map(|protocol| Rule { protocol, ports: PORT..=PORT, admits: true });
        Self((1..=14).map(service).chain(last).collect())
    }
}

impl PacketFilter for Rules {
    fn admits(&self, _: &PublicKey, _: Direction, packet: &[u8]) -> bool {
        let Some((protocol, ports)) = parse(packet) else { return false };
        let matches = |rule: &&Rule| rule.protocol == protocol && ports.iter().any(|port| rule.ports.contains(port));
        self.0.iter().find(matches).is_some_and(|rule| rule.admits)
    }
}

/// Protocol and both ports. Fragments and IPv6's extension headers have none here.
fn parse(packet: &[u8]) -> Option<(u8, [u16; 2])> {
    let (protocol, start) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet[0] & 15) * 4),
        _ => (*packet.get(6)?, 40),
    };
    let ports = packet.get(start..)?.first_chunk::<4>()?;
    Some((protocol, [u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])]))
}

/// The headers of a TCP packet to the port.
fn packet() -> [u8; 40] {
    let mut packet = [0; 40];
    (packet[0], packet[9], packet[20]) = (0x45, 6, 0x9c);
    packet[22..24].copy_from_slice(&PORT.to_be_bytes());
    packet
}
