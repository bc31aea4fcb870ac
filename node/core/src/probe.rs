//! Probes: a request and a reply inside the tunnel, on a reserved port of the overlay addresses.
//!
//! The tunnel authenticates them, so that they carry no keys. Layout, integers big-endian: magic `MSHP` (4 bytes),
//! version (1), kind (1), zero (2), token (8), time of sending (8). A reply repeats token and time of its request; a
//! token names a round of probes, the time tells which of its requests was answered.

use crate::clock::BootTime;

/// UDP port of probes on overlay addresses.
pub const PROBE_PORT: u16 = 8552;

/// Bytes of a probe.
pub const PROBE_LEN: usize = 24;

const MAGIC: [u8; 4] = *b"MSHP";
const VERSION: u8 = 1;

/// Whether a probe asks or answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// Are you there?
    Request,
    /// I am.
    Reply,
}

/// One probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Asks or answers.
    pub kind: ProbeKind,
    /// Which round of probes.
    pub token: u64,
    /// When the request was sent, by the clock of who asked.
    pub sent: BootTime,
}

impl Probe {
    /// The datagram.
    pub fn encode(&self) -> [u8; PROBE_LEN] {
        let mut out = [0; PROBE_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = match self.kind {
            ProbeKind::Request => 1,
            ProbeKind::Reply => 2,
        };
        out[8..16].copy_from_slice(&self.token.to_be_bytes());
        out[16..].copy_from_slice(&self.sent.as_micros().to_be_bytes());
        out
    }

    /// The probe in a datagram; `None` if it is none. Bytes behind it are left to later versions.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, _) = bytes.split_first_chunk::<PROBE_LEN>()?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (&[version, kind, _, _], rest) = rest.split_first_chunk::<4>()?;
        let (token, sent) = rest.split_first_chunk::<8>()?;
        if *magic != MAGIC || version != VERSION {
            return None;
        }
        let kind = match kind {
            1 => ProbeKind::Request,
            2 => ProbeKind::Reply,
            _ => return None,
        };
        let sent = BootTime::from_micros(u64::from_be_bytes(sent.try_into().ok()?));
        Some(Self { kind, token: u64::from_be_bytes(*token), sent })
    }

    /// The answer to this request.
    pub fn reply(&self) -> Self {
        Self { kind: ProbeKind::Reply, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_probe_has_exactly_this_layout() {
        let probe = Probe { kind: ProbeKind::Request, token: 0x0102_0304_0506_0708, sent: BootTime::from_micros(9) };
        let expected = *b"MSHP\x01\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x09";
        assert_eq!(probe.encode(), expected);
        assert_eq!(Probe::parse(&expected), Some(probe));
    }

    #[test]
    fn what_is_not_a_probe_of_this_version_is_left_alone() {
        let good = Probe { kind: ProbeKind::Reply, token: 1, sent: BootTime::from_micros(2) }.encode();
        assert_eq!(Probe::parse(&good[..PROBE_LEN - 1]), None);
        for (at, value) in [(0, b'X'), (4, 2), (5, 0), (5, 3)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Probe::parse(&bad), None, "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn parsing_hostile_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Probe::parse(&bytes);
        }

        #[test]
        fn a_probe_survives_its_encoding(token: u64, sent: u64, ask: bool) {
            let kind = if ask { ProbeKind::Request } else { ProbeKind::Reply };
            let probe = Probe { kind, token, sent: BootTime::from_micros(sent) };
            prop_assert_eq!(Probe::parse(&probe.encode()), Some(probe));
        }
    }
}
