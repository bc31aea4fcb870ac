//! TLS between members: whom to trust, what to show, and how a peer is judged.
//!
//! [`Trust`] and [`Credentials`] are shared and change at run time: a handshake sees what they hold at that moment.
//! Peers are verified by CA, mesh, role and, where it is known, id; never by name or address. Validity is judged by
//! mesh time. TLS 1.3 only, and no resumption: every connection is judged anew. Whether a certificate's holder is still
//! a member is asked of the registry by each call, not here.

use crate::certificate::{CertificateError, Identity, Leaf, Member, key_to_pkcs8, read_authority, read_certificate};
use ed25519_dalek::SigningKey;
use mesh_types::limits::MAX_AUTHORITIES;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorId, Fingerprint, MeshId, MeshTime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use thiserror::Error;

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

/// Why a peer's certificate was refused.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum VerifyError {
    /// It is not valid yet by our clock.
    #[error("certificate is valid from {not_before} but the time here is {now}: check the clocks of both machines")]
    NotYetValid {
        /// When it will be.
        not_before: MeshTime,
        /// The time by our clock.
        now: MeshTime,
    },
    /// It is not valid any more by our clock.
    #[error("certificate was valid until {not_after} but the time here is {now}: check the clocks of both machines")]
    Expired {
        /// Until when it was.
        not_after: MeshTime,
        /// The time by our clock.
        now: MeshTime,
    },
    /// No CA among those sent has the pinned fingerprint.
    #[error("the join token pins another CA ({expected}): this is not the coordinator that the token was made by")]
    Pin {
        /// The token's.
        expected: Fingerprint,
    },
    /// It was not issued by a trusted CA.
    #[error("certificate was not issued by this mesh's CA")]
    Authority,
    /// It is of another mesh.
    #[error("certificate is of mesh {got}: expected mesh {expected}")]
    Mesh {
        /// Ours.
        expected: MeshId,
        /// The peer's.
        got: MeshId,
    },
    /// It is a node's where a coordinator has to answer.
    #[error("{got} answered where a coordinator was expected")]
    Role {
        /// Who it is.
        got: Member,
    },
    /// It is another coordinator's.
    #[error("coordinator {got} answered where coordinator {expected} was expected")]
    Coordinator {
        /// Who was dialled.
        expected: CoordinatorId,
        /// Who answered.
        got: CoordinatorId,
    },
    /// It is not such as our CAs issue.
    #[error(transparent)]
    Profile(#[from] CertificateError),
    /// It fails in another way.
    #[error("certificate does not verify: {0}")]
    Chain(String),
}

/// A peer's certificate that verified, and the CA that it verified with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verified {
    pub(crate) leaf: Leaf,
    pub(crate) authority: Certificate,
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

/// Verifies `leaf` with one of `authorities`, as a certificate of `mesh`.
fn verify_member(
    leaf: &CertificateDer<'_>,
    authorities: &[Certificate],
    mesh: MeshId,
    usage: webpki::KeyUsage,
    algorithms: &WebPkiSupportedAlgorithms,
    now: MeshTime,
) -> Result<Verified, VerifyError> {
    let read = read_certificate(leaf)?;
    if read.identity.mesh != mesh {
        return Err(VerifyError::Mesh { expected: mesh, got: read.identity.mesh });
    }
    let mut result = Err(VerifyError::Authority);
    for authority in authorities {
        match verify_chain(leaf, authority, usage, algorithms, now) {
            Ok(()) if read_authority(authority)?.0 == mesh => {
                return Ok(Verified { leaf: read, authority: authority.clone() });
            }
            Ok(()) | Err(webpki::Error::UnknownIssuer) => {}
            Err(error) => result = Err(explain(error, &read, now)),
        }
    }
    result
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    authority: &Certificate,
    usage: webpki::KeyUsage,
    algorithms: &WebPkiSupportedAlgorithms,
    now: MeshTime,
) -> Result<(), webpki::Error> {
    let authority = CertificateDer::from(authority.0.as_slice());
    let anchor = webpki::anchor_from_trusted_cert(&authority)?;
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    leaf.verify_for_usage(algorithms.all, &[anchor], &[], time, usage, None, None).map(|_| ())
}

