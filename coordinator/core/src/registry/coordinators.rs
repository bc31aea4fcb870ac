//! The mesh itself and its coordinators: founding, replicas that come and go, settings, epochs, the log's language.
//!
//! Who votes is Raft's own business; here is who a coordinator is and where it answers.

use super::Registry;
use super::members::free_name;
use super::state::{Enrolment, Mesh};
use crate::command::{
    Found, JoinCoordinator, OpenEpoch, RaiseLevel, RemoveCoordinator, SetCoordinatorAddresses, SetKeyTtl,
};
use crate::reply::{KeyHolder, Rejection, Reply};
use mesh_types::epoch::EpochOrder;
use mesh_types::{
    CoordinatorAddress, CoordinatorId, CoordinatorRecord, MeshConfig, MeshDuration, MeshTime, Overlay, Role, limits,
};
use std::collections::BTreeMap;

const FIRST: CoordinatorId = CoordinatorId(1);

/// Coordinator ids that a new epoch leaves out. The history that it ends may have given ids which this registry never
/// saw: whoever holds one must not be taken for a newcomer, but for one who is shut out.
const EPOCH_GAP: u64 = 100;

/// Addresses that rest when a new epoch begins, for the same reason: as many nodes may have joined in the history that
/// it ends, unseen by this registry. Each is an entry of a dozen bytes in the snapshot, for one lifetime of a key.
const EPOCH_ADDRESSES: u32 = 1_024;

impl Registry {
    pub(super) fn found(&mut self, found: &Found) -> Result<Reply, Rejection> {
        if let Some(mesh) = &self.state.mesh {
            return Err(Rejection::AlreadyFounded(mesh.config.mesh));
        }
        check_found(found)?;
        let revision = self.next_revision();
        let config = MeshConfig {
            mesh: found.mesh,
            overlay: found.overlay,
            authorities: vec![found.authority.clone()],
            coordinators: vec![found.coordinator.clone()],
            key_ttl: found.key_ttl,
            revision,
        };
        self.index.add_coordinator(&found.coordinator);
        self.state.mesh = Some(Mesh {
            epoch: found.epoch,
            config,
            next_coordinator: following(FIRST),
            coordinator_enrolments: BTreeMap::new(),
            former_coordinators: BTreeMap::new(),
            ended: false,
        });
        Ok(Reply::Done)
    }

    /// Idempotent by token and identity key, as a node's join is. A current coordinator's key with another token is
    /// refused: a replica that lost its disk must not come back under its old id.
    pub(super) fn join_coordinator(&mut self, join: &JoinCoordinator) -> Result<Reply, Rejection> {
        if let Some(record) = self.repeated_join(join)? {
            return Ok(Reply::Coordinator(record.clone()));
        }
        let shown = Enrolment { token: join.token, secret_hash: join.secret_hash };
        let record = self.enlist(join, shown)?;
        self.spend_token(join.token);
        Ok(Reply::Coordinator(record))
    }

    /// Whether a coordinator's join would be refused for its token, key or addresses, as things stand: for whoever
    /// proposes it, so that a stranger costs no entry of the log.
    pub fn judge_coordinator_join(&self, join: &JoinCoordinator) -> Result<(), Rejection> {
        self.repeated_join(join).map(drop)
    }

    /// The coordinator that this join made before; none if it may make one now.
    fn repeated_join(&self, join: &JoinCoordinator) -> Result<Option<&CoordinatorRecord>, Rejection> {
        let mesh = self.mesh()?;
        let shown = Enrolment { token: join.token, secret_hash: join.secret_hash };
        let holder = self.index.identity_keys.get(&join.identity_key).cloned();
        if let Some(KeyHolder::Coordinator(id)) = holder
            && mesh.coordinator_enrolments.get(&id) == Some(&shown)
            && let Some(record) = self.coordinator(id)
        {
            return Ok(Some(record));
        }
        self.check_token(join.token, join.secret_hash, Role::Coordinator)?;
        if let Some(by) = holder {
            return Err(self.key_conflict(by));
        }
        check_addresses(&join.addresses)?;
        Ok(None)
    }

