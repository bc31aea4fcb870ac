//! The picture of this node for people: what the core knows, and what stands on the host.

use crate::daemon::member::{Member, SOFTWARE};
use crate::host::Host;
use crate::local::Picture;
use crate::state::Membership;
use mesh_node_core::Now;
use mesh_node_core::status::{PeerStatus, Phase, SessionStatus, Status};
use mesh_proto::v1;
use mesh_types::{CoordinatorRecord, NodeRecord};
use std::time::Duration;

/// What there is to picture.
pub(crate) enum Scene<'a> {
    /// No membership; the word for where it is.
    Without(&'static str),
    /// A membership that an operator ended.
    Removed(&'a Membership),
    /// A member.
    Member(&'a Member),
}

/// Pictures the scene. Whether coordinators are reachable is left for the caller to find out.
pub(crate) fn picture(scene: &Scene<'_>, host: &Host, now: Now) -> Picture {
    match scene {
        Scene::Without(phase) => without(phase, now),
        Scene::Removed(membership) => removed(membership, host, now),
        Scene::Member(member) => with(member, host, now),
    }
}

fn without(phase: &str, now: Now) -> Picture {
    let reply = v1::StatusReply {
        phase: phase.to_owned(),
        time: now.wall.0,
        software: SOFTWARE.to_owned(),
        ..v1::StatusReply::default()
    };
    Picture { reply, coordinators: Vec::new(), dialer: None }
}

fn removed(membership: &Membership, host: &Host, now: Now) -> Picture {
    let mut picture = without("left", now);
    picture.reply.this(&membership.record, host, 0);
    picture.reply.mesh = membership.mesh().to_string();
    picture.reply.warnings = vec![mesh_node_core::Warning::Removed.to_string()];
    picture
}

fn with(member: &Member, host: &Host, now: Now) -> Picture {
    let Status { phase, node, revision, session, coordinators, time, peers, warnings, dropped, .. } =
        member.node.status(now);
    let mut reply = v1::StatusReply {
        phase: word(phase).to_owned(),
        mesh: member.membership.mesh().to_string(),
        revision: revision.0,
        coordinators: coordinators.iter().map(|record| coordinator(record, session.as_ref())).collect(),
        peers: peers.iter().map(peer).collect(),
        session: session.as_ref().map(|session| session.coordinator.0),
        fresh: session.as_ref().is_some_and(|session| session.fresh),
        time: time.0,
        warnings: warnings.iter().map(ToString::to_string).chain(troubles(member, host)).collect(),
        software: SOFTWARE.to_owned(),
        trouble: host.why_not(),
        dropped_own_datagrams: dropped,
        ..v1::StatusReply::default()
    };
    reply.this(&node, host, member.listen_port);
    Picture { reply, coordinators, dialer: Some(member.dialer.clone()) }
}

/// What the core cannot know: how host, disk and network do.
fn troubles<'a>(member: &Member, host: &'a Host) -> impl Iterator<Item = String> + use<'a> {
    let interface = host.trouble().map(|error| format!("the interface is not as it should be: {error}"));
    let device = host.device_trouble().map(|error| format!("the device does not do as asked: {error}"));
    let journal = member.journal.trouble().map(|error| format!("the journal is not written: {error}"));
    let session = member.unreachable.as_ref().filter(|_| member.coordinator.is_none()).cloned();
    let overlaps = host.overlaps().iter().map(|route| {
        format!("this host's route {route} overlaps the mesh's range: what it covers may go past the mesh; remove it")
    });
    let unfiltered = host.unfiltered().map(|why| format!("own datagrams are not kept out of the own tunnel: {why}"));
    [interface, device, journal, session, unfiltered].into_iter().flatten().chain(overlaps)
}

const fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Up => "up",
        Phase::Down => "down",
        Phase::Removed => "left",
    }
}

/// Fills in the node's own part.
trait This {
    fn this(&mut self, record: &NodeRecord, host: &Host, listen_port: u16);
}

impl This for v1::StatusReply {
    fn this(&mut self, record: &NodeRecord, host: &Host, listen_port: u16) {
        self.self_ = Some(v1::SelfStatus {
            id: record.id.to_string(),
            name: record.name.to_string(),
            addresses: record.addresses.iter().map(|address| address.to_string()).collect(),
            public_key: record.public_key.to_string(),
            backend: host.backend().map(|backend| backend.to_string()).unwrap_or_default(),
            interface: host.interface().to_owned(),
            listen_port: listen_port.into(),
            expires_at: Some(record.expires_at.0),
        });
    }
}

fn coordinator(record: &CoordinatorRecord, session: Option<&SessionStatus>) -> v1::CoordinatorStatus {
    let role = match session {
        None => "unknown",
        Some(session) if session.leader == Some(record.id) => "leader",
        Some(session) if session.voters.contains(&record.id) => "follower",
        Some(_) => "learner",
    };
    v1::CoordinatorStatus {
        id: record.id.0,
        name: record.name.to_string(),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        role: role.to_owned(),
        reachable: false,
    }
}

/// A latency as people read it, to the microsecond.
pub(crate) fn millis(latency: Duration) -> f64 {
    latency.as_micros() as f64 / 1_000.0
}

fn peer(peer: &PeerStatus) -> v1::PeerStatus {
    v1::PeerStatus {
        id: peer.node.id.to_string(),
        name: peer.node.name.to_string(),
        addresses: peer.node.addresses.iter().map(|address| address.to_string()).collect(),
        public_key: peer.node.public_key.to_string(),
        endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
        path: peer.path.as_str().to_owned(),
        online: peer.online,
        last_handshake: peer.last_handshake.map(|time| time.0),
        latency_ms: peer.latency.map(millis),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        expires_at: peer.node.expires_at.0,
        refused_endpoint: peer.refused.map(|refused| refused.endpoint.to_string()),
        refused_endpoints: peer.refused.map_or(0, |refused| refused.times),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_has_no_more_digits_than_are_known() {
        assert_eq!(millis(Duration::from_micros(5_701)).to_string(), "5.701");
        assert_eq!(millis(Duration::from_nanos(1_234_567)).to_string(), "1.234");
    }
}
