//! Nodes: how they come, stay, go and come back.

use super::Registry;
use super::state::{Enrolment, Member, RemovedNode};
use crate::command::{AllowNode, Join, RemoveNode, RenameNode, RenewKey};
use crate::reply::{KeyHolder, Rejection, Reply};
use mesh_types::{MeshDuration, MeshTime, NodeId, NodeName, NodeRecord, OverlayAddresses, Revision, Role, limits};

/// Whose the two keys of a joining machine are.
enum Keys {
    New,
    /// Both are this member's.
    Member(NodeId),
    /// Both are this removed node's.
    Removed(NodeId),
    Refused(Rejection),
}

/// What a join may become.
enum Entitled {
    /// It was done before.
    Repeat(NodeId),
    Again(NodeId),
    New,
}

impl Enrolment {
    fn by(join: &Join) -> Self {
        Self { token: join.token, secret_hash: join.secret_hash }
    }
}

impl Registry {
    /// Whether a join would be refused for its token or keys, as things stand: for whoever proposes it, so that a
    /// stranger costs no entry of the log.
    pub fn judge_join(&self, join: &Join) -> Result<(), Rejection> {
        self.entitle(join).map(drop)
    }

    /// A repeat, after a lost reply, is known by token and keys, and costs nothing, also when the token is gone. A
    /// member that comes with another token keeps its identity and gets a new lease.
    pub(super) fn join(&mut self, join: &Join) -> Result<Reply, Rejection> {
        let id = match self.entitle(join)? {
            Entitled::Repeat(id) => return Ok(self.node_reply(id)),
            Entitled::Again(id) => self.rejoin(id, Enrolment::by(join))?,
            Entitled::New => self.admit(join, Enrolment::by(join))?,
        };
        self.spend_token(join.token);
        Ok(self.node_reply(id))
    }

    fn entitle(&self, join: &Join) -> Result<Entitled, Rejection> {
        self.mesh()?;
        let shown = Enrolment::by(join);
        let keys = self.owner_of_keys(join);
        match keys {
            Keys::Member(id) if self.state.nodes[&id].enrolment == shown => return Ok(Entitled::Repeat(id)),
            Keys::Removed(id) if self.state.removed[&id].enrolment == shown => return Err(Rejection::NodeRemoved(id)),
            _ => {}
        }
        // Only who holds a token that works learns whose keys these are.
        self.check_token(join.token, join.secret_hash, Role::Node)?;
        match keys {
            Keys::New => Ok(Entitled::New),
            Keys::Member(id) => Ok(Entitled::Again(id)),
            Keys::Removed(id) => Err(Rejection::KeyBarred { by: KeyHolder::Node(id) }),
            Keys::Refused(rejection) => Err(rejection),
        }
    }

    /// An expired node may renew, a removed one may not. A lease of which hardly anything has passed stays as it is, so
    /// that a node in a loop does not become work for all others.
    pub(super) fn renew_key(&mut self, renew: &RenewKey) -> Result<Reply, Rejection> {
        let ttl = self.mesh()?.config.key_ttl;
        let expires_at = self.member(renew.node)?.record.expires_at;
        let left = self.state.time.until(expires_at);
        let is_fresh = left <= ttl && left > MeshDuration(ttl.0 - ttl.0 / 10);
        if !is_fresh {
            let expires_at = self.state.time + ttl;
            self.change_member(renew.node, |member| member.record.expires_at = expires_at);
        }
        Ok(self.node_reply(renew.node))
    }

    pub(super) fn rename_node(&mut self, rename: &RenameNode) -> Result<Reply, Rejection> {
        let member = self.member(rename.node)?;
        if member.record.name == rename.name {
            return Ok(self.node_reply(rename.node));
        }
        if let Some(&by) = self.index.names.get(&rename.name) {
            return Err(Rejection::NameTaken { name: rename.name.clone(), by });
        }
        self.change_member(rename.node, |member| member.record.name = rename.name.clone());
        Ok(self.node_reply(rename.node))
    }

