//! The data directory: what makes this process the replica it is.
//!
//! It holds the identity key, the mesh CA's key and certificate, the Raft store, and a membership file. The membership
//! file is written last and by rename, so that its presence means that everything else is complete: a crash during
//! bootstrap or join leaves a directory that starts over. A directory whose parts do not belong together is refused,
//! never repaired: a replica that forgot its log must not vote again under its old id.

use crate::raft::{Disk, Owner};
use anyhow::{Context as _, bail, ensure};
use ed25519_dalek::SigningKey;
use mesh_coordinator_core::Registry;
use mesh_coordinator_core::command::Found;
use mesh_proto::Authority;
use mesh_proto::certificate::{key_from_pkcs8, key_to_pkcs8};
use mesh_types::coordinator::ENDED_FILE;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorAddress, CoordinatorId, MeshConfig, MeshId, MeshTime, NodeName};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const FORMAT: u8 = 1;

/// Present from before the first key until the membership file is there: a directory that has an identity key and
/// neither of the two was a replica once.
const BEGUN: &str = "begun";

/// One address a line, as they were advertised at the last start.
const ADVERTISED: &str = "advertised";

/// The data directory of one replica, held against every other process.
#[derive(Debug)]
pub(crate) struct Home {
    root: PathBuf,
    _lock: Flock<File>,
}

/// Which replica of which mesh this is. Written once.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) struct Standing {
    /// The mesh.
    pub(crate) mesh: MeshId,
    /// The replica's id.
    pub(crate) coordinator: CoordinatorId,
    /// Its name.
    pub(crate) name: NodeName,
    /// How it came to be.
    pub(crate) origin: Origin,
}

/// How a replica came to be.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) enum Origin {
    /// It made the mesh: what it founds, until the registry holds it.
    Founded(Found),
    /// It joined: whom it knew then, until it has the registry.
    Joined(MeshConfig),
}

/// Why a coordinator ends for good: no restart brings it back.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// The mesh goes on without it.
    #[error(
        "this coordinator ({0}) was removed from the mesh: stop it for good, or empty its data directory and join again"
    )]
    Removed(CoordinatorId),
    /// The mesh is no more.
    #[error(
        "{said}; nothing serves from {root} again: for a new mesh move it away or use another --data-dir, or bring the \
         mesh back from a backup with `meshctl coordinator restore` into another one",
        root = .root.display()
    )]
    Ended {
        /// Which mesh, and when.
        said: String,
        /// The directory.
        root: PathBuf,
    },
}

