//! Real sockets on the loopback interface.

use super::*;
use mesh_types::AllowedIp;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn socket() -> Socket {
    Socket::bind_group(1, 0, 0, &Arc::default()).unwrap().remove(0)
}

fn to(socket: &Socket, ip: &str) -> Endpoint {
    Endpoint { remote: SocketAddr::new(ip.parse().unwrap(), socket.port().unwrap()), source: None }
}

/// Packets, with where they came from and their ECN bits, until there are `count`.
fn receive(socket: &Socket, count: usize) -> Vec<(Vec<u8>, Endpoint, u8)> {
    let mut receiver = Receiver::new();
    let mut packets = Vec::new();
    let since = Instant::now();
    while packets.len() < count {
        assert!(since.elapsed() < PATIENCE, "{} of {count} packets came", packets.len());
        let Ok(trains) = receiver.receive(socket) else {
            std::thread::yield_now();
            continue;
        };
        for n in 0..trains {
            let train = receiver.train(n).unwrap();
            let (endpoint, ecn) = (train.endpoint, train.ecn);
            packets.extend(train.bytes.chunks(train.stride).map(|packet| (packet.to_vec(), endpoint, ecn)));
        }
    }
    packets
}

#[test]
fn a_train_arrives_as_the_packets_that_it_was_made_of() {
    for ip in ["127.0.0.1", "::1"] {
        let (a, b) = (socket(), socket());
        let sent: Vec<Vec<u8>> = (0..64u8).map(|n| vec![n; if n == 63 { 17 } else { 1_000 }]).collect();
        let bytes = sent.concat();
        let train = Outgoing { bytes: &bytes, stride: 1_000, endpoint: to(&b, ip), class: 0 };
        assert!(!a.send(&train).unwrap());
        let received = receive(&b, sent.len());
        assert_eq!(received.iter().map(|(packet, ..)| packet.clone()).collect::<Vec<_>>(), sent, "{ip}");
        let endpoint = received[0].1;
        assert_eq!(endpoint.remote, to(&a, ip).remote, "who sent it, in its own notation");
        assert_eq!(endpoint.source, Some(ip.parse().unwrap()), "where it came to");
    }
}

#[test]
fn packets_go_one_by_one_where_trains_are_not_taken() {
    let (a, b) = (socket(), socket());
    a.lose_gso();
    let bytes = [7; 250];
    a.send(&Outgoing { bytes: &bytes, stride: 100, endpoint: to(&b, "127.0.0.1"), class: 0 }).unwrap();
    let lengths: Vec<usize> = receive(&b, 3).iter().map(|(packet, ..)| packet.len()).collect();
    assert_eq!(lengths, [100, 100, 50]);
}

#[test]
fn of_trains_that_go_together_one_that_cannot_go_holds_up_no_other() {
    for gso in [true, false] {
        let (a, b) = (socket(), socket());
        if !gso {
            a.lose_gso();
        }
        let bytes: Vec<[u8; 250]> = (0..MAX_TRAINS as u8).map(|n| [n; 250]).collect();
        let mut trains: Vec<Outgoing<'_>> = bytes
            .iter()
            .map(|bytes| Outgoing { bytes, stride: 100, endpoint: to(&b, "127.0.0.1"), class: 0 })
            .collect();
        // A source that is not ours, a packet that nothing carries, and two at the end that lead nowhere.
        trains[3].endpoint.source = Some("192.0.2.77".parse().unwrap());
        let (too_long, none) = ([0; 65_535], [1; 9]);
        trains[7] = Outgoing { bytes: &too_long, stride: too_long.len(), ..trains[7] };
        for train in &mut trains[14..] {
            *train = Outgoing { bytes: &none, stride: 9, ..*train };
            train.endpoint.remote.set_port(0);
        }
        let mut told = Vec::new();
        a.send_all(&trains, |n, result| told.push((n, result.map_err(|error| error.raw_os_error()))));
        let lost = |n: usize, errno| (n, Err(Some(errno)));
        let others = [(3, Ok(true)), lost(7, libc::EMSGSIZE), lost(14, libc::EINVAL), lost(15, libc::EINVAL)];
        told.retain(|(_, result)| *result != Ok(false));
        assert_eq!(told, others, "trains: {gso}");
        let arrived: Vec<u8> = receive(&b, 3 * 13).iter().map(|(packet, ..)| packet[0]).collect();
        let sent = (0..14).filter(|n| *n != 7).flat_map(|n| [n; 3]);
        assert_eq!(arrived, sent.collect::<Vec<_>>(), "trains: {gso}");
    }
}