    pub(super) fn set_coordinator_addresses(&mut self, set: &SetCoordinatorAddresses) -> Result<Reply, Rejection> {
        self.mesh()?;
        check_addresses(&set.addresses)?;
        let held = self.coordinator(set.coordinator).ok_or(Rejection::CoordinatorUnknown(set.coordinator))?;
        let record = CoordinatorRecord { addresses: set.addresses.clone(), ..held.clone() };
        if *held != record {
            let changed = record.clone();
            self.change_config(|config| {
                config.coordinators.iter_mut().filter(|c| c.id == changed.id).for_each(|c| *c = changed.clone());
            })?;
        }
        Ok(Reply::Coordinator(record))
    }

    pub(super) fn remove_coordinator(&mut self, remove: &RemoveCoordinator) -> Result<Reply, Rejection> {
        let id = remove.coordinator;
        if remove.destroy {
            return self.end_mesh(id);
        }
        let mesh = self.mesh()?;
        if mesh.former_coordinators.contains_key(&id) {
            return Ok(Reply::CoordinatorRemoved(id));
        }
        let record = self.coordinator(id).ok_or(Rejection::CoordinatorUnknown(id))?.clone();
        if mesh.config.coordinators.len() == 1 {
            return Err(Rejection::LastCoordinator(id));
        }
        self.change_config(|config| config.coordinators.retain(|c| c.id != id))?;
        self.retire(record)?;
        Ok(Reply::CoordinatorRemoved(id))
    }

    /// Nodes see nothing of it: they keep the settings by which a coordinator that is restored would find them again.
    fn end_mesh(&mut self, id: CoordinatorId) -> Result<Reply, Rejection> {
        self.coordinator(id).ok_or(Rejection::CoordinatorUnknown(id))?;
        let others = self.coordinators().len() - 1;
        if others > 0 {
            return Err(Rejection::NotLastCoordinator { coordinator: id, others });
        }
        self.mesh_mut()?.ended = true;
        Ok(Reply::CoordinatorRemoved(id))
    }

    pub(super) fn set_key_ttl(&mut self, set: &SetKeyTtl) -> Result<Reply, Rejection> {
        check_key_ttl(set.ttl)?;
        if self.mesh()?.config.key_ttl != set.ttl {
            self.change_config(|config| config.key_ttl = set.ttl)?;
        }
        Ok(Reply::Done)
    }

    pub(super) fn raise_level(&mut self, raise: &RaiseLevel) -> Result<Reply, Rejection> {
        self.mesh()?;
        let current = self.state.level;
        // One above what this replica understands does not come so far: decoding it stops the replica.
        if raise.level < current {
            return Err(Rejection::LevelOrder { current, wanted: raise.level });
        }
        self.state.level = raise.level;
        Ok(Reply::Done)
    }

    /// Begins another history. Revisions do not compare across it, so every node gets a snapshot.
    pub(super) fn open_epoch(&mut self, open: &OpenEpoch) -> Result<Reply, Rejection> {
        let mesh = self.mesh()?;
        if mesh.epoch.compare(open.epoch) != EpochOrder::Newer {
            return Err(Rejection::EpochOrder { held: mesh.epoch, offered: open.epoch });
        }
        self.check_survivor(&open.coordinator)?;
        self.replace_coordinators(&open.coordinator)?;
        let mesh = self.mesh_mut()?;
        mesh.epoch = open.epoch;
        let next = mesh.next_coordinator.max(following(open.coordinator.id));
        mesh.next_coordinator = CoordinatorId(next.0.saturating_add(EPOCH_GAP));
        if open.void_tokens {
            self.state.tokens.clear();
        }
        self.state.floor = self.state.revision;
        Ok(Reply::Done)
    }

    /// Lets addresses rest that nodes unknown to this registry may have, for one lifetime of a key from `now`: of those
    /// that were never given the next ones, half of them at most, and whatever rests already.
    ///
    /// Called between [`OpenEpoch`] and the first entry of the new epoch, while nobody else has this registry: others get
    /// it as a snapshot, so this is no part of the log and needs no level.
    pub fn rest_unseen_addresses(&mut self, now: MeshTime) -> Result<(), Rejection> {
        let config = &self.mesh()?.config;
        let (capacity, until) = (config.overlay.capacity(), now.max(self.state.time) + config.key_ttl);
        let count = EPOCH_ADDRESSES.min(self.state.pool.never_given(capacity) / 2);
        let pool = &mut self.state.pool;
        // By slot and time a removed node knows whether anyone had its addresses since.
        let resting = self.state.removed.values_mut().filter(|removed| pool.rests(removed.slot, removed.rests_until));
        resting.for_each(|removed| removed.rests_until = removed.rests_until.max(until));
        pool.rest_unseen(count, until);
        Ok(())
    }

