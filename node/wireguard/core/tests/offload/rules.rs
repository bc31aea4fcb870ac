//! Tables: what is joined and what is not, what is cut and how, what is refused.

use super::joining::{ACK, ALL, RST, SYN, URG, Written, join_with};
use super::packets::cutting::cut;
use super::packets::sums::{put, seal, sum};
use super::packets::{CWR, FIN, Flow, KINDS, Kind, PSH, Part, payload};
use super::{ECE, part};
use mesh_wireguard_core::offload::{Capabilities, Gso, Joiner, MAX_JOINED, SplitError, VnetHeader, split};

fn plain(kind: Kind) -> Flow {
    Flow {
        kind,
        host: 7,
        port: 40_000,
        tos: 0,
        ttl: 64,
        label: 0x1234,
        dont_fragment: true,
        ack: 77,
        window: 500,
        options: if kind.is_tcp() { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] },
    }
}

/// What a fresh joiner makes of packets.
fn join(packets: &[Vec<u8>]) -> Vec<Written> {
    join_with(&mut Joiner::new(ALL), packets)
}

/// Segments of 100 bytes, one after the other.
fn row(kind: Kind, count: usize) -> Vec<Vec<u8>> {
    plain(kind).segments(&part(payload(count * 100, 1)), 100)
}

fn sizes(written: &[Written]) -> Vec<usize> {
    written.iter().map(|written| written.of.len()).collect()
}

/// What a row of three becomes when something happens to one of them, whose checksums are then made right again.
fn after(kind: Kind, which: usize, change: impl Fn(&mut Vec<u8>)) -> Vec<usize> {
    sealed_or_not(kind, which, change, true)
}

fn sealed_or_not(kind: Kind, which: usize, change: impl Fn(&mut Vec<u8>), sealed: bool) -> Vec<usize> {
    let mut packets = row(kind, 3);
    change(&mut packets[which]);
    if sealed {
        seal(kind, &mut packets[which]);
    }
    let written = join(&packets);
    for written in written.iter().filter(|written| written.of.len() == 1) {
        assert_eq!(written.packet, packets[written.of[0]], "alone is unchanged");
        assert_eq!(written.header, VnetHeader::default());
    }
    let order: Vec<_> = written.iter().flat_map(|written| written.of.clone()).collect();
    assert_eq!(order, [0, 1, 2], "{kind:?} overtook");
    sizes(&written)
}

#[test]
fn a_row_of_segments_is_one_super_packet() {
    for kind in KINDS {
        let flow = plain(kind);
        let written = join(&row(kind, 3));
        let (header, packet) = flow.super_packet(&part(payload(300, 1)), 100);
        assert_eq!((written[0].header, &written[0].packet), (header, &packet), "{kind:?}");
        assert_eq!(sizes(&written), [3]);
    }
}

#[test]
fn what_differs_where_segmentation_makes_no_difference_is_not_joined() {
    // Of the second packet: a byte of the IP header, and whether the third goes on from the second.
    let network: [(Kind, usize, u8, &str); 10] = [
        (Kind::Tcp4, 1, 0x02, "ECN"),
        (Kind::Tcp4, 1, 0x10, "ToS"),
        (Kind::Tcp4, 5, 0x08, "identification"),
        (Kind::Tcp4, 6, 0x40, "don't fragment"),
        (Kind::Tcp4, 6, 0x80, "reserved bit"),
        (Kind::Tcp4, 8, 0x01, "TTL"),
        (Kind::Tcp6, 0, 0x02, "traffic class"),
        (Kind::Tcp6, 1, 0x20, "ECN"),
        (Kind::Tcp6, 3, 0x01, "flow label"),
        (Kind::Tcp6, 7, 0x01, "hop limit"),
    ];
    for (kind, at, bits, what) in network {
        let udp = if kind.is_v4() { Kind::Udp4 } else { Kind::Udp6 };
        for kind in [kind, udp] {
            assert_eq!(after(kind, 1, |packet| packet[at] ^= bits), [1, 1, 1], "{what} of {kind:?}");
        }
    }
    for kind in [Kind::Tcp4, Kind::Tcp6] {
        let start = kind.start();
        let transport: [(usize, u8, &str); 12] = [
            (7, 0x01, "sequence number, later"),
            (6, 0x80, "sequence number, earlier"),
            (11, 0x01, "acknowledgement"),
            (12, 0x01, "accurate ECN"),
            (13, ECE, "ECE"),
            (13, CWR, "CWR"),
            (13, SYN, "SYN"),
            (13, RST, "RST"),
            (13, URG, "URG"),
            (13, ACK, "no acknowledgement"),
            (15, 0x01, "window"),
            (29, 0x01, "options"),
        ];
        for (at, bits, what) in transport {
            assert_eq!(after(kind, 1, |packet| packet[start + at] ^= bits), [1, 1, 1], "{what} of {kind:?}");
        }
        let longer_options = |packet: &mut Vec<u8>| {
            packet[start + 12] += 0x10;
            packet.splice(start + 32..start + 32, [1; 4]);
            let length = if kind.is_v4() { packet.len() } else { packet.len() - start } as u16;
            put(packet, if kind.is_v4() { 2 } else { 4 }, length);
        };
        assert_eq!(after(kind, 1, longer_options), [1, 1, 1], "longer options of {kind:?}");
    }
}

