//! Many WireGuard peers in one process, which load a device of any program: for `tests/dataplane/bench`.
//!
//!   crowd config N                  # the peers, for `wg addconf`
//!   crowd load KEY N SECONDS COUNT...   # KEY is the device's; the hosts are `a` and `b` of `tests/dataplane/lab`
//!
//! `load` makes a handshake for each of the N peers and then, for every COUNT, has the device carry full packets of that
//! many of them in turn: first those that host a sends them (`send`), then those that they send to host a (`receive`). It
//! prints `send COUNT GBITS` and `receive COUNT GBITS`, of UDP payload that arrived.
//!
//! Each peer has a key, an outer and an inner address of its own; one socket on host b has all their outer addresses. The
//! crowd has no interface: it seals what it sends, and of what it receives only the length is looked at, so that nearly all
//! of the work is the device's. A window bounds what is under way, as TCP does: nothing is measured by what it loses.

use mesh_types::{PrivateKey, PublicKey};
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::{CookieReply, MessageKind, Response, classify};
use mesh_wireguard_core::offload::checksum::Sum;
use mesh_wireguard_core::peer::{Action, Fresh, Outgoing, Peer};
use mesh_wireguard_core::tai64n::Tai64n;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, recv, sendmsg, setsockopt, sockopt};
use std::error::Error;
use std::fs::File;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const DEVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 51_820);
/// The inner address of host a, and a port there and at the peers.
const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 7_000);
/// What fills a packet of 1,420 bytes, the tunnel's MTU.
const PAYLOAD: usize = 1_420 - HEADERS;
const HEADERS: usize = 28;
const SEALED: usize = DATA_HEADER + HEADERS + PAYLOAD + TAG;
/// Packets of one peer that follow each other. TCP sends two at the least, and more the faster a connection is.
const BURST: usize = 4;
/// Packets under way: less than an interface's queue of 500 holds, and more than any program takes in one go.
const WINDOW: usize = 256;
/// With nothing arriving for so long, what is under way is lost.
const LOST: Duration = Duration::from_millis(20);
/// Between the first initiations of two peers: fewer at a time than any program drops.
const STAGGER: Duration = Duration::from_millis(2);
/// Who is told to bring a cookie tries again after five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer, and the device would ask silent peers for new handshakes.
const MAX_SECONDS: u64 = 10;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["config", count] => config(count.parse()?),
        ["load", key, members, seconds, ref counts @ ..] => {
            let counts = counts.iter().map(|count| count.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
            load(key.parse()?, members.parse()?, seconds.parse()?, &counts)?;
        }
        _ => return Err("usage: crowd config N | crowd load KEY N SECONDS COUNT...".into()),
    }
    Ok(())
}

fn config(count: usize) {
    for n in 0..count {
        println!("[Peer]\nPublicKey = {}\nAllowedIPs = {}/32", identity(n).public_key(), inner(n));
    }
}

fn load(device: PublicKey, members: usize, seconds: u64, counts: &[usize]) -> Result<()> {
    if seconds > MAX_SECONDS || counts.iter().any(|count| !(1..=members).contains(count)) {
        return Err(format!("at most {MAX_SECONDS} seconds, and counts from 1 to {members}").into());
    }
    let outside = socket("b", SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DEVICE.port()))?;
    let inside = socket("a", INSIDE)?;
    let mut members = meet(&outside, device, members)?;
    for &count in counts {
        let payload = [7; BURST * PAYLOAD];
        let mut send = |n: usize| {
            let to = SockaddrIn::from(SocketAddrV4::new(inner(n), INSIDE.port()));
            send(&inside, &payload, &to, &[ControlMessage::UdpGsoSegments(&(PAYLOAD as u16))])
        };
        let packets = carry(&mut send, &outside, SEALED, count, seconds)?;
        println!("send {count} {:.3}", gbits(packets, seconds));

        let mut bytes = [0; BURST * SEALED];
        let mut send = |n: usize| {
            members[n].seal(n, &mut bytes);
            from(&outside, n, &bytes, &[ControlMessage::UdpGsoSegments(&(SEALED as u16))])
        };
        let packets = carry(&mut send, &inside, PAYLOAD, count, seconds)?;
        println!("receive {count} {:.3}", gbits(packets, seconds));
    }
    Ok(())
}