    fn enlist(&mut self, join: &JoinCoordinator, shown: Enrolment) -> Result<CoordinatorRecord, Rejection> {
        let mesh = self.mesh()?;
        let coordinators = &mesh.config.coordinators;
        if coordinators.len() >= limits::MAX_COORDINATORS {
            return Err(Rejection::TooManyCoordinators);
        }
        let record = CoordinatorRecord {
            id: mesh.next_coordinator,
            name: free_name(&join.name, |name| coordinators.iter().any(|c| c.name == *name)),
            identity_key: join.identity_key,
            addresses: join.addresses.clone(),
        };
        self.change_config(|config| config.coordinators.push(record.clone()))?;
        self.index.add_coordinator(&record);
        let mesh = self.mesh_mut()?;
        mesh.next_coordinator = following(record.id);
        mesh.coordinator_enrolments.insert(record.id, shown);
        Ok(record)
    }

    /// The survivor of a recovery is a present coordinator; the one of a restore has a fresh id and key.
    fn check_survivor(&self, survivor: &CoordinatorRecord) -> Result<(), Rejection> {
        let mesh = self.mesh()?;
        check_addresses(&survivor.addresses)?;
        let is_present = self.coordinator(survivor.id).is_some();
        if !is_present && survivor.id < mesh.next_coordinator {
            return Err(Rejection::CoordinatorIdSpent(survivor.id));
        }
        match self.index.identity_keys.get(&survivor.identity_key) {
            Some(KeyHolder::Coordinator(id)) if *id == survivor.id => Ok(()),
            Some(by) => Err(self.key_conflict(by.clone())),
            None => Ok(()),
        }
    }

    fn replace_coordinators(&mut self, survivor: &CoordinatorRecord) -> Result<(), Rejection> {
        let before = self.mesh()?.config.coordinators.clone();
        self.change_config(|config| config.coordinators = vec![survivor.clone()])?;
        for record in before {
            if record.id == survivor.id {
                self.index.drop_coordinator(&record);
            } else {
                self.retire(record)?;
            }
        }
        self.index.add_coordinator(survivor);
        Ok(())
    }

    /// Bars a coordinator's id and key. The oldest are forgotten beyond the cap; their ids stay spent by the count.
    fn retire(&mut self, record: CoordinatorRecord) -> Result<(), Rejection> {
        let mesh = self.mesh_mut()?;
        mesh.coordinator_enrolments.remove(&record.id);
        mesh.former_coordinators.insert(record.id, record);
        if mesh.former_coordinators.len() > limits::MAX_FORMER_COORDINATORS
            && let Some((_, forgotten)) = mesh.former_coordinators.pop_first()
        {
            self.index.drop_coordinator(&forgotten);
        }
        Ok(())
    }
}

fn check_found(found: &Found) -> Result<(), Rejection> {
    check_key_ttl(found.key_ttl)?;
    check_addresses(&found.coordinator.addresses)?;
    if Overlay::new(found.overlay.v4, found.overlay.v6) != Ok(found.overlay) {
        return Err(Rejection::OverlayUnusable(found.overlay));
    }
    if found.coordinator.id != FIRST {
        return Err(Rejection::CoordinatorIdSpent(found.coordinator.id));
    }
    match found.authority.0.len() {
        1..=limits::MAX_CERTIFICATE => Ok(()),
        length => Err(Rejection::CertificateSize(length)),
    }
}

fn check_key_ttl(ttl: MeshDuration) -> Result<(), Rejection> {
    if (limits::MIN_KEY_TTL..=limits::MAX_KEY_TTL).contains(&ttl) { Ok(()) } else { Err(Rejection::KeyTtl(ttl)) }
}

fn check_addresses(addresses: &[CoordinatorAddress]) -> Result<(), Rejection> {
    match addresses.len() {
        1..=limits::MAX_COORDINATOR_ADDRESSES => Ok(()),
        count => Err(Rejection::AddressCount(count)),
    }
}

fn following(id: CoordinatorId) -> CoordinatorId {
    CoordinatorId(id.0.saturating_add(1))
}