impl Home {
    /// Opens the directory, and makes it (mode 0700) if there is none.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("cannot make the data directory {}", root.display()))?;
        let directory = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => anyhow::anyhow!(
                "{} is in use by another mesh-coordinator: stop that one, or use another --data-dir",
                root.display()
            ),
            other => anyhow::anyhow!("cannot lock {}: {other}", root.display()),
        })?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Allows to become a replica in this directory: a new one, or one where that was cut short. A replica whose log is
    /// lost must not come back under its old key, by which the mesh would know it, and vote again; and a mesh CA is never
    /// written over.
    pub(crate) fn begin(&self) -> anyhow::Result<()> {
        let was_a_replica = self.root.join("identity.key").exists() && !self.root.join(BEGUN).exists();
        ensure!(
            !was_a_replica,
            "{} holds a coordinator's identity key, but its membership file is gone: restore the whole directory, or \
             move it away and begin anew",
            self.root.display()
        );
        self.replace(BEGUN, &[])
    }

    /// The identity key; made at the first call.
    pub(crate) fn identity(&self) -> anyhow::Result<SigningKey> {
        let path = self.root.join("identity.key");
        if let Some(der) = read(&path)? {
            return key_from_pkcs8(&der).with_context(|| format!("{} is not an identity key", path.display()));
        }
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let key = SigningKey::from_bytes(&seed);
        self.replace("identity.key", &key_to_pkcs8(&key))?;
        Ok(key)
    }

    /// The mesh CA.
    pub(crate) fn authority(&self) -> anyhow::Result<Authority> {
        let part = |name: &str| -> anyhow::Result<Zeroizing<Vec<u8>>> {
            let path = self.root.join(name);
            read(&path)?
                .with_context(|| format!("{} is missing: restore it from a backup of this host", path.display()))
        };
        let certificate = Certificate(part("authority.der")?.to_vec());
        let authority = Authority::load(certificate, &part("authority.key")?);
        authority.with_context(|| format!("the mesh CA in {} cannot be used", self.root.display()))
    }

    /// Keeps the mesh CA.
    pub(crate) fn keep_authority(&self, authority: &Authority) -> anyhow::Result<()> {
        self.replace("authority.der", &authority.certificate().0)?;
        self.replace("authority.key", &authority.key_der())
    }

    /// Which replica this is; none if the directory is new.
    pub(crate) fn standing(&self) -> anyhow::Result<Option<Standing>> {
        let path = self.root.join("membership");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        match bytes.split_first() {
            Some((&FORMAT, body)) => ciborium::from_reader(body)
                .map(Some)
                .with_context(|| format!("{} is damaged: restore it from a backup of this host", path.display())),
            _ => bail!("{} was written by another version: run that version", path.display()),
        }
    }

    /// Fails if the mesh of this directory was ended.
    pub(crate) fn check_not_ended(&self) -> anyhow::Result<()> {
        match read(&self.root.join(ENDED_FILE))? {
            Some(said) => {
                bail!(Gone::Ended { said: String::from_utf8_lossy(&said).trim().to_owned(), root: self.root.clone() })
            }
            None => Ok(()),
        }
    }

    /// Marks that the mesh of this directory was ended, for good.
    pub(crate) fn retire(&self, mesh: MeshId, coordinator: CoordinatorId, at: MeshTime) -> anyhow::Result<()> {
        let said = format!("mesh {mesh} was ended with its last coordinator, {coordinator}, at {at}\n");
        self.replace(ENDED_FILE, said.as_bytes())
    }

    /// What was advertised when this replica last said so; none if it never did.
    pub(crate) fn advertised(&self) -> anyhow::Result<Option<Vec<CoordinatorAddress>>> {
        let path = self.root.join(ADVERTISED);
        let Some(text) = read(&path)? else { return Ok(None) };
        let addresses = std::str::from_utf8(&text).ok().map(|text| text.lines().map(str::parse).collect());
        match addresses {
            Some(Ok(addresses)) => Ok(Some(addresses)),
            _ => bail!("{} is damaged: remove it, and what is advertised is announced again", path.display()),
        }
    }

    /// Keeps what is advertised for the next start.
    pub(crate) fn keep_advertised(&self, addresses: &[CoordinatorAddress]) -> anyhow::Result<()> {
        let lines: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        self.replace(ADVERTISED, lines.as_bytes())
    }

    /// Makes this directory that replica's: marks the Raft store, then writes the membership file.
    pub(crate) async fn settle(&self, standing: &Standing) -> anyhow::Result<Disk> {
        self.settle_with(standing, None).await
    }

    /// Does the same with a store that begins at a term and index, with a registry, and this replica alone.
    pub(crate) async fn settle_with(
        &self,
        standing: &Standing,
        beginning: Option<(u64, u64, &Registry)>,
    ) -> anyhow::Result<Disk> {
        let path = self.store_path();
        if path.exists() {
            let unused = Disk::open(&path)?.is_unused()?;
            ensure!(
                unused,
                "{} holds a Raft log, but the membership file beside it is gone: restore the whole directory, or move it \
                 away and join as a new coordinator",
                path.display()
            );
            fs::remove_file(&path).with_context(|| format!("cannot remove the unused {}", path.display()))?;
        }
        let disk = Disk::open(&path)?;
        let owner = Owner { mesh: standing.mesh, coordinator: standing.coordinator };
        disk.set_owner(owner).await.context("cannot write the Raft store")?;
        if let Some((term, index, registry)) = beginning {
            let begun = disk.begin(standing.coordinator, term, index, registry).await;
            begun.context("cannot write the Raft store")?;
        }
        let mut bytes = vec![FORMAT];
        ciborium::into_writer(standing, &mut bytes).context("cannot encode the membership file")?;
        self.replace("membership", &bytes)?;
        match fs::remove_file(self.root.join(BEGUN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.root.join(BEGUN).display()))
            }
            _ => Ok(disk),
        }
    }

    /// Opens the Raft store of a replica that exists.
    pub(crate) fn store(&self, standing: &Standing) -> anyhow::Result<Disk> {
        let path = self.store_path();
        let lost = || {
            format!(
                "{} is missing or empty: this replica has lost its log and must not vote again as coordinator {}. Run \
                 `meshctl coordinator remove {}` on another coordinator, move {} away and join again",
                path.display(),
                standing.coordinator,
                standing.coordinator,
                self.root.display()
            )
        };
        ensure!(path.exists(), lost());
        let disk = Disk::open(&path)?;
        let owner = disk.owner()?.with_context(lost)?;
        ensure!(
            owner.mesh == standing.mesh && owner.coordinator == standing.coordinator,
            "{} belongs to coordinator {} of mesh {}, the directory to coordinator {} of mesh {}: restore what belongs \
             together",
            path.display(),
            owner.coordinator,
            owner.mesh,
            standing.coordinator,
            standing.mesh
        );
        Ok(disk)
    }

    /// Puts a store that begins anew in the place of the old one, which is kept beside it.
    pub(crate) async fn replace_store(
        &self,
        standing: &Standing,
        term: u64,
        index: u64,
        registry: &Registry,
    ) -> anyhow::Result<()> {
        let (path, draft) = (self.store_path(), self.root.join(".raft.redb.new"));
        if draft.exists() {
            fs::remove_file(&draft).with_context(|| format!("cannot remove {}", draft.display()))?;
        }
        let disk = Disk::open(&draft)?;
        disk.set_owner(Owner { mesh: standing.mesh, coordinator: standing.coordinator }).await?;
        disk.begin(standing.coordinator, term, index, registry).await?;
        drop(disk);
        let kept = self.root.join(format!("raft.redb.before-term-{term}"));
        let swap = || -> io::Result<()> {
            // A hard link, so that at no instant the directory is without a store. One that is there already is from a
            // recovery that was cut short here: terms only grow.
            match fs::hard_link(&path, &kept) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            fs::rename(&draft, &path)?;
            File::open(&self.root)?.sync_all()
        };
        swap().with_context(|| format!("cannot replace {}", path.display()))
    }

    fn store_path(&self) -> PathBuf {
        self.root.join("raft.redb")
    }

    /// Writes a file of mode 0600 whole, durably, or not at all.
    fn replace(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.root.join(name);
        let draft = self.root.join(format!(".{name}.new"));
        let write = || -> io::Result<()> {
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.root)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn standing(id: u64) -> Standing {
        let overlay = mesh_types::Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap();
        let mesh = MeshId::from_bytes([1; 16]);
        let config = MeshConfig {
            mesh,
            overlay,
            authorities: Vec::new(),
            coordinators: Vec::new(),
            key_ttl: mesh_types::MeshDuration::from_secs(60),
            revision: mesh_types::Revision::NONE,
        };
        Standing { mesh, coordinator: CoordinatorId(id), name: "a".parse().unwrap(), origin: Origin::Joined(config) }
    }

    #[tokio::test]
    async fn a_settled_directory_opens_again_as_the_same_replica() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(&root.path().join("data")).unwrap();
        assert!(home.standing().unwrap().is_none());
        drop(home.settle(&standing(2)).await.unwrap());
        let read = home.standing().unwrap().unwrap();
        assert_eq!(read.coordinator, CoordinatorId(2));
        home.store(&read).unwrap();
    }

    #[tokio::test]
    async fn a_replica_without_its_log_or_with_anothers_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        drop(home.settle(&standing(2)).await.unwrap());
        let error = home.store(&standing(3)).unwrap_err().to_string();
        assert!(error.contains("belongs to coordinator 2"), "{error}");
        fs::remove_file(home.store_path()).unwrap();
        let error = home.store(&standing(2)).unwrap_err().to_string();
        assert!(error.contains("lost its log"), "{error}");
    }

    #[tokio::test]
    async fn a_join_that_was_cut_short_starts_over() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        drop(home.settle(&standing(2)).await.unwrap());
        fs::remove_file(root.path().join("membership")).unwrap();
        home.settle(&standing(3)).await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_was_a_replicas_joins_nothing_under_its_old_key() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        home.begin().unwrap();
        home.identity().unwrap();
        home.begin().expect("a join that was cut short may be repeated");
        drop(home.settle(&standing(2)).await.unwrap());
        for lost in ["membership", "raft.redb"] {
            fs::remove_file(root.path().join(lost)).unwrap();
        }
        let error = home.begin().unwrap_err().to_string();
        assert!(error.contains("move it away"), "{error}");
    }

    #[tokio::test]
    async fn a_recovery_that_was_cut_short_can_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let standing = standing(2);
        drop(home.settle(&standing).await.unwrap());
        fs::hard_link(home.store_path(), root.path().join("raft.redb.before-term-4")).unwrap();
        home.replace_store(&standing, 4, 9, &Registry::new()).await.unwrap();
        assert_eq!(home.store(&standing).unwrap().remains().unwrap().index, 10);
    }

    #[test]
    fn two_processes_never_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let error = Home::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(home);
        Home::open(root.path()).unwrap();
    }

    #[test]
    fn the_identity_key_is_made_once_and_for_the_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let key = home.identity().unwrap();
        assert_eq!(home.identity().unwrap().to_bytes(), key.to_bytes());
        let mode = fs::metadata(root.path().join("identity.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
