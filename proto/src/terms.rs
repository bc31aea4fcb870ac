//! What a connection may ask of HTTP/2, by the role of its peer: the caps of [`crate::serve`], each with its reason.

use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use mesh_types::limits::MAX_STRANGERS_CALL;
use std::time::Duration;

/// HTTP/2 pings to silent peers, and how long their answer may take: a host that died without a word is noticed.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(5);

/// RFC 9113, 6.5.2: the smallest that there is, and enough for every message but a snapshot's.
const FRAME: u32 = 16 << 10;
/// Ours have some 200 bytes.
const HEADERS: u32 = 4 << 10;
/// RFC 7541's default.
const HEADER_TABLE: u32 = 4 << 10;

/// The terms of one role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Calls at once.
    pub(crate) streams: u32,
    /// Bytes of one call that may come before they are taken.
    stream_window: u32,
    /// The same of all calls together. RFC 9113, 6.9.2 lets the first 64 KiB come whatever is set.
    connection_window: u32,
    /// Bytes of one call that may wait to be sent.
    send_buffer: usize,
    /// Of the compression of headers: an attacker who fills it makes it take several times as much.
    header_table: u32,
    /// Calls taken back before they were looked at, and calls that broke the protocol, before the connection ends.
    resets: usize,
    /// How long there may be no call at all.
    pub(crate) silence: Duration,
    /// Whether silent peers are pinged.
    pings: bool,
}

/// Whoever has shown nothing yet asks for a challenge, then for a join, each when the one before is answered.
pub(crate) const STRANGER: Terms = Terms {
    streams: 1,
    stream_window: MAX_STRANGERS_CALL,
    connection_window: MAX_STRANGERS_CALL,
    send_buffer: 16 << 10,
    header_table: 0,
    resets: 4,
    silence: Duration::from_secs(5),
    pings: false,
};

/// A node has one session, and seldom another call. What it sends is small; what it hears are whole snapshots.
pub(crate) const NODE: Terms = Terms {
    streams: 16,
    stream_window: 64 << 10,
    connection_window: 128 << 10,
    send_buffer: 400 << 10,
    header_table: HEADER_TABLE,
    resets: 20,
    silence: Duration::from_secs(60),
    pings: true,
};

/// A coordinator forwards the writes of all that ask it, beside the log and snapshots of the registry.
pub(crate) const COORDINATOR: Terms = Terms {
    streams: 1_024,
    stream_window: 1 << 20,
    connection_window: 4 << 20,
    send_buffer: 400 << 10,
    header_table: HEADER_TABLE,
    resets: 100,
    silence: Duration::from_secs(60),
    pings: true,
};

/// A person's command makes one call; a script may hold its connection for some. The end of the other side closes it.
pub(crate) const LOCAL: Terms = Terms {
    streams: 16,
    stream_window: 64 << 10,
    connection_window: 64 << 10,
    send_buffer: 400 << 10,
    header_table: HEADER_TABLE,
    resets: 20,
    silence: Duration::from_secs(30),
    pings: false,
};

impl Terms {
    pub(crate) fn builder<E: Clone>(&self, executor: E) -> Builder<E> {
        let mut builder = Builder::new(executor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.streams)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(FRAME)
            .max_header_list_size(HEADERS)
            .header_table_size(self.header_table)
            .max_send_buf_size(self.send_buffer)
            .max_pending_accept_reset_streams(self.resets)
            .max_local_error_reset_streams(self.resets);
        if self.pings {
            builder.keep_alive_interval(PING).keep_alive_timeout(PONG);
        }
        builder
    }
}
