//! Who may make a session with whom, and what becomes of the sessions before it.

use super::*;

#[test]
fn an_initiator_with_nothing_to_send_confirms_with_a_keepalive() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.initiate(now);
    talk(&mut a, &mut b, now);
    assert_eq!((a.completed, b.completed), (1, 1));
    assert_eq!(a.peer.stats().last_handshake, Some(now));
    assert_eq!(a.peer.stats().tx_bytes, (INITIATION_LEN + DATA_MIN) as u64);
    assert_eq!(a.peer.stats().rx_bytes, RESPONSE_LEN as u64);
    assert_eq!(b.peer.stats().tx_bytes, a.peer.stats().rx_bytes);
    assert_eq!(b.peer.stats().rx_bytes, a.peer.stats().tx_bytes);
}

#[test]
fn a_responder_sends_nothing_before_the_session_is_confirmed() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.initiate(now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    b.send(b"early", now);
    assert_eq!(kinds(&b.out), [MessageKind::Response]);
    talk(&mut a, &mut b, now);
    assert_eq!(a.delivered, [padded(b"early")]);
}

#[test]
fn initiations_that_cross_make_sessions_for_both_and_lose_nothing_under_way() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let now = now + secs(10);
    a.send(b"under way", now);
    b.send(b"under way", now);
    let (late_a, late_b) = (a.out.pop_front().unwrap(), b.out.pop_front().unwrap());
    a.initiate(now);
    b.initiate(now);
    talk(&mut a, &mut b, now);
    assert_eq!((a.completed, b.completed), (2, 2));

    a.send(b"after", now);
    b.send(b"after", now);
    talk(&mut a, &mut b, now);
    let _ = a.receive(&late_b, b.address, now);
    let _ = b.receive(&late_a, a.address, now);
    let all = [padded(b"after"), padded(b"under way")];
    assert_eq!((&a.delivered[..], &b.delivered[..]), (&all[..], &all[..]));
}

#[test]
fn packets_of_the_session_before_are_taken_after_a_rekey_but_not_twice() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(b"late", now);
    let late = a.out.pop_front().unwrap();
    a.initiate(now + secs(5));
    talk(&mut a, &mut b, now + secs(5));
    for _ in 0..2 {
        let _ = b.receive(&late, a.address, now + secs(5));
    }
    assert_eq!(b.delivered, [padded(b"late")]);
}

#[test]
fn a_response_that_was_not_awaited_changes_nothing() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.initiate(now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    let response = b.out.pop_front().unwrap();
    let mut parsed = Response::parse(&response).unwrap();

    parsed.sealed_nothing[0] ^= 1;
    assert_eq!(a.peer.handle_response(&parsed, now), Err(Refused::Unauthentic));
    parsed.receiver ^= 1;
    assert_eq!(a.peer.handle_response(&parsed, now), Err(Refused::NotAwaited(parsed.receiver)));

    assert_eq!(a.receive(&response, b.address, now), Ok(()), "a forged response does not end the wait");
    let again = Response::parse(&response).unwrap();
    assert_eq!(a.receive(&response, b.address, now), Err(Refused::NotAwaited(again.receiver)));
    assert_eq!(a.completed, 1);
}

#[test]
fn initiations_are_refused_when_replayed_or_flooding() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.initiate(now);
    a.initiate(now + secs(5));
    a.initiate(now + secs(10));
    let [first, second, third] = <[Vec<u8>; 3]>::try_from(Vec::from(std::mem::take(&mut a.out))).unwrap();

    let now = now + secs(10);
    assert_eq!(b.receive(&second, a.address, now), Ok(()));
    assert_eq!(b.receive(&second, a.address, now + secs(1)), Err(Refused::Replayed));
    assert_eq!(b.receive(&first, a.address, now + secs(1)), Err(Refused::Replayed));
    assert_eq!(b.receive(&third, a.address, now + Duration::from_millis(19)), Err(Refused::Flood));
    assert_eq!(b.receive(&third, a.address, now + Duration::from_millis(20)), Ok(()));
    assert_eq!(b.indices.len(), 1, "of responses only the last makes a session");
}

