//! What a node keeps on disk: its two private keys, its membership, its journal and its listen port.
//!
//! One directory, mode 0700, held by one daemon at a time (`lock`). Every file is 0600 from its first instant and
//! replaced whole: written aside, synced, renamed, and the directory synced. The journal alone is appended to; its
//! bytes are the core's, see [`JournalFile`]. Nothing here knows what a netmap is.

mod files;
mod journal;
mod membership;
mod post;

pub use journal::JournalFile;
pub use membership::{Membership, Standing};
pub use post::Post;

use crate::state::files::{MAX_FILE, aside, read_capped, replace, sync_directory};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use mesh_types::{IdentityKey, PrivateKey, PublicKey};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use zeroize::Zeroizing;

const LOCK: &str = "lock";
const IDENTITY: &str = "identity.key";
const WIREGUARD: &str = "wireguard.key";
const MEMBERSHIP: &str = "membership";
const LISTEN_PORT: &str = "listen-port";
const JOURNAL: &str = "journal";
const GUARD: &str = "guard";
/// Everything that [`StateDir::wipe`] takes away; the lock stays while it is held.
const ALL: [&str; 6] = [MEMBERSHIP, JOURNAL, LISTEN_PORT, WIREGUARD, IDENTITY, GUARD];

/// A guard holds the lock for the moment in which it looks; a daemon that starts just then waits for so many looks.
const LOCK_TRIES: u32 = 20;
const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another daemon holds it.
    #[error(
        "state directory {0} is in use by another meshd: stop that one first, or give this one its own --state-dir"
    )]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there but makes no sense.
    #[error(
        "{path} is damaged ({why}): restore it from a backup, or remove the state directory and join again as a new node"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key that a membership rests on is gone.
    #[error(
        "{0} is missing, and this node is known to its mesh by that key: restore the file from a backup, or remove the \
         state directory and join again as a new node (`meshctl node remove` on a coordinator's host ends the old one)"
    )]
    KeyMissing(PathBuf),
    /// A file was written by a later version.
    #[error("{path} has format {found}, this meshd knows up to {known}: upgrade meshd on this machine")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The highest known.
        known: u32,
    },
}

impl StateError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether it is for lack of permission.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// A node's two long-lived key pairs.
pub struct Keys {
    /// Signs presence and is the key of the certificate.
    pub identity: SigningKey,
    /// WireGuard's.
    pub wireguard: PrivateKey,
}

impl Keys {
    fn new(identity: &[u8; 32], wireguard: &[u8; 32]) -> Self {
        Self { identity: SigningKey::from_bytes(identity), wireguard: PrivateKey::from_bytes(*wireguard) }
    }

    /// The public half of the identity key.
    pub fn identity_key(&self) -> IdentityKey {
        IdentityKey::from_bytes(self.identity.verifying_key().to_bytes())
    }

