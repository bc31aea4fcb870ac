//! What only the leader can do and is no entry of the log: asked for over `Administer`, in our own encoding.

use crate::peers::PeerError;
use crate::replica::{NOT_LEADER, Replica};
use bytes::Bytes;
use mesh_coordinator_core::clock::is_far_off;
use mesh_proto::v1;
use mesh_types::CoordinatorId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

const FORMAT: u8 = 1;
/// A transfer takes an election; a read point a round of heartbeats.
const ANSWER: Duration = Duration::from_secs(5);

/// What is asked of the leader.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Order {
    /// The point in the log that includes every acknowledged write.
    ReadPoint,
    /// That another voter leads: this one, or any.
    TransferLeader(Option<CoordinatorId>),
}

/// What the leader answers.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Answer {
    /// To `ReadPoint`.
    Point(u64),
    /// To `TransferLeader`: who leads now.
    Leader(CoordinatorId),
    /// Not done, and why.
    Refused(String),
}

/// Carries out an order on this replica.
pub(crate) async fn carry_out(replica: &Replica, order: Order) -> Answer {
    if !replica.raft.status().leads {
        return Answer::Refused(NOT_LEADER.to_owned());
    }
    match order {
        Order::ReadPoint => match replica.raft.read_point().await {
            Ok(point) => Answer::Point(point),
            Err(error) => Answer::Refused(error.to_string()),
        },
        Order::TransferLeader(Some(to)) if to == replica.id => Answer::Leader(to),
        Order::TransferLeader(Some(to)) if would_not_lead(replica, to) => Answer::Refused(format!(
            "coordinator {to}'s clock is far off the others': it would not lead; set its clock right first (see \
             `meshctl coordinator list`)"
        )),
        Order::TransferLeader(to) => match replica.raft.transfer_leader(to).await {
            Ok(leader) => Answer::Leader(leader),
            Err(reason) => Answer::Refused(reason),
        },
    }
}

/// Whether it would hand leadership on at once, for what it will find out about its own clock.
fn would_not_lead(replica: &Replica, to: CoordinatorId) -> bool {
    let now = replica.clock.read();
    let offset = |id| if id == replica.id { Some(0) } else { replica.health.recent(id).map(|it| it.offset(now)) };
    let voters = replica.raft.status().voters;
    has_wrong_clock(to, &voters.into_iter().filter_map(|id| Some((id, offset(id)?))).collect())
}

/// What `judge` says of its own clock, from how far all voters' are ahead of ours, its own among them.
fn has_wrong_clock(judge: CoordinatorId, offsets: &BTreeMap<CoordinatorId, i64>) -> bool {
    let Some(own) = offsets.get(&judge) else { return false };
    let others = offsets.iter().filter(|(id, _)| **id != judge);
    is_far_off(&others.map(|(_, offset)| offset.saturating_sub(*own)).collect::<Vec<_>>())
}

/// Asks the leader for a read point; none if it does not answer.
pub(crate) async fn read_point(replica: &Replica, leader: CoordinatorId) -> Option<u64> {
    match ask(replica, leader, &Order::ReadPoint).await {
        Ok(Answer::Point(point)) => Some(point),
        _ => None,
    }
}

/// Has another voter lead, wherever the leader is.
pub(crate) async fn transfer_leader(replica: &Replica, to: Option<CoordinatorId>) -> Result<CoordinatorId, String> {
    let answer = match replica.raft.status().leader {
        Some(leader) if leader == replica.id => carry_out(replica, Order::TransferLeader(to)).await,
        Some(leader) => ask(replica, leader, &Order::TransferLeader(to)).await.map_err(|error| error.to_string())?,
        None => return Err("no leader is known: there is nothing to transfer".to_owned()),
    };
    match answer {
        Answer::Leader(leader) => Ok(leader),
        Answer::Refused(reason) => Err(reason),
        Answer::Point(_) => Err("the leader gave another answer than was asked for".to_owned()),
    }
}

async fn ask(replica: &Replica, leader: CoordinatorId, order: &Order) -> Result<Answer, PeerError> {
    let envelope = v1::RaftEnvelope {
        mesh: Bytes::copy_from_slice(replica.mesh.as_bytes()),
        from: replica.id.0,
        kind: 0,
        body: encode(order).into(),
    };
    let answer =
        replica.peers.call(leader, ANSWER, |mut client| async move { client.administer(envelope).await }).await?;
    decode(&answer.body).map_err(|error| PeerError::Status(leader, tonic::Status::internal(error)))
}

/// One format byte and CBOR.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = vec![FORMAT];
    ciborium::into_writer(message, &mut out).expect("plain data always encodes into memory");
    out
}

/// Reads what [`encode`] made.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => ciborium::from_reader(body).map_err(|error| format!("order not understood: {error}")),
        _ => Err("order of another version: run the same version on all coordinators".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_next_is_judged_by_its_clock_and_not_by_the_leaders() {
        let minutes = |all: [i64; 3]| (1..).map(CoordinatorId).zip(all.map(|minutes| minutes * 60_000)).collect();
        for (offsets, judge, wrong) in [
            ([0, 0, 0], 2, false),
            ([0, 5, 0], 2, true),
            ([0, 5, 0], 3, false),
            ([0, 5, 5], 2, false),
            ([0, 5, 5], 1, true),
            ([0, 5, 0], 4, false),
        ] {
            assert_eq!(has_wrong_clock(CoordinatorId(judge), &minutes(offsets)), wrong, "{judge} of {offsets:?}");
        }
    }
}
