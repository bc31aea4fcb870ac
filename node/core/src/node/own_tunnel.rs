//! The tunnel kept out of itself: where no endpoint may be, what was refused, and what the host dropped.
//!
//! The kernel's device takes any authenticated source for an endpoint, so that one inside the mesh is only replaced after
//! a look at the device. The host drops what the device sends into its own interface until then, and counts it: while
//! peers are in use the count is asked for every second, and a look follows at once when it has risen.

use super::{Node, Setup};
use crate::action::Action;
use crate::barred::Barred;
use crate::clock::{BootTime, Now};
use crate::device::{ActualDevice, ActualPeer};
use crate::journal::Cache;
use crate::path::is_live;
use crate::status::Refused;
use mesh_types::{AllowedIp, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Between two counts while peers are in use: how long a kernel device may send into its own tunnel in vain.
const COUNT: Duration = Duration::from_secs(1);
/// Between two lines of the log about one peer: each may be caused by a packet of a stranger to us.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What keeps the tunnel out of itself.
pub(super) struct OwnTunnel {
    barred: Barred,
    /// Beside the overlay, as the host told.
    carried: BTreeSet<AllowedIp>,
    refused: BTreeMap<NodeId, Refusals>,
    /// Dropped by the host since this life began, and the host's count when last asked.
    dropped: u64,
    counted: Option<u64>,
    /// Dropped by the device itself.
    looped: u64,
    /// When it was last said that something was dropped.
    said: Option<BootTime>,
    /// When to count next; none while no peer is in use.
    count_at: Option<BootTime>,
}

/// What was refused of one peer.
struct Refusals {
    last: SocketAddr,
    /// By us, on a device that takes everything.
    replaced: u64,
    /// By the device itself, up to its last reading and since the beginning of that peer on it.
    before: u64,
    device: u64,
    said: BootTime,
}

impl OwnTunnel {
    pub(super) fn new(setup: &Setup, cache: &Cache) -> Self {
        let netmap = cache.netmap.as_ref();
        let config = netmap.map_or(&setup.config, |netmap| &netmap.config);
        let own = netmap.and_then(|netmap| netmap.nodes.get(&setup.record.id)).unwrap_or(&setup.record);
        let carried = BTreeSet::new();
        Self {
            barred: Barred::new(&config.overlay, &own.addresses, &carried),
            carried,
            refused: BTreeMap::new(),
            dropped: 0,
            counted: None,
            looped: 0,
            said: None,
            count_at: None,
        }
    }

    pub(super) fn barred(&self) -> &Barred {
        &self.barred
    }

    /// Own datagrams that were kept out.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.looped
    }

    pub(super) fn refused(&self, peer: NodeId) -> Option<Refused> {
        let held = self.refused.get(&peer)?;
        Some(Refused { endpoint: held.last, times: held.replaced + held.before + held.device })
    }

    pub(super) fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        self.refused.retain(|id, _| stays(*id));
    }

    pub(super) fn count_due(&self) -> Option<BootTime> {
        self.count_at
    }

    /// Takes what the device refused of a peer, or what it should have; where to, if it is to be said.
    fn refuse(&mut self, id: NodeId, peer: &ActualPeer, now: BootTime) -> Option<SocketAddr> {
        let astray = peer.endpoint.filter(|at| !self.barred.permits(*at));
        let last = astray.or(peer.last_refused)?;
        let held = self.refused.entry(id);
        let is_new = matches!(held, std::collections::btree_map::Entry::Vacant(_));
        let held = held.or_insert(Refusals { last, replaced: 0, before: 0, device: 0, said: now });
        let more = astray.is_some() || peer.refused != held.device;
        if peer.refused < held.device {
            held.before += held.device;
        }
        held.replaced += u64::from(astray.is_some());
        (held.last, held.device) = (last, peer.refused);
        if !more || !is_new && now.since(held.said) < SAY_AGAIN {
            return None;
        }
        held.said = now;
        Some(last)
    }
}

impl Node {
    pub(super) fn barred(&self) -> &Barred {
        self.own_tunnel.barred()
    }

    /// Takes what the host routes through the mesh.
    pub(super) fn take_carried(&mut self, ranges: BTreeSet<AllowedIp>) {
        self.own_tunnel.carried = ranges;
        self.bar();
    }

    /// Brings what is barred in line with netmap and host. What was decided before is decided again.
    pub(super) fn bar(&mut self) {
        let overlay = self.config().overlay;
        let barred = Barred::new(&overlay, &self.own_record().addresses, &self.own_tunnel.carried);
        if barred == self.own_tunnel.barred {
            return;
        }
        self.own_tunnel.barred = barred;
        let OwnTunnel { barred, .. } = &self.own_tunnel;
        self.look.aims.retain(|_, aim| barred.permits(aim.endpoint));
        if let Some(underlay) = &mut self.underlay {
            underlay.retain(|address| !barred.contains(*address));
        }
        self.announce();
        (self.look.wanted, self.look.changed) = (true, true);
    }

    /// Takes what the device says of endpoints inside the mesh, and when to count what it sends there.
    pub(super) fn notice_refused(&mut self, actual: &ActualDevice, now: Now) {
        for (key, peer) in &actual.peers {
            let Some(&id) = self.by_key.get(key) else { continue };
            if let Some(endpoint) = self.own_tunnel.refuse(id, peer, now.boot)
                && let Some(Refused { times, .. }) = self.own_tunnel.refused(id)
                && let Some(record) = self.peer(id)
            {
                let peer = &record.name;
                tracing::warn!(%peer, %endpoint, times, "an endpoint that is reached through the mesh is refused");
            }
        }
        if actual.looped > self.own_tunnel.looped {
            self.own_tunnel.looped = actual.looped;
            self.say_dropped(now.boot);
        }
        let in_use = actual.peers.values().any(|peer| is_live(peer.last_handshake, now));
        self.own_tunnel.count_at = in_use.then(|| self.own_tunnel.count_at.unwrap_or(now.boot + COUNT));
    }

    /// Asks for the count, if it is time.
    pub(super) fn count_dropped_if_due(&mut self, now: Now) {
        if self.is_up() && self.own_tunnel.count_at.is_some_and(|at| at <= now.boot) {
            self.own_tunnel.count_at = Some(now.boot + COUNT);
            self.actions.push_back(Action::CountDropped);
        }
    }

    /// Takes the host's count: when it has risen, some endpoint is where it must not be.
    pub(super) fn take_dropped(&mut self, count: u64, now: BootTime) {
        let before = self.own_tunnel.counted.replace(count);
        let more = match before {
            Some(before) if before <= count => count - before,
            // The first count, or that of a filter made anew.
            _ => count,
        };
        if more > 0 {
            self.own_tunnel.dropped = self.own_tunnel.dropped.saturating_add(more);
            self.look.wanted = true;
            self.say_dropped(now);
        }
    }

    fn say_dropped(&mut self, now: BootTime) {
        if self.own_tunnel.said.is_none_or(|said| now.since(said) >= SAY_AGAIN) {
            self.own_tunnel.said = Some(now);
            let dropped = self.own_tunnel.dropped();
            tracing::warn!(dropped, "own datagrams were on their way into the own tunnel and are dropped");
        }
    }
}