#[test]
fn what_is_not_a_plain_packet_goes_alone_and_ends_its_flow() {
    for kind in KINDS {
        let start = kind.start();
        let checksum = start + kind.checksum_offset();
        for at in [checksum, start + 30, 199 + start] {
            let corrupt = |packet: &mut Vec<u8>| {
                let at = at.min(packet.len() - 1);
                packet[at] ^= 0x01;
            };
            assert_eq!(sealed_or_not(kind, 1, corrupt, false), [1, 1, 1], "{kind:?} corrupted at {at}");
            assert_eq!(sealed_or_not(kind, 0, corrupt, false), [1, 2], "{kind:?} corrupted first");
        }
        let padded = |packet: &mut Vec<u8>| packet.extend([0; 4]);
        assert_eq!(sealed_or_not(kind, 1, padded, false), [1, 1, 1], "{kind:?} with padding behind");
        let cut_off = |packet: &mut Vec<u8>| packet.truncate(start + 4);
        assert_eq!(sealed_or_not(kind, 1, cut_off, false), [1, 1, 1], "{kind:?} without a whole header");
        let version = |packet: &mut Vec<u8>| packet[0] ^= 0xf0;
        assert_eq!(sealed_or_not(kind, 0, version, false), [1, 2], "of no known version");
    }
    for kind in [Kind::Tcp4, Kind::Udp4] {
        assert_eq!(sealed_or_not(kind, 1, |packet| packet[11] ^= 1, false), [1, 1, 1], "IPv4 header checksum");
        assert_eq!(after(kind, 1, |packet| packet[6] |= 0x20), [1, 1, 1], "first fragment");
        assert_eq!(after(kind, 1, |packet| packet[7] |= 0x01), [1, 1, 1], "later fragment");
        let options = |packet: &mut Vec<u8>| {
            packet[0] = 0x46;
            packet.splice(20..20, [1; 4]);
        };
        assert_eq!(sealed_or_not(kind, 1, options, false), [1, 1, 1], "IPv4 options");
    }
    for kind in [Kind::Tcp6, Kind::Udp6] {
        let extension = |packet: &mut Vec<u8>| {
            packet.splice(40..40, [packet[6], 0, 1, 4, 0, 0, 0, 0]);
            packet[6] = 60;
        };
        assert_eq!(sealed_or_not(kind, 1, extension, false), [1, 1, 1], "IPv6 extension header");
    }
    for kind in [Kind::Udp4, Kind::Udp6] {
        let without = |packet: &mut Vec<u8>| put(packet, kind.start() + 6, 0);
        assert_eq!(sealed_or_not(kind, 1, without, false), [1, 1, 1], "UDP without a checksum");
        assert_eq!(after(kind, 1, |packet| packet[kind.start() + 5] -= 1), [1, 1, 1], "UDP length of another packet");
    }
}

#[test]
fn what_holds_nothing_goes_alone_and_nothing_behind_overtakes_it() {
    for kind in KINDS {
        let flow = plain(kind);
        let empty = |flags| flow.packet(&Part { id: 101, sequence: 1_100, flags, payload: vec![] });
        for flags in [ACK, ACK | FIN, ACK | PSH, ACK | RST] {
            let mut packets = row(kind, 3);
            packets.insert(1, empty(flags));
            let written = join(&packets);
            assert_eq!(written[0].of, [0], "{kind:?}");
            assert_eq!((&written[1].of, &written[1].packet), (&vec![1], &packets[1]));
            assert_eq!(written[2].of, [2, 3]);
        }
    }
}