    /// The public half of the WireGuard key.
    pub fn public_key(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.wireguard.as_bytes());
        PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

/// The state directory, held for as long as this lives.
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens the directory, makes it if it is absent, and locks out other daemons.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            DirBuilder::new().recursive(true).create(parent).map_err(StateError::io("make", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::set_permissions(path, Permissions::from_mode(0o700))
                    .map_err(StateError::io("restrict the mode of", path))?;
            }
            result => result.map_err(StateError::io("make", path))?,
        }
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StateError::io("open", &lock_path))?;
        Ok(Self { path: path.to_owned(), _lock: take_lock(lock, path)? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's keys; made, and durable, if they are not there yet. A member's are never made anew: the mesh knows it
    /// by those that it joined with.
    pub fn keys(&self) -> Result<Keys, StateError> {
        let Some(member) = self.membership()? else {
            let identity = self.secret(IDENTITY)?.map_or_else(|| self.make_secret(IDENTITY), Ok)?;
            let wireguard = self.secret(WIREGUARD)?.map_or_else(|| self.make_secret(WIREGUARD), Ok)?;
            return Ok(Keys::new(&identity, &wireguard));
        };
        let held = |name| self.secret(name)?.ok_or_else(|| StateError::KeyMissing(self.path.join(name)));
        let keys = Keys::new(&*held(IDENTITY)?, &*held(WIREGUARD)?);
        let known = [
            (IDENTITY, keys.identity_key() == member.record.identity_key),
            (WIREGUARD, keys.public_key() == member.record.public_key),
        ];
        match known.into_iter().find(|(_, known)| !known) {
            None => Ok(keys),
            Some((name, _)) => Err(StateError::Damaged {
                path: self.path.join(name),
                why: "it is not the key that this node joined with".to_owned(),
            }),
        }
    }

    /// The node's keys, if they have been made: before the first join, and after leaving, there are none.
    pub fn held_keys(&self) -> Result<Option<Keys>, StateError> {
        let made = [IDENTITY, WIREGUARD].iter().all(|name| self.path.join(name).exists());
        (made || self.membership()?.is_some()).then(|| self.keys()).transpose()
    }

    /// The membership, if this node has joined.
    pub fn membership(&self) -> Result<Option<Membership>, StateError> {
        let path = self.path.join(MEMBERSHIP);
        read_capped(&path, MAX_FILE)?.map(|bytes| Membership::decode(&bytes, &path)).transpose()
    }

    /// Makes `membership` durable, in place of what was there.
    pub fn save_membership(&self, membership: &Membership) -> Result<(), StateError> {
        replace(&self.path, MEMBERSHIP, &membership.encode())
    }

    /// Makes `membership` durable in place of another, if there was one. That one's journal goes first: cut off in
    /// between, the next start would find a journal that is not this member's, and refuse it.
    pub fn begin_membership(&self, membership: &Membership) -> Result<(), StateError> {
        let of = |membership: &Membership| (membership.mesh(), membership.record.id);
        if self.membership()?.is_none_or(|held| of(&held) != of(membership)) {
            self.remove(JOURNAL)?;
        }
        self.save_membership(membership)
    }

    /// The UDP port kept since the first start, if any.
    pub fn listen_port(&self) -> Result<Option<u16>, StateError> {
        let path = self.path.join(LISTEN_PORT);
        let Some(bytes) = read_capped(&path, MAX_FILE)? else { return Ok(None) };
        let port = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<u16>().ok());
        port.filter(|port| *port != 0)
            .map(Some)
            .ok_or(StateError::Damaged { path, why: "expected a port number".to_owned() })
    }

    /// Keeps `port` for all starts to come.
    pub fn save_listen_port(&self, port: u16) -> Result<(), StateError> {
        replace(&self.path, LISTEN_PORT, format!("{port}\n").as_bytes())
    }

    /// Where the journal is.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Removes keys, membership and all: afterwards the directory is as it was before the first start.
    pub fn wipe(&self) -> Result<(), StateError> {
        // And what a crash left that was written aside.
        for name in ALL {
            self.remove(name)?;
            self.remove(&aside(name))?;
        }
        sync_directory(&self.path)
    }

    /// Removes a file, if it is there.
    fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Thirty-two secret bytes kept in `name` as base64, the form that `wg pubkey` reads; `None` if there are none.
    fn secret(&self, name: &str) -> Result<Option<Secret>, StateError> {
        let path = self.path.join(name);
        let Some(text) = read_capped(&path, MAX_FILE)? else { return Ok(None) };
        let text = Zeroizing::new(text);
        let damaged = StateError::Damaged { path, why: "expected 32 bytes in base64".to_owned() };
        decode_secret(&text).map(Some).ok_or(damaged)
    }

    fn make_secret(&self, name: &str) -> Result<Secret, StateError> {
        let path = self.path.join(name);
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut_slice())
            .map_err(|error| StateError::io("make a key for", &path)(error.into()))?;
        let text = Zeroizing::new(format!("{}\n", STANDARD.encode(secret.as_slice())));
        replace(&self.path, name, text.as_bytes())?;
        Ok(secret)
    }
}

fn take_lock(mut file: File, directory: &Path) -> Result<Flock<File>, StateError> {
    for _ in 0..LOCK_TRIES {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(StateError::io("lock", &directory.join(LOCK))(errno.into())),
        };
        std::thread::sleep(LOCK_AGAIN);
    }
    Err(StateError::InUse(directory.to_owned()))
}

type Secret = Zeroizing<[u8; 32]>;

fn decode_secret(text: &[u8]) -> Option<Secret> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).ok()?);
    bytes.as_slice().try_into().ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests;
