//! How often callers may ask for what costs this replica work: one table for each kind of call.
//!
//! Each replica counts for itself. Who is told to wait may ask another, so that the mesh as a whole takes as many times
//! what is allowed here as it has coordinators.

use mesh_coordinator_core::clock::Monotonic;
use mesh_coordinator_core::rate::RateTable;
use mesh_proto::listen::Source;
use mesh_proto::pushback;
use mesh_types::limits::{
    CERTIFICATE_RENEWALS, FAILED_JOINS, JOINS, KEY_RENEWALS, LEAVES, MAX_NODES, MAX_SOURCES, MAX_TOKENS,
    SESSION_OPENINGS, TOKEN_JOINS,
};
use mesh_types::{IdentityKey, NodeId, TokenId};
use std::net::IpAddr;
use std::sync::Mutex;
use tonic::Status;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    OpenSession(NodeId),
    RenewKey(NodeId),
    RenewCertificate(NodeId),
    Leave(NodeId),
    /// With a token that is good, perhaps again and again.
    Join(IdentityKey),
    /// With this token, which is good: of all machines that have it.
    UseToken(TokenId),
    /// With a token that is not known here, from this address.
    FailToJoin(IpAddr),
}

/// All tables.
pub(crate) struct Rates(Mutex<Tables>);

struct Tables {
    sessions: RateTable<NodeId>,
    key_renewals: RateTable<NodeId>,
    certificate_renewals: RateTable<NodeId>,
    leaves: RateTable<NodeId>,
    joins: RateTable<IdentityKey>,
    tokens: RateTable<TokenId>,
    failed_joins: RateTable<Source>,
}

impl Default for Rates {
    fn default() -> Self {
        Self(Mutex::new(Tables {
            sessions: RateTable::new(SESSION_OPENINGS, MAX_NODES),
            key_renewals: RateTable::new(KEY_RENEWALS, MAX_NODES),
            certificate_renewals: RateTable::new(CERTIFICATE_RENEWALS, MAX_NODES),
            leaves: RateTable::new(LEAVES, MAX_NODES),
            joins: RateTable::new(JOINS, MAX_NODES),
            tokens: RateTable::new(TOKEN_JOINS, MAX_TOKENS),
            failed_joins: RateTable::new(FAILED_JOINS, MAX_SOURCES),
        }))
    }
}

impl Rates {
    /// Counts an act; if it comes too soon after others, it must not be done.
    pub(crate) fn take(&self, act: Act, now: Monotonic) -> Result<(), Status> {
        let mut tables = self.0.lock().expect("no code panics while it holds the tables");
        let (taken, what) = match act {
            Act::OpenSession(node) => (tables.sessions.take(node, now), "this node opens sessions"),
            Act::RenewKey(node) => (tables.key_renewals.take(node, now), "this node renews its key"),
            Act::RenewCertificate(node) => {
                (tables.certificate_renewals.take(node, now), "this node renews its certificate")
            }
            Act::Leave(node) => (tables.leaves.take(node, now), "this node asks to leave"),
            Act::Join(key) => (tables.joins.take(key, now), "this machine joins"),
            Act::UseToken(token) => (tables.tokens.take(token, now), "machines with this token join"),
            Act::FailToJoin(address) => {
                (tables.failed_joins.take(Source::of(address), now), "machines at this address show unknown tokens")
            }
        };
        taken.map_err(|wait| {
            tracing::info!(?act, "too often");
            pushback::try_again(what, wait.to_std())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic(1_000);

    fn exhaust(rates: &Rates, act: Act) -> Status {
        (0..10_000).find_map(|_| rates.take(act, NOW).err()).expect("it is limited")
    }

    #[test]
    fn every_act_is_limited_for_itself_and_says_what_came_too_often() {
        let (node, key) = (NodeId::from_bytes([1; 16]), IdentityKey::from_bytes([1; 32]));
        let (other, rates) = (NodeId::from_bytes([2; 16]), Rates::default());
        for (act, of_another) in [
            (Act::OpenSession(node), Act::OpenSession(other)),
            (Act::RenewKey(node), Act::RenewKey(other)),
            (Act::RenewCertificate(node), Act::RenewCertificate(other)),
            (Act::Leave(node), Act::Leave(other)),
            (Act::Join(key), Act::Join(IdentityKey::from_bytes([2; 32]))),
            (Act::UseToken(TokenId::from_bytes([1; 8])), Act::UseToken(TokenId::from_bytes([2; 8]))),
            (Act::FailToJoin("192.0.2.1".parse().unwrap()), Act::FailToJoin("192.0.2.2".parse().unwrap())),
        ] {
            let status = exhaust(&rates, act);
            assert!(status.message().contains("too often: try again in"), "{status:?}");
            assert!(pushback::retry_after(&status).is_some());
            rates.take(of_another, NOW).unwrap();
        }
    }

    #[test]
    fn a_host_with_a_network_of_addresses_is_one_source() {
        let rates = Rates::default();
        exhaust(&rates, Act::FailToJoin("2001:db8::1".parse().unwrap()));
        assert!(rates.take(Act::FailToJoin("2001:db8::2:3:4:5".parse().unwrap()), NOW).is_err());
        rates.take(Act::FailToJoin("2001:db8:0:1::1".parse().unwrap()), NOW).unwrap();
    }
}
