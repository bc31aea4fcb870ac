//! TLS between members: whom to trust, what to show, and how a peer is judged.
//!
//! [`Trust`] and [`Credentials`] are shared and change at run time: a handshake sees what they hold at that moment.
//! Peers are verified by CA, mesh, role and, where it is known, id; never by name or address. Validity is judged by
//! mesh time. TLS 1.3 only, and no resumption: every connection is judged anew. Whether a certificate's holder is still
//! a member is asked of the registry by each call, not here.

mod verify;

use crate::certificate::{CertificateError, Identity, Leaf, Member, key_to_pkcs8, read_authority, read_certificate};
use ed25519_dalek::SigningKey;
use mesh_types::limits::MAX_AUTHORITIES;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorId, Fingerprint, MeshId, MeshTime};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use thiserror::Error;

pub(crate) use verify::Verified;
pub use verify::VerifyError;
use verify::{AnswererVerifier, CallerVerifier};

const ALPN: &[u8] = b"h2";
/// TLS exporter label (RFC 8446, 7.5) of what the join proof is bound to.
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-meshctl-join";
/// Rustls wants a name; it is neither sent nor compared.
const UNUSED_NAME: &str = "mesh.invalid";

/// Tells the mesh time, by which certificates are judged.
pub type Clock = Arc<dyn Fn() -> MeshTime + Send + Sync>;

/// The host's own clock: for who does not know the mesh's yet.
pub fn system_clock() -> Clock {
    Arc::new(|| MeshTime::from_system(std::time::SystemTime::now()))
}

/// Whom a member believes: the CAs of its mesh, at the time its clock tells. Clones share one list.
#[derive(Clone)]
pub struct Trust(Arc<TrustInner>);

struct TrustInner {
    mesh: MeshId,
    authorities: RwLock<Arc<[Certificate]>>,
    clock: Clock,
}

impl Trust {
    /// Trusts `authorities` (at most [`MAX_AUTHORITIES`], more are left out) in `mesh`, by the time of `clock`.
    pub fn new(mesh: MeshId, authorities: &[Certificate], clock: Clock) -> Self {
        Self(Arc::new(TrustInner { mesh, authorities: RwLock::new(capped(authorities)), clock }))
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.0.mesh
    }

    /// The CAs trusted now.
    pub fn authorities(&self) -> Arc<[Certificate]> {
        self.0.authorities.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Trusts these CAs from now on, and no others. Connections that are open stay.
    pub fn set_authorities(&self, authorities: &[Certificate]) {
        *self.0.authorities.write().unwrap_or_else(PoisonError::into_inner) = capped(authorities);
    }

    /// The time by its clock.
    pub fn now(&self) -> MeshTime {
        (self.0.clock)()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("mesh", &self.0.mesh).field("authorities", &self.authorities()).finish()
    }
}

fn capped(authorities: &[Certificate]) -> Arc<[Certificate]> {
    authorities.iter().take(MAX_AUTHORITIES).cloned().collect()
}

/// What a member shows: its certificate and its CA's, with the key. Clones share one; it can be replaced.
#[derive(Clone)]
pub struct Credentials(Arc<RwLock<Shown>>);

#[derive(Clone)]
struct Shown {
    leaf: Leaf,
    key: Arc<CertifiedKey>,
}

/// Why credentials were not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum CredentialsError {
    /// The certificate or its CA's is not readable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key is another's.
    #[error("certificate of {0} was issued for another key than this machine's identity key")]
    Key(Member),
    /// The TLS library refused the key.
    #[error("identity key not taken: {0}")]
    Tls(String),
}

impl Credentials {
    /// Shows `certificate`, issued by `authority` for `key`.
    pub fn new(certificate: &Certificate, authority: &Certificate, key: &SigningKey) -> Result<Self, CredentialsError> {
        Shown::new(certificate, authority, key).map(|shown| Self(Arc::new(RwLock::new(shown))))
    }

    /// Shows another certificate from the next handshake on.
    pub fn replace(
        &self,
        certificate: &Certificate,
        authority: &Certificate,
        key: &SigningKey,
    ) -> Result<(), CredentialsError> {
        let shown = Shown::new(certificate, authority, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    /// What the certificate shown now says.
    pub fn leaf(&self) -> Leaf {
        self.shown().leaf
    }

    fn shown(&self) -> Shown {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shown {
    fn new(certificate: &Certificate, authority: &Certificate, key: &SigningKey) -> Result<Self, CredentialsError> {
        let leaf = read_certificate(&certificate.0)?;
        read_authority(authority)?;
        if leaf.identity.identity_key.as_bytes() != key.verifying_key().as_bytes() {
            return Err(CredentialsError::Key(leaf.identity.member));
        }
        let pkcs8 = key_to_pkcs8(key);
        let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
            .map_err(|error| CredentialsError::Tls(error.to_string()))?;
        // The CA is sent along for those who know only its fingerprint.
        let chain = [certificate, authority].map(|certificate| CertificateDer::from(certificate.0.clone()));
        Ok(Self { leaf, key: Arc::new(CertifiedKey::new(chain.to_vec(), key)) })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.leaf()).finish()
    }
}

impl rustls::server::ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown().key)
    }
}

impl rustls::client::ResolvesClientCert for Credentials {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown().key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Whom a dialler expects to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// A coordinator of `mesh`, under the CA with this fingerprint, which it sends along: all a join token knows.
    Pinned {
        /// The mesh.
        mesh: MeshId,
        /// SHA-256 of the CA certificate's DER.
        authority: Fingerprint,
    },
    /// Any coordinator of the mesh, under a trusted CA.
    AnyCoordinator,
    /// This coordinator of the mesh, under a trusted CA.
    Coordinator(CoordinatorId),
}

/// The configuration of a coordinator's port: certificates of callers are optional, but judged if shown.
pub fn server_config(credentials: Credentials, trust: Trust) -> Arc<ServerConfig> {
    let provider = provider();
    let verifier = CallerVerifier { trust, algorithms: provider.signature_verification_algorithms };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites for TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(credentials));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// What one dial attempt believes and shows.
#[derive(Clone)]
pub(crate) struct Dialling {
    pub(crate) expect: Expect,
    pub(crate) trust: Option<Trust>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) clock: Clock,
}

/// The configuration of one connection, and where its verifier leaves what it found.
pub(crate) fn client_config(dialling: Dialling) -> (Arc<ClientConfig>, Arc<OnceLock<Verified>>) {
    let provider = provider();
    let verified = Arc::new(OnceLock::new());
    let algorithms = provider.signature_verification_algorithms;
    let credentials = dialling.credentials.clone();
    let verifier = AnswererVerifier { dialling, algorithms, verified: verified.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credentials {
        Some(credentials) => builder.with_client_cert_resolver(Arc::new(credentials)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    (Arc::new(config), verified)
}

pub(crate) fn unused_name() -> ServerName<'static> {
    ServerName::try_from(UNUSED_NAME).expect("a valid name")
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// The identity that a connection's certificate, already verified, gives its holder.
pub(crate) fn identity_of(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    let leaf = chain?.first()?;
    read_certificate(leaf).ok().map(|leaf| leaf.identity)
}
