//! Accepts TLS connections and hands them to tonic, with what is known of the caller.
//!
//! A listener lives until its stream is dropped; handshakes then under way end with it. They run beside each other, a
//! bounded number of them and of each source, each with a deadline. Where there are too many the oldest gives way, so
//! that those that stall never keep others out. Connections are bounded for each source or member, whoever has too many
//! gets no more. Tonic's own accept loop is not used: it cannot show the TLS exporter, which the join proof needs.

use crate::certificate::Identity;
use crate::join_proof::Exporter;
use crate::tls::{EXPORTER_LABEL, identity_of};
use futures::Stream;
use futures::future::{self, Abortable, Pending, pending};
use mesh_types::limits::{
    MAX_CONNECTIONS_PER_MEMBER, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE, MAX_STRANGERS, MAX_STRANGERS_PER_SOURCE,
};
use rustls::ServerConfig;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
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
pub struct Hangup(future::AbortHandle);

/// Ready when the connection shall end.
pub type HungUp = Abortable<Pending<()>>;

impl Hangup {
    /// For a connection that watches for the second.
    pub fn new() -> (Self, HungUp) {
        let (handle, registration) = future::AbortHandle::new_pair();
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
        guests: Guests { strangers: Strangers::default(), members: Places::of(MAX_CONNECTIONS_PER_MEMBER) },
        handshakes: JoinSet::new(),
        under_way: UnderWay(VecDeque::new()),
        pause: None,
    }
}

/// How many connections without a certificate there may be at once, and for how long each: whoever can reach the port
/// can open them, and they must not take the place of members'.
#[derive(Clone, Debug)]
pub struct Strangers {
    places: Arc<Semaphore>,
    of_source: Places<Source>,
    stay: Duration,
}

impl Strangers {
    /// At most `most` at once, each for `stay`.
    pub fn new(most: usize, stay: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), of_source: Places::of(MAX_STRANGERS_PER_SOURCE), stay }
    }

    fn admit(self, source: Source) -> io::Result<Stay> {
        let too_many = || io::Error::other("too many without certificate");
        Ok(Stay::Stranger {
            _of_source: self.of_source.take(source).ok_or_else(too_many)?,
            _place: self.places.try_acquire_owned().map_err(|_| too_many())?,
            ends: Box::pin(tokio::time::sleep(self.stay)),
        })
    }
}

impl Default for Strangers {
    fn default() -> Self {
        Self::new(MAX_STRANGERS, STRANGER_STAY)
    }
}

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 address, all of which one host may use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Source(u128);

impl Source {
    fn of(remote: SocketAddr) -> Self {
        match remote.ip().to_canonical() {
            IpAddr::V4(ip) => Self(u32::from(ip).into()),
            // No address of ours begins with 64 zero bits.
            IpAddr::V6(ip) => Self(u128::from(ip) >> 64 << 64),
        }
    }
}

/// How many places each one has taken, all with the same bound; clones share them.
#[derive(Clone, Debug)]
struct Places<K> {
    most: usize,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord + Clone> Places<K> {
    fn of(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place until it is dropped; none if `holder` has as many as it may.
    fn take(&self, holder: K) -> Option<Place<K>> {
        let mut taken = self.taken();
        let count = taken.entry(holder.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), holder })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.taken.lock().expect("no code panics while it holds the places")
    }
}

struct Place<K: Ord + Clone> {
    places: Places<K>,
    holder: K,
}

impl<K: Ord + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        let left = taken.get(&self.holder).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            taken.remove(&self.holder);
        } else {
            taken.insert(self.holder.clone(), left);
        }
    }
}

/// Handshakes under way, the oldest first.
struct UnderWay<T>(VecDeque<(Source, T)>);

impl<T> UnderWay<T> {
    /// Takes out the one that has to give way to a new one of `source`, if there are too many: the oldest of its own, or
    /// the oldest of all.
    fn make_room(&mut self, source: Source) -> Option<T> {
        let mut own = self.0.iter().enumerate().filter(|(_, (of, _))| *of == source).map(|(index, _)| index);
        let oldest = own.next().filter(|_| own.count() + 1 >= MAX_HANDSHAKES_PER_SOURCE);
        let index = oldest.or((self.0.len() >= MAX_HANDSHAKES).then_some(0))?;
        self.0.remove(index).map(|(_, handshake)| handshake)
    }
}

