//! Connections of somebody without a certificate, and what is said on them.

use crate::frames::{Frame, Frames, MAX_FRAME, Then, kind, message_head, setting};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Whoever is not served within this is kept out.
const CONNECT: Duration = Duration::from_secs(10);
/// Windows before the other side says anything (RFC 9113, 6.9.2).
const FIRST_WINDOW: i64 = 65_535;

/// Both directions of a connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

type Reads = ReadHalf<Box<dyn Stream>>;
type Writes = WriteHalf<Box<dyn Stream>>;

/// Connects from one address of this host to another.
pub(crate) async fn tcp(to: SocketAddr, from: IpAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.set_nodelay(true)?;
    timeout(CONNECT, socket.connect(to)).await?
}

/// Connects by TLS, showing nothing and taking whoever answers.
pub(crate) async fn tls(to: SocketAddr, from: IpAddr) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from("mesh.invalid").expect("a valid name");
    let handshake = TlsConnector::from(tls_config()).connect(name, tcp(to, from).await?);
    Ok(Box::new(timeout(CONNECT, handshake).await??))
}

/// Connects to a socket of this host.
pub(crate) async fn unix(path: &Path) -> io::Result<Box<dyn Stream>> {
    Ok(Box::new(timeout(CONNECT, UnixStream::connect(path)).await??))
}

/// The configuration of a client that believes everybody.
pub(crate) fn tls_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let make = || {
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has cipher suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    CONFIG.get_or_init(make).clone()
}

/// Takes whoever answers: what is tried here does not depend on it.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Sends what an HTTP/2 connection begins with. Nothing is read of what is answered until somebody does so.
pub(crate) async fn open(stream: Box<dyn Stream>, settings: &[(u16, u32)]) -> io::Result<(Reads, Writes)> {
    let (reads, mut writes) = split(stream);
    send(&mut writes, &Frames::opening(settings)).await?;
    Ok((reads, writes))
}

/// Sends frames.
pub(crate) async fn send(writes: &mut Writes, frames: &Frames) -> io::Result<()> {
    writes.write_all(&frames.0).await?;
    writes.flush().await
}

/// An HTTP/2 connection whose other side is listened to, and told that we are there when it asks.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

/// What the other side said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// Streams that it ended, by an answer or by a reset.
    pub(crate) ended_streams: usize,
    /// That it wants no more streams, and why.
    pub(crate) goaway: Option<u32>,
    /// That the connection is at its end.
    pub(crate) over: bool,
    windows: Windows,
}

/// How much may be sent.
#[derive(Clone, Debug)]
struct Windows {
    connection: i64,
    initial: i64,
    /// What each stream was given or has used beyond the initial window.
    of_streams: BTreeMap<u32, i64>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { connection: FIRST_WINDOW, initial: FIRST_WINDOW, of_streams: BTreeMap::new() }
    }
}

impl Windows {
    /// Takes up to `wanted` bytes that may be sent on a stream.
    fn take(&mut self, stream: u32, wanted: usize) -> usize {
        let changed = self.of_streams.entry(stream).or_default();
        let open = self.connection.min(self.initial + *changed);
        let taken = usize::try_from(open).unwrap_or(0).min(wanted);
        let size = i64::try_from(taken).expect("less than a window");
        *changed -= size;
        self.connection -= size;
        taken
    }
}

struct Shared {
    writes: tokio::sync::Mutex<Writes>,
    heard: Mutex<Heard>,
    changed: Notify,
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("no code panics while it holds what was heard")
    }

    async fn listen(&self, mut reads: Reads) {
        while let Ok(frame) = Frame::read(&mut reads).await {
            self.heard().take(&frame);
            self.changed.notify_waiters();
            // Where something is being sent, it is asked again: reading must not wait for room to write.
            if let Some(pong) = frame.pong()
                && let Ok(mut writes) = self.writes.try_lock()
                && timeout(CONNECT, send(&mut writes, &pong)).await.is_err()
            {
                break;
            }
        }
        self.heard().over = true;
        self.changed.notify_waiters();
    }
}

impl Heard {
    fn take(&mut self, frame: &Frame) {
        if frame.ends_stream() {
            self.ended_streams += 1;
        }
        match frame.kind {
            kind::GOAWAY => self.goaway = frame.number(4),
            kind::SETTINGS if !frame.is_ack() => {
                for (id, value) in frame.settings() {
                    if id == setting::INITIAL_WINDOW_SIZE {
                        self.windows.initial = value.into();
                    }
                }
            }
            kind::WINDOW_UPDATE => {
                let more = i64::from(frame.number(0).unwrap_or(0));
                match frame.stream {
                    0 => self.windows.connection += more,
                    stream => *self.windows.of_streams.entry(stream).or_default() += more,
                }
            }
            _ => {}
        }
    }
}

impl Connection {
    pub(crate) async fn open(stream: Box<dyn Stream>, settings: &[(u16, u32)]) -> io::Result<Self> {
        let (reads, writes) = open(stream, settings).await?;
        let shared = Arc::new(Shared { writes: writes.into(), heard: Mutex::default(), changed: Notify::new() });
        let listening = shared.clone();
        let reader = tokio::spawn(async move { listening.listen(reads).await }).abort_handle();
        Ok(Self { shared, reader })
    }

    pub(crate) async fn send(&self, frames: &Frames) -> io::Result<()> {
        send(&mut *self.shared.writes.lock().await, frames).await
    }

    /// Begins a call whose message will have `length` bytes, none of which are sent yet.
    pub(crate) async fn begin(&self, stream: u32, block: &[u8], length: u32) -> io::Result<()> {
        let head = message_head(length);
        if self.shared.heard().windows.take(stream, head.len()) < head.len() {
            return Err(io::Error::other("no room for the begin of a message"));
        }
        self.send(&Frames::default().request(stream, block, Then::More).data(stream, &head, Then::More)).await
    }

    /// Sends as much of a body as there is room for now; gives the number of bytes.
    pub(crate) async fn send_body(&self, stream: u32, most: usize) -> io::Result<usize> {
        let size = self.shared.heard().windows.take(stream, most.min(MAX_FRAME));
        if size > 0 {
            self.send(&Frames::default().data(stream, &vec![0; size], Then::More)).await?;
        }
        Ok(size)
    }

    pub(crate) fn heard(&self) -> Heard {
        self.shared.heard().clone()
    }

    /// Whether nothing more can be said.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.heard().over
    }

    /// Waits until the other side has ended the connection.
    pub(crate) async fn ended(&self) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_over() {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
