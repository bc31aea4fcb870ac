//! Accepts TLS connections and hands them to tonic, with what is known of the caller.
//!
//! A listener lives until its stream is dropped; handshakes then under way end with it. They run beside each other, a
//! bounded number of them, each with a deadline, so that one that stalls or fails never holds up another or ends the
//! stream. Tonic's own accept loop is not used: it cannot show the TLS exporter, which the join proof needs.

use crate::certificate::Identity;
use crate::join_proof::Exporter;
use crate::tls::{EXPORTER_LABEL, identity_of};
use futures::Stream;
use futures::future::{AbortHandle, Abortable, Pending, pending};
use mesh_types::limits::{MAX_HANDSHAKES, MAX_STRANGERS};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

/// An honest handshake takes two round trips; slower ones only hold a place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A join takes a few calls, the longest of which waits for a quorum for some seconds.
const STRANGER_STAY: Duration = Duration::from_secs(30);
/// After accept itself failed, usually for want of file descriptors, trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection. Found in each request by [`caller`].
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it calls from.
    pub remote: SocketAddr,
    /// Who it is by its certificate; none was shown by one who is about to join.
    pub identity: Option<Identity>,
    /// The keying material of the connection, for the join proof.
    pub exporter: Exporter,
    /// Ends the connection.
    pub hangup: Hangup,
}

/// Ends a connection, whatever is still to be read or written on it: HTTP/2 alone cannot end one with a peer that has
/// no room for what it should read.
#[derive(Clone, Debug)]
pub struct Hangup(AbortHandle);

/// Ready when the connection shall end.
pub type HungUp = Abortable<Pending<()>>;

impl Hangup {
    /// For a connection that watches for the second.
    pub fn new() -> (Self, HungUp) {
        let (handle, registration) = AbortHandle::new_pair();
        (Self(handle), Abortable::new(pending(), registration))
    }

    /// Ends it; nothing happens if it has ended already.
    pub fn now(&self) {
        self.0.abort();
    }
}

/// Who made `request`; `None` if it did not come over [`incoming`].
pub fn caller<T>(request: &tonic::Request<T>) -> Option<&Caller> {
    request.extensions().get::<Caller>()
}

/// Accepts connections for tonic's `serve_with_incoming`. The stream never ends and yields no error.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>) -> Incoming {
    Incoming {
        listener,
        acceptor: config.into(),
        strangers: Strangers::default(),
        handshakes: JoinSet::new(),
        pause: None,
    }
}

/// How many connections without a certificate there may be at once, and for how long each: whoever can reach the port
/// can open them, and they must not take the place of members'.
#[derive(Clone, Debug)]
pub struct Strangers {
    places: Arc<Semaphore>,
    stay: Duration,
}

impl Strangers {
    /// At most `most` at once, each for `stay`.
    pub fn new(most: usize, stay: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), stay }
    }
}

impl Default for Strangers {
    fn default() -> Self {
        Self::new(MAX_STRANGERS, STRANGER_STAY)
    }
}

/// The stream of accepted connections.
pub struct Incoming {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    strangers: Strangers,
    handshakes: JoinSet<Option<TlsStream>>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<TlsStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accept(cx);
        loop {
            match ready!(self.handshakes.poll_join_next(cx)) {
                Some(Ok(Some(stream))) => return Poll::Ready(Some(Ok(stream))),
                // There is room again.
                Some(Ok(None) | Err(_)) => self.accept(cx),
                // Accepting has registered to wake us.
                None => return Poll::Pending,
            }
        }
    }
}

impl Incoming {
    /// Takes other limits on those without a certificate.
    pub fn with_strangers(mut self, strangers: Strangers) -> Self {
        self.strangers = strangers;
        self
    }

    /// Begins handshakes with all that wait, as far as there is room.
    fn accept(&mut self, cx: &mut Context<'_>) {
        while self.handshakes.len() < MAX_HANDSHAKES {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.listener.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, remote))) => {
                    let (acceptor, strangers) = (self.acceptor.clone(), self.strangers.clone());
                    self.handshakes.spawn(handshake(acceptor, strangers, stream, remote));
                }
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "connection not accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    strangers: Strangers,
    stream: TcpStream,
    remote: SocketAddr,
) -> Option<TlsStream> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, establish(acceptor, strangers, stream, remote)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%remote, "handshake timed out");
            None
        }
    }
}

async fn establish(
    acceptor: TlsAcceptor,
    strangers: Strangers,
    stream: TcpStream,
    remote: SocketAddr,
) -> io::Result<TlsStream> {
    stream.set_nodelay(true)?;
    let inner = acceptor.accept(stream).await?;
    let session = inner.get_ref().1;
    let exporter = session.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
    let identity = identity_of(session.peer_certificates());
    // A socket for both families shows IPv4 callers as mapped addresses.
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let visit = match identity {
        Some(_) => None,
        None => Some(Visit {
            _place: strangers
                .places
                .try_acquire_owned()
                .map_err(|_| io::Error::other("too many without certificate"))?,
            ends: Box::pin(tokio::time::sleep(strangers.stay)),
        }),
    };
    let (hangup, hung_up) = Hangup::new();
    Ok(TlsStream { caller: Caller { remote, identity, exporter, hangup }, hung_up, visit, inner })
}

/// The stay of one without a certificate.
struct Visit {
    _place: OwnedSemaphorePermit,
    ends: Pin<Box<tokio::time::Sleep>>,
}

/// An accepted connection.
pub struct TlsStream {
    caller: Caller,
    hung_up: HungUp,
    visit: Option<Visit>,
    inner: tokio_rustls::server::TlsStream<TcpStream>,
}

impl TlsStream {
    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn poll_hung_up(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.hung_up).poll(cx) {
            Poll::Ready(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for TlsStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for TlsStream {
    /// HTTP/2 always waits to read, so the end of a visit is noticed here.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(visit) = &mut self.visit
            && visit.ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.poll_hung_up(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    /// HTTP/2 may wait for room to write before it reads on.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_hung_up(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_hung_up(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_hung_up(cx)?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
