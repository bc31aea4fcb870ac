//! Two engines on two hosts, network namespaces of this test: what backends have not in common.
//!
//! Needs root; without it the tests fail and say so, unless `MESHCTL_SKIP_ROOT_TESTS` is set.

#![allow(clippy::unwrap_used, reason = "a test tells what went wrong by panic")]

mod hosts;

use hosts::{Host, key};
use libtest_mimic::{Arguments, Trial};
use mesh_types::PublicKey;
use mesh_wireguard::engine::{Change, Direction, FRAME_MAGIC, PacketFilter, PeerChange, PeerChangeKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let skip = std::env::var_os("MESHCTL_SKIP_ROOT_TESTS").is_some();
    let cases: [(&str, fn()); 10] = [
        ("a_stream_arrives_as_it_was_sent", a_stream_arrives_as_it_was_sent),
        ("datagrams_of_all_sizes_arrive_whole", datagrams_of_all_sizes_arrive_whole),
        ("a_packet_that_no_udp_packet_holds_is_lost_alone", a_packet_that_no_udp_packet_holds_is_lost_alone),
        ("workers_share_the_traffic_and_keep_its_order", workers_share_the_traffic_and_keep_its_order),
        ("a_filter_decides_which_packets_pass", a_filter_decides_which_packets_pass),
        ("frames_share_the_port_and_reach_who_listens", frames_share_the_port_and_reach_who_listens),
        ("peers_come_and_go_while_others_talk", peers_come_and_go_while_others_talk),
        ("a_tunnel_does_not_carry_itself", a_tunnel_does_not_carry_itself),
        ("nothing_leaves_from_the_tunnels_own_address", nothing_leaves_from_the_tunnels_own_address),
        ("an_engine_without_its_interface_ends", an_engine_without_its_interface_ends),
    ];
    let trials = cases.into_iter().map(|(name, case)| {
        let run = move || {
            case();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(skip)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn a_stream_arrives_as_it_was_sent() {
    let (a, b) = Host::pair(None);
    assert_eq!(stream(&a, &b, 7_000, 24 << 20), digest(24 << 20));
}

fn datagrams_of_all_sizes_arrive_whole() {
    let (a, b) = Host::pair(None);
    let receiver = b.within(|| udp("10.77.0.2", 7_000));
    let sender = a.within(|| udp("10.77.0.1", 0));
    let mut buffer = vec![0; 65_536];
    for size in [0, 1, 15, 16, 17, 511, 1_280, 1_391, 1_392, 1_393, 2_000, 8_900, 20_000] {
        let sent: Vec<u8> = (0..size).map(|n| n as u8).collect();
        // The first may wait for the handshake; none is lost.
        sender.send_to(&sent, "10.77.0.2:7000").unwrap();
        let length = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert!(buffer[..length] == sent, "{size} bytes changed on their way");
    }
}

fn a_packet_that_no_udp_packet_holds_is_lost_alone() {
    let (a, b) = Host::pair(None);
    for host in [&a, &b] {
        host.ip("link set wg mtu 65535");
    }
    let receiver = b.within(|| udp("10.77.0.2", 7_000));
    let sender = a.within(|| udp("10.77.0.1", 0));
    let mut buffer = vec![0; 65_536];
    for size in [60_000, 65_507, 60_001] {
        sender.send_to(&vec![7; size], "10.77.0.2:7000").unwrap();
    }
    for size in [60_000, 60_001] {
        assert_eq!(receiver.recv(&mut buffer).unwrap(), size);
    }
    assert!(a.engine.is_alive());
}

fn workers_share_the_traffic_and_keep_its_order() {
    let (a, b) = Host::pair(Some(4));
    let streams: Vec<_> = (0..4u16)
        .map(|n| {
            let (a, b) = (a.clone(), b.clone());
            std::thread::spawn(move || assert_eq!(stream(&a, &b, 7_000 + n, 4 << 20), digest(4 << 20)))
        })
        .collect();
    streams.into_iter().for_each(|stream| stream.join().unwrap());
}

fn a_filter_decides_which_packets_pass() {
    struct NotTo(u16, Direction);
    impl PacketFilter for NotTo {
        fn admits(&self, peer: &PublicKey, direction: Direction, packet: &[u8]) -> bool {
            assert!(*peer == key(1).1 || *peer == key(2).1);
            direction != self.1 || packet[22..24] != self.0.to_be_bytes()
        }
    }
    let (a, b) = Host::pair(None);
    let (open, closed) = b.within(|| (udp("10.77.0.2", 7_000), udp("10.77.0.2", 7_777)));
    let sender = a.within(|| udp("10.77.0.1", 0));
    let arrives = |port: u16, socket: &UdpSocket| {
        sender.send_to(&[7], ("10.77.0.2", port)).unwrap();
        // What is let through comes behind it; by then the other has come or will not.
        sender.send_to(&[8], "10.77.0.2:7000").unwrap();
        let mut buffer = [0; 9];
        while open.recv(&mut buffer).is_ok_and(|_| buffer[0] != 8) {}
        socket.set_nonblocking(true).unwrap();
        socket.recv(&mut buffer).is_ok()
    };
    assert!(arrives(7_777, &closed));
    for (host, direction) in [(&a, Direction::Outbound), (&b, Direction::Inbound)] {
        host.engine.set_filter(Some(Arc::new(NotTo(7_777, direction))));
        assert!(!arrives(7_777, &closed), "{direction:?}");
        host.engine.set_filter(None);
        assert!(arrives(7_777, &closed), "{direction:?}: lifted");
    }
}

fn frames_share_the_port_and_reach_who_listens() {
    let (a, b) = Host::pair(None);
    let frames = b.engine.frames();
    let frame = [FRAME_MAGIC.as_slice(), b" frame"].concat();
    a.engine.send_frame("192.0.2.2:51820".parse().unwrap(), b"no frame").unwrap();
    a.engine.send_frame("192.0.2.2:51820".parse().unwrap(), &frame).unwrap();
    let heard = frames.recv_timeout(PATIENCE).unwrap();
    assert_eq!((heard.from, heard.bytes), ("192.0.2.1:51820".parse().unwrap(), frame));
    assert!(frames.try_recv().is_err(), "what is no frame is not heard");
}

fn peers_come_and_go_while_others_talk() {
    let (a, b) = Host::pair(None);
    let talk = {
        let (a, b) = (a.clone(), b.clone());
        std::thread::spawn(move || assert_eq!(stream(&a, &b, 7_000, 24 << 20), digest(24 << 20)))
    };
    let strangers: Vec<PublicKey> = (0..300u32)
        .map(|n| {
            let mut bytes = [9; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            PublicKey::from_bytes(bytes)
        })
        .collect();
    while !talk.is_finished() {
        for (n, stranger) in strangers.iter().enumerate() {
            let mut change = PeerChange::new(*stranger, PeerChangeKind::Set);
            change.allowed_ips.push(format!("10.80.{}.{}/32", n / 256, n % 256).parse().unwrap());
            a.engine.apply(&[Change::Peer(change)]).unwrap();
        }
        assert_eq!(a.engine.read().peers.len(), 1 + strangers.len());
        let gone = strangers.iter().map(|key| Change::Peer(PeerChange::new(*key, PeerChangeKind::Remove)));
        a.engine.apply(&gone.collect::<Vec<_>>()).unwrap();
    }
    talk.join().unwrap();
    let peer = a.engine.peer(&key(2).1).unwrap();
    assert!(peer.tx_bytes > 24 << 20, "{peer:?}");
    assert!(peer.last_received.is_some() && peer.last_handshake.is_some(), "{peer:?}");
    assert!(a.engine.peer(&strangers[0]).is_none());
}

fn a_tunnel_does_not_carry_itself() {
    const DATAGRAMS: u64 = 20;
    let (a, b) = Host::pair(None);
    let receiver = b.within(|| udp("10.77.0.2", 7_000));
    let sender = a.within(|| udp("10.77.0.1", 0));
    sender.send_to(&[1], "10.77.0.2:7000").unwrap();
    receiver.recv(&mut [0; 9]).unwrap();
    let sent = || a.engine.peer(&key(2).1).unwrap().tx_bytes;
    let move_to = |endpoint: &str| {
        let mut change = PeerChange::new(key(2).1, PeerChangeKind::Update);
        change.endpoint = Some(endpoint.parse().unwrap());
        a.engine.apply(&[Change::Peer(change)]).unwrap();
    };
    // From the tunnel's own address nothing would be sent at all.
    a.ip("route replace 10.77.0.2/32 dev wg src 192.0.2.1");
    // Where b is inside of the tunnel. The larger datagrams leave in fragments, of which the second is carried once.
    move_to("10.77.0.2:51820");
    for (size, carried) in [(100, 1), (1_390, 2)] {
        let (before, looped) = (sent(), a.engine.read().looped_datagrams);
        (0..DATAGRAMS).for_each(|_| assert!(sender.send_to(&vec![7; size], "10.77.0.2:7000").is_ok()));
        let since = Instant::now();
        while a.engine.read().looped_datagrams < looped + DATAGRAMS * carried {
            assert!(since.elapsed() < PATIENCE, "{:?}", a.engine.read());
            std::thread::yield_now();
        }
        let bytes = sent() - before;
        assert!(bytes < DATAGRAMS * carried * 1_500, "{bytes} bytes were sent for {DATAGRAMS} datagrams of {size}");
    }
    // What forwards another tunnel's messages.
    let of_another = [&[4, 0, 0, 0][..], &[0x55; 60]].concat();
    move_to("192.0.2.2:51820");
    sender.send_to(&of_another, "10.77.0.2:7000").unwrap();
    let mut buffer = [0; 2_000];
    let length = receiver.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], of_another);
}

fn nothing_leaves_from_the_tunnels_own_address() {
    let (a, b) = Host::pair(None);
    let receiver = b.within(|| udp("10.77.0.2", 7_000));
    let sender = a.within(|| udp("10.77.0.1", 0));
    let passes = |payload: u8| {
        let (mut buffer, mut others) = ([0; 9], 0);
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            sender.send_to(&[payload], "10.77.0.2:7000").unwrap();
            receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            while receiver.recv(&mut buffer).is_ok() {
                if buffer[0] == payload {
                    return others;
                }
                others += usize::from(buffer[0] == 2);
            }
        }
        panic!("{payload} does not come through");
    };
    let endpoint = || b.engine.peer(&key(1).1).unwrap().endpoint.unwrap().to_string();
    passes(1);
    assert_eq!(endpoint(), "192.0.2.1:51820");
    let sent = || a.engine.peer(&key(2).1).unwrap().tx_bytes;
    // Without an address on the cable the host has only the tunnel's to send from.
    a.ip("address flush dev eth0");
    a.ip("route add 192.0.2.2/32 dev eth0");
    let before = sent();
    (0..10).for_each(|_| assert!(sender.send_to(&[2], "10.77.0.2:7000").is_ok()));
    let since = Instant::now();
    // Each is padded to 32 bytes, with a header and a tag of 16.
    while sent() < before + 10 * 64 {
        assert!(since.elapsed() < PATIENCE, "{:?}", a.engine.read());
        std::thread::yield_now();
    }
    a.ip("address add 192.0.2.3/24 dev eth0");
    assert_eq!(passes(3), 0, "what had no other source is lost");
    assert_eq!(endpoint(), "192.0.2.3:51820");
    assert_eq!(b.engine.peer(&key(1).1).unwrap().refused_endpoints, 0);
}

fn an_engine_without_its_interface_ends() {
    let (a, _b) = Host::pair(None);
    assert!(a.engine.is_alive());
    a.ip("link delete wg");
    let mut fds = [PollFd::new(a.engine.ended(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()), Ok(1));
    assert!(!a.engine.is_alive());
    assert!(a.engine.apply(&[Change::FwMark(0)]).unwrap_err().to_string().contains("has gone"));
}

fn udp(address: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends that many bytes over TCP and returns what came, as [`digest`] has it.
fn stream(a: &Host, b: &Host, port: u16, length: usize) -> (usize, u64) {
    let listener = b.within(|| TcpListener::bind(("10.77.0.2", port)).unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut sum = Sum::default();
        let mut buffer = vec![0; 65_536];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return sum.0,
                count => sum.add(&buffer[..count]),
            }
        }
    });
    let mut sender = a.within(|| TcpStream::connect(("10.77.0.2", port)).unwrap());
    let since = Instant::now();
    let mut generator = Generator(1);
    let mut left = length;
    while left > 0 {
        let chunk = generator.chunk(left.min(40_000));
        sender.write_all(&chunk).unwrap_or_else(|error| panic!("after {:?}: {error}", since.elapsed()));
        left -= chunk.len();
    }
    drop(sender);
    receiver.join().unwrap()
}

/// What [`stream`] sends: its length and a sum that depends on the order.
fn digest(length: usize) -> (usize, u64) {
    let mut sum = Sum::default();
    sum.add(&Generator(1).chunk(length));
    sum.0
}

#[derive(Default)]
struct Sum((usize, u64));

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0.1 = self.0.1.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte);
        }
        self.0.0 += bytes.len();
    }
}

/// Bytes without a pattern that a shifted copy would share (xorshift).
struct Generator(u64);

impl Generator {
    fn chunk(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                self.0 as u8
            })
            .collect()
    }
}
