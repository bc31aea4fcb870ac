//! Ancillary data of datagrams (`cmsg(3)`), as bytes: what the kernel says of a train besides its payload, and what it is
//! told.
//!
//! Pure, so that any bytes can be tried on it: the buffers and the system calls are `udp`'s. No pointer is followed:
//! the lengths that messages give of themselves are held against the bytes that there are.

use std::ffi::c_int;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes before a message's data.
// SAFETY: this only computes a length.
const HEADER: usize = unsafe { libc::CMSG_LEN(0) } as usize;

/// What the kernel said of a train besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Said {
    /// The length of each of its packets but the last, if there are several.
    pub stride: Option<usize>,
    /// The address of ours that it came to.
    pub to: Option<IpAddr>,
    /// The outer header's ECN bits.
    pub ecn: u8,
}

impl Said {
    /// Reads as much of the control buffer as the kernel filled in. What is not known or too short is passed over.
    pub fn read(control: &[u8]) -> Self {
        let mut said = Self::default();
        for Message { level, kind, data } in messages(control) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    said.stride = int(data).and_then(|stride| usize::try_from(stride).ok());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let octets = field::<16>(data, offset_of!(libc::in6_pktinfo, ipi6_addr));
                    said.to = octets.map(|octets| Ipv6Addr::from(octets).to_canonical());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let octets = field::<4>(data, offset_of!(libc::in_pktinfo, ipi_spec_dst));
                    said.to = octets.map(|octets| Ipv4Addr::from(octets).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => said.ecn = int(data).unwrap_or_default() as u8 & 3,
                // One byte in this direction, an int in the other.
                (libc::IPPROTO_IP, libc::IP_TOS) => said.ecn = data.first().copied().unwrap_or_default() & 3,
                _ => {}
            }
        }
        said
    }
}

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Which protocol speaks.
    pub level: c_int,
    /// What of.
    pub kind: c_int,
    /// What it says.
    pub data: &'a [u8],
}

/// The messages of a control buffer, up to the first that does not fit in it.
pub fn messages(mut control: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = control.split_first_chunk::<{ size_of::<libc::cmsghdr>() }>()?;
        // SAFETY: it is as many bytes as the header has, which is plain data; it may lie at any address.
        let header = unsafe { header.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let length = header.cmsg_len;
        let data = control.get(HEADER..length)?;
        control = control.get(aligned(length)..).unwrap_or_default();
        Some(Message { level: header.cmsg_level, kind: header.cmsg_type, data })
    })
}

/// Puts messages into a control buffer, one behind the other.
#[derive(Debug)]
pub struct Writer<'a> {
    control: &'a mut [u8],
    used: usize,
}

impl<'a> Writer<'a> {
    /// Begins at the start of the buffer.
    pub fn new(control: &'a mut [u8]) -> Self {
        Self { control, used: 0 }
    }

    /// Has the kernel cut the train into packets of this length.
    pub fn stride(&mut self, stride: u16) {
        self.put(libc::SOL_UDP, libc::UDP_SEGMENT, &stride.to_ne_bytes());
    }

    /// Sends from this address of ours, over a socket of IPv4.
    pub fn source_v4(&mut self, source: Ipv4Addr) {
        let mut info = [0; size_of::<libc::in_pktinfo>()];
        for at in [offset_of!(libc::in_pktinfo, ipi_spec_dst), offset_of!(libc::in_pktinfo, ipi_addr)] {
            info[at..at + 4].copy_from_slice(&source.octets());
        }
        self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
    }

    /// Sends from this address of ours, over a socket of IPv6.
    pub fn source_v6(&mut self, source: Ipv6Addr) {
        let mut info = [0; size_of::<libc::in6_pktinfo>()];
        let at = offset_of!(libc::in6_pktinfo, ipi6_addr);
        info[at..at + 16].copy_from_slice(&source.octets());
        self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
    }

    /// Sets the traffic class of a packet that goes out over IPv4 or, otherwise, IPv6.
    pub fn class(&mut self, v4: bool, class: u8) {
        let (level, kind) = if v4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
        self.put(level, kind, &c_int::from(class).to_ne_bytes());
    }

    /// Puts any message.
    ///
    /// # Panics
    /// When the buffer has no room for it.
    pub fn put(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let space = self.control.get_mut(self.used..self.used + aligned(length));
        let space = space.expect("the control buffer holds all that is ever said");
        // SAFETY: plain data, for which all zeroes are a value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = length as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        let (place, _) = space
            .split_first_chunk_mut::<{ size_of::<libc::cmsghdr>() }>()
            .expect("a message is no shorter than its header");
        // SAFETY: the place has as many bytes as the header; it may lie at any address.
        unsafe { place.as_mut_ptr().cast::<libc::cmsghdr>().write_unaligned(header) };
        space[HEADER..length].copy_from_slice(data);
        self.used += space.len();
    }

