//! The contracts, checked while the world runs and when it has come to rest.

use super::World;
use super::mesh_time;
use super::network::Host;
use mesh_node_core::clock::Trust;
use mesh_node_core::device::{DeviceUpdate, PeerChange};
use mesh_types::{MeshDuration, NodeRecord, PublicKey};
use std::collections::BTreeSet;

/// Time for everything to come to rest: sessions again, presence spread, WireGuard's longest retry, slow dumps.
const REST: u64 = 60_000;
/// One of so many pings must be answered at rest.
const PINGS: u32 = 3;
/// How late a deadline may be enforced: the tick that brought the time was under way, and timers are looked at in steps.
const GRACE: MeshDuration = MeshDuration(500);

impl World {
    /// A node never goes back in revision, also not over a restart.
    pub(super) fn check_revision(&mut self, machine: usize) {
        let Some(node) = &self.machines[machine].node else { return };
        let held = node.hello().revision;
        let highest = self.machines[machine].highest;
        self.check(held >= highest, || format!("node {machine} went back from revision {highest} to {held}"));
        self.machines[machine].highest = held;
    }

    /// A device that was just looked at sends to nobody through its own tunnel any more.
    pub(super) fn check_own_tunnel(&mut self, machine: usize) {
        let overlay = self.overlay();
        let subject = &mut self.machines[machine];
        if std::mem::take(&mut subject.looked) {
            let strays = subject.device.aims(|address| overlay.contains(address));
            self.check(!strays, || format!("node {machine} sends into its own tunnel after it looked at its device"));
        }
    }

    /// What the device is about to show is on disk already, and nobody goes without a reason.
    pub(super) fn check_update(&mut self, machine: usize, update: &DeviceUpdate) {
        let (durable, _) = self.machines[machine].remembered();
        let keys: BTreeSet<PublicKey> =
            durable.netmap.iter().flat_map(|netmap| netmap.nodes.values()).map(|record| record.public_key).collect();
        for (key, change) in &update.peers {
            match change {
                PeerChange::Add(_) | PeerChange::Recreate(_) => {
                    self.check(keys.contains(key), || format!("node {machine} shows peer {key} before it is durable"));
                }
                PeerChange::Remove => {
                    let mut records = durable.netmap.iter().flat_map(|netmap| netmap.nodes.values());
                    let held = records.find(|record| record.public_key == *key);
                    self.check_reason(machine, key, held);
                }
                PeerChange::Modify(_) => {}
            }
        }
    }

