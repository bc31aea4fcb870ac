//! Connects to a coordinator: names, addresses, TCP, TLS, and a gRPC channel over that one connection.
//!
//! All addresses given are tried, each a moment after the one before, and the first that answers as expected is kept.
//! A connection is returned when the coordinator has accepted it, our certificate included. It is dialled once: when it
//! ends, calls on it fail, and whoever owns it dials again, with backoff of its own.

use crate::certificate::Identity;
use crate::channel::{Keepalive, over};
use crate::join_proof::Exporter;
use crate::resolve::resolve;
use crate::tls::{
    Clock, Credentials, Dialling, EXPORTER_LABEL, Expect, Trust, VerifyError, client_config, unused_name,
};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use mesh_types::CoordinatorAddress;
use mesh_types::coordinator::Host;
use mesh_types::netmap::Certificate;
use nix::sys::socket::{setsockopt, sockopt};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

/// Between one attempt and the next beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// A SYN is repeated after one second and again after three.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(4);

/// Makes connections to coordinators.
#[derive(Clone)]
pub struct Dialer {
    trust: Option<Trust>,
    credentials: Option<Credentials>,
    clock: Clock,
    fwmark: Option<u32>,
}

/// A connection to a coordinator.
#[derive(Clone, Debug)]
pub struct Connection {
    /// For gRPC; ends with the connection.
    pub channel: Channel,
    /// Who answered, verified.
    pub identity: Identity,
    /// The CA that its certificate verified with.
    pub authority: Certificate,
    /// The keying material of the connection, for the join proof.
    pub exporter: Exporter,
    /// The address dialled.
    pub address: CoordinatorAddress,
    /// Where that led.
    pub remote: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
}

/// Why no connection came about.
#[derive(Debug, Error, Clone)]
pub struct DialError {
    /// What was tried, in the order of failing.
    pub attempts: Vec<Attempt>,
}

/// One attempt that failed.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The address dialled.
    pub address: CoordinatorAddress,
    /// Where that led; none if the name did not resolve.
    pub remote: Option<SocketAddr>,
    /// What went wrong.
    pub failure: Failure,
}

/// What went wrong in an attempt.
#[derive(Debug, Error, Clone)]
pub enum Failure {
    /// The coordinator's certificate is not valid at our time: one of the clocks is wrong.
    #[error("clock: {0}")]
    Clock(VerifyError),
    /// It is not under the CA that the join token pins.
    #[error("{0}")]
    Pin(VerifyError),
    /// Its certificate is refused for another reason.
    #[error("{0}")]
    Certificate(VerifyError),
    /// The coordinator refused our certificate.
    #[error("the coordinator refuses this machine's certificate: {}", refusal(*.0))]
    Rejected(rustls::AlertDescription),
    /// What answers does not speak TLS as coordinators do.
    #[error("TLS failed: {0}; is this the port of a coordinator?")]
    Tls(String),
    /// It closed the connection before it was of use.
    #[error("the coordinator closed the connection before it was set up")]
    Closed,
    /// Nothing answered in time.
    #[error("no answer within {} s while {stage}", within.as_secs())]
    Timeout {
        /// What was being done.
        stage: &'static str,
        /// How long it was given.
        within: Duration,
    },
    /// Nothing listens there.
    #[error("connection refused: no coordinator listens there")]
    Refused,
    /// No way there, or the socket could not be made.
    #[error("{0}")]
    Unreachable(String),
    /// The name has no address.
    #[error("name does not resolve: {0}")]
    Resolve(String),
}

fn refusal(alert: rustls::AlertDescription) -> String {
    match alert {
        rustls::AlertDescription::CertificateExpired => {
            "it is out of date by the coordinator's clock; check both clocks, or join again".to_owned()
        }
        rustls::AlertDescription::UnknownCA => {
            "it was issued by another mesh; leave that one and join again".to_owned()
        }
        other => format!("{other:?}"),
    }
}

impl Failure {
    /// What a user should hear first ranks lowest: who got an answer knows more than who got none.
    fn rank(&self) -> u8 {
        match self {
            Self::Clock(_) => 0,
            Self::Pin(_) => 1,
            Self::Rejected(_) => 2,
            Self::Certificate(_) => 3,
            Self::Tls(_) => 4,
            Self::Closed => 5,
            Self::Timeout { .. } => 6,
            Self::Refused => 7,
            Self::Unreachable(_) => 8,
            Self::Resolve(_) => 9,
        }
    }
}

impl DialError {
    /// The failure that says most; `None` if there was no address to try.
    pub fn failure(&self) -> Option<&Failure> {
        self.attempts.iter().map(|attempt| &attempt.failure).min_by_key(|failure| failure.rank())
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("no coordinator reached: no address is known");
        }
        f.write_str("no coordinator reached")?;
        let mut separator = ": ";
        for attempt in &self.attempts {
            write!(f, "{separator}{attempt}")?;
            separator = "; ";
        }
        Ok(())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address.host, self.remote) {
            (Host::Name(_), Some(remote)) => write!(f, "{} ({remote}): {}", self.address, self.failure),
            _ => write!(f, "{}: {}", self.address, self.failure),
        }
    }
}

impl Dialer {
    /// For one who is about to join: it shows no certificate and can only [`Expect::Pinned`].
    pub fn joiner(clock: Clock) -> Self {
        Self { trust: None, credentials: None, clock, fwmark: None }
    }

