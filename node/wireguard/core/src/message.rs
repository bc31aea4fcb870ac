//! The four messages on the wire: exact layouts, parsing and writing.
//!
//! Paper, section 5.4. All numbers are little-endian; the three bytes after the type are zero. Nothing here is checked
//! but shape: MACs are in `cookie`, the handshake's contents in `noise`, data in `keys`.

/// Length of a handshake initiation.
pub const INITIATION_LEN: usize = 148;
/// Length of a handshake response.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Bytes before a data message's ciphertext: type, receiver index, counter.
pub const DATA_HEADER: usize = 16;
/// Bytes of an authentication tag.
pub const TAG: usize = 16;
/// The shortest data message, a keepalive: header and tag.
pub const DATA_MIN: usize = DATA_HEADER + TAG;
/// Bytes of one MAC; the two handshake messages end in two.
pub const MAC: usize = 16;

const INITIATION: u32 = 1;
const RESPONSE: u32 = 2;
const COOKIE: u32 = 3;
const DATA: u32 = 4;

/// What a datagram claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A handshake initiation.
    Initiation,
    /// A handshake response.
    Response,
    /// A cookie reply.
    Cookie,
    /// A data message.
    Data,
}

/// Tells a datagram's kind by its first four bytes and its length, or that it is none of ours.
#[inline]
pub fn classify(packet: &[u8]) -> Option<MessageKind> {
    let (kind, _) = packet.split_first_chunk::<4>()?;
    match (u32::from_le_bytes(*kind), packet.len()) {
        (DATA, DATA_MIN..) => Some(MessageKind::Data),
        (INITIATION, INITIATION_LEN) => Some(MessageKind::Initiation),
        (RESPONSE, RESPONSE_LEN) => Some(MessageKind::Response),
        (COOKIE, COOKIE_REPLY_LEN) => Some(MessageKind::Cookie),
        _ => None,
    }
}

/// The index in a message that its sender knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The sender's own, in a handshake message.
    Sender(u32),
    /// The receiver's, in a data message: the sender was told it in the handshake.
    Receiver(u32),
}

impl Named {
    /// Reads it; `None` if the datagram is no message, or a cookie reply. Of a data message the beginning is enough.
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let kind = classify(datagram)?;
        let index = u32::from_le_bytes(*datagram.get(4..)?.first_chunk()?);
        match kind {
            MessageKind::Initiation | MessageKind::Response => Some(Self::Sender(index)),
            MessageKind::Data => Some(Self::Receiver(index)),
            MessageKind::Cookie => None,
        }
    }
}

/// A data message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index of the session.
    pub receiver: u32,
    /// The sender's counter, the nonce.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a data message.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        if classify(packet) != Some(MessageKind::Data) {
            return None;
        }
        let (header, _) = packet.split_first_chunk::<DATA_HEADER>()?;
        let mut reader = Reader(&header[4..]);
        Some(Self { receiver: u32::from_le_bytes(reader.take()), counter: u64::from_le_bytes(reader.take()) })
    }

    /// The header's bytes.
    #[inline]
    pub fn write(&self) -> [u8; DATA_HEADER] {
        let mut out = [0; DATA_HEADER];
        out[0..4].copy_from_slice(&DATA.to_le_bytes());
        out[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        out[8..16].copy_from_slice(&self.counter.to_le_bytes());
        out
    }
}

/// A handshake initiation without its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The initiator's index of the session to be.
    pub sender: u32,
    /// The initiator's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key, sealed.
    pub sealed_static: [u8; 32 + TAG],
    /// The initiation's TAI64N timestamp, sealed.
    pub sealed_timestamp: [u8; 12 + TAG],
}

impl Initiation {
    /// Reads an initiation.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        if classify(packet) != Some(MessageKind::Initiation) {
            return None;
        }
        let mut reader = Reader(&packet[4..]);
        Some(Self {
            sender: u32::from_le_bytes(reader.take()),
            ephemeral: reader.take(),
            sealed_static: reader.take(),
            sealed_timestamp: reader.take(),
        })
    }

    /// The message with zero MACs.
    pub fn write(&self) -> [u8; INITIATION_LEN] {
        let mut out = [0; INITIATION_LEN];
        let mut writer = Writer(&mut out);
        writer.put(&INITIATION.to_le_bytes());
        writer.put(&self.sender.to_le_bytes());
        writer.put(&self.ephemeral);
        writer.put(&self.sealed_static);
        writer.put(&self.sealed_timestamp);
        out
    }
}

/// A handshake response without its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The responder's index of the session.
    pub sender: u32,
    /// The initiator's index of the session.
    pub receiver: u32,
    /// The responder's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Nothing, sealed: the proof of the key.
    pub sealed_nothing: [u8; TAG],
}

