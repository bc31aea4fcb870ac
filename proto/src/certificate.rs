//! The certificate profile, in one place: who may issue, what a certificate says, how it is asked for and read.
//!
//! Each mesh has its own CA. A certificate's key is its holder's Ed25519 identity key, and its only name is a URI:
//! `mesh:MESH:node:ID`, `mesh:MESH:coordinator:ID`, or `mesh:MESH:authority` on the CA itself. It is an identity, not
//! a lease: it outlives key deadlines and is renewed at half of its life. Chains are judged in [`crate::tls`].

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use mesh_types::limits::MAX_CERTIFICATE;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorId, IdentityKey, MeshDuration, MeshId, MeshTime, NodeId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use std::fmt;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{
    AlgorithmIdentifier, FromDer, GeneralName, SubjectPublicKeyInfo, X509Certificate, X509Version,
};
use zeroize::Zeroizing;

const DAY: u64 = 86_400;
/// How long a member's certificate is valid.
pub const LEAF_LIFETIME: MeshDuration = MeshDuration::from_secs(365 * DAY);
/// How long a mesh's CA is valid: it is replaced by way of the list of CAs, long before.
pub const AUTHORITY_LIFETIME: MeshDuration = MeshDuration::from_secs(20 * 365 * DAY);
/// Certificates begin to be valid this long before they are made, for clocks that are behind.
pub const BACKDATED: MeshDuration = MeshDuration::from_secs(DAY);
/// X.509 has no later times than the end of the year 9999; certificates are made no later than 100 years before.
const LATEST: MeshTime = MeshTime(253_402_300_799_000 - 100 * 365 * DAY * 1000);

/// RFC 8410's frame of a raw Ed25519 private key (PKCS #8, version 1): everything but the 32 bytes at its end.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const ED25519_OID: &str = "1.3.101.112";

/// Who holds a certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Member {
    /// A node.
    Node(NodeId),
    /// A coordinator replica.
    Coordinator(CoordinatorId),
}

impl Member {
    /// Node or coordinator.
    pub fn role(&self) -> Role {
        match self {
            Self::Node(_) => Role::Node,
            Self::Coordinator(_) => Role::Coordinator,
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Coordinator(id) => write!(f, "coordinator {id}"),
        }
    }
}

/// What a verified certificate says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    /// Of which mesh.
    pub mesh: MeshId,
    /// Who.
    pub member: Member,
    /// The certificate's key, which is the member's identity key.
    pub identity_key: IdentityKey,
}

/// A certificate, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Whose it is.
    pub identity: Identity,
    /// Valid from here.
    pub not_before: MeshTime,
    /// Valid until here, inclusive.
    pub not_after: MeshTime,
}

impl Leaf {
    /// When to ask for the next one: half of the validity gone.
    pub fn renew_at(&self) -> MeshTime {
        self.not_before + MeshDuration(self.not_after.since(self.not_before).0 / 2)
    }

    /// Whether it was made more than a day before `now`, or after: by a clock that was wrong then, if not simply long ago.
    /// Who can issue its own, makes another.
    pub fn is_of_another_day(&self, now: MeshTime) -> bool {
        let made = self.not_before + BACKDATED;
        now.since(made).max(made.since(now)) > MeshDuration::from_secs(DAY)
    }
}

