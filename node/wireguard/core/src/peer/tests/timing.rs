//! When what is sent: the timers, on virtual time.

use super::limits::*;
use super::*;

const JITTER: Duration = REKEY_TIMEOUT_JITTER;

/// Lets time pass until `end` for one host alone, and tells what it sends and when, in time since `from`.
fn alone(host: &mut Host, from: Instant, end: Duration) -> Vec<(Duration, MessageKind)> {
    let mut sent = Vec::new();
    let mut now = from;
    loop {
        host.drain(now);
        sent.extend(kinds(&host.out).into_iter().map(|kind| (now - from, kind)));
        host.out.clear();
        match host.peer.deadline() {
            Some(deadline) if deadline <= from + end => now = now.max(deadline),
            _ => return sent,
        }
    }
}

fn sessions(host: &mut Host) -> &mut Sessions {
    &mut host.peer.sessions
}

#[test]
fn an_unanswered_initiation_is_repeated_twenty_times_with_jitter_then_packets_are_dropped_and_keys_wiped() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    a.send(b"packet", now);
    let sent = alone(&mut a, now, secs(3600));
    assert!(sent.iter().all(|(_, kind)| *kind == MessageKind::Initiation));
    assert_eq!(sent.len(), 20);
    let gaps: BTreeSet<Duration> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.iter().all(|gap| (REKEY_TIMEOUT..REKEY_TIMEOUT + JITTER).contains(gap)), "{gaps:?}");
    assert!(gaps.len() > 10, "no jitter: {gaps:?}");
    assert_eq!(a.dropped, 1);
    assert!(a.indices.is_empty() && a.peer.handshake.is_none(), "the handshake's keys outlive it");
    assert_eq!(a.peer.deadline(), None);
}

#[test]
fn as_long_as_packets_come_handshakes_are_tried() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    for second in 0..200 {
        a.send(b"packet", now + secs(second));
    }
    assert_eq!((a.dropped, a.staged.len()), (0, MAX_STAGED));
    assert_eq!(kinds(&a.out).len(), 40, "one every five seconds");
}

#[test]
fn a_packet_that_finds_a_handshake_too_recent_gets_one_as_soon_as_it_is_allowed() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    b.initiate(now);
    let _ = a.receive(&b.out.pop_front().unwrap(), b.address, now);
    a.out.clear();
    a.send(b"packet", now + secs(1));
    let [(at, MessageKind::Initiation)] = alone(&mut a, now, secs(6))[..] else { panic!("no initiation") };
    assert!((REKEY_TIMEOUT..REKEY_TIMEOUT + JITTER).contains(&at), "{at:?}");
}

#[test]
fn data_that_is_not_answered_is_acknowledged_by_a_keepalive_after_ten_seconds() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let now = now + secs(20);
    a.send(b"packet", now);
    talk(&mut a, &mut b, now);
    assert_eq!(alone(&mut b, now, secs(100)), [(KEEPALIVE_TIMEOUT, MessageKind::Data)]);
}

#[test]
fn data_that_comes_while_a_keepalive_is_due_gets_one_of_its_own() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    for second in [0, 4] {
        a.send(b"packet", now + secs(second));
        talk(&mut a, &mut b, now + secs(second));
    }
    assert_eq!(alone(&mut b, now, secs(100)), [(secs(10), MessageKind::Data), (secs(20), MessageKind::Data)]);
}

#[test]
fn data_that_is_answered_and_keepalives_are_not_acknowledged() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    a.send(b"packet", now);
    talk(&mut a, &mut b, now);
    b.send(b"answer", now + secs(9));
    assert_eq!(kinds(&std::mem::take(&mut b.out)), [MessageKind::Data]);
    assert!(alone(&mut b, now, secs(100)).iter().all(|(_, kind)| *kind == MessageKind::Initiation));

    let (mut a, mut b) = connected(now);
    a.send_keepalive(now);
    talk(&mut a, &mut b, now);
    assert_eq!(alone(&mut b, now, secs(100)), []);
    assert!(b.delivered.is_empty(), "a keepalive is delivered");
}

#[test]
fn data_without_an_answer_starts_a_handshake_after_fifteen_seconds_and_keepalives_do_not() {
    let now = Instant::now();
    let (mut a, _) = connected(now);
    a.send_keepalive(now);
    a.out.clear();
    assert_eq!(alone(&mut a, now, secs(30)), []);

    let now = now + secs(30);
    a.send(b"packet", now);
    a.send(b"packet", now + secs(7));
    a.out.clear();
    let (at, kind) = alone(&mut a, now, secs(16))[0];
    assert_eq!(kind, MessageKind::Initiation);
    assert!((secs(15)..secs(15) + JITTER).contains(&at), "{at:?}");
}