#[test]
fn the_outer_header_carries_ecn_both_ways() {
    for ip in ["127.0.0.1", "::1"] {
        let (a, b) = (socket(), socket());
        for class in [0, 1, 2, 3, 0x88] {
            a.send(&Outgoing { bytes: &[1; 40], stride: 40, endpoint: to(&b, ip), class }).unwrap();
            assert_eq!(receive(&b, 1)[0].2, class & 3, "{class:#x} over {ip}");
        }
    }
}

#[test]
fn answers_leave_from_the_address_that_was_written_to() {
    let (a, b) = (socket(), socket());
    a.send(&Outgoing { bytes: &[1], stride: 1, endpoint: to(&b, "127.0.0.7"), class: 0 }).unwrap();
    let (_, endpoint, _) = receive(&b, 1).remove(0);
    b.send(&Outgoing { bytes: &[2], stride: 1, endpoint, class: 0 }).unwrap();
    assert_eq!(receive(&a, 1)[0].1.remote.ip().to_string(), "127.0.0.7");
}

#[test]
fn a_source_address_that_is_not_ours_is_given_up_and_told() {
    let (a, b) = (socket(), socket());
    let source = Some("192.0.2.77".parse().unwrap());
    let endpoint = Endpoint { source, ..to(&b, "127.0.0.1") };
    assert!(a.send(&Outgoing { bytes: &[1; 9], stride: 9, endpoint, class: 0 }).unwrap());
    assert_eq!(receive(&b, 1)[0].0, [1; 9]);
}

#[test]
fn nothing_leaves_from_a_barred_address() {
    let barred = Arc::<Barred>::default();
    let (a, b) = (Socket::bind_group(1, 0, 0, &barred).unwrap().remove(0), socket());
    for (ip, mapped) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")] {
        let train = Outgoing { bytes: &[1; 9], stride: 9, endpoint: to(&b, ip), class: 0 };
        // To the loopback interface's address the host sends from the same.
        barred.set_ranges(vec![AllowedIp::host(mapped.parse().unwrap())]);
        let source = Some("192.0.2.77".parse().unwrap()).filter(|_| ip == "127.0.0.1");
        for endpoint in [train.endpoint, Endpoint { source, ..train.endpoint }] {
            let train = Outgoing { endpoint, ..train };
            assert_eq!(a.send(&train).unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL), "{endpoint:?}");
            let mut told = 0;
            a.send_all(&[train, train], |_, result| told += usize::from(result.is_err()));
            assert_eq!(told, 2, "{endpoint:?}");
        }
        barred.set_ranges(vec!["10.77.0.0/16".parse().unwrap()]);
        a.send_all(&[train, train], |_, result| assert!(!result.unwrap()));
        let sources: Vec<IpAddr> = receive(&b, 2).iter().map(|(_, endpoint, _)| endpoint.remote.ip()).collect();
        assert_eq!(sources, [ip.parse::<IpAddr>().unwrap(); 2], "and nothing before");
    }
}

#[test]
fn a_port_belongs_to_one_group_alone() {
    let group = Socket::bind_group(3, 0, 0, &Arc::default()).unwrap();
    let port = group[0].port().unwrap();
    assert!(group.iter().all(|socket| socket.port().unwrap() == port));
    for count in [1, 3] {
        let error = Socket::bind_group(count, port, 0, &Arc::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{count}");
    }
    drop(group);
    Socket::bind_group(3, port, 0, &Arc::default()).unwrap();
}

#[test]
fn packets_of_one_sender_all_come_to_one_socket_of_a_group() {
    let group = Socket::bind_group(4, 0, 0, &Arc::default()).unwrap();
    let a = socket();
    for n in 0..32u8 {
        a.send(&Outgoing { bytes: &[n], stride: 1, endpoint: to(&group[0], "127.0.0.1"), class: 0 }).unwrap();
    }
    let mut receiver = Receiver::new();
    let with_packets = group.iter().filter(|socket| receiver.receive(socket).is_ok()).count();
    assert_eq!(with_packets, 1);
}
