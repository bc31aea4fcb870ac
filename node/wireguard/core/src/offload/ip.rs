//! Where things lie in IP, TCP and UDP headers, and how they are read and written.

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// An IP packet's length field has 16 bits.
pub(super) const MAX_LENGTH: usize = u16::MAX as usize;

pub(super) mod v4 {
    use std::ops::Range;

    pub(crate) const HEADER: usize = 20;
    /// The first byte of a header without options.
    pub(crate) const PLAIN: u8 = 0x45;
    pub(crate) const VERSION_TO_TOS: Range<usize> = 0..2;
    pub(crate) const TOTAL_LENGTH: usize = 2;
    pub(crate) const ID: usize = 4;
    pub(crate) const FRAGMENT: usize = 6;
    pub(crate) const FRAGMENT_TO_PROTOCOL: Range<usize> = 6..10;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
    /// Source, then destination.
    pub(crate) const ADDRESSES: Range<usize> = 12..20;

    pub(crate) const DONT_FRAGMENT: u16 = 0x4000;

    /// Bytes of the header that begins with this byte.
    pub(crate) fn header_length(first: u8) -> usize {
        usize::from(first & 0x0f) * 4
    }
}

pub(super) mod v6 {
    use std::ops::Range;

    pub(crate) const HEADER: usize = 40;
    pub(crate) const VERSION_TO_LABEL: Range<usize> = 0..4;
    pub(crate) const PAYLOAD_LENGTH: usize = 4;
    pub(crate) const NEXT_HEADER: usize = 6;
    pub(crate) const NEXT_HEADER_TO_HOPS: Range<usize> = 6..8;
    /// Source, then destination.
    pub(crate) const ADDRESSES: Range<usize> = 8..40;
}

pub(super) mod tcp {
    use std::ops::Range;

    pub(crate) const HEADER: usize = 20;
    pub(crate) const SEQUENCE: usize = 4;
    pub(crate) const ACKNOWLEDGEMENT_TO_OFFSET: Range<usize> = 8..13;
    pub(crate) const OFFSET: usize = 12;
    pub(crate) const FLAGS: usize = 13;
    pub(crate) const WINDOW: Range<usize> = 14..16;
    pub(crate) const CHECKSUM: usize = 16;
    /// The urgent pointer, and after it the options.
    pub(crate) const URGENT: usize = 18;

    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
    pub(crate) const CWR: u8 = 0x80;

    /// Bytes of the header that says this about itself.
    pub(crate) fn header_length(offset: u8) -> usize {
        usize::from(offset >> 4) * 4
    }
}

pub(super) mod udp {
    pub(crate) const HEADER: usize = 8;
    pub(crate) const LENGTH: usize = 4;
    pub(crate) const CHECKSUM: usize = 6;
}

/// The big-endian word at a place.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian double word at a place.
pub(super) fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Sets a big-endian word.
pub(super) fn put_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// Sets a big-endian double word.
pub(super) fn put_double_word(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
}
