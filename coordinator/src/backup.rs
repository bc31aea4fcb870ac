//! Backups: the registry and the mesh CA's key, sealed with a passphrase.
//!
//! Layout, integers big-endian: magic (14 bytes), format (1), Argon2id's salt (16), memory in KiB (4), passes (4) and
//! lanes (4), then ChaCha20-Poly1305 over CBOR, with all of that as additional data. The key is used once, since the
//! salt is random, so the nonce is zero.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use mesh_coordinator_core::Registry;
use mesh_proto::Authority;
use mesh_types::MeshTime;
use mesh_types::netmap::Certificate;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

const MAGIC: &[u8; 14] = b"meshctl backup";
const FORMAT: u8 = 1;
const SALT: usize = 16;
const HEAD: usize = MAGIC.len() + 1 + SALT + 12;
/// Memory in KiB, passes and lanes: what OWASP asks of Argon2id at least, with one pass.
const COST: [u32; 3] = [47_104, 1, 1];
/// The most that a backup may make us spend: four times RFC 9106's second choice.
const MOST: [u32; 3] = [262_144, 16, 8];
/// The shortest passphrase taken.
const SHORTEST: usize = 8;

/// What a backup holds.
pub(crate) struct Backup {
    /// When it was made.
    pub(crate) created: MeshTime,
    /// The mesh CA.
    pub(crate) authority: Authority,
    /// The registry.
    pub(crate) registry: Registry,
}

#[derive(Serialize, Deserialize)]
struct Content {
    created: MeshTime,
    certificate: Certificate,
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    registry: Vec<u8>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Why a backup was not made or not opened.
#[derive(Debug, Error)]
pub(crate) enum BackupError {
    /// Too easily guessed.
    #[error("the passphrase is too short: use at least {SHORTEST} characters, since the mesh CA's key lies behind it")]
    Short,
    /// Not a backup at all.
    #[error("this is not a backup of a mesh: it does not begin as one")]
    Foreign,
    /// Of a later version.
    #[error("the backup has format {0}, this version reads {FORMAT}: upgrade this coordinator")]
    Format(u8),
    /// Asks for more work than any honest backup.
    #[error("the backup asks for an unreasonable amount of memory or time: it was changed")]
    Cost,
    /// Wrong passphrase or changed bytes; the two cannot be told apart.
    #[error("the backup does not open: the passphrase is wrong, or the file was changed or cut")]
    Sealed,
    /// Opened, but not understood.
    #[error("the backup's content is not understood: {0}")]
    Content(String),
}

/// Seals a backup.
pub(crate) fn seal(
    registry: &Registry,
    authority: &Authority,
    passphrase: &str,
    now: MeshTime,
) -> Result<Vec<u8>, BackupError> {
    if passphrase.chars().count() < SHORTEST {
        return Err(BackupError::Short);
    }
    let mut head = MAGIC.to_vec();
    head.push(FORMAT);
    head.extend_from_slice(&crate::random::bytes::<SALT>());
    head.extend(COST.iter().flat_map(|number| number.to_be_bytes()));
    let content = Content {
        created: now,
        certificate: authority.certificate().clone(),
        key: authority.key_der().to_vec(),
        registry: registry.encode(),
    };
    // Sealed in place, so that no plain copy is left; growing would leave one.
    let mut body = Vec::with_capacity(content.registry.len() + 16_384);
    ciborium::into_writer(&content, &mut body).map_err(|error| BackupError::Content(error.to_string()))?;
    let key = key(passphrase, &head)?;
    key.seal_in_place_append_tag(nonce(), Aad::from(&head), &mut body).map_err(|_| BackupError::Sealed)?;
    head.extend_from_slice(&body);
    Ok(head)
}

/// Opens a backup.
pub(crate) fn open(bytes: &[u8], passphrase: &str) -> Result<Backup, BackupError> {
    if !bytes.starts_with(MAGIC) || bytes.len() < HEAD {
        return Err(BackupError::Foreign);
    }
    let (head, body) = bytes.split_at(HEAD);
    if head[MAGIC.len()] != FORMAT {
        return Err(BackupError::Format(head[MAGIC.len()]));
    }
    let mut body = Zeroizing::new(body.to_vec());
    let opened = key(passphrase, head)?.open_in_place(nonce(), Aad::from(head), &mut body);
    let opened = opened.map_err(|_| BackupError::Sealed)?;
    let content: Content =
        ciborium::from_reader(&opened[..]).map_err(|error| BackupError::Content(error.to_string()))?;
    let authority = Authority::load(content.certificate.clone(), &content.key)
        .map_err(|error| BackupError::Content(error.to_string()))?;
    let registry = Registry::decode(&content.registry).map_err(|error| BackupError::Content(error.to_string()))?;
    Ok(Backup { created: content.created, authority, registry })
}

fn key(passphrase: &str, head: &[u8]) -> Result<LessSafeKey, BackupError> {
    let salt = &head[MAGIC.len() + 1..][..SALT];
    let number = |at: usize| {
        let bytes = &head[MAGIC.len() + 1 + SALT + 4 * at..][..4];
        u32::from_be_bytes(bytes.try_into().expect("four bytes were taken"))
    };
    let [memory, passes, lanes] = [0, 1, 2].map(number);
    if memory > MOST[0] || passes > MOST[1] || lanes > MOST[2] {
        return Err(BackupError::Cost);
    }
    let params = Params::new(memory, passes, lanes, Some(32)).map_err(|_| BackupError::Cost)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| BackupError::Cost)?;
    UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).map(LessSafeKey::new).map_err(|_| BackupError::Sealed)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::MeshId;

    #[test]
    fn a_backup_opens_with_its_passphrase_alone_and_only_unchanged() {
        let authority = Authority::create(MeshId::from_bytes([1; 16]), MeshTime(1_000_000)).unwrap();
        let registry = Registry::new();
        let sealed = seal(&registry, &authority, "correct horse", MeshTime(7)).unwrap();
        let opened = open(&sealed, "correct horse").unwrap();
        assert_eq!((opened.created, opened.registry), (MeshTime(7), registry));
        assert_eq!(opened.authority.certificate(), authority.certificate());
        assert_eq!(*opened.authority.key_der(), *authority.key_der());
        let key = authority.key_der();
        assert!(!sealed.windows(key.len()).any(|window| window == key.as_slice()), "the key lies open");

        assert!(matches!(open(&sealed, "correct house"), Err(BackupError::Sealed)));
        let mut changed = sealed.clone();
        changed[MAGIC.len() + 3] ^= 1;
        assert!(matches!(open(&changed, "correct horse"), Err(BackupError::Sealed)));
        assert!(matches!(open(&sealed[..sealed.len() - 1], "correct horse"), Err(BackupError::Sealed)));
        let mut greedy = sealed.clone();
        greedy[MAGIC.len() + 1 + SALT] = 0xff;
        assert!(matches!(open(&greedy, "correct horse"), Err(BackupError::Cost)));
        assert!(matches!(open(b"something else", "correct horse"), Err(BackupError::Foreign)));
    }

    #[test]
    fn a_short_passphrase_is_refused() {
        let authority = Authority::create(MeshId::from_bytes([1; 16]), MeshTime(1_000_000)).unwrap();
        assert!(matches!(seal(&Registry::new(), &authority, "short", MeshTime(7)), Err(BackupError::Short)));
    }
}
