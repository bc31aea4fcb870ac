//! The registry: who is a member, under which keys, names and addresses. The replicated state machine itself.
//!
//! Every replica applies the same entries in the same order and so holds the same registry, byte for byte
//! ([`Registry::hash`]). Applying never fails: what cannot be granted is answered with a [`Rejection`] and changes
//! nothing but the time. Every invariant (unique names, keys and addresses, uses of a token) is enforced here, in the
//! one place that is serial. Time and randomness come in with the entry.
//!
//! [`Revision`] counts what nodes can see; tokens, requests and time are not among it.

mod addresses;
mod coordinators;
mod index;
mod members;
mod projection;
mod read;
mod requests;
mod state;
mod tokens;

use crate::codec::{self, DecodeError, Reader};
use crate::command::{Command, Entry};
use crate::reply::{Rejection, Reply};
use index::Index;
use mesh_types::{Fingerprint, Level, MeshConfig, Revision};
use state::{Mesh, State};

pub use read::LookupError;
pub use state::{RemovedNode, Token};

/// Of the encoding below, not of the log.
const FORMAT: u8 = 1;

/// The replicated registry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Registry {
    state: State,
    index: Index,
}

impl Registry {
    /// An empty registry, before the mesh is founded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one entry of the log. The caller has decoded it, and stopped if it could not.
    pub fn apply(&mut self, entry: &Entry) -> Reply {
        self.state.time = self.state.time.max(entry.time);
        if let Some(reply) = entry.request.and_then(|id| self.state.requests.find(id, &entry.command)) {
            return reply;
        }
        let reply = Reply::from(self.execute(&entry.command));
        if let Some(id) = entry.request {
            self.state.requests.remember(id, &entry.command, reply.clone());
        }
        reply
    }

    /// The byte form, for snapshots and backups. Equal registries have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.state.level.0.to_be_bytes());
        codec::put_cbor(&mut out, &self.state);
        out
    }

    /// Reads the byte form. A format or level of a later version is an error that says so.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_within(Level::SUPPORTED, bytes)
    }

    /// Does the same for a replica that understands up to another level than this binary.
    pub fn decode_within(understood: Level, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("registry snapshot", FORMAT)?;
        codec::within(understood, Level(u32::from_be_bytes(reader.take()?)))?;
        let state: State = codec::from_cbor("registry snapshot", reader.rest())?;
        Ok(Self { index: Index::of(&state), state })
    }

    /// SHA-256 of the byte form: equal on all replicas at the same log index.
    pub fn hash(&self) -> Fingerprint {
        Fingerprint::of(&self.encode())
    }

    fn execute(&mut self, command: &Command) -> Result<Reply, Rejection> {
        let ends = matches!(command, Command::RemoveCoordinator(remove) if remove.destroy);
        if self.is_ended() && !ends {
            return Err(Rejection::MeshEnded(self.mesh()?.config.mesh));
        }
        match command {
            Command::Found(found) => self.found(found),
            Command::CreateToken(create) => self.create_token(create),
            Command::RevokeToken(revoke) => self.revoke_token(revoke),
            Command::Join(join) => self.join(join),
            Command::JoinCoordinator(join) => self.join_coordinator(join),
            Command::RenewKey(renew) => self.renew_key(renew),
            Command::RenameNode(rename) => self.rename_node(rename),
            Command::RemoveNode(remove) => self.remove_node(remove),
            Command::AllowNode(allow) => self.allow_node(allow),
            Command::SetCoordinatorAddresses(set) => self.set_coordinator_addresses(set),
            Command::RemoveCoordinator(remove) => self.remove_coordinator(remove),
            Command::SetKeyTtl(set) => self.set_key_ttl(set),
            Command::RaiseLevel(raise) => self.raise_level(raise),
            Command::OpenEpoch(open) => self.open_epoch(open),
        }
    }

    fn mesh(&self) -> Result<&Mesh, Rejection> {
        self.state.mesh.as_ref().ok_or(Rejection::NotFounded)
    }

    fn mesh_mut(&mut self) -> Result<&mut Mesh, Rejection> {
        self.state.mesh.as_mut().ok_or(Rejection::NotFounded)
    }

    /// Changes the settings that nodes hold, as one revision.
    fn change_config(&mut self, change: impl FnOnce(&mut MeshConfig)) -> Result<(), Rejection> {
        self.mesh()?;
        let revision = self.next_revision();
        let config = &mut self.mesh_mut()?.config;
        change(config);
        config.revision = revision;
        Ok(())
    }

    /// Counts one change that nodes see.
    fn next_revision(&mut self) -> Revision {
        self.state.revision = self.state.revision.next();
        self.state.revision
    }
}