#[test]
fn push_fin_and_a_shorter_segment_end_a_group() {
    for kind in [Kind::Tcp4, Kind::Tcp6] {
        let flags = kind.start() + 13;
        for bits in [PSH, FIN, PSH | FIN] {
            assert_eq!(after(kind, 0, |packet| packet[flags] |= bits), [1, 2]);
            assert_eq!(after(kind, 1, |packet| packet[flags] |= bits), [2, 1]);
            assert_eq!(after(kind, 2, |packet| packet[flags] |= bits), [3]);
        }
    }
    for kind in KINDS {
        let flow = plain(kind);
        let of = |lengths: &[usize]| {
            let mut next = part(vec![]);
            let packet = |length: &usize| {
                next.payload = payload(*length, 1);
                let packet = flow.packet(&next);
                next.id += 1;
                next.sequence += *length as u32;
                packet
            };
            sizes(&join(&lengths.iter().map(packet).collect::<Vec<_>>()))
        };
        assert_eq!(of(&[100, 100, 99, 100, 100]), [3, 2], "{kind:?}");
        assert_eq!(of(&[100, 99, 99]), [2, 1]);
        assert_eq!(of(&[99, 100, 100]), [1, 2]);
        assert_eq!(of(&[1, 1, 1]), [3]);
    }
}

#[test]
fn an_identification_counts_on_or_stands_still_where_nothing_can_be_a_fragment() {
    for kind in [Kind::Tcp4, Kind::Udp4] {
        let with = |ids: [u16; 4], dont_fragment| {
            let flow = Flow { dont_fragment, ..plain(kind) };
            let packet = |(i, id): (usize, u16)| {
                flow.packet(&Part { id, sequence: 100 * i as u32, flags: ACK, payload: payload(100, 1) })
            };
            sizes(&join(&ids.into_iter().enumerate().map(packet).collect::<Vec<_>>()))
        };
        for dont_fragment in [true, false] {
            assert_eq!(with([65_534, 65_535, 0, 1], dont_fragment), [4]);
            assert_eq!(with([5, 6, 6, 7], dont_fragment), [2, 2]);
            assert_eq!(with([9, 8, 7, 6], dont_fragment), [1, 1, 1, 1]);
        }
        assert_eq!(with([0, 0, 0, 0], true), [4]);
        assert_eq!(with([0, 0, 0, 1], true), [3, 1]);
        assert_eq!(with([0, 0, 0, 0], false), [1, 1, 1, 1]);
    }
}

#[test]
fn flows_are_joined_side_by_side_and_the_longest_open_gives_way() {
    let flows: Vec<_> = (0..9).map(|port| Flow { port, ..plain(Kind::Tcp4) }).collect();
    let rows: Vec<_> = flows.iter().map(|flow| flow.segments(&part(payload(200, 1)), 100)).collect();
    let interleaved =
        |flows: usize| -> Vec<_> { (0..2).flat_map(|i| rows[..flows].iter().map(move |row| row[i].clone())).collect() };
    assert_eq!(sizes(&join(&interleaved(8))), [2; 8]);
    assert_eq!(join(&interleaved(8))[1].of, [1, 9]);
    assert!(sizes(&join(&interleaved(9))).len() > 9, "more flows than are kept open");
}

#[test]
fn another_protocol_or_version_in_between_disturbs_no_flow() {
    let mut packets = row(Kind::Tcp4, 3);
    packets.insert(1, row(Kind::Udp4, 1).remove(0));
    packets.insert(2, row(Kind::Tcp6, 1).remove(0));
    packets.insert(3, vec![]);
    assert_eq!(join(&packets)[0].of, [0, 4, 5]);
}

#[test]
fn a_group_ends_at_its_most_packets_and_at_the_length_of_an_ip_packet() {
    for kind in KINDS {
        assert_eq!(sizes(&join(&row(kind, MAX_JOINED + 2))), [MAX_JOINED, 2]);
        let flow = plain(kind);
        let room = 65_535 - flow.headers();
        let longest = Part { payload: payload(room, 1), ..part(vec![]) };
        let size = room.div_ceil(10);
        assert_eq!(sizes(&join(&flow.segments(&longest, size))), [10], "{kind:?}");
        let size = room / 10 + 1;
        let packets: Vec<_> = (0..10_u16)
            .map(|i| {
                let (id, sequence) = (100 + i, u32::from(i) * size as u32);
                flow.packet(&Part { id, sequence, flags: ACK, payload: payload(size, 1) })
            })
            .collect();
        assert_eq!(sizes(&join(&packets)), [9, 1], "one byte too many for {kind:?}");
    }
}

