//! Accepts TLS connections, with what is known of the caller.
//!
//! A [`Listener`] lives until it is dropped; handshakes then under way end with it. They run beside each other, each with
//! a deadline and a bounded number of bytes. Places are bounded apart: for handshakes, for callers without a certificate,
//! for those of them who showed a valid join token, for nodes, and for each member; none of them takes another's. Tonic's
//! own accept loop is not used: it cannot show the TLS exporter, which the join proof needs, nor limit by role.

mod places;
mod socket;
mod source;
mod visit;

pub use source::Source;
pub use visit::{NoRoom, Visit};

use crate::certificate::{Identity, Member};
use crate::descriptors::Budget;
use crate::join_proof::Exporter;
use crate::line::Line;
use crate::shares::{Share, Shares};
use crate::tls::{EXPORTER_LABEL, identity_of};
use futures::future::{self, Abortable, Pending, pending};
use mesh_types::limits::{HANDSHAKE_BYTES, MAX_CONNECTIONS_PER_MEMBER};
use places::{Bounds, NoPlace};
use rustls::ServerConfig;
use source::LEVELS;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use visit::{Lobby, Seat};

/// An honest handshake takes two round trips; slower ones only hold a place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Before it gives way to another: that much every handshake has, also while a whole mesh comes back at once.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);
/// A large site of members may come back at once from behind one address.
const HANDSHAKE_PARTS: [usize; LEVELS] = [2, 2, 2];
/// A challenge and the request to join follow the handshake at once.
pub(crate) const STRANGER_STAY: Duration = Duration::from_secs(10);
/// Whoever has shown a token waits for a quorum for some seconds.
const JOINER_STAY: Duration = Duration::from_secs(30);
/// Before a stranger gives way to another that holds no less: a join's two round trips.
const STRANGER_PATIENCE: Duration = Duration::from_secs(1);
/// A host, its neighbourhood, and a holder of many of these. Whoever shows a token leaves its place at once.
const STRANGER_PARTS: [usize; LEVELS] = [4, 4, 2];
/// A peer that takes none of what is sent to it for so long is gone or worse.
pub(crate) const WRITE_STALL: Duration = Duration::from_secs(15);
/// After accept itself failed, usually for want of file descriptors, trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a caller that waits for a handshake's place looks for one.
const PLACE_LOOK: Duration = Duration::from_millis(20);

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
    /// The stay of one without a certificate.
    pub visit: Option<Visit>,
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

/// Who made `request`; `None` if it did not come over a [`Listener`].
pub fn caller<T>(request: &tonic::Request<T>) -> Option<&Caller> {
    request.extensions().get::<Caller>()
}

/// An accepted connection.
pub(crate) struct Accepted<S> {
    pub(crate) caller: Caller,
    pub(crate) hung_up: HungUp,
    pub(crate) stream: S,
    pub(crate) stay: Stay,
}

type TlsStream = tokio_rustls::server::TlsStream<Line<TcpStream>>;

/// The place that a connection has while it is open.
pub(crate) enum Stay {
    Member { _share: Share<Identity>, _place: Option<OwnedSemaphorePermit> },
    Stranger(Visit),
}

/// A port with its handshakes.
pub struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    under_way: Lobby,
    handshakes: JoinSet<Option<Accepted<TlsStream>>>,
    guests: Guests,
    /// Accepted, but without a place for its handshake yet.
    waiting: Option<(TcpStream, SocketAddr)>,
}

/// Who may be connected.
#[derive(Clone)]
struct Guests {
    strangers: Lobby,
    joiners: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    of_member: Shares<Identity>,
}

impl Listener {
    /// Takes connections of `socket`, as many as `budget` allows.
    pub fn new(socket: TcpListener, config: Arc<ServerConfig>, budget: Budget) -> Self {
        Self {
            socket,
            acceptor: config.into(),
            under_way: Lobby::new(Bounds::shared(budget.handshakes, HANDSHAKE_PARTS, HANDSHAKE_PATIENCE)),
            handshakes: JoinSet::new(),
            guests: Guests {
                strangers: Lobby::new(Bounds::shared(budget.strangers, STRANGER_PARTS, STRANGER_PATIENCE)),
                joiners: Arc::new(Semaphore::new(budget.joiners)),
                nodes: Arc::new(Semaphore::new(budget.nodes)),
                of_member: Shares::of(MAX_CONNECTIONS_PER_MEMBER),
            },
            waiting: None,
        }
    }

