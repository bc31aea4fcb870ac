//! Ancillary data of datagrams: what was written is read, and of any bytes nothing is read beyond them, in which the C
//! library's walk along them agrees.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_wireguard::ancillary::{Message, Said, Writer, messages};
use std::net::{Ipv4Addr, Ipv6Addr};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Messages(Vec<(Kind, &'a [u8])>),
    Raw { bytes: &'a [u8], lengths: [(u8, u8); 3] },
    Ours { stride: u16, v4: [u8; 4], v6: [u8; 16], class: u8 },
}

#[derive(Debug, Arbitrary)]
enum Kind {
    Stride,
    To4,
    To6,
    Class4,
    Class6,
    Other(i32, i32),
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Messages(list) => check_written(list),
        Input::Raw { bytes, lengths } => check_raw(bytes, lengths),
        Input::Ours { stride, v4, v6, class } => check_ours(stride, v4.into(), v6.into(), class),
    }
});

fn check_written(list: Vec<(Kind, &[u8])>) {
    let room = list.iter().map(|(_, data)| 24 + data.len()).sum();
    let mut control = vec![0xa5; room];
    let mut writer = Writer::new(&mut control);
    let put: Vec<_> = list.iter().map(|(kind, data)| (number(kind), *data)).collect();
    for ((level, kind), data) in &put {
        writer.put(*level, *kind, data);
    }
    let used = writer.used();
    let read = messages(&control[..used]).map(|Message { level, kind, data }| ((level, kind), data));
    assert!(read.eq(put));
    let said = Said::read(&control[..used]);
    assert!(said.ecn < 4);
}

fn number(kind: &Kind) -> (i32, i32) {
    match *kind {
        Kind::Stride => (libc::SOL_UDP, libc::UDP_GRO),
        Kind::To4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        Kind::To6 => (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO),
        Kind::Class4 => (libc::IPPROTO_IP, libc::IP_TOS),
        Kind::Class6 => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        Kind::Other(level, kind) => (level, kind),
    }
}

fn check_raw(bytes: &[u8], lengths: [(u8, u8); 3]) {
    let bytes = &bytes[..bytes.len().min(512)];
    let mut control = [0_u64; 64];
    // SAFETY: the same bytes, each of which is a value of its own.
    let raw = unsafe { std::slice::from_raw_parts_mut(control.as_mut_ptr().cast::<u8>(), 512) };
    raw[..bytes.len()].copy_from_slice(bytes);
    // Lengths that a message could have: by chance alone there are few.
    for (at, length) in lengths {
        raw[usize::from(at % 64) * 8..][..8].copy_from_slice(&u64::from(length).to_ne_bytes());
    }
    let ours: Vec<Message<'_>> = messages(&raw[..bytes.len()]).collect();
    let _ = Said::read(&raw[..bytes.len()]);
    let walked = walk(raw.as_ptr(), bytes.len());
    // The C library does not look at a message whose padding would reach beyond the end; ours may.
    assert!(ours.len() >= walked.len() && ours.len() <= walked.len() + 1, "{ours:?} {walked:?}");
    for (message, (level, kind, at, length)) in ours.iter().zip(walked) {
        assert_eq!((message.level, message.kind, message.data.len()), (level, kind, length));
        assert_eq!(message.data.as_ptr(), at);
    }
}

/// Level, kind, place and length of the messages that the C library finds, up to the first that is not whole: of that
/// one its callers are to take care.
fn walk(control: *const u8, length: usize) -> Vec<(i32, i32, *const u8, usize)> {
    let mut found = Vec::new();
    // SAFETY: plain data, for which all zeroes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = control.cast_mut().cast();
    header.msg_controllen = length;
    // SAFETY: the buffer is aligned and has so many bytes.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&header) };
    while !at.is_null() {
        // SAFETY: the macros return places inside the buffer that have room for a header.
        let (message, data) = unsafe { (&*at, libc::CMSG_DATA(at)) };
        let (before, behind) = (data as usize - at as usize, control as usize + length - at as usize);
        if message.cmsg_len < before || message.cmsg_len > behind {
            break;
        }
        found.push((message.cmsg_level, message.cmsg_type, data.cast_const(), message.cmsg_len - before));
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&header, at) };
    }
    found
}

/// What is told the kernel on sending says the same when it comes back.
fn check_ours(stride: u16, v4: Ipv4Addr, v6: Ipv6Addr, class: u8) {
    for is_v4 in [false, true] {
        let mut control = [0; 128];
        let mut writer = Writer::new(&mut control);
        writer.stride(stride);
        if is_v4 {
            writer.source_v4(v4)
        } else {
            writer.source_v6(v6)
        }
        writer.class(is_v4, class);
        let used = writer.used();
        let said = Said::read(&control[..used]);
        let source = if is_v4 { v4.into() } else { v6.to_canonical() };
        assert_eq!((said.to, said.stride), (Some(source), None));
        if !is_v4 || cfg!(target_endian = "little") {
            assert_eq!(said.ecn, class & 3);
        }
    }
}