#[test]
fn only_what_the_device_takes_is_joined() {
    let none = Capabilities::default();
    for kind in KINDS {
        let capabilities = match kind {
            Kind::Tcp4 => Capabilities { tcp4: true, ..none },
            Kind::Tcp6 => Capabilities { tcp6: true, ..none },
            Kind::Udp4 | Kind::Udp6 => Capabilities { udp: true, ..none },
        };
        assert_eq!(sizes(&join_with(&mut Joiner::new(capabilities), &row(kind, 2))), [2]);
        let others = Capabilities { tcp4: !capabilities.tcp4, tcp6: !capabilities.tcp6, udp: !capabilities.udp };
        assert_eq!(sizes(&join_with(&mut Joiner::new(others), &row(kind, 2))), [1, 1]);
    }
}

#[test]
fn a_joiner_remembers_nothing_of_the_last_batch() {
    let packets = row(Kind::Tcp4, 4);
    let mut joiner = Joiner::new(ALL);
    assert_eq!(sizes(&join_with(&mut joiner, &packets[..2])), [2]);
    let written = join_with(&mut joiner, &packets[2..]);
    assert_eq!((sizes(&written), &written[0].packet[20..24]), (vec![2], &packets[2][20..24]));
    assert!(join_with(&mut joiner, &[]).is_empty());
}

#[test]
fn cutting_keeps_cwr_to_the_first_and_fin_and_push_to_the_last() {
    for kind in [Kind::Tcp4, Kind::Tcp6] {
        let whole = Part { flags: ACK | PSH | FIN | CWR | ECE | URG, ..part(payload(300, 1)) };
        let (header, packet) = plain(kind).super_packet(&whole, 100);
        let flags: Vec<_> = cut(&header, &packet).iter().map(|segment| segment[kind.start() + 13]).collect();
        assert_eq!(flags, [ACK | CWR | ECE | URG, ACK | ECE | URG, ACK | PSH | FIN | ECE | URG]);
        let whole = Part { payload: payload(100, 1), ..whole };
        let (header, packet) = plain(kind).super_packet(&whole, 100);
        assert_eq!(cut(&header, &packet), [plain(kind).packet(&whole)], "one that is first and last");
    }
}

#[test]
fn a_super_packet_whose_checksum_was_verified_already_is_cut_as_well() {
    for kind in KINDS {
        let flow = plain(kind);
        let whole = part(payload(1_234, 9));
        let packet = flow.packet(&whole);
        let header = VnetHeader { gso: kind.gso(), gso_size: 100, hdr_len: 9, ..VnetHeader::default() };
        assert_eq!(cut(&header, &packet), flow.segments(&whole, 100), "{kind:?}");
    }
}

#[test]
fn options_and_extension_headers_are_repeated_in_every_segment() {
    let flow = plain(Kind::Tcp4);
    let whole = part(payload(250, 1));
    let with_options = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet[0] = 0x46;
        packet.splice(20..20, [0x94, 4, 0, 0]);
        let length = packet.len() as u16;
        put(&mut packet, 2, length);
        put(&mut packet, 10, 0);
        let checksum = !sum(&packet[..24]);
        put(&mut packet, 10, checksum);
        packet
    };
    let (header, packet) = flow.super_packet(&whole, 100);
    let header = VnetHeader { csum_start: 24, ..header };
    let expected: Vec<_> = flow.segments(&whole, 100).iter().map(|segment| with_options(segment)).collect();
    assert_eq!(cut(&header, &with_options(&packet)), expected);

    let flow = plain(Kind::Udp6);
    let with_extension = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
        packet[6] = 60;
        let length = packet.len() as u16 - 40;
        put(&mut packet, 4, length);
        packet
    };
    let (header, packet) = flow.super_packet(&whole, 100);
    let header = VnetHeader { csum_start: 48, ..header };
    let expected: Vec<_> = flow.segments(&whole, 100).iter().map(|segment| with_extension(segment)).collect();
    assert_eq!(cut(&header, &with_extension(&packet)), expected);
}