impl Response {
    /// Reads a response.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        if classify(packet) != Some(MessageKind::Response) {
            return None;
        }
        let mut reader = Reader(&packet[4..]);
        Some(Self {
            sender: u32::from_le_bytes(reader.take()),
            receiver: u32::from_le_bytes(reader.take()),
            ephemeral: reader.take(),
            sealed_nothing: reader.take(),
        })
    }

    /// The message with zero MACs.
    pub fn write(&self) -> [u8; RESPONSE_LEN] {
        let mut out = [0; RESPONSE_LEN];
        let mut writer = Writer(&mut out);
        writer.put(&RESPONSE.to_le_bytes());
        writer.put(&self.sender.to_le_bytes());
        writer.put(&self.receiver.to_le_bytes());
        writer.put(&self.ephemeral);
        writer.put(&self.sealed_nothing);
        out
    }
}

/// A cookie reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The sender index of the message that is answered.
    pub receiver: u32,
    /// The XChaCha20 nonce.
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub sealed_cookie: [u8; 16 + TAG],
}

impl CookieReply {
    /// Reads a cookie reply.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        if classify(packet) != Some(MessageKind::Cookie) {
            return None;
        }
        let mut reader = Reader(&packet[4..]);
        Some(Self { receiver: u32::from_le_bytes(reader.take()), nonce: reader.take(), sealed_cookie: reader.take() })
    }

    /// The message.
    pub fn write(&self) -> [u8; COOKIE_REPLY_LEN] {
        let mut out = [0; COOKIE_REPLY_LEN];
        let mut writer = Writer(&mut out);
        writer.put(&COOKIE.to_le_bytes());
        writer.put(&self.receiver.to_le_bytes());
        writer.put(&self.nonce);
        writer.put(&self.sealed_cookie);
        out
    }
}

/// Takes fields off a message whose length `classify` has checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    #[inline]
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the message's length was checked");
        self.0 = rest;
        *field
    }
}

/// Puts fields into a message of fixed length, one after the other.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        let (place, rest) = std::mem::take(&mut self.0).split_at_mut(field.len());
        place.copy_from_slice(field);
        self.0 = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Bytes that look like one of the messages more often than chance would have it.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let len =
            prop_oneof![Just(INITIATION_LEN), Just(RESPONSE_LEN), Just(COOKIE_REPLY_LEN), Just(DATA_MIN), 0..200_usize];
        let start = prop_oneof![(0..6_u8).prop_map(|kind| [kind, 0, 0, 0]), any::<[u8; 4]>()];
        (start, len, vec(any::<u8>(), 200)).prop_map(|(start, len, mut bytes)| {
            bytes[..4].copy_from_slice(&start);
            bytes.truncate(len);
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 5 } else { 2_000 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn exactly_one_parser_takes_what_is_classified_and_writes_it_back(bytes in datagram()) {
            let kind = classify(&bytes);
            let initiation = Initiation::parse(&bytes);
            let response = Response::parse(&bytes);
            let cookie = CookieReply::parse(&bytes);
            let data = DataHeader::parse(&bytes);
            prop_assert_eq!(initiation.is_some(), kind == Some(MessageKind::Initiation));
            prop_assert_eq!(response.is_some(), kind == Some(MessageKind::Response));
            prop_assert_eq!(cookie.is_some(), kind == Some(MessageKind::Cookie));
            prop_assert_eq!(data.is_some(), kind == Some(MessageKind::Data));
            if let Some(message) = initiation {
                prop_assert_eq!(&message.write()[..INITIATION_LEN - 2 * MAC], &bytes[..INITIATION_LEN - 2 * MAC]);
            }
            if let Some(message) = response {
                prop_assert_eq!(&message.write()[..RESPONSE_LEN - 2 * MAC], &bytes[..RESPONSE_LEN - 2 * MAC]);
            }
            if let Some(message) = cookie {
                prop_assert_eq!(&message.write()[..], &bytes[..]);
            }
            if let Some(header) = data {
                prop_assert_eq!(&header.write()[..], &bytes[..DATA_HEADER]);
            }
        }
    }

    #[test]
    fn kinds_have_exact_lengths_and_zero_reserved_bytes() {
        for (kind, len, more) in [(1, 148, false), (2, 92, false), (3, 64, false), (4, 32, true)] {
            let of = |len: usize| {
                let mut bytes = vec![0; len];
                bytes[0] = kind;
                bytes
            };
            assert!(classify(&of(len)).is_some());
            assert!(classify(&of(len - 1)).is_none());
            assert_eq!(classify(&of(len + 1)).is_some(), more);
            for reserved in 1..4 {
                let mut bytes = of(len);
                bytes[reserved] = 1;
                assert!(classify(&bytes).is_none());
            }
        }
        for kind in [0, 5, 255] {
            assert!(classify(&[[kind, 0, 0, 0]; 37].concat()).is_none());
        }
    }
}