fn explain(error: webpki::Error, leaf: &Leaf, now: MeshTime) -> VerifyError {
    match error {
        webpki::Error::CertExpired { .. } => VerifyError::Expired { not_after: leaf.not_after, now },
        webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid { not_before: leaf.not_before, now },
        // Another CA of the same name, which is what a forger makes.
        webpki::Error::InvalidSignatureForPublicKey => VerifyError::Authority,
        other => VerifyError::Chain(other.to_string()),
    }
}

/// Judges who answers a dialler.
struct AnswererVerifier {
    dialling: Dialling,
    algorithms: WebPkiSupportedAlgorithms,
    verified: Arc<OnceLock<Verified>>,
}

impl AnswererVerifier {
    fn verify(&self, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<Verified, VerifyError> {
        let (mesh, authorities) = self.believed(chain)?;
        let usage = webpki::KeyUsage::server_auth();
        let now = (self.dialling.clock)();
        let verified = match verify_member(leaf, &authorities, mesh, usage, &self.algorithms, now) {
            // A node's certificate is not for answering: say that rather than "unsuitable extended key usage".
            Err(VerifyError::Chain(why)) => match read_certificate(leaf)?.identity.member {
                got @ Member::Node(_) => return Err(VerifyError::Role { got }),
                Member::Coordinator(_) => return Err(VerifyError::Chain(why)),
            },
            result => result?,
        };
        match (self.dialling.expect, verified.leaf.identity.member) {
            (_, got @ Member::Node(_)) => Err(VerifyError::Role { got }),
            (Expect::Coordinator(expected), Member::Coordinator(got)) if expected != got => {
                Err(VerifyError::Coordinator { expected, got })
            }
            (_, Member::Coordinator(_)) => Ok(verified),
        }
    }

    /// The mesh expected and the CAs believed: those trusted, or the pinned one if it was sent.
    fn believed(&self, chain: &[CertificateDer<'_>]) -> Result<(MeshId, Arc<[Certificate]>), VerifyError> {
        match (self.dialling.expect, &self.dialling.trust) {
            (Expect::Pinned { mesh, authority }, _) => {
                let pinned = chain.iter().find(|sent| Fingerprint::of(sent) == authority);
                let pinned = pinned.ok_or(VerifyError::Pin { expected: authority })?;
                Ok((mesh, Arc::from([Certificate(pinned.to_vec())])))
            }
            (_, Some(trust)) => Ok((trust.mesh(), trust.authorities())),
            (_, None) => Err(VerifyError::Authority),
        }
    }
}

impl fmt::Debug for AnswererVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswererVerifier").field("expect", &self.dialling.expect).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for AnswererVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verify(leaf, chain).map_err(|error| {
            // Kept whole, so that the dialler can tell its user what is wrong.
            rustls::Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(error))))
        })?;
        self.verified.get_or_init(|| verified);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Judges who calls a coordinator.
struct CallerVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for CallerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerVerifier").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (authorities, usage) = (self.trust.authorities(), webpki::KeyUsage::client_auth());
        verify_member(leaf, &authorities, self.trust.mesh(), usage, &self.algorithms, self.trust.now())
            .map(|_| ClientCertVerified::assertion())
            .map_err(|error| rustls::Error::InvalidCertificate(told_to_caller(error)))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Chooses the alert: the caller learns whether its certificate is out of date or of another mesh, and no more.
fn told_to_caller(error: VerifyError) -> TlsCertificateError {
    match error {
        VerifyError::Expired { .. } | VerifyError::NotYetValid { .. } => TlsCertificateError::Expired,
        VerifyError::Authority | VerifyError::Mesh { .. } => TlsCertificateError::UnknownIssuer,
        other => TlsCertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// The identity that a connection's certificate, already verified, gives its holder.
pub(crate) fn identity_of(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    let leaf = chain?.first()?;
    read_certificate(leaf).ok().map(|leaf| leaf.identity)
}