/// Why a certificate, a request or a CA key was not made or not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum CertificateError {
    /// Not the DER of what was expected.
    #[error("{0} is damaged: not the DER that was expected")]
    Damaged(&'static str),
    /// Well-formed, but not as certificates of a mesh are.
    #[error("certificate is not one of a mesh: {0}")]
    Profile(&'static str),
    /// The request is not signed by the key that it names.
    #[error("certificate request is not signed by its own key")]
    RequestSignature,
    /// The CA's key is not that of the CA's certificate.
    #[error("CA key does not belong to the CA certificate: restore both from the same backup")]
    KeyMismatch,
    /// The operating system gave no random numbers.
    #[error("no randomness from the operating system: {0}")]
    Randomness(String),
    /// Encoding failed.
    #[error("certificate could not be encoded: {0}")]
    Encode(String),
}

/// A mesh's CA: its certificate and private key. Lives on coordinators only.
pub struct Authority {
    mesh: MeshId,
    certificate: Certificate,
    key: SigningKey,
}

impl Authority {
    /// Makes the CA of a new mesh, with a fresh key.
    pub fn create(mesh: MeshId, now: MeshTime) -> Result<Self, CertificateError> {
        let seed = Zeroizing::new(random::<32>()?);
        let key = SigningKey::from_bytes(&seed);
        let mut params = params(format!("mesh {mesh}"), authority_uri(mesh), AUTHORITY_LIFETIME, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&RequestKey::new(&key)).map_err(encode)?;
        Ok(Self { mesh, certificate: Certificate(certificate.der().to_vec()), key })
    }

    /// Takes a CA back from disk or from another coordinator: certificate and key (PKCS #8), both DER.
    pub fn load(certificate: Certificate, key: &[u8]) -> Result<Self, CertificateError> {
        let (mesh, public) = read_authority(&certificate)?;
        let key = key_from_pkcs8(key)?;
        if key.verifying_key().as_bytes() != public.as_bytes() {
            return Err(CertificateError::KeyMismatch);
        }
        Ok(Self { mesh, certificate, key })
    }

    /// The mesh whose CA this is.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Its certificate, for everyone.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its private key (PKCS #8, DER), for other coordinators and sealed backups only.
    pub fn key_der(&self) -> Zeroizing<Vec<u8>> {
        key_to_pkcs8(&self.key)
    }

    /// Issues a certificate for `member` with `identity_key`, which the caller has seen proven.
    pub fn issue(
        &self,
        member: Member,
        identity_key: IdentityKey,
        now: MeshTime,
    ) -> Result<Certificate, CertificateError> {
        let identity = Identity { mesh: self.mesh, member, identity_key };
        let mut params = params(member.to_string(), member_uri(&identity), LEAF_LIFETIME, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match member.role() {
            Role::Node => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Coordinator => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let authority = CertificateDer::from(self.certificate.0.as_slice());
        let issuer = Issuer::from_ca_cert_der(&authority, RequestKey::new(&self.key)).map_err(encode)?;
        let certificate = params.signed_by(&HolderKey(identity_key), &issuer).map_err(encode)?;
        Ok(Certificate(certificate.der().to_vec()))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("mesh", &self.mesh).field("certificate", &self.certificate).finish()
    }
}

fn params(
    common_name: String,
    uri: String,
    lifetime: MeshDuration,
    now: MeshTime,
) -> Result<CertificateParams, CertificateError> {
    let now = now.min(LATEST);
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f; // RFC 5280, 4.1.2.2: positive
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(encode)?)];
    params.not_before = (now - BACKDATED).to_system().into();
    params.not_after = (now + lifetime).to_system().into();
    Ok(params)
}

/// Makes a certificate request (PKCS #10, DER) that proves possession of `key`. Names are the issuer's business.
pub fn certificate_request(key: &SigningKey) -> Result<Vec<u8>, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&RequestKey::new(key)).map_err(encode)?;
    Ok(request.der().to_vec())
}

/// Reads a certificate request and checks that it is signed by its own key, which it returns.
pub fn read_request(der: &[u8]) -> Result<IdentityKey, CertificateError> {
    const WHAT: &str = "certificate request";
    let request = parse::<X509CertificationRequest<'_>>(WHAT, der)?;
    if !is_ed25519(&request.signature_algorithm) || request.signature_value.unused_bits != 0 {
        return Err(CertificateError::RequestSignature);
    }
    let info = &request.certification_request_info;
    let key = ed25519_key(&info.subject_pki)?;
    let verifying = VerifyingKey::from_bytes(key.as_bytes()).map_err(|_| CertificateError::RequestSignature)?;
    let signature =
        Signature::from_slice(&request.signature_value.data).map_err(|_| CertificateError::RequestSignature)?;
    verifying.verify_strict(info.raw, &signature).map_err(|_| CertificateError::RequestSignature)?;
    Ok(key)
}

/// Reads a member's certificate. Says nothing of who issued it: that is [`crate::tls`]'s part.
pub fn read_certificate(der: &[u8]) -> Result<Leaf, CertificateError> {
    let certificate = parse::<X509Certificate<'_>>("certificate", der)?;
    if certificate.version() != X509Version::V3 || certificate.is_ca() {
        return Err(CertificateError::Profile("not an X.509 v3 certificate of a member"));
    }
    let identity_key = ed25519_key(certificate.public_key())?;
    let (mesh, member) = parse_member_uri(only_uri(&certificate)?).ok_or(UNKNOWN_URI)?;
    let validity = certificate.validity();
    Ok(Leaf {
        identity: Identity { mesh, member, identity_key },
        not_before: seconds(validity.not_before.timestamp()),
        not_after: seconds(validity.not_after.timestamp()),
    })
}

/// Reads a CA's certificate: which mesh's it is, and its key.
pub fn read_authority(certificate: &Certificate) -> Result<(MeshId, IdentityKey), CertificateError> {
    let certificate = parse::<X509Certificate<'_>>("CA certificate", &certificate.0)?;
    if !certificate.is_ca() {
        return Err(CertificateError::Profile("not a CA's certificate"));
    }
    let key = ed25519_key(certificate.public_key())?;
    let mesh = only_uri(&certificate)?.strip_prefix("mesh:").and_then(|rest| rest.strip_suffix(":authority"));
    Ok((mesh.and_then(|mesh| mesh.parse().ok()).ok_or(UNKNOWN_URI)?, key))
}