#[test]
fn a_peer_that_is_made_anew_refuses_what_was_taken_before() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.initiate(now);
    a.initiate(now + secs(5));
    let [first, second] = <[Vec<u8>; 2]>::try_from(Vec::from(std::mem::take(&mut a.out))).unwrap();
    let now = now + secs(5);
    assert_eq!(b.receive(&first, a.address, now), Ok(()));
    let newest = b.peer.newest_initiation();
    b.restart(a.public_key(), None);
    b.peer.set_newest_initiation(newest);
    assert_eq!(b.receive(&first, a.address, now + secs(1)), Err(Refused::Replayed));
    assert_eq!(b.receive(&second, a.address, now + secs(1)), Ok(()));
}

#[test]
fn a_wall_clock_that_goes_back_does_not_stop_handshakes() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.wall -= secs(1_000_000);
    let now = now + secs(6);
    a.initiate(now);
    assert_eq!(b.receive(&a.out.pop_front().unwrap(), a.address, now), Ok(()));
}

#[test]
fn strangers_meet_silence() {
    let now = Instant::now();
    let (a, mut b) = pair(now);
    let mut stranger = Host::new(3, b.public_key(), None, now);
    stranger.initiate(now);
    let initiation = stranger.out.pop_front().unwrap();
    assert_eq!(b.receive(&initiation, stranger.address, now), Err(Refused::Stranger(stranger.public_key())));

    // Someone who knows both public keys and pretends to be `a`.
    let mut pretender = Host::new(3, b.public_key(), None, now);
    pretender.identity = Arc::new(LocalIdentity::impostor(&PrivateKey::from_bytes([3; 32]), a.public_key()));
    pretender.peer = Peer::new(&pretender.identity, b.public_key(), None, None);
    pretender.initiate(now);
    let initiation = pretender.out.pop_front().unwrap();
    assert_eq!(b.receive(&initiation, pretender.address, now), Err(Refused::Unauthentic));

    // Someone who does not know `b`'s public key.
    let mut lost = Host::new(1, private_key_of_nobody(), None, now);
    lost.initiate(now);
    let initiation = lost.out.pop_front().unwrap();
    assert_eq!(b.receive(&initiation, lost.address, now), Ok(()));
    assert!(b.identity.open_initiation(&Initiation::parse(&initiation).unwrap()).is_none());

    assert!(b.out.is_empty() && b.indices.is_empty() && b.peer.deadline().is_none());
    assert_eq!(b.peer.stats(), Stats::default());
}

fn private_key_of_nobody() -> PublicKey {
    identity(9).public_key()
}