    /// Bytes that were used.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Where the message behind one of this length begins.
fn aligned(length: usize) -> usize {
    length.saturating_add(size_of::<usize>() - 1) & !(size_of::<usize>() - 1)
}

fn field<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

fn int(data: &[u8]) -> Option<c_int> {
    field(data, 0).map(c_int::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer with what `write` puts into it, at an address that no header would choose.
    fn written(write: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        let mut control = [0; 129];
        let mut writer = Writer::new(&mut control[1..]);
        write(&mut writer);
        let used = writer.used();
        control[1..][..used].to_vec()
    }

    #[test]
    fn what_is_said_of_a_train_is_read_in_any_order() {
        let to_v6: Ipv6Addr = "fd00::7".parse().unwrap();
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped();
        for (source, to) in [(to_v6, to_v6.into()), (mapped, IpAddr::from([192, 0, 2, 7]))] {
            let puts: [&dyn Fn(&mut Writer<'_>); 3] = [
                &|writer| writer.put(libc::SOL_UDP, libc::UDP_GRO, &1_452_i32.to_ne_bytes()),
                &|writer| writer.source_v6(source),
                &|writer| writer.class(false, 0x8b),
            ];
            for first in 0..3 {
                let control = written(|writer| (0..3).for_each(|n| puts[(first + n) % 3](writer)));
                assert_eq!(Said::read(&control), Said { stride: Some(1_452), to: Some(to), ecn: 3 });
            }
        }
        let control = written(|writer| {
            writer.source_v4([192, 0, 2, 7].into());
            writer.put(libc::IPPROTO_IP, libc::IP_TOS, &[2]);
        });
        assert_eq!(Said::read(&control), Said { stride: None, to: Some([192, 0, 2, 7].into()), ecn: 2 });
    }

    #[test]
    fn messages_are_laid_out_as_the_c_library_walks_them() {
        let mut control = [0_u64; 16];
        // SAFETY: the same bytes, each of which is a value of its own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(control.as_mut_ptr().cast::<u8>(), 128) };
        let mut writer = Writer::new(bytes);
        writer.stride(1_000);
        writer.source_v4([192, 0, 2, 7].into());
        writer.class(true, 0x88);
        let used = writer.used();
        // SAFETY: plain data, for which all zeroes are a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = used as _;
        // SAFETY: `header` names a buffer that holds as many bytes of whole messages; the macros stay inside.
        let walked = unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            let second = libc::CMSG_NXTHDR(&header, first);
            let third = libc::CMSG_NXTHDR(&header, second);
            assert!(libc::CMSG_NXTHDR(&header, third).is_null());
            assert_eq!(libc::CMSG_DATA(first).cast::<u16>().read(), 1_000);
            assert_eq!(libc::CMSG_DATA(third).cast::<c_int>().read(), 0x88);
            let info = libc::CMSG_DATA(second).cast::<libc::in_pktinfo>().read();
            assert_eq!(info.ipi_spec_dst.s_addr, u32::from_ne_bytes([192, 0, 2, 7]));
            [first, second, third].map(|header| ((*header).cmsg_level, (*header).cmsg_type))
        };
        let expected = [
            (libc::SOL_UDP, libc::UDP_SEGMENT),
            (libc::IPPROTO_IP, libc::IP_PKTINFO),
            (libc::IPPROTO_IP, libc::IP_TOS),
        ];
        assert_eq!(walked, expected);
    }

    #[test]
    fn a_message_that_does_not_fit_ends_the_reading_and_one_that_is_too_short_says_nothing() {
        let whole = written(|writer| {
            writer.put(libc::IPPROTO_IP, libc::IP_TOS, &[1]);
            writer.put(libc::SOL_UDP, libc::UDP_GRO, &1_452_i32.to_ne_bytes());
        });
        for length in 0..whole.len() {
            let said = Said::read(&whole[..length]);
            assert_eq!(said.stride, (length >= whole.len() - 4).then_some(1_452), "{length} bytes");
        }
        // Lengths that end before the data begins, behind the buffer, and where no address is.
        for length in [0, 1, HEADER - 1, whole.len() + 1, usize::MAX - 6, usize::MAX] {
            let mut lie = whole.clone();
            lie[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Said::read(&lie), Said::default(), "{length}");
        }
        for (level, kind) in
            [(libc::SOL_UDP, libc::UDP_GRO), (libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, 50), (0, 1)]
        {
            assert_eq!(Said::read(&written(|writer| writer.put(level, kind, &[]))), Said::default());
        }
        let negative = written(|writer| writer.put(libc::SOL_UDP, libc::UDP_GRO, &(-1_i32).to_ne_bytes()));
        assert_eq!(Said::read(&negative).stride, None);
    }

    #[test]
    #[should_panic = "holds all that is ever said"]
    fn a_message_beyond_the_buffer_is_not_written() {
        Writer::new(&mut [0; 16]).put(0, 0, &[1]);
    }
}