/// Who may be connected.
#[derive(Clone)]
struct Guests {
    strangers: Strangers,
    members: Places<Identity>,
}

/// The stream of accepted connections.
pub struct Incoming {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    guests: Guests,
    handshakes: JoinSet<Option<TlsStream>>,
    under_way: UnderWay<AbortHandle>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<TlsStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accept(cx);
        loop {
            match ready!(self.handshakes.poll_join_next(cx)) {
                Some(Ok(Some(stream))) => return Poll::Ready(Some(Ok(stream))),
                Some(Ok(None) | Err(_)) => {}
                // Accepting has registered to wake us.
                None => return Poll::Pending,
            }
        }
    }
}

impl Incoming {
    /// Takes other limits on those without a certificate.
    pub fn with_strangers(mut self, strangers: Strangers) -> Self {
        self.guests.strangers = strangers;
        self
    }

    /// Begins handshakes with all that wait.
    fn accept(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.listener.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, remote))) => {
                    self.under_way.0.retain(|(_, task)| !task.is_finished());
                    if let Some(oldest) = self.under_way.make_room(Source::of(remote)) {
                        oldest.abort();
                    }
                    let (acceptor, guests) = (self.acceptor.clone(), self.guests.clone());
                    let task = self.handshakes.spawn(handshake(acceptor, guests, stream, remote));
                    self.under_way.0.push_back((Source::of(remote), task));
                }
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "connection not accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, guests: Guests, stream: TcpStream, remote: SocketAddr) -> Option<TlsStream> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, establish(acceptor, guests, stream, remote)).await {
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
    guests: Guests,
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
    let stay = match identity {
        Some(identity) => {
            let place = guests.members.take(identity);
            Stay::Member { _place: place.ok_or_else(|| io::Error::other("too many of this member"))? }
        }
        None => guests.strangers.admit(Source::of(remote))?,
    };
    let (hangup, hung_up) = Hangup::new();
    Ok(TlsStream { caller: Caller { remote, identity, exporter, hangup }, hung_up, stay, inner })
}

/// The place that a connection takes while it is open.
enum Stay {
    Member {
        _place: Place<Identity>,
    },
    /// One without a certificate has to go at last.
    Stranger {
        _place: OwnedSemaphorePermit,
        _of_source: Place<Source>,
        ends: Pin<Box<tokio::time::Sleep>>,
    },
}

/// An accepted connection.
pub struct TlsStream {
    caller: Caller,
    hung_up: HungUp,
    stay: Stay,
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
        if let Stay::Stranger { ends, .. } = &mut self.stay
            && ends.as_mut().poll(cx).is_ready()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(ip: &str) -> Source {
        Source::of(SocketAddr::new(ip.parse().unwrap(), 1))
    }

    #[test]
    fn a_host_is_one_source_by_whatever_address_it_calls() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ] {
            assert_eq!(source(one) == source(other), same, "{one} {other}");
        }
    }

    #[test]
    fn who_stalls_gives_way_first_to_its_own_source_and_then_to_all() {
        let mut under_way = UnderWay(VecDeque::new());
        let mut begin = |ip: &str, number: usize| {
            let gave_way = under_way.make_room(source(ip));
            under_way.0.push_back((source(ip), number));
            (gave_way, under_way.0.len())
        };
        for number in 0..MAX_HANDSHAKES_PER_SOURCE {
            assert_eq!(begin("192.0.2.1", number), (None, number + 1));
        }
        assert_eq!(begin("192.0.2.1", 5_000), (Some(0), MAX_HANDSHAKES_PER_SOURCE));
        for number in MAX_HANDSHAKES_PER_SOURCE..MAX_HANDSHAKES {
            let ip = format!("198.51.{}.{}", number / 256, number % 256);
            assert_eq!(begin(&ip, number), (None, number + 1));
        }
        assert_eq!(begin("203.0.113.1", 6_000), (Some(1), MAX_HANDSHAKES));
    }

    #[test]
    fn a_place_is_free_again_once_it_is_left() {
        let places = Places::of(2);
        let (first, _second) = (places.take('a').unwrap(), places.take('a').unwrap());
        assert!(places.take('a').is_none());
        let _other = places.take('b').unwrap();
        drop(first);
        let _third = places.take('a').unwrap();
        assert!(places.take('a').is_none());
    }
}
