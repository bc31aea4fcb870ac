//! The daemon while this host is a member: the core, its journal, its session, and what TLS needs.
//!
//! Made when a membership is there, at the start or after a join; dropped when it ends. Doing what the core says is the
//! loop's, see [`super::Daemon`].

use super::journal::{Journal, JournalError};
use crate::clock::{self, SharedMeshTime};
use crate::mark::Mark;
use crate::renew::Asker;
use crate::session::{Opener, Places, Session};
use crate::state::{Keys, Membership, StateDir};
use mesh_node_core::node::{Setup, Validity};
use mesh_node_core::{Intent, Node, Now, SessionEvent};
use mesh_proto::certificate::read_certificate;
use mesh_proto::dial::Dialer;
use mesh_proto::tls::{Credentials, CredentialsError, Trust};
use mesh_proto::v1;
use mesh_types::limits::MAX_NAMED_PLACES;
use mesh_types::netmap::Certificate;
use mesh_types::session::Hello;
use mesh_types::{CoordinatorId, Fingerprint, JoinToken, MeshConfig};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

/// What this binary calls itself.
pub(crate) const SOFTWARE: &str = concat!("meshd/", env!("CARGO_PKG_VERSION"));

/// Why a membership cannot be taken up.
#[derive(Debug, Error)]
pub enum MemberError {
    /// The journal is in the way.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The certificate is not what it was.
    #[error(
        "the certificate kept in the state directory does not serve: {0}; restore it from a backup, or remove \
         the state directory and join again as a new node (`meshctl node remove` on a coordinator's host ends the old one)"
    )]
    Credentials(#[from] CredentialsError),
}

/// What the device is made with.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) listen: u16,
    pub(crate) fwmark: Mark,
}

pub(crate) struct Member {
    pub(crate) membership: Membership,
    pub(crate) node: Node,
    pub(crate) journal: Journal,
    pub(crate) session: Option<Session>,
    /// Whom the session is with, once it is open.
    pub(crate) coordinator: Option<CoordinatorId>,
    /// For what the core says on the session.
    pub(crate) to: Option<mpsc::Sender<v1::NodeMessage>>,
    /// Why no session came about, as last heard.
    pub(crate) unreachable: Option<String>,
    pub(crate) pings: BTreeMap<u64, oneshot::Sender<Option<Duration>>>,
    pub(crate) renewing_key: bool,
    pub(crate) renewing_certificate: bool,
    pub(crate) listen_port: u16,
    pub(crate) dialer: Dialer,
    pub(crate) keys: Arc<Keys>,
    trust: Trust,
    credentials: Credentials,
    mesh_time: SharedMeshTime,
    places: watch::Sender<Places>,
    hello: watch::Sender<Hello>,
}

impl Member {
    /// Takes up a membership: replays the journal and begins to dial.
    pub(crate) fn start(
        state: &StateDir,
        keys: &Arc<Keys>,
        membership: Membership,
        ports: Ports,
    ) -> Result<Self, MemberError> {
        let (journal, cache) = Journal::open(state, membership.mesh(), membership.record.id)?;
        let now = clock::now();
        let node = Node::new(setup(keys, &membership, ports), cache, now);
        let mesh_time = SharedMeshTime::new();
        mesh_time.set(node.mesh_time(now));
        let clock = mesh_time.clone();
        let trust = Trust::new(membership.mesh(), &node.config().authorities, Arc::new(move || clock.now()));
        let credentials = Credentials::new(&membership.certificate, &membership.authority, &keys.identity)?;
        let dialer = Dialer::member(trust.clone(), credentials.clone()).with_fwmark(ports.fwmark.on_sockets());
        let (places, _) = watch::channel(places_of(node.config(), &membership));
        let (hello, _) = watch::channel(node.hello());
        Ok(Self {
            membership,
            node,
            journal,
            session: None,
            coordinator: None,
            to: None,
            unreachable: None,
            pings: BTreeMap::new(),
            renewing_key: false,
            renewing_certificate: false,
            listen_port: ports.listen,
            dialer,
            keys: keys.clone(),
            trust,
            credentials,
            mesh_time,
            places,
            hello,
        })
    }