#[test]
fn the_initiator_rekeys_on_sending_after_120_seconds_and_the_responder_does_not() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    for (host, rekeys) in [(&mut a, true), (&mut b, false)] {
        host.send(b"packet", now + Duration::from_millis(119_999));
        assert_eq!(kinds(&host.out), [MessageKind::Data]);
        host.send(b"packet", now + REKEY_AFTER_TIME);
        assert_eq!(kinds(&host.out).contains(&MessageKind::Initiation), rekeys);
        host.out.clear();
    }
}

#[test]
fn an_initiator_that_receives_after_165_seconds_rekeys_without_having_to_send() {
    let now = Instant::now();
    for (age, expected) in [(164_999, vec![]), (165_000, vec![MessageKind::Initiation])] {
        let (mut a, mut b) = connected(now);
        let now = now + Duration::from_millis(age);
        b.send(b"packet", now);
        let _ = a.receive(&b.out.pop_front().unwrap(), b.address, now);
        assert_eq!(kinds(&a.out), expected);
    }
    let (mut a, mut b) = connected(now);
    let now = now + secs(170);
    a.send(b"packet", now);
    let _ = b.receive(&a.out.pop_front().unwrap(), a.address, now);
    assert_eq!(kinds(&b.out), [], "the responder leaves it to the initiator");
}

#[test]
fn a_key_that_sent_too_much_is_renewed_by_either_side() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let now = now + secs(10);
    for host in [&mut a, &mut b] {
        sessions(host).current.as_mut().unwrap().next_counter = REKEY_AFTER_MESSAGES - 1;
        host.send(b"packet", now);
        assert_eq!(kinds(&host.out), [MessageKind::Data]);
        host.send(b"packet", now);
        assert_eq!(kinds(&host.out), [MessageKind::Data, MessageKind::Data, MessageKind::Initiation]);
        host.out.clear();
    }
}

#[test]
fn a_key_is_refused_beyond_its_count_and_packets_wait_for_the_next() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let now = now + secs(10);
    sessions(&mut a).current.as_mut().unwrap().next_counter = REJECT_AFTER_MESSAGES - 2;
    a.send(b"last but one", now);
    a.send(b"last", now);
    a.send(b"waits", now);
    assert_eq!(
        kinds(&a.out),
        [MessageKind::Data, MessageKind::Initiation, MessageKind::Data],
        "the last counters are used, in their order"
    );
    assert_eq!(a.staged.len(), 1);
    talk(&mut a, &mut b, now);
    assert_eq!(b.delivered, [padded(b"last but one"), padded(b"last"), padded(b"waits")]);
}

#[test]
fn a_key_neither_sends_nor_receives_after_180_seconds() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let old = now + REJECT_AFTER_TIME;
    b.send(b"under way", old - secs(1));
    let late = b.out.pop_front().unwrap();
    let _ = a.receive(&late, b.address, old);
    assert!(a.delivered.is_empty());
    a.send(b"packet", old);
    assert_eq!((kinds(&a.out), a.staged.len()), (vec![MessageKind::Initiation], 1));
}

#[test]
fn keys_are_wiped_after_540_seconds_without_a_new_session() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let keys = Arc::downgrade(&sessions(&mut a).current.as_ref().unwrap().keys);
    for host in [&mut a, &mut b] {
        alone(host, now, ZERO_KEYS_AFTER - secs(1));
        assert_eq!(host.indices.len(), 1);
        alone(host, now, ZERO_KEYS_AFTER);
        assert!(host.indices.is_empty());
    }
    assert!(keys.upgrade().is_none(), "somebody still holds the keys");
}

#[test]
fn a_persistent_keepalive_is_sent_at_once_then_after_every_silence_and_brings_up_the_session() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.peer.set_keepalive(Some(25));
    a.drain(now);
    assert_eq!(kinds(&a.out), [MessageKind::Initiation]);
    talk(&mut a, &mut b, now);
    assert_eq!(a.completed, 1);
    let keepalives: Vec<Duration> = alone(&mut a, now, secs(100)).into_iter().map(|(at, _)| at).collect();
    assert_eq!(keepalives, [secs(25), secs(50), secs(75), secs(100)]);

    let (mut a, mut b) = connected(now);
    a.peer.set_keepalive(Some(25));
    assert_eq!(alone(&mut a, now, secs(20)), [(secs(0), MessageKind::Data)]);
    b.send(b"packet", now + secs(20));
    talk(&mut a, &mut b, now + secs(20));
    assert_eq!(alone(&mut a, now, secs(54)), [(secs(30), MessageKind::Data)], "an acknowledgement");
    assert_eq!(alone(&mut a, now, secs(55)), [(secs(55), MessageKind::Data)], "25 seconds after it");
    a.peer.set_keepalive(Some(0));
    assert_eq!(alone(&mut a, now, secs(500)), []);
}

