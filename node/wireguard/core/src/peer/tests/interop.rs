//! Against another implementation of WireGuard, `gotatun`, in both roles.

use super::*;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519;

struct Other {
    tunn: Tunn,
    limiter: Arc<RateLimiter>,
    address: SocketAddr,
    delivered: Vec<Vec<u8>>,
}

impl Other {
    /// The other implementation with the key of host `b` of `pair`, and `limit` handshakes before it is under load.
    fn new(a: &Host, psk: Option<[u8; 32]>, limit: u64) -> Self {
        let secret = x25519::StaticSecret::from([2; 32]);
        let limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&secret), limit));
        let remote = x25519::PublicKey::from(*a.public_key().as_bytes());
        let tunn = Tunn::new(secret, remote, psk, None, IndexTable::from_os_rng(), limiter.clone());
        Self { tunn, limiter, address: SocketAddr::from(([192, 0, 2, 9], 9)), delivered: Vec::new() }
    }

    fn initiate(&mut self) -> Vec<u8> {
        bytes(self.tunn.format_handshake_initiation(true).expect("forced").into())
    }

    fn send(&mut self, packet: &[u8]) -> Vec<u8> {
        bytes(self.tunn.handle_outgoing_packet(Packet::copy_from(packet), None).expect("a session or an initiation"))
    }

    fn receive(&mut self, datagram: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        let result = match self.limiter.verify_packet(source, Packet::copy_from(datagram)) {
            Ok(packet) => self.tunn.handle_incoming_packet(packet),
            Err(result) => result,
        };
        match result {
            TunnResult::Done => None,
            TunnResult::Err(error) => panic!("the other implementation refuses: {error:?}"),
            TunnResult::WriteToNetwork(packet) => Some(bytes(packet)),
            TunnResult::WriteToTunnel(packet) => {
                self.delivered.push(packet.to_vec());
                None
            }
        }
    }
}

fn bytes(packet: WgKind) -> Vec<u8> {
    Packet::from(packet).to_vec()
}

/// Carries what `a` has to say, and the answers, until there is silence.
fn talk(a: &mut Host, other: &mut Other, now: Instant) {
    a.drain(now);
    while let Some(datagram) = a.out.pop_front() {
        if let Some(answer) = other.receive(&datagram, a.address) {
            a.receive(&answer, other.address, now).expect("an answer is taken");
        }
    }
}

/// Data both ways, after a handshake.
fn data_passes(a: &mut Host, other: &mut Other, now: Instant) {
    for number in 0..50_u8 {
        let packet = vec![number; usize::from(number) * 16 + 16];
        a.send(&packet, now);
        talk(a, other, now);
        assert_eq!(other.delivered.pop(), Some(packet));

        let packet = vec![number ^ 0xff; usize::from(number) * 16 + 16];
        a.receive(&other.send(&packet), other.address, now).expect("data is never refused");
        assert_eq!(a.delivered.pop(), Some(packet));
    }
}

#[test]
fn another_implementation_takes_our_initiation_and_data_passes() {
    for psk in [None, Some([7; 32])] {
        let now = Instant::now();
        let (mut a, _) = pair(now);
        a.peer.set_preshared_key(psk.map(PresharedKey::from_bytes));
        let mut other = Other::new(&a, psk, 100);
        a.send(b"first", now);
        talk(&mut a, &mut other, now);
        assert_eq!((a.completed, other.delivered.pop()), (1, Some(padded(b"first"))));
        data_passes(&mut a, &mut other, now);
    }
}

#[test]
fn another_implementation_takes_our_response_and_data_passes() {
    for psk in [None, Some([7; 32])] {
        let now = Instant::now();
        let (mut a, _) = pair(now);
        a.peer.set_preshared_key(psk.map(PresharedKey::from_bytes));
        let mut other = Other::new(&a, psk, 100);
        a.receive(&other.initiate(), other.address, now).expect("an initiation is taken");
        assert_eq!((a.completed, kinds(&a.out)), (0, vec![MessageKind::Response]));
        talk(&mut a, &mut other, now);
        let first = other.send(&padded(b"first"));
        a.receive(&first, other.address, now).expect("data is never refused");
        assert_eq!((a.completed, a.delivered.pop()), (1, Some(padded(b"first"))));
        data_passes(&mut a, &mut other, now);
    }
}

#[test]
fn another_implementation_under_load_gets_the_cookie_it_sent() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    let mut other = Other::new(&a, Some([7; 32]), 0);
    a.send(b"first", now);
    assert_eq!(kinds(&a.out), [MessageKind::Initiation]);
    talk(&mut a, &mut other, now);
    assert_eq!(a.completed, 0, "the first initiation is answered by a cookie only");

    let retry = now + secs(6);
    talk(&mut a, &mut other, retry);
    assert_eq!((a.completed, other.delivered.pop()), (1, Some(padded(b"first"))));
}

#[test]
fn another_implementation_brings_the_cookie_that_we_sent_under_load() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    a.under_load = true;
    let mut other = Other::new(&a, Some([7; 32]), 100);
    a.receive(&other.initiate(), other.address, now).expect("silence or a cookie");
    assert_eq!(kinds(&a.out), [MessageKind::Cookie]);
    talk(&mut a, &mut other, now);

    a.receive(&other.initiate(), other.address, now).expect("an initiation with a cookie is taken");
    assert_eq!(kinds(&a.out), [MessageKind::Response]);
    talk(&mut a, &mut other, now);
    let first = other.send(&padded(b"first"));
    a.receive(&first, other.address, now).expect("data is never refused");
    assert_eq!(a.delivered.pop(), Some(padded(b"first")));
}
