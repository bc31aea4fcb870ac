//! How a peer's certificate is judged: by CA, mesh, time, role and id, and what the refused are told.

use super::{Dialling, Expect, Trust};
use crate::certificate::{CertificateError, Leaf, Member, read_authority, read_certificate};
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorId, Fingerprint, MeshId, MeshTime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thiserror::Error;

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
pub(super) struct AnswererVerifier {
    pub(super) dialling: Dialling,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) verified: Arc<OnceLock<Verified>>,
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
pub(super) struct CallerVerifier {
    pub(super) trust: Trust,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
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