    /// Nobody with a clock to rely on talks to a peer beyond the deadline that it holds, coordinators or not.
    pub(super) fn check_deadlines(&self) {
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(node) = &machine.node else { continue };
            if node.status(machine.now(self.now())).trust != Trust::Heard {
                continue;
            }
            let records = node.cache().netmap.iter().flat_map(|netmap| netmap.nodes.values());
            let overdue = |record: &&NodeRecord| record.expires_at + GRACE < mesh_time(self.now());
            for record in records.filter(overdue) {
                let shown = machine.device.peers().any(|key| *key == record.public_key);
                self.check(!shown, || format!("node {number} shows {} beyond its deadline", record.name));
            }
        }
    }

    /// A peer goes only by removal, by its deadline as the node holds it, or because the node itself is out.
    fn check_reason(&self, machine: usize, key: &PublicKey, held: Option<&NodeRecord>) {
        let member = self.cluster.truth.nodes().find(|record| record.public_key == *key);
        let own = self.cluster.truth.node(self.machines[machine].record.id);
        let is_over = |record: &NodeRecord| record.expires_at <= mesh_time(self.now());
        // It may have been renewed meanwhile, unheard: what is held counts.
        let expired = member.is_some_and(is_over) || held.is_some_and(is_over);
        let own_expired = own.is_none_or(is_over);
        let rekeyed = self.machines.iter().all(|machine| machine.record.public_key != *key);
        let misled = self.machines[machine].clock_jumped;
        self.check(member.is_none() || expired || own_expired || rekeyed || misled, || {
            format!("node {machine} drops peer {key}, which is a member with a running lease")
        });
    }

    /// Heals everything, lets it come to rest, and checks every contract there is.
    pub fn check_at_rest(&mut self) {
        self.note("everything heals");
        self.network.heal();
        let now = super::coordinator_now(self.now());
        for id in self.cluster.ids() {
            if self.cluster.running(id).is_none() {
                self.cluster.restart(id, now);
            }
        }
        for machine in 0..self.machines.len() {
            if self.machines[machine].node.is_none() {
                self.start(machine);
            }
        }
        self.run(REST);
        self.check(self.cluster.agrees(), || "replicas differ at rest".to_owned());
        for machine in 0..self.machines.len() {
            self.check_membership(machine);
        }
        self.check_reachability();
    }

    fn check_membership(&self, machine: usize) {
        let subject = &self.machines[machine];
        let Some(node) = &subject.node else { panic!("all daemons run at rest") };
        if self.cluster.truth.node(subject.record.id).is_none() {
            let peers = subject.device.peers().count();
            self.check(peers == 0, || format!("node {machine} is removed and still has {peers} peers"));
            return;
        }
        let held = node.cache().netmap.as_ref();
        let records: Vec<_> = held.map(|netmap| netmap.nodes.values().cloned().collect()).unwrap_or_default();
        let truth: Vec<_> = self.cluster.truth.nodes().cloned().collect();
        self.check(records == truth, || {
            format!("node {machine} holds another netmap than the registry at rest:\n{records:#?}\n{truth:#?}")
        });
        let shown: BTreeSet<PublicKey> = subject.device.peers().copied().collect();
        let now = mesh_time(self.now());
        let wanted: BTreeSet<PublicKey> = truth
            .iter()
            .filter(|record| record.id != subject.record.id && record.expires_at > now)
            .map(|record| record.public_key)
            .collect();
        self.check(shown == wanted, || {
            let (status, own) = (node.status(subject.now(self.now())), self.cluster.truth.node(subject.record.id));
            format!("node {machine} shows {shown:?}, the registry wants {wanted:?}\n  own record {own:?}\n  {status:?}")
        });
    }

    fn check_reachability(&mut self) {
        let members: Vec<usize> = (0..self.machines.len())
            .filter(|machine| self.cluster.truth.node(self.machines[*machine].record.id).is_some())
            .collect();
        for machine in &mut self.machines {
            machine.pongs.clear();
        }
        // More than once: two handshakes that cross may cost a packet that is under way, as in WireGuard itself.
        for _ in 0..PINGS {
            self.ping_all(&members);
            self.run(5_000);
        }
        for &from in &members {
            for &to in members.iter().filter(|to| **to != from) {
                let answered = self.machines[from].pongs.get(&self.machines[to].record.id).copied();
                self.check(answered == Some(true), || {
                    let (out, back) = (self.describe(from, to), self.describe(to, from));
                    format!("node {from} does not reach node {to} at rest\n  {out}\n  {back}")
                });
            }
        }
    }

    fn ping_all(&mut self, members: &[usize]) {
        for &from in members {
            for &to in members.iter().filter(|to| **to != from) {
                let record = &self.machines[to].record;
                let (peer, address) = (record.id, record.addresses.v4.into());
                self.with_node(from, |node, now| {
                    node.handle_ping(peer, address, now).unwrap_or_else(|error| panic!("ping at rest: {error}"));
                });
            }
        }
    }

    /// How `from` sees `to`, and where that really is.
    fn describe(&self, from: usize, to: usize) -> String {
        let address = self.network.address(Host::Node(to));
        let machine = &self.machines[from];
        let key = self.machines[to].record.public_key;
        let device = machine.device.read(mesh_time);
        let status = machine.node.as_ref().map(|node| node.status(machine.now(self.now())));
        let peer = status.and_then(|status| status.peers.into_iter().find(|peer| peer.node.public_key == key));
        let path = peer.map(|peer| (peer.path, peer.online));
        format!("node {to} is at {address:?}; node {from} has {:?} and path {path:?}", device.peers.get(&key))
    }
}