    /// Whether `token` is of the same mesh.
    pub(crate) fn is_of(&self, token: &JoinToken) -> bool {
        self.membership.mesh() == token.mesh
    }

    /// Learns where coordinators are from a newer token under a CA in trust, as after a restore on other hosts; whether
    /// that is news.
    pub(crate) fn learn_places(&mut self, token: &JoinToken) -> bool {
        if !self.trust.authorities().iter().any(|authority| Fingerprint::of(&authority.0) == token.authority) {
            warn!("a join token of this mesh pins a CA that is not in trust: its addresses are not taken");
            return false;
        }
        let mut named = token.addresses.clone();
        named.extend(self.membership.named.iter().filter(|known| !token.addresses.contains(known)).cloned());
        named.truncate(MAX_NAMED_PLACES);
        let news = self.membership.named != named;
        self.membership.named = named;
        news
    }

    /// Whether a coordinator has spoken to this node, or none could be reached.
    pub(crate) fn has_heard(&self) -> bool {
        self.node.has_session() || self.unreachable.is_some()
    }

    /// A session as long as the interface is wanted, and none while it is not.
    pub(crate) fn keep_session(&mut self, underlay: &[IpAddr], now: Now) {
        let wanted = self.node.cache().intent == Intent::Up;
        if wanted && self.session.is_none() {
            let opener =
                Opener { dialer: self.dialer.clone(), places: self.places.subscribe(), hello: self.hello.subscribe() };
            self.session = Some(Session::spawn(opener, underlay.to_vec()));
        } else if !wanted && self.session.take().is_some() {
            self.unreachable = None;
            self.closed(now);
        }
    }

    /// Forgets the stream that has ended.
    pub(crate) fn closed(&mut self, now: Now) {
        self.to = None;
        if self.coordinator.take().is_some() {
            self.node.handle_session(SessionEvent::Closed, now);
        }
    }

    /// Hands on what dialling needs to know of the core's state.
    pub(crate) fn publish(&mut self, now: Now) {
        self.mesh_time.set(self.node.mesh_time(now));
        let config = self.node.config();
        if *self.trust.authorities() != *config.authorities {
            self.trust.set_authorities(&config.authorities);
        }
        send_if_new(&self.places, places_of(config, &self.membership));
        send_if_new(&self.hello, self.node.hello());
    }

    /// Shows a new certificate from the next dial on.
    pub(crate) fn replace_certificate(
        &mut self,
        certificate: Certificate,
        authority: Certificate,
        now: Now,
    ) -> Result<(), CredentialsError> {
        self.credentials.replace(&certificate, &authority, &self.keys.identity)?;
        if let Some(validity) = validity(&certificate) {
            self.node.handle_certificate(validity, now);
        }
        self.membership.certificate = certificate;
        self.membership.authority = authority;
        Ok(())
    }

    /// The way to the coordinators beside the session.
    pub(crate) fn asker(&self) -> Asker {
        Asker { dialer: self.dialer.clone(), places: self.places.borrow().clone(), session: self.coordinator }
    }
}

fn send_if_new<T: PartialEq>(channel: &watch::Sender<T>, value: T) {
    channel.send_if_modified(|held| {
        let new = *held != value;
        *held = value;
        new
    });
}

fn places_of(config: &MeshConfig, membership: &Membership) -> Places {
    Places { coordinators: config.coordinators.clone(), named: membership.named.clone() }
}

fn setup(keys: &Keys, membership: &Membership, ports: Ports) -> Setup {
    Setup {
        record: membership.record.clone(),
        config: membership.config.clone(),
        identity: keys.identity.clone(),
        private_key: keys.wireguard.clone(),
        listen_port: ports.listen,
        fwmark: ports.fwmark.value,
        software: SOFTWARE.to_owned(),
        instance: random(),
        seed: random(),
        certificate: validity(&membership.certificate),
    }
}

fn validity(certificate: &Certificate) -> Option<Validity> {
    let leaf = read_certificate(&certificate.0).ok()?;
    Some(Validity { not_before: leaf.not_before, not_after: leaf.not_after })
}

fn random() -> u64 {
    getrandom::u64().expect("the kernel gives randomness once it has booted")
}