#[test]
fn a_datagram_whose_checksum_comes_to_zero_does_not_say_it_has_none() {
    for kind in [Kind::Udp4, Kind::Udp6] {
        let flow = plain(kind);
        let at = kind.start() + kind.checksum_offset();
        // What the checksum is without them, the first bytes add to the sum.
        let mut whole = part([vec![0; 2], payload(98, 1)].concat());
        let first = flow.packet(&whole);
        whole.payload[..2].copy_from_slice(&first[at..at + 2]);
        whole.payload.extend(payload(100, 2));

        let (header, packet) = flow.super_packet(&whole, 100);
        let cut = cut(&header, &packet);
        assert_eq!(cut[0][at..at + 2], [0xff, 0xff], "{kind:?}");
        assert_eq!(cut, flow.segments(&whole, 100));
        assert_eq!(sizes(&join(&cut)), [2]);
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let refused = |header: VnetHeader, packet: &[u8]| split(&header, packet).err();
    let (header, packet) = plain(Kind::Tcp4).super_packet(&part(payload(300, 1)), 100);
    let (udp, datagrams) = plain(Kind::Udp6).super_packet(&part(payload(300, 1)), 100);
    let changed = |at: usize, byte: u8| {
        let mut packet = packet.clone();
        packet[at] = byte;
        packet
    };
    let truncated = |needed, length| Some(SplitError::Truncated { needed, length });
    let misplaced = |named, expected| Some(SplitError::MisplacedChecksum { named, expected });

    assert_eq!(refused(VnetHeader { gso_size: 0, ..header }, &packet), Some(SplitError::NoSegmentSize));
    assert_eq!(refused(header, &[]), Some(SplitError::OtherProtocol(Gso::TcpV4)));
    assert_eq!(refused(header, &datagrams), Some(SplitError::OtherProtocol(Gso::TcpV4)));
    assert_eq!(refused(VnetHeader { gso: Gso::TcpV6, ..udp }, &packet), Some(SplitError::OtherProtocol(Gso::TcpV6)));
    assert_eq!(refused(header, &changed(9, 17)), Some(SplitError::OtherProtocol(Gso::TcpV4)));
    let unmarked = VnetHeader { needs_csum: false, gso: Gso::TcpV6, ..udp };
    assert_eq!(refused(unmarked, &datagrams), Some(SplitError::OtherProtocol(Gso::TcpV6)));

    assert_eq!(refused(header, &packet[..19]), truncated(20, 19));
    assert_eq!(refused(header, &packet[..39]), truncated(40, 39));
    assert_eq!(refused(header, &packet[..51]), truncated(52, 51));
    assert_eq!(refused(udp, &datagrams[..47]), truncated(48, 47));
    assert_eq!(refused(header, &changed(0, 0x4f)[..40]), truncated(60, 40));
    assert_eq!(refused(VnetHeader { csum_start: 60_000, ..udp }, &datagrams), truncated(60_000, datagrams.len()));
    assert_eq!(refused(header, &changed(0, 0x44)), Some(SplitError::ShortHeader(16)));
    assert_eq!(refused(header, &changed(32, 0x40)), Some(SplitError::ShortHeader(16)));

    assert_eq!(refused(VnetHeader { csum_start: 24, ..header }, &packet), misplaced((24, 16), (20, 16)));
    assert_eq!(refused(VnetHeader { csum_offset: 6, ..header }, &packet), misplaced((20, 6), (20, 16)));
    assert_eq!(refused(VnetHeader { csum_offset: 16, ..udp }, &datagrams), misplaced((40, 16), (40, 6)));
    assert_eq!(refused(VnetHeader { csum_start: 0, ..udp }, &datagrams), misplaced((0, 6), (40, 6)));

    let long = [packet.clone(), vec![0; 65_536 - packet.len()]].concat();
    assert_eq!(refused(header, &long), Some(SplitError::TooLong(65_536)));

    let single = VnetHeader { needs_csum: true, csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    assert_eq!(refused(single, &packet[..37]), truncated(38, 37));
    assert_eq!(
        refused(VnetHeader { csum_start: 65_535, csum_offset: 65_535, ..single }, &packet),
        truncated(131_072, packet.len())
    );
}
