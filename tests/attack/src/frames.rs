//! HTTP/2 frames (RFC 9113) and request heads (RFC 7541), written by hand: a library would keep to the rules.
//!
//! Writes whatever it is told to; of what the other side says it reads only the frame's head.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No frame of ours is longer, and the other side may send none that is: nobody here allows it (RFC 9113, 4.2).
pub(crate) const MAX_FRAME: usize = 16_384;

/// Kinds of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Settings that are used here.
pub(crate) mod setting {
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

/// Whether a stream's sender has more to say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    More,
    End,
}

impl Then {
    fn flag(self) -> u8 {
        match self {
            Self::More => 0,
            Self::End => END_STREAM,
        }
    }
}

/// Frames to send, one after the other.
#[derive(Default)]
pub(crate) struct Frames(pub(crate) Vec<u8>);

impl Frames {
    /// What a connection begins with: the preface, these settings, and that the other's are taken.
    pub(crate) fn opening(settings: &[(u16, u32)]) -> Self {
        Self(PREFACE.to_vec()).settings(settings).frame(kind::SETTINGS, ACK, 0, &[])
    }

    pub(crate) fn frame(mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        self.head(payload.len(), kind, flags, stream);
        self.0.extend_from_slice(payload);
        self
    }

    /// The head alone of a frame, whose payload is sent otherwise.
    pub(crate) fn head(&mut self, length: usize, kind: u8, flags: u8, stream: u32) {
        let length = u32::try_from(length).expect("frames are short").to_be_bytes();
        self.0.extend_from_slice(&length[1..]);
        self.0.extend_from_slice(&[kind, flags]);
        self.0.extend_from_slice(&stream.to_be_bytes());
    }

    pub(crate) fn settings(self, settings: &[(u16, u32)]) -> Self {
        let payload = settings.iter().flat_map(|(id, value)| [id.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()]);
        self.frame(kind::SETTINGS, 0, 0, &payload.collect::<Vec<_>>().concat())
    }

    pub(crate) fn request(self, stream: u32, block: &[u8], then: Then) -> Self {
        self.frame(kind::HEADERS, END_HEADERS | then.flag(), stream, block)
    }

    /// A request head that is to go on in CONTINUATION frames.
    pub(crate) fn begun_request(self, stream: u32, block: &[u8]) -> Self {
        self.frame(kind::HEADERS, 0, stream, block)
    }

    pub(crate) fn data(self, stream: u32, payload: &[u8], then: Then) -> Self {
        self.frame(kind::DATA, then.flag(), stream, payload)
    }

    pub(crate) fn reset(self, stream: u32) -> Self {
        self.frame(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
    }

    pub(crate) fn ping(self) -> Self {
        self.frame(kind::PING, 0, 0, &[7; 8])
    }

    pub(crate) fn window_update(self, stream: u32, bytes: u32) -> Self {
        self.frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
    }
}

/// Header blocks of one connection's requests for one method, short after the first: it fills the other side's table.
pub(crate) struct Heads {
    path: &'static str,
    first: bool,
}

impl Heads {
    pub(crate) fn of(path: &'static str) -> Self {
        Self { path, first: true }
    }

    /// The next block: fifteen bytes with its frame's head, from the second on.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        if std::mem::replace(&mut self.first, false) { complete(self.path) } else { REPEATED.to_vec() }
    }
}

/// `:method: POST` and `:scheme: https` of the static table.
const POST_HTTPS: [u8; 2] = [0x83, 0x87];
/// What [`complete`] has put into the table, by its place there: path, authority, content type and TE.
const REPEATED: [u8; 6] = [POST_HTTPS[0], POST_HTTPS[1], 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

fn complete(path: &str) -> Vec<u8> {
    let mut block = POST_HTTPS.to_vec();
    // With names by their place in the static table, each to be kept in the other side's.
    for (name, value) in [(4, path), (1, "mesh.invalid"), (31, "application/grpc")] {
        block.push(0x40 | name);
        literal(&mut block, value);
    }
    block.push(0x40);
    literal(&mut block, "te");
    literal(&mut block, "trailers");
    block
}

fn literal(block: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 0x7f);
    block.push(length.expect("names and values are short"));
    block.extend_from_slice(text.as_bytes());
}

/// The begin of a gRPC message that will have `length` bytes.
pub(crate) fn message_head(length: u32) -> [u8; 5] {
    let length = length.to_be_bytes();
    [0, length[0], length[1], length[2], length[3]]
}

/// One frame that was read.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
        from.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1);
        Ok(Self { kind: head[3], flags: head[4], stream, payload })
    }

    /// Whether it only says that something of ours was taken.
    pub(crate) fn is_ack(&self) -> bool {
        matches!(self.kind, kind::SETTINGS | kind::PING) && self.flags & ACK != 0
    }

    /// The answer, if it is a PING that wants one.
    pub(crate) fn pong(&self) -> Option<Frames> {
        let asks = self.kind == kind::PING && !self.is_ack();
        asks.then(|| Frames::default().frame(kind::PING, ACK, 0, &self.payload))
    }

    /// Whether the other side says no more on this stream.
    pub(crate) fn ends_stream(&self) -> bool {
        self.kind == kind::RST_STREAM || matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// The number in the payload's first four bytes, after `skipped` others.
    pub(crate) fn number(&self, skipped: usize) -> Option<u32> {
        self.payload.get(skipped..)?.first_chunk().copied().map(u32::from_be_bytes)
    }

    /// The settings that it states.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (u16, u32)> {
        self.payload.chunks_exact(6).map(|entry| {
            (u16::from_be_bytes([entry[0], entry[1]]), u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_request_takes_fifteen_bytes() {
        let mut heads = Heads::of("/mesh.v1.Membership/Join");
        heads.next();
        assert_eq!(Frames::default().request(3, &heads.next(), Then::More).0.len(), 15);
    }

    #[tokio::test]
    async fn what_is_written_is_read_as_such() {
        let sent = Frames::default().data(5, b"abc", Then::End).settings(&[(setting::INITIAL_WINDOW_SIZE, 70_000)]);
        let mut sent = sent.0.as_slice();
        let data = Frame::read(&mut sent).await.unwrap();
        assert_eq!((data.kind, data.stream, data.payload.as_slice()), (kind::DATA, 5, b"abc".as_slice()));
        assert!(data.ends_stream() && !data.is_ack());
        let settings = Frame::read(&mut sent).await.unwrap();
        assert_eq!(settings.settings().collect::<Vec<_>>(), [(4, 70_000)]);
    }
}