#[test]
fn a_persistent_keepalive_never_stops_while_the_peer_is_away() {
    let now = Instant::now();
    for interval in [1, 5, 25, 120, 600] {
        let (mut a, mut b) = pair(now);
        a.peer.set_keepalive(Some(interval));
        let sent = alone(&mut a, now, secs(3600));
        let last = sent.last().expect("initiations").0;
        assert!(last + secs(u64::from(interval) + 6) > secs(3600), "stopped at {last:?} with interval {interval}");
        let later = now + secs(3600);
        let back = later + secs(u64::from(interval) + 6);
        let mut now = later;
        while now < back && a.completed == 0 {
            talk(&mut a, &mut b, now);
            now = a.peer.deadline().expect("a keepalive").max(now);
        }
        talk(&mut a, &mut b, now);
        assert!(a.completed > 0, "interval {interval}");
    }
}

#[test]
fn a_rekey_under_traffic_loses_nothing_and_keeps_the_order() {
    let start = Instant::now();
    let (mut a, mut b) = connected(start);
    // Seven minutes.
    let sent = exchange(&mut a, &mut b, start, 42_000);
    assert!(a.delivered == sent && b.delivered == sent, "a packet is lost or out of order");
    assert!((4..=6).contains(&a.completed), "{} handshakes", a.completed);
}

#[test]
fn a_rekey_by_count_under_traffic_loses_nothing_and_begins_a_new_count() {
    let start = Instant::now();
    // Twenty packets before a new key is wanted; and three before the key is refused, less than a handshake takes.
    for count in [REKEY_AFTER_MESSAGES - 20, REJECT_AFTER_MESSAGES - 3] {
        let (mut a, mut b) = connected(start);
        for host in [&mut a, &mut b] {
            sessions(host).current.as_mut().unwrap().next_counter = count;
        }
        let sent = exchange(&mut a, &mut b, start + secs(10), 1_000);
        assert!(a.delivered == sent && b.delivered == sent, "a packet is lost or out of order after {count}");
        for host in [&mut a, &mut b] {
            assert!((2..=3).contains(&host.completed), "{} handshakes after {count}", host.completed);
            assert!(sessions(host).current.as_ref().unwrap().next_counter <= 1_000);
        }
    }
}

#[test]
fn a_message_beyond_the_count_is_not_taken() {
    let now = Instant::now();
    let (mut a, mut b) = connected(now);
    let keys = sessions(&mut a).current.as_ref().unwrap().keys.clone();
    for (counter, taken) in [(REJECT_AFTER_MESSAGES - 1, 1), (REJECT_AFTER_MESSAGES, 0), (u64::MAX, 0)] {
        let mut message = vec![0; DATA_HEADER + 16 + TAG];
        keys.seal_message(counter, &mut message);
        let _ = b.receive(&message, a.address, now);
        assert_eq!(std::mem::take(&mut b.delivered).len(), taken, "{counter}");
    }
}

/// Has both send a packet every 10 ms, over ways that take 50 ms, and returns what must have been delivered to either.
fn exchange(a: &mut Host, b: &mut Host, start: Instant, steps: u32) -> Vec<Vec<u8>> {
    let mut under_way: VecDeque<(Instant, bool, Vec<u8>)> = VecDeque::new();
    let step = Duration::from_millis(10);
    for number in 0..steps {
        let now = start + step * number;
        while under_way.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, to_b, datagram) = under_way.pop_front().unwrap();
            let (host, source) = if to_b { (&mut *b, a.address) } else { (&mut *a, b.address) };
            let _ = host.receive(&datagram, source, now);
        }
        for (host, to_b) in [(&mut *a, true), (&mut *b, false)] {
            host.send(&padded(&number.to_le_bytes()), now);
            let out = std::mem::take(&mut host.out);
            under_way.extend(out.into_iter().map(|datagram| (now + step * 5, to_b, datagram)));
        }
    }
    (0..steps - 5).map(|number| padded(&number.to_le_bytes())).collect()
}