/// Sends bursts to or from `count` peers in turn, as what was sent before arrives; returns the packets that arrived.
fn carry(
    send: &mut dyn FnMut(usize) -> nix::Result<()>,
    receiver: &UdpSocket,
    length: usize,
    count: usize,
    seconds: u64,
) -> nix::Result<usize> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut turn, mut arrived, mut under_way) = (0, 0, 0);
    while Instant::now() < end {
        while under_way + BURST <= WINDOW {
            send(turn)?;
            turn = (turn + 1) % count;
            under_way += BURST;
        }
        if !wait(receiver, LOST)? {
            under_way = 0;
        }
        while let Some(bytes) = take(receiver, &mut [])? {
            // Trains come whole; their bytes count.
            arrived += bytes / length;
            under_way = under_way.saturating_sub(bytes / length);
        }
    }
    Ok(arrived)
}

fn gbits(packets: usize, seconds: u64) -> f64 {
    (packets * PAYLOAD * 8) as f64 / seconds as f64 / 1e9
}

/// One peer, once it has a session.
struct Member {
    keys: Arc<KeyPair>,
    counter: u64,
}

impl Member {
    /// Makes a burst of peer `n`.
    fn seal(&mut self, n: usize, bytes: &mut [u8]) {
        let packet = packet(n);
        for sealed in bytes.chunks_exact_mut(SEALED) {
            sealed[DATA_HEADER..SEALED - TAG].copy_from_slice(&packet);
            self.keys.seal_message(self.counter, sealed);
            self.counter += 1;
        }
    }
}

/// Makes a handshake for each peer.
fn meet(socket: &UdpSocket, device: PublicKey, count: usize) -> Result<Vec<Member>> {
    let start = Instant::now();
    let mut peers: Vec<Peer> = (0..count).map(|n| Peer::new(&identity(n), device, None, None)).collect();
    let mut members: Vec<Option<Member>> = peers.iter().map(|_| None).collect();
    let mut begun = 0;
    while members.iter().any(Option::is_none) {
        let now = Instant::now();
        if now > start + PATIENCE {
            let connected = members.iter().flatten().count();
            return Err(format!("{connected} of {count} peers connected within {PATIENCE:?}").into());
        }
        while begun < count && now > start + STAGGER * begun as u32 {
            // There is no session to send on, so that one is asked for.
            peers[begun].send_keepalive(now);
            begun += 1;
        }
        for (n, (peer, member)) in peers.iter_mut().zip(&mut members).enumerate() {
            while let Some(action) = peer.poll(now) {
                act(socket, n, peer, member, action, now)?;
            }
        }
        wait(socket, Duration::from_millis(1))?;
        let mut message = [0; 256];
        while let Some(length) = take(socket, &mut message)? {
            hear(&mut peers, &message[..length.min(256)], now);
        }
    }
    // The last of them are confirmed by what was just sent.
    std::thread::sleep(Duration::from_millis(100));
    Ok(members.into_iter().flatten().collect())
}

fn act(
    socket: &UdpSocket,
    n: usize,
    peer: &mut Peer,
    member: &mut Option<Member>,
    action: Action,
    now: Instant,
) -> Result<()> {
    match action {
        Action::Initiate => {
            let mut ephemeral = [0; 32];
            getrandom::fill(&mut ephemeral)?;
            let stamp = Tai64n::from_unix(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?);
            let message = peer.initiate(Fresh { ephemeral, index: n as u32 }, stamp, now);
            from(socket, n, &message.ok_or("the device's key is of no use")?, &[])?;
        }
        Action::SendKeepalive | Action::SendStaged => {
            if let Outgoing::Session { keys, first_counter } = peer.send_keepalive(now) {
                let mut bytes = [0; DATA_HEADER + TAG];
                keys.seal_message(first_counter, &mut bytes);
                from(socket, n, &bytes, &[])?;
                *member = Some(Member { keys, counter: first_counter + 1 });
            }
        }
        Action::Install(_) | Action::Release(_) | Action::Completed | Action::DropStaged => {}
    }
    Ok(())
}