/// The DER (PKCS #8) of an Ed25519 key.
pub fn key_to_pkcs8(key: &SigningKey) -> Zeroizing<Vec<u8>> {
    let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + 32));
    der.extend_from_slice(&PKCS8_PREFIX);
    der.extend_from_slice(key.as_bytes());
    der
}

/// The Ed25519 key of what [`key_to_pkcs8`] made.
pub fn key_from_pkcs8(der: &[u8]) -> Result<SigningKey, CertificateError> {
    let seed = der.strip_prefix(PKCS8_PREFIX.as_slice()).and_then(|seed| <&[u8; 32]>::try_from(seed).ok());
    seed.map(SigningKey::from_bytes).ok_or(CertificateError::Damaged("private key (PKCS #8, Ed25519)"))
}

/// The public half of an identity.
pub fn identity_key(key: &SigningKey) -> IdentityKey {
    IdentityKey::from_bytes(key.verifying_key().to_bytes())
}

const UNKNOWN_URI: CertificateError = CertificateError::Profile("its name is not that of a mesh's member");

fn authority_uri(mesh: MeshId) -> String {
    format!("mesh:{mesh}:authority")
}

fn member_uri(identity: &Identity) -> String {
    match identity.member {
        Member::Node(id) => format!("mesh:{}:node:{id}", identity.mesh),
        Member::Coordinator(id) => format!("mesh:{}:coordinator:{id}", identity.mesh),
    }
}

fn parse_member_uri(uri: &str) -> Option<(MeshId, Member)> {
    let (mesh, member) = uri.strip_prefix("mesh:")?.split_once(':')?;
    let member = match member.split_once(':')? {
        ("node", id) => Member::Node(id.parse().ok()?),
        ("coordinator", id) => Member::Coordinator(CoordinatorId(id.parse().ok()?)),
        _ => return None,
    };
    Some((mesh.parse().ok()?, member))
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, CertificateError> {
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Damaged("certificate"))?;
    match names.map(|names| names.value.general_names.as_slice()) {
        Some([GeneralName::URI(uri)]) => Ok(uri),
        _ => Err(CertificateError::Profile("it has not exactly one name, a URI")),
    }
}

fn ed25519_key(key: &SubjectPublicKeyInfo<'_>) -> Result<IdentityKey, CertificateError> {
    let refuse = CertificateError::Profile("its key is not Ed25519");
    if !is_ed25519(&key.algorithm) || key.subject_public_key.unused_bits != 0 {
        return Err(refuse);
    }
    IdentityKey::try_from(key.subject_public_key.data.as_ref()).map_err(|_| refuse)
}

/// RFC 8410, 3: there are no parameters.
fn is_ed25519(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    algorithm.algorithm.to_id_string() == ED25519_OID && algorithm.parameters.is_none()
}

fn parse<'a, T: FromDer<'a, x509_parser::error::X509Error>>(
    what: &'static str,
    der: &'a [u8],
) -> Result<T, CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Damaged(what));
    }
    match T::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::Damaged(what)),
    }
}

/// Certificates have whole seconds; times before 1970 become zero.
fn seconds(timestamp: i64) -> MeshTime {
    MeshTime(u64::try_from(timestamp).unwrap_or(0).saturating_mul(1000))
}

fn random<const N: usize>() -> Result<[u8; N], CertificateError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| CertificateError::Randomness(error.to_string()))?;
    Ok(bytes)
}

fn encode(error: rcgen::Error) -> CertificateError {
    CertificateError::Encode(error.to_string())
}

/// Lends an identity or CA key to the encoder, so that it is never copied out of the type that wipes it.
struct RequestKey<'a> {
    key: &'a SigningKey,
    public: [u8; 32],
}

impl<'a> RequestKey<'a> {
    fn new(key: &'a SigningKey) -> Self {
        Self { key, public: key.verifying_key().to_bytes() }
    }
}

impl rcgen::PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for RequestKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}

/// A key that is certified, of which only the public half is here.
struct HolderKey(IdentityKey);