    /// The next connection whose handshake is done.
    pub(crate) async fn next(&mut self) -> Accepted<TlsStream> {
        loop {
            // First, because this may be dropped and called again before anything below is ready.
            if let Some((stream, remote)) = self.waiting.take() {
                self.begin(stream, remote);
            }
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = ended {
                        return accepted;
                    }
                }
                accepted = self.socket.accept(), if self.waiting.is_none() => match accepted {
                    Ok((stream, remote)) => self.begin(stream, remote),
                    Err(error) => {
                        tracing::warn!(%error, "connection not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = tokio::time::sleep(PLACE_LOOK), if self.waiting.is_some() => {}
            }
        }
    }

    /// Begins a handshake, or lets its caller wait. Whoever has its share already is told at once that it is too many.
    fn begin(&mut self, stream: TcpStream, remote: SocketAddr) {
        let (hangup, hung_up) = Hangup::new();
        match self.under_way.take(Source::of(remote.ip()), hangup) {
            Ok(seat) => {
                let (acceptor, guests) = (self.acceptor.clone(), self.guests.clone());
                self.handshakes.spawn(handshake(acceptor, guests, stream, remote, seat, hung_up));
            }
            Err(NoPlace::Share) => tracing::debug!(%remote, "too many handshakes of one network"),
            Err(NoPlace::Full) => self.waiting = Some((stream, remote)),
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    guests: Guests,
    stream: TcpStream,
    remote: SocketAddr,
    _seat: Seat,
    hung_up: HungUp,
) -> Option<Accepted<TlsStream>> {
    let established = tokio::time::timeout(HANDSHAKE_TIMEOUT, establish(acceptor, guests, stream, remote));
    let error = tokio::select! {
        _ = hung_up => io::Error::other("gave way to another"),
        established = established => match established {
            Ok(Ok(accepted)) => return Some(accepted),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        },
    };
    tracing::debug!(%remote, %error, "handshake failed");
    None
}

async fn establish(
    acceptor: TlsAcceptor,
    guests: Guests,
    stream: TcpStream,
    remote: SocketAddr,
) -> io::Result<Accepted<TlsStream>> {
    stream.set_nodelay(true)?;
    socket::fix_buffers(&stream)?;
    // Nothing is set aside for those that say nothing.
    stream.readable().await?;
    let mut stream = acceptor.accept(Line::new(stream, WRITE_STALL).within(HANDSHAKE_BYTES)).await?;
    stream.get_mut().0.trust();
    let session = stream.get_ref().1;
    let exporter = session.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
    let identity = identity_of(session.peer_certificates());
    // A socket for both families shows IPv4 callers as mapped addresses.
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let (hangup, hung_up) = Hangup::new();
    let stay = match identity {
        Some(identity) => {
            socket::free_buffers(stream.get_ref().0.inner());
            guests.member(identity)?
        }
        None => Stay::Stranger(guests.stranger(remote, hangup.clone())?),
    };
    let visit = match &stay {
        Stay::Stranger(visit) => Some(visit.clone()),
        Stay::Member { .. } => None,
    };
    Ok(Accepted { caller: Caller { remote, identity, exporter, hangup, visit }, hung_up, stream, stay })
}

impl Guests {
    fn member(&self, identity: Identity) -> io::Result<Stay> {
        let too_many = |of: &str| io::Error::other(format!("too many {of}"));
        let place = match identity.member {
            Member::Node(_) => Some(
                self.nodes.clone().try_acquire_owned().map_err(|_| too_many("nodes: raise the descriptor limit"))?,
            ),
            Member::Coordinator(_) => None,
        };
        let share = self.of_member.take(identity).ok_or_else(|| too_many("of this member"))?;
        Ok(Stay::Member { _share: share, _place: place })
    }

    fn stranger(&self, remote: SocketAddr, hangup: Hangup) -> io::Result<Visit> {
        let seat = self.strangers.take(Source::of(remote.ip()), hangup);
        let seat = seat.map_err(|_| io::Error::other("too many without certificate"))?;
        Ok(Visit::new(seat, self.joiners.clone()))
    }
}