/// Takes an answer of the device; whatever else comes is not for this.
fn hear(peers: &mut [Peer], message: &[u8], now: Instant) {
    match classify(message) {
        Some(MessageKind::Response) => {
            let response = Response::parse(message).expect("classified as one");
            if let Some(peer) = peers.get_mut(response.receiver as usize) {
                // A second answer, to a message that was sent again, is refused.
                let _ = peer.handle_response(&response, now);
            }
        }
        Some(MessageKind::Cookie) => {
            let reply = CookieReply::parse(message).expect("classified as one");
            if let Some(peer) = peers.get_mut(reply.receiver as usize) {
                let _ = peer.handle_cookie(&reply, now);
            }
        }
        Some(MessageKind::Initiation | MessageKind::Data) | None => {}
    }
}

/// A socket in a host's network.
fn socket(host: &str, address: SocketAddrV4) -> Result<UdpSocket> {
    let namespace = File::open(format!("/run/netns/{host}"))?;
    let socket = std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            UdpSocket::bind(address)
        });
        made.join().expect("it does not panic")
    })?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))?;
    Ok(socket)
}

/// Sends from the outer address of a peer.
fn from(socket: &UdpSocket, n: usize, bytes: &[u8], say: &[ControlMessage<'_>]) -> nix::Result<()> {
    let source = libc::in_addr { s_addr: u32::from(outer(n)).to_be() };
    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
    let say = [&[ControlMessage::Ipv4PacketInfo(&info)], say].concat();
    send(socket, bytes, &SockaddrIn::from(DEVICE), &say)
}

fn send(socket: &UdpSocket, bytes: &[u8], to: &SockaddrIn, say: &[ControlMessage<'_>]) -> nix::Result<()> {
    let pieces = [IoSlice::new(bytes)];
    match sendmsg(socket.as_raw_fd(), &pieces, say, MsgFlags::empty(), Some(to)) {
        // A full queue loses packets, as on any link.
        Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes what is there: as much as the buffer holds of it, and its whole length.
fn take(socket: &UdpSocket, buffer: &mut [u8]) -> nix::Result<Option<usize>> {
    match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn wait(socket: &UdpSocket, time: Duration) -> nix::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::try_from(time).expect("milliseconds"))? > 0)
}

/// Everyone may know these keys: they open nothing.
fn identity(n: usize) -> Arc<LocalIdentity> {
    let mut key = [0; 32];
    // Not the first byte, of which some bits are ignored.
    key[8..16].copy_from_slice(&(n as u64 + 1).to_le_bytes());
    Arc::new(LocalIdentity::new(&PrivateKey::from_bytes(key)))
}

fn inner(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + n as u32)
}

fn outer(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + n as u32)
}

/// A full UDP packet of peer `n` to host a.
fn packet(n: usize) -> [u8; HEADERS + PAYLOAD] {
    let mut packet = [7; HEADERS + PAYLOAD];
    let (length, udp_length) = ((HEADERS + PAYLOAD) as u16, (8 + PAYLOAD) as u16);
    packet[..4].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8]);
    // Whole, 64 hops, UDP.
    packet[4..12].copy_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[12..16].copy_from_slice(&inner(n).octets());
    packet[16..20].copy_from_slice(&INSIDE.ip().octets());
    let sum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for (at, word) in [(20, INSIDE.port()), (22, INSIDE.port()), (24, udp_length), (26, 0)] {
        packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }
    let pseudo = Sum::of(&packet[12..20]).plus(17).plus(udp_length);
    let sum = pseudo.join(Sum::of(&packet[20..])).checksum();
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}