impl rcgen::PublicKeyData for HolderKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);
    const NOW: MeshTime = MeshTime(1_800_000_000_000);

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    #[test]
    fn a_certificate_says_mesh_member_key_and_validity() {
        let authority = Authority::create(MESH, NOW).unwrap();
        for member in [Member::Node(NodeId::from_bytes([2; 16])), Member::Coordinator(CoordinatorId(7))] {
            let certificate = authority.issue(member, identity_key(&key()), NOW).unwrap();
            let leaf = read_certificate(&certificate.0).unwrap();
            assert_eq!(leaf.identity, Identity { mesh: MESH, member, identity_key: identity_key(&key()) });
            assert_eq!((leaf.not_before, leaf.not_after), (NOW - BACKDATED, NOW + LEAF_LIFETIME));
            assert!(leaf.not_before < leaf.renew_at() && leaf.renew_at() < leaf.not_after);
        }
    }

    #[test]
    fn a_certificate_is_of_the_day_on_which_it_was_made() {
        let authority = Authority::create(MESH, NOW).unwrap();
        let certificate = authority.issue(Member::Coordinator(CoordinatorId(7)), identity_key(&key()), NOW).unwrap();
        let leaf = read_certificate(&certificate.0).unwrap();
        let (day, second) = (MeshDuration::from_secs(DAY), MeshDuration::from_secs(1));
        for now in [NOW, NOW + day, NOW - day] {
            assert!(!leaf.is_of_another_day(now), "{now}");
        }
        for now in [NOW + day + second, NOW - day - second, MeshTime(0), NOW + LEAF_LIFETIME + LEAF_LIFETIME] {
            assert!(leaf.is_of_another_day(now), "{now}");
        }
    }

    #[test]
    fn certificates_of_one_key_have_different_serial_numbers() {
        let authority = Authority::create(MESH, NOW).unwrap();
        let issue = || authority.issue(Member::Coordinator(CoordinatorId(1)), identity_key(&key()), NOW).unwrap();
        let (one, two) = (issue(), issue());
        let serial = |certificate: &Certificate| {
            parse::<X509Certificate<'_>>("certificate", &certificate.0).unwrap().raw_serial().to_vec()
        };
        assert_ne!(serial(&one), serial(&two));
    }

    #[test]
    fn an_authority_survives_its_der_but_not_anothers_key() {
        let authority = Authority::create(MESH, NOW).unwrap();
        let loaded = Authority::load(authority.certificate().clone(), &authority.key_der()).unwrap();
        assert_eq!(loaded.mesh(), MESH);
        assert_eq!(loaded.certificate(), authority.certificate());
        let other = Authority::create(MESH, NOW).unwrap();
        let mixed = Authority::load(authority.certificate().clone(), &other.key_der());
        assert_eq!(mixed.unwrap_err(), CertificateError::KeyMismatch);
    }

    #[test]
    fn an_authority_is_no_member_and_a_member_no_authority() {
        let authority = Authority::create(MESH, NOW).unwrap();
        let leaf = authority.issue(Member::Coordinator(CoordinatorId(1)), identity_key(&key()), NOW).unwrap();
        assert!(matches!(read_certificate(&authority.certificate().0), Err(CertificateError::Profile(_))));
        assert!(matches!(read_authority(&leaf), Err(CertificateError::Profile(_))));
    }

    #[test]
    fn a_request_names_the_key_that_signed_it() {
        let request = certificate_request(&key()).unwrap();
        assert_eq!(read_request(&request), Ok(identity_key(&key())));
    }

    #[test]
    fn a_request_changed_in_what_is_signed_or_in_its_signature_is_refused() {
        let request = certificate_request(&key()).unwrap();
        let signed = 2..55; // Between the outer header and the name of the algorithm.
        let signature = request.len() - 64..request.len();
        for index in signed.chain(signature) {
            let mut changed = request.clone();
            changed[index] ^= 1;
            assert!(read_request(&changed).is_err(), "byte {index}");
        }
        let mut longer = request;
        longer.push(0);
        assert_eq!(read_request(&longer), Err(CertificateError::Damaged("certificate request")));
    }

    #[test]
    fn any_time_makes_a_certificate_without_panic() {
        for now in [MeshTime(0), MeshTime(u64::MAX)] {
            let authority = Authority::create(MESH, now).unwrap();
            authority.issue(Member::Coordinator(CoordinatorId(1)), identity_key(&key()), now).unwrap();
        }
    }

    #[test]
    fn debug_of_an_authority_shows_no_key() {
        let authority = Authority::create(MESH, NOW).unwrap();
        let shown = format!("{authority:?}");
        assert!(shown.starts_with("Authority { mesh") && !shown.contains("key"), "{shown}");
    }

    proptest! {
        #[test]
        fn reading_hostile_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_certificate(&bytes);
            let _ = read_request(&bytes);
            let _ = key_from_pkcs8(&bytes);
        }

        #[test]
        fn reading_a_damaged_certificate_never_panics(index in 0usize..400, value in any::<u8>()) {
            let authority = Authority::create(MESH, NOW).unwrap();
            let mut der = authority.certificate().0.clone();
            let index = index % der.len();
            der[index] = value;
            let _ = read_certificate(&der);
            let _ = read_authority(&Certificate(der));
        }
    }
}