    /// For a member, which shows its certificate and believes its CAs, by the clock of `trust`.
    pub fn member(trust: Trust, credentials: Credentials) -> Self {
        let believed = trust.clone();
        let clock: Clock = std::sync::Arc::new(move || believed.now());
        Self { trust: Some(trust), credentials: Some(credentials), clock, fwmark: None }
    }

    /// Marks its packets (SO_MARK; needs CAP_NET_ADMIN), so that policy routing keeps them out of our own tunnel.
    pub fn with_fwmark(mut self, mark: Option<u32>) -> Self {
        self.fwmark = mark;
        self
    }

    /// Connects to the first of `addresses` that answers as `expect` says.
    ///
    /// Takes no longer than some 12 s and a quarter of a second per address.
    pub async fn dial(&self, addresses: &[CoordinatorAddress], expect: Expect) -> Result<Connection, DialError> {
        race(addresses.to_vec(), |address| self.dial_address(address, expect))
            .await
            .map_err(|attempts| DialError { attempts })
    }

    async fn dial_address(&self, address: CoordinatorAddress, expect: Expect) -> Result<Connection, Vec<Attempt>> {
        let failed = |remote, failure| Attempt { address: address.clone(), remote, failure };
        let ips = match &address.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => resolve(name).await.map_err(|error| vec![failed(None, Failure::Resolve(error))])?,
        };
        let remotes = ips.into_iter().map(|ip| SocketAddr::new(ip, address.port)).collect();
        let (failed, address) = (&failed, &address);
        race(remotes, |remote| async move {
            self.connect(address, remote, expect).await.map_err(|failure| vec![failed(Some(remote), failure)])
        })
        .await
    }

    async fn connect(
        &self,
        address: &CoordinatorAddress,
        remote: SocketAddr,
        expect: Expect,
    ) -> Result<Connection, Failure> {
        let tcp = within(CONNECT_TIMEOUT, "connecting", self.open(remote)).await?.map_err(tcp_failure)?;
        let local = tcp.local_addr().map_err(tcp_failure)?;
        let dialling = Dialling {
            expect,
            trust: self.trust.clone(),
            credentials: self.credentials.clone(),
            clock: self.clock.clone(),
        };
        let (config, verified) = client_config(dialling);
        let tls = async {
            let mut tls = TlsConnector::from(config).connect(unused_name(), tcp).await?;
            first_word(&mut tls).await?;
            Ok(tls)
        };
        let tls = within(HANDSHAKE_TIMEOUT, "setting up TLS", tls).await?.map_err(tls_failure)?;
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None);
        let exporter = exporter.map_err(|error| Failure::Tls(error.to_string()))?;
        let verified = verified.get().cloned().ok_or(Failure::Closed)?;
        let channel = over(tls, Keepalive::On).await.map_err(|error| Failure::Tls(error.to_string()))?;
        let identity = verified.leaf.identity;
        Ok(Connection {
            channel,
            identity,
            authority: verified.authority,
            exporter,
            address: address.clone(),
            remote,
            local,
        })
    }

    async fn open(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        if let Some(mark) = self.fwmark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        socket.connect(remote).await
    }
}

/// Waits until the coordinator has spoken, without taking the word from HTTP/2.
///
/// In TLS 1.3 the side that dials is done before the other has judged its certificate; the first thing that comes is
/// either HTTP/2's settings or the alert that says why not.
async fn first_word(tls: &mut TlsStream<TcpStream>) -> io::Result<()> {
    if tls.fill_buf().await?.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

async fn within<T>(within: Duration, stage: &'static str, work: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(within, work).await.map_err(|_| Failure::Timeout { stage, within })
}

fn tcp_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::TimedOut => Failure::Timeout { stage: "connecting", within: CONNECT_TIMEOUT },
        _ => Failure::Unreachable(error.to_string()),
    }
}

fn tls_failure(error: io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => Failure::Rejected(*alert),
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            match other.0.downcast_ref::<VerifyError>() {
                Some(error) => certificate_failure(error.clone()),
                None => Failure::Tls(other.0.to_string()),
            }
        }
        Some(other) => Failure::Tls(other.to_string()),
        None if is_end(error.kind()) => Failure::Closed,
        None => Failure::Unreachable(error.to_string()),
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn certificate_failure(error: VerifyError) -> Failure {
    match error {
        VerifyError::Expired { .. } | VerifyError::NotYetValid { .. } => Failure::Clock(error),
        VerifyError::Pin { .. } => Failure::Pin(error),
        other => Failure::Certificate(other),
    }
}

/// Begins with the first item, adds the next whenever [`STAGGER`] has passed or an attempt has failed, and ends with
/// the first success, dropping the others, or with all failures.
async fn race<I, T, E, F>(items: Vec<I>, attempt: impl Fn(I) -> F) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, Vec<E>>>,
{
    let (mut waiting, mut running, mut failures) = (items.into_iter(), FuturesUnordered::new(), Vec::new());
    loop {
        running.extend(waiting.next().map(&attempt));
        let next = if waiting.len() == 0 { Ok(running.next().await) } else { timeout(STAGGER, running.next()).await };
        match next {
            Ok(Some(Ok(won))) => return Ok(won),
            Ok(Some(Err(failed))) => failures.extend(failed),
            Ok(None) => return Err(failures),
            Err(_) => {}
        }
    }
}
