//! The device as the node sees and shapes it: when to look, what it should be, and what to change.
//!
//! At most one operation on the present device is under way. What is known of it is the last look, with the changes
//! done since.

use super::Node;
use crate::action::Action;
use crate::clock::{BootTime, Now};
use crate::device::{ActualDevice, DesiredDevice, DesiredPeer, DeviceUpdate, EndpointIntent, PeerChange};
use crate::diff::diff;
use crate::journal::Record;
use crate::path::{Aim, Step};
use mesh_types::{MeshTime, NodeId, NodeRecord, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks while bytes flow: how soon silence is noticed.
const LOOK_BUSY: Duration = Duration::from_secs(1);
/// Between two looks while nothing flows: how soon it is noticed that something does.
const LOOK_IDLE: Duration = Duration::from_secs(3);
/// Before trying again what failed.
const RETRY: Duration = Duration::from_secs(1);

/// When to look at the device, and why to change it.
#[derive(Default)]
pub(super) struct Look {
    /// Something that the device depends on may have changed.
    pub(super) changed: bool,
    /// Endpoints to set, by peer.
    pub(super) aims: BTreeMap<NodeId, Aim>,
    /// Those in the update that is under way.
    aiming: BTreeMap<NodeId, Aim>,
    /// Counts devices: what is answered about an earlier one does not matter.
    generation: u64,
    /// The device was looked at in this very step.
    fresh: bool,
    /// Look as soon as nothing is under way.
    pub(super) wanted: bool,
    next: Option<BootTime>,
    /// The last operation failed: nothing is asked of the device before this, however much it is wanted.
    not_before: Option<BootTime>,
    /// The next deadline of a key.
    expiry: Option<MeshTime>,
}

/// Something that the shell was asked to do to the device and has not answered yet.
pub(super) struct Operation {
    generation: u64,
    kind: Kind,
}

enum Kind {
    Read,
    Apply(DeviceUpdate),
}

impl Node {
    /// The device is gone, or about to be: look at what comes in its place.
    pub(super) fn forget_device(&mut self, now: Now) {
        self.actual = None;
        let generation = self.look.generation + 1;
        self.look = Look { generation, changed: true, wanted: true, ..Look::default() };
        for path in self.paths.values_mut() {
            path.forget_device(now.boot);
        }
    }

    pub(super) fn take_device(&mut self, actual: ActualDevice, now: Now) {
        let asked = self.operation.pop_front();
        if !self.is_up() || asked.is_some_and(|o| o.generation != self.look.generation) {
            return;
        }
        let busy = self.actual.as_ref().is_none_or(|before| flows(before, &actual));
        self.look.next = Some(now.boot + if busy { LOOK_BUSY } else { LOOK_IDLE });
        self.look.fresh = true;
        self.look.changed = true;
        for (key, peer) in &actual.peers {
            if let Some(path) = self.by_key.get(key).and_then(|id| self.paths.get_mut(id)) {
                path.observe(peer, self.own_tunnel.barred(), now);
            }
        }
        self.notice_refused(&actual, now);
        self.remember_endpoints(&actual);
        self.actual = Some(actual);
    }

    pub(super) fn take_applied(&mut self, now: Now) {
        let Some(Operation { generation, kind: Kind::Apply(update) }) = self.operation.pop_front() else { return };
        if generation != self.look.generation {
            return;
        }
        let Some(actual) = &mut self.actual else { return };
        actual.apply(&update);
        for (key, change) in &update.peers {
            let endpoint = actual.peers.get(key).and_then(|peer| peer.endpoint);
            let endpoint = endpoint.filter(|at| self.own_tunnel.barred().permits(*at));
            let Some(path) = self.by_key.get(key).and_then(|id| self.paths.get_mut(id)) else { continue };
            match change {
                PeerChange::Remove => path.forget_device(now.boot),
                PeerChange::Add(_) => {
                    path.forget_device(now.boot);
                    path.put_on_device(endpoint, now.boot);
                }
                PeerChange::Recreate(_) => path.put_on_device(endpoint, now.boot),
                PeerChange::Modify(_) => path.take_endpoint(endpoint),
            }
        }
        for id in std::mem::take(&mut self.look.aiming).into_keys() {
            self.ask(id, now);
        }
        self.look_soon(now);
    }

    pub(super) fn take_device_failed(&mut self, now: Now) {
        if self.operation.pop_front().is_some_and(|o| o.generation != self.look.generation) {
            return;
        }
        let mut aims = std::mem::take(&mut self.look.aiming);
        aims.append(&mut self.look.aims);
        self.look.aims = aims;
        let again = now.boot + self.random.jitter(RETRY);
        (self.look.next, self.look.not_before) = (Some(again), Some(again));
    }

    /// Looks again before long: something was done whose effect the device shows.
    pub(super) fn look_soon(&mut self, now: Now) {
        let soon = now.boot + LOOK_BUSY;
        self.look.next = Some(self.look.next.map_or(soon, |next| next.min(soon)));
    }

    /// Lets every path that is on the device decide.
    pub(super) fn step_paths(&mut self, now: Now) {
        let fresh = std::mem::take(&mut self.look.fresh);
        let Some(actual) = &self.actual else { return };
        let mut paths = std::mem::take(&mut self.paths);
        let mut ask = Vec::new();
        for (id, path) in &mut paths {
            if path.is_settled() {
                continue;
            }
            let on_device = self.peer(*id).is_some_and(|peer| actual.peers.contains_key(&peer.public_key));
            if !on_device || self.look.aims.contains_key(id) || self.look.aiming.contains_key(id) {
                continue;
            }
            let mut pace = self.pace.clone();
            let mut random = self.random.clone();
            let step = path.step(&self.view(*id, fresh), &mut pace, &mut random, now);
            (self.pace, self.random) = (pace, random);
            match step {
                Step::Rest => {}
                Step::Look => self.look.wanted = true,
                Step::Ask => ask.push(*id),
                Step::Aim(aim) => {
                    self.look.aims.insert(*id, aim);
                    self.look.changed = true;
                }
            }
        }
        self.paths = paths;
        for id in ask {
            self.ask(id, now);
        }
    }

    /// Compares the whole device with what it should be and asks for the difference.
    pub(super) fn reconcile(&mut self, now: Now) {
        let mesh_time = self.clock.now(now);
        let expired = self.look.expiry.is_some_and(|at| at <= mesh_time);
        let may = (self.look.changed || expired) && !self.is_operating() && !self.is_resting(now);
        if may && expired {
            // Whoever has gone for good by now must not come back after a restart by a clock that is behind.
            self.remember_clock(now);
        }
        let Some(actual) = self.actual.as_ref().filter(|_| may) else { return };
        let desired = self.desired(actual, mesh_time);
        let mut update = diff(&desired, actual);
        let again = self.look.aims.iter().filter(|(_, aim)| aim.recreate);
        let again = again.filter_map(|(&id, _)| Some(self.peer(id)?.public_key));
        // An endpoint can be replaced, but not taken away.
        let astray = actual.peers.iter().filter(|(key, found)| {
            let stays = desired.peers.get(*key).is_some_and(|peer| peer.endpoint == EndpointIntent::Keep);
            stays && found.endpoint.is_some_and(|at| !self.barred().permits(at))
        });
        for key in again.chain(astray.map(|(key, _)| *key)).collect::<BTreeSet<_>>() {
            if let Some(peer) = desired.peers.get(&key).filter(|_| actual.peers.contains_key(&key)) {
                update.peers.retain(|(changed, _)| *changed != key);
                update.peers.push((key, PeerChange::Recreate(peer.to_new(None))));
            }
        }
        self.look.changed = false;
        self.look.expiry = self.next_expiry(mesh_time);
        let aims = std::mem::take(&mut self.look.aims);
        if update.is_empty() {
            for id in aims.into_keys() {
                self.ask(id, now);
            }
            return;
        }
        self.look.aiming = aims;
        self.actions.push_back(Action::Apply(update.clone()));
        self.operate(Kind::Apply(update));
    }

    /// Asks for a look at the device, if it is time and nothing is under way.
    pub(super) fn look_if_due(&mut self, now: Now) {
        let due = self.look.wanted || self.look.next.is_some_and(|next| next <= now.boot);
        if due && self.is_up() && !self.is_operating() && !self.is_resting(now) {
            self.look.wanted = false;
            self.look.next = None;
            self.actions.push_back(Action::Read);
            self.operate(Kind::Read);
        }
    }

    /// When the device is next looked at or changed by itself.
    pub(super) fn device_due(&self, now: Now) -> Option<BootTime> {
        let look = self.look.next.filter(|_| self.is_up() && !self.is_operating());
        let expiry = self.look.expiry.filter(|_| self.actual.is_some() && !self.is_operating());
        let count = self.own_tunnel.count_due().filter(|_| self.is_up());
        let due = look.into_iter().chain(expiry.map(|at| self.clock.boot_at(at, now))).chain(count).min();
        due.map(|at| self.look.not_before.map_or(at, |rest| rest.max(at)))
    }

    fn operate(&mut self, kind: Kind) {
        self.operation.push_back(Operation { generation: self.look.generation, kind });
    }

    fn is_operating(&self) -> bool {
        self.operation.iter().any(|o| o.generation == self.look.generation)
    }

    /// Whether an operation failed just now. Paths that wait for a look would ask for one in the same moment again.
    fn is_resting(&self, now: Now) -> bool {
        self.look.not_before.is_some_and(|at| now.boot < at)
    }

    /// The device as it should be: a peer whose lease has ended is no peer, and after the end of our own there is none.
    pub(super) fn desired(&self, actual: &ActualDevice, mesh_time: MeshTime) -> DesiredDevice {
        let own = self.own_record();
        let alive = |record: &NodeRecord| mesh_time < record.expires_at;
        let peers = self.peers().filter(|peer| alive(own) && alive(peer) && peer.public_key != own.public_key);
        DesiredDevice {
            private_key: self.setup.private_key.clone(),
            listen_port: self.setup.listen_port,
            fwmark: self.setup.fwmark,
            barred: self.barred().ranges().clone(),
            peers: peers.map(|peer| (peer.public_key, self.desired_peer(peer, actual))).collect(),
        }
    }

    fn desired_peer(&self, peer: &NodeRecord, actual: &ActualDevice) -> DesiredPeer {
        let present = actual.peers.get(&peer.public_key).and_then(|found| found.endpoint);
        DesiredPeer {
            preshared_key: None,
            endpoint: self.endpoint_intent(peer.id, present),
            keepalive: None,
            allowed_ips: peer.addresses.allowed_ips().collect(),
        }
    }

    fn next_expiry(&self, mesh_time: MeshTime) -> Option<MeshTime> {
        let all = self.peers().chain(std::iter::once(self.own_record()));
        all.map(|record| record.expires_at).filter(|&at| at > mesh_time).min()
    }

    /// Remembers where peers that answer are, for the next life.
    fn remember_endpoints(&mut self, actual: &ActualDevice) {
        let settled = |id: &NodeId| self.paths.get(id).is_some_and(|path| path.is_settled());
        let found = actual.peers.iter().filter_map(|(key, peer)| {
            let id = *self.by_key.get(key)?;
            let endpoint = peer.endpoint.filter(|at| self.barred().permits(*at))?;
            (settled(&id) && self.cache.endpoints.get(&id) != Some(&endpoint)).then_some((id, endpoint))
        });
        for (node, endpoint) in found.collect::<Vec<_>>() {
            self.remember(Record::Endpoint { node, endpoint });
        }
    }
}

/// Whether bytes went either way between two looks.
fn flows(before: &ActualDevice, after: &ActualDevice) -> bool {
    let count = |device: &ActualDevice, key: &PublicKey| device.peers.get(key).map(|p| (p.rx_bytes, p.tx_bytes));
    after.peers.keys().any(|key| count(before, key) != count(after, key))
}