    /// Its addresses rest until no other node can hold it as a peer any more: one lifetime of a key, or longer if its
    /// own lease runs longer.
    pub(super) fn remove_node(&mut self, remove: &RemoveNode) -> Result<Reply, Rejection> {
        let ttl = self.mesh()?.config.key_ttl;
        if self.state.removed.contains_key(&remove.node) {
            return Ok(Reply::NodeRemoved(remove.node));
        }
        let member = self.state.nodes.remove(&remove.node).ok_or(Rejection::NodeUnknown(remove.node))?;
        self.index.drop_member(&member);
        let rests_until = member.record.expires_at.max(self.state.time + ttl);
        self.state.pool.free(member.slot, rests_until);
        let removed = RemovedNode {
            record: NodeRecord { revision: self.next_revision(), ..member.record },
            removed_at: self.state.time,
            rests_until,
            slot: member.slot,
            joined_at: member.joined_at,
            enrolment: member.enrolment,
        };
        self.index.add_removed(&removed);
        self.state.removed.insert(remove.node, removed);
        self.forget_oldest_removed(limits::MAX_REMOVED);
        Ok(Reply::NodeRemoved(remove.node))
    }

    /// Undoes a removal: same id, keys and lease; name and addresses too, unless another has them now.
    pub(super) fn allow_node(&mut self, allow: &AllowNode) -> Result<Reply, Rejection> {
        self.mesh()?;
        if self.state.nodes.contains_key(&allow.node) {
            return Ok(self.node_reply(allow.node));
        }
        let removed = self.state.removed.get(&allow.node).ok_or(Rejection::NodeUnknown(allow.node))?.clone();
        self.check_room()?;
        let slot =
            if self.state.pool.take_back(removed.slot, removed.rests_until) { removed.slot } else { self.take_slot()? };
        self.state.removed.remove(&allow.node);
        self.index.drop_removed(&removed);
        let record = NodeRecord {
            name: self.free_node_name(&removed.record.name),
            addresses: self.addresses_of(slot)?,
            ..removed.record
        };
        self.insert_member(Member { record, slot, joined_at: removed.joined_at, enrolment: removed.enrolment });
        Ok(self.node_reply(allow.node))
    }

    fn owner_of_keys(&self, join: &Join) -> Keys {
        let public = self.index.public_keys.get(&join.public_key).map(|&id| KeyHolder::Node(id));
        let identity = self.index.identity_keys.get(&join.identity_key).cloned();
        match (public, identity) {
            (None, None) => Keys::New,
            (Some(KeyHolder::Node(id)), Some(KeyHolder::Node(same))) if id == same => {
                if self.state.nodes.contains_key(&id) { Keys::Member(id) } else { Keys::Removed(id) }
            }
            (Some(by), _) | (None, Some(by)) => Keys::Refused(self.key_conflict(by)),
        }
    }

    /// The refusal of a key that is another's.
    pub(super) fn key_conflict(&self, by: KeyHolder) -> Rejection {
        let is_current = match by {
            KeyHolder::Node(id) => self.state.nodes.contains_key(&id),
            KeyHolder::Coordinator(id) => self.coordinator(id).is_some(),
        };
        if is_current { Rejection::KeyInUse { by } } else { Rejection::KeyBarred { by } }
    }

    fn admit(&mut self, join: &Join, enrolment: Enrolment) -> Result<NodeId, Rejection> {
        if self.state.nodes.contains_key(&join.node) || self.state.removed.contains_key(&join.node) {
            return Err(Rejection::IdTaken(join.node));
        }
        self.check_room()?;
        let expires_at = self.state.time + self.mesh()?.config.key_ttl;
        let slot = self.take_slot()?;
        let record = NodeRecord {
            id: join.node,
            name: self.free_node_name(&join.name),
            public_key: join.public_key,
            identity_key: join.identity_key,
            addresses: self.addresses_of(slot)?,
            expires_at,
            revision: Revision::NONE,
        };
        self.insert_member(Member { record, slot, joined_at: self.state.time, enrolment });
        Ok(join.node)
    }

    fn rejoin(&mut self, id: NodeId, enrolment: Enrolment) -> Result<NodeId, Rejection> {
        let expires_at: MeshTime = self.state.time + self.mesh()?.config.key_ttl;
        self.change_member(id, |member| {
            member.record.expires_at = expires_at;
            member.enrolment = enrolment;
        });
        Ok(id)
    }

    fn check_room(&self) -> Result<(), Rejection> {
        if self.state.nodes.len() >= limits::MAX_NODES { Err(Rejection::TooManyNodes) } else { Ok(()) }
    }

