//! Probes as the node sends, answers and counts them; pings are probes that a person asked for.

use super::{Node, PingError};
use crate::action::{Action, Pong};
use crate::clock::{BootTime, Now};
use crate::probe::{Probe, ProbeKind};
use mesh_types::NodeId;
use mesh_types::limits::MAX_PINGS;
use std::net::IpAddr;
use std::time::Duration;

/// A ping without a reply after this is lost.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// A ping under way.
pub(super) struct Ping {
    peer: NodeId,
    sent: BootTime,
}

impl Node {
    /// Begins a round of probes with a peer.
    pub(super) fn ask(&mut self, id: NodeId, now: Now) {
        let token = self.random.next();
        if let Some(probe) = self.paths.get_mut(&id).map(|path| path.begin_round(token, now.boot)) {
            self.send_probe(id, &probe);
            self.look_soon(now);
        }
    }

    pub(super) fn take_probe(&mut self, from: IpAddr, bytes: &[u8], now: Now) {
        let (Some(probe), Some(&id)) = (Probe::parse(bytes), self.by_address.get(&from)) else { return };
        let Some(path) = self.paths.get_mut(&id) else { return };
        path.take_probe(&probe, now.boot);
        match probe.kind {
            ProbeKind::Request if !path.may_answer(now.boot) => {}
            ProbeKind::Request => {
                self.actions.push_back(Action::SendProbe { to: from, bytes: probe.reply().encode() });
            }
            ProbeKind::Reply => self.take_pong(&probe, id, now),
        }
    }

    fn take_pong(&mut self, probe: &Probe, peer: NodeId, now: Now) {
        if let Some(ping) = self.pings.remove(&probe.token) {
            let latency = now.boot.since(ping.sent);
            if let Some(path) = self.paths.get_mut(&peer) {
                path.take_latency(latency);
            }
            self.actions.push_back(Action::Pong(Pong { token: probe.token, peer, latency: Some(latency) }));
        }
    }

    pub(super) fn begin_ping(&mut self, peer: NodeId, to: IpAddr, now: Now) -> Result<u64, PingError> {
        if self.by_address.get(&to) != Some(&peer) {
            return Err(PingError::UnknownPeer(peer));
        }
        if !self.is_up() {
            return Err(PingError::Down);
        }
        if self.pings.len() >= MAX_PINGS {
            return Err(PingError::TooMany);
        }
        let token = self.random.next();
        self.pings.insert(token, Ping { peer, sent: now.boot });
        let probe = Probe { kind: ProbeKind::Request, token, sent: now.boot };
        self.actions.push_back(Action::SendProbe { to, bytes: probe.encode() });
        Ok(token)
    }

    /// Sends what rounds have due and ends pings that were lost.
    pub(super) fn send_due_probes(&mut self, now: Now) {
        let due = self.paths.iter_mut().filter_map(|(&id, path)| Some((id, path.next_probe(now.boot)?)));
        for (id, probe) in due.collect::<Vec<_>>() {
            self.send_probe(id, &probe);
        }
        let lost = |ping: &Ping| now.boot.since(ping.sent) >= PING_TIMEOUT;
        for (token, Ping { peer, .. }) in self.pings.extract_if(.., |_, ping| lost(ping)) {
            self.actions.push_back(Action::Pong(Pong { token, peer, latency: None }));
        }
    }

    /// When a round goes on, a path decides or a ping is lost. What is already due waits for the device.
    pub(super) fn probing_due(&self, now: Now) -> Option<BootTime> {
        let paths = self.paths.values().filter_map(|path| path.due(&self.pace));
        let pings = self.pings.values().map(|ping| ping.sent + PING_TIMEOUT);
        paths.chain(pings).filter(|&due| due > now.boot).min()
    }

    fn send_probe(&mut self, id: NodeId, probe: &Probe) {
        if let Some(to) = self.peer(id).map(|peer| IpAddr::V4(peer.addresses.v4)) {
            self.actions.push_back(Action::SendProbe { to, bytes: probe.encode() });
        }
    }
}
