//! What must hold of whatever is joined, whoever draws it.

use super::packets::cutting::{check_cut, check_real, cut, number};
use super::packets::sums::{sum, word};
use super::packets::{CWR, Flow, Part};
use mesh_wireguard_core::offload::{Capabilities, Gso, Joiner, MAX_JOINED, Place, VnetHeader};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

pub(crate) const ALL: Capabilities = Capabilities { tcp4: true, tcp6: true, udp: true };

/// One write to the device.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) header: VnetHeader,
    pub(crate) packet: Vec<u8>,
    /// Which of the pushed packets are in it.
    pub(crate) of: Vec<usize>,
}

/// What a joiner makes of packets.
pub(crate) fn join_with(joiner: &mut Joiner, packets: &[Vec<u8>]) -> Vec<Written> {
    // Each packet lies somewhere in its buffer, as one that was decrypted in place.
    let buffers: Vec<Vec<u8>> = packets.iter().map(|packet| [&[0xee; 16], &packet[..], &[0xdd; 16]].concat()).collect();
    for (i, packet) in packets.iter().enumerate() {
        joiner.push(Place { buffer: i as u32, start: 16, len: packet.len() as u32 }, packet);
    }
    let mut written = Vec::new();
    joiner.drain(|group| {
        let header = VnetHeader::parse(&group.vnet().to_bytes()).expect("what the device knows");
        let mut packet = group.headers().to_vec();
        for place in group.payloads() {
            let (start, end) = (place.start as usize, (place.start + place.len) as usize);
            packet.extend(&buffers[place.buffer as usize][start..end]);
        }
        let of = group.payloads().iter().map(|place| place.buffer as usize).collect();
        written.push(Written { header, packet, of });
    });
    written
}

/// What a real super-packet is cut into is joined to the same again.
pub(crate) fn check_there_and_back(flow: &Flow, whole: &Part, size: usize) {
    let expected = check_real(flow, whole, size);
    if flow.kind.is_tcp() && !may_be_joined(whole.flags) {
        return;
    }
    let written = join_with(&mut Joiner::new(ALL), &expected);
    assert_eq!(written.len(), expected.len().div_ceil(MAX_JOINED));
    if (2..=MAX_JOINED).contains(&expected.len()) {
        let (header, packet) = flow.super_packet(whole, size);
        assert_eq!((written[0].header, &written[0].packet), (header, &packet));
    }
    let again: Vec<_> = written.iter().flat_map(|written| cut(&written.header, &written.packet)).collect();
    assert_eq!(again, expected);
}

/// In the middle of a connection, with nothing that a receiver would take for more than one segment's.
fn may_be_joined(flags: u8) -> bool {
    flags & (ACK | SYN | RST | URG | CWR) == ACK
}

/// What a joiner wrote, cut again, is what was pushed into it: each packet once, and none before an earlier one of its flow.
pub(crate) fn check_joined(takes: Capabilities, pushed: &[Vec<u8>], written: &[Written]) {
    for written in written {
        if let [alone] = written.of[..] {
            assert_eq!(
                (written.header, &written.packet),
                (VnetHeader::default(), &pushed[alone]),
                "alone and unchanged"
            );
        } else {
            check_group(takes, pushed, written);
        }
    }
    let mut order: Vec<usize> = written.iter().flat_map(|written| written.of.clone()).collect();
    for (i, later) in order.iter().enumerate() {
        for earlier in order[..i].iter().filter(|earlier| *earlier > later) {
            assert!(are_apart(&pushed[*earlier], &pushed[*later]), "{later} behind {earlier}");
        }
    }
    order.sort_unstable();
    assert!(order.into_iter().eq(0..pushed.len()), "each comes out once");
}

fn check_group(takes: Capabilities, pushed: &[Vec<u8>], written: &Written) {
    assert!(written.of.len() <= MAX_JOINED && written.packet.len() <= 65_535);
    let taken = match written.header.gso {
        Gso::None => false,
        Gso::TcpV4 => takes.tcp4,
        Gso::TcpV6 => takes.tcp6,
        Gso::Udp => takes.udp,
    };
    assert!(taken, "the device was not asked to take {:?}", written.header.gso);
    check_cut(&written.header, &written.packet, true);
    let packets = cut(&written.header, &written.packet);
    assert_eq!(packets.len(), written.of.len());
    for (packet, of) in packets.iter().zip(&written.of) {
        check_joinable(&pushed[*of], number(&written.header));
        assert_eq!(meant(packet), meant(&pushed[*of]));
    }
}

/// Whole and plain. Neither right checksums of the transport nor equal marks of congestion (RFC 3168, 5.3) need a rule of
/// their own: without them it would not be cut as it was pushed.
fn check_joinable(packet: &[u8], number: u8) {
    let (start, length) = if packet[0] >> 4 == 4 {
        assert!(packet[0] == 0x45 && word(packet, 6) & 0x3fff == 0, "no options, no fragment");
        assert_eq!(sum(&packet[..20]), 0xffff, "the header's checksum");
        (20, usize::from(word(packet, 2)))
    } else {
        (40, usize::from(word(packet, 4)) + 40)
    };
    assert_eq!(length, packet.len(), "nothing behind it");
    if number == 6 {
        assert!(may_be_joined(packet[start + 13]), "TCP flags {:#04x}", packet[start + 13]);
    } else {
        assert_ne!(word(packet, start + 6), 0, "it has a checksum");
    }
}

/// A packet without what has no meaning in it: the identification of an IPv4 packet that cannot be a fragment, over
/// which segmentation may count (RFC 6864).
fn meant(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What can be seen of a packet's flow.
struct Seen<'a> {
    addresses: &'a [u8],
    /// Behind the protocol's number, where they are in their place.
    ports: Option<(u8, &'a [u8])>,
}

/// Certainly of different flows.
fn are_apart(a: &[u8], b: &[u8]) -> bool {
    let (Some(a), Some(b)) = (seen_of(a), seen_of(b)) else { return true };
    a.addresses != b.addresses || a.ports.zip(b.ports).is_some_and(|(a, b)| a != b)
}

fn seen_of(packet: &[u8]) -> Option<Seen<'_>> {
    let (start, protocol, addresses, plain) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            (20, packet[9], &packet[12..20], packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0)
        }
        6 if packet.len() >= 40 => (40, packet[6], &packet[8..40], true),
        _ => return None,
    };
    let seen = plain && [6, 17].contains(&protocol) && packet.len() >= start + 8;
    Some(Seen { addresses, ports: seen.then(|| (protocol, &packet[start..start + 4])) })
}