#[test]
fn keys_of_low_order_make_no_handshake() {
    let now = Instant::now();
    let (a, mut b) = pair(now);
    for point in LOW_ORDER {
        let remote = PublicKey::from_bytes(point);
        let mut host = Host::new(1, remote, None, now);
        host.send(b"packet", now);
        assert!(host.out.is_empty() && host.indices.is_empty());

        let mut crafted = Host::new(1, b.public_key(), None, now);
        crafted.initiate(now);
        let mut initiation = Initiation::parse(&crafted.out[0]).unwrap();
        initiation.ephemeral = point;
        assert!(b.identity.open_initiation(&initiation).is_none());
    }

    // A response whose ephemeral key has low order.
    let mut a = a;
    a.initiate(now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    let mut response = Response::parse(&b.out[0]).unwrap();
    response.ephemeral = [0; 32];
    assert_eq!(a.peer.handle_response(&response, now), Err(Refused::Unauthentic));
}

/// Points of order 1, 2, 4 and 8, and zero and one written with the field's modulus added (cr.yp.to/ecdh.html).
const LOW_ORDER: [[u8; 32]; 7] = {
    let mut one = [0; 32];
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    minus_one[31] = 0x7f;
    let mut zero = minus_one;
    zero[0] = 0xed;
    let mut again_one = minus_one;
    again_one[0] = 0xee;
    [
        [0; 32],
        one,
        minus_one,
        zero,
        again_one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
            0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
    ]
};

#[test]
fn a_peer_with_our_own_key_makes_no_handshake() {
    let now = Instant::now();
    let own = identity(1);
    let mut host = Host::new(1, own.public_key(), None, now);
    host.send(b"packet", now);
    assert!(host.out.is_empty() && host.indices.is_empty());

    // What another implementation with this key would send.
    let static_static = noise::shared_secret(own.private(), own.public_key().as_bytes()).unwrap();
    let remote = Remote { public: &own.public_key(), static_static: &static_static };
    let stamp = Tai64n::from_unix(secs(1));
    let (initiation, _) = noise::initiate(&own, remote, StaticSecret::from([5; 32]), 1, stamp).unwrap();
    let opened = host.identity.open_initiation(&initiation).unwrap();
    let fresh = host.fresh();
    assert_eq!(host.peer.handle_initiation(opened, fresh, now), Err(Refused::UnusableKey));
}

#[test]
fn preshared_keys_must_agree_and_may_change_under_a_session() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.peer.set_preshared_key(Some(PresharedKey::from_bytes([8; 32])));
    a.send(b"old session", now);
    talk(&mut a, &mut b, now);
    assert_eq!(b.delivered.pop(), Some(padded(b"old session")));

    let now = now + secs(5);
    a.initiate(now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    assert_eq!(a.receive(&b.out.pop_front().unwrap(), b.address, now), Err(Refused::Unauthentic));

    b.peer.set_preshared_key(Some(PresharedKey::from_bytes([8; 32])));
    let now = now + secs(5);
    a.initiate(now);
    talk(&mut a, &mut b, now);
    assert_eq!((a.completed, b.completed), (2, 2));
}

#[test]
fn a_new_private_key_ends_sending_and_starts_over_at_once() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    b.send(b"under way", now);
    let late = b.out.pop_front().unwrap();
    a.initiate(now);
    a.out.clear();

    a.become_another(4);
    let _ = a.receive(&late, b.address, now);
    assert_eq!(a.delivered, [padded(b"under way")]);
    a.send(b"new", now);
    assert_eq!(kinds(&a.out), [MessageKind::Initiation]);

    let mut renewed = Host::new(2, a.public_key(), Some(PSK), now);
    talk(&mut a, &mut renewed, now);
    assert_eq!(renewed.delivered, [padded(b"new")]);

    a.become_another(4);
    a.send(b"same key", now);
    assert_eq!(kinds(&a.out), [MessageKind::Data]);
}

#[test]
fn under_load_a_handshake_needs_the_cookie_of_its_source_both_as_initiation_and_as_response() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    (a.under_load, b.under_load) = (true, true);
    a.initiate(now);
    talk(&mut a, &mut b, now);
    assert_eq!(a.indices.len(), 1);
    assert!(b.indices.is_empty(), "an initiation without a cookie costs nothing");

    // With the cookie the initiation is taken, but now the response lacks one.
    let now = now + secs(6);
    let attempt = a.peer.poll(now).expect("a retry");
    a.act(attempt, now);
    let _ = b.receive(&a.out[0], SocketAddr::from(([192, 0, 2, 1], 999)), now);
    assert_eq!(kinds(&b.out), [MessageKind::Cookie], "a cookie is of one source only");
    b.out.clear();
    talk(&mut a, &mut b, now);
    assert_eq!((a.completed, b.indices.len()), (0, 1));

    let now = now + secs(6);
    talk(&mut a, &mut b, now);
    assert_eq!((a.completed, b.completed), (1, 1));
}

#[test]
fn a_cookie_answers_the_last_message_only_once_and_gets_stale() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    b.under_load = true;
    a.initiate(now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    let cookie = b.out.pop_front().unwrap();
    let mut forged = cookie.clone();
    forged[40] ^= 1;
    assert_eq!(a.receive(&forged, b.address, now), Err(Refused::NoSuchCookie));
    assert_eq!(a.receive(&cookie, b.address, now), Ok(()));
    assert_eq!(a.receive(&cookie, b.address, now), Err(Refused::NoSuchCookie));

    let has_mac2 = |initiation: &[u8]| initiation[INITIATION_LEN - 16..] != [0; 16];
    a.initiate(now + Duration::from_millis(114_999));
    assert!(has_mac2(&a.out.pop_front().unwrap()));
    a.initiate(now + secs(115));
    assert!(!has_mac2(&a.out.pop_front().unwrap()));
}