    fn take_slot(&mut self) -> Result<u32, Rejection> {
        let capacity = self.mesh()?.config.overlay.capacity();
        let now = self.state.time;
        self.state.pool.take(capacity, now).map_err(|next_free| Rejection::AddressesExhausted { next_free })
    }

    fn addresses_of(&self, slot: u32) -> Result<OverlayAddresses, Rejection> {
        let overlay = self.mesh()?.config.overlay;
        overlay.addresses(slot).ok_or(Rejection::AddressesExhausted { next_free: None })
    }

    fn free_node_name(&self, wish: &NodeName) -> NodeName {
        free_name(wish, |name| self.index.names.contains_key(name))
    }

    fn member(&self, id: NodeId) -> Result<&Member, Rejection> {
        self.mesh()?;
        self.state.nodes.get(&id).ok_or_else(|| {
            if self.state.removed.contains_key(&id) { Rejection::NodeRemoved(id) } else { Rejection::NodeUnknown(id) }
        })
    }

    /// Changes a member as one revision, and keeps the index true.
    fn change_member(&mut self, id: NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(mut member) = self.state.nodes.remove(&id) {
            self.index.drop_member(&member);
            change(&mut member);
            self.insert_member(member);
        }
    }

    fn insert_member(&mut self, mut member: Member) {
        member.record.revision = self.next_revision();
        self.index.add_member(&member);
        self.state.nodes.insert(member.record.id, member);
    }

    /// Keeps the removed at most `cap`. From then on differences across the forgotten removal are unknown, so the
    /// floor rises with it.
    fn forget_oldest_removed(&mut self, cap: usize) {
        while self.state.removed.len() > cap {
            let Some((&revision, &id)) = self.index.removals.first_key_value() else { return };
            if let Some(removed) = self.state.removed.remove(&id) {
                self.index.drop_removed(&removed);
            }
            self.state.floor = self.state.floor.max(revision);
        }
    }

    fn node_reply(&self, id: NodeId) -> Reply {
        match self.state.nodes.get(&id) {
            Some(member) => Reply::Node(member.record.clone()),
            None => Reply::Rejected(Rejection::NodeUnknown(id)),
        }
    }
}

/// The wish itself if free, else with the lowest number behind it that makes it free.
pub(super) fn free_name(wish: &NodeName, is_taken: impl Fn(&NodeName) -> bool) -> NodeName {
    if !is_taken(wish) {
        return wish.clone();
    }
    (2..=u32::MAX)
        .map(|number| wish.with_suffix(number))
        .find(|name| !is_taken(name))
        .expect("there are more numbers than members")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{Fingerprint, IdentityKey, PublicKey, TokenId};

    fn removed(n: u8) -> RemovedNode {
        let addresses = OverlayAddresses { v4: [10, 0, 0, n].into(), v6: [0; 16].into() };
        let record = NodeRecord {
            id: NodeId::from_bytes([n; 16]),
            name: "gone".parse().unwrap(),
            public_key: PublicKey::from_bytes([n; 32]),
            identity_key: IdentityKey::from_bytes([n; 32]),
            addresses,
            expires_at: MeshTime(0),
            revision: Revision(u64::from(n)),
        };
        let enrolment = Enrolment { token: TokenId::from_bytes([0; 8]), secret_hash: Fingerprint::from_bytes([0; 32]) };
        let (rests_until, slot) = (MeshTime(9), u32::from(n));
        RemovedNode { record, removed_at: MeshTime(0), rests_until, slot, joined_at: MeshTime(0), enrolment }
    }

    #[test]
    fn beyond_the_cap_the_oldest_removal_is_forgotten_and_the_floor_rises_with_it() {
        let mut registry = Registry::new();
        for n in [3, 1, 2] {
            registry.index.add_removed(&removed(n));
            registry.state.removed.insert(removed(n).record.id, removed(n));
        }
        registry.forget_oldest_removed(2);
        assert_eq!((registry.floor(), registry.removed().count()), (Revision(1), 2));
        assert_eq!(registry.removed_node(removed(1).record.id), None);
        assert_eq!(registry.index.public_keys.get(&PublicKey::from_bytes([1; 32])), None, "its keys are not barred");
        registry.forget_oldest_removed(2);
        assert_eq!(registry.floor(), Revision(1));
    }
}
