//! Two peers with a session, for whoever measures what passes through it.

use mesh_types::PrivateKey;
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::keys::KeyPair;
use mesh_wireguard_core::message::{Initiation, Response};
use mesh_wireguard_core::peer::{Action, Fresh, Peer};
use mesh_wireguard_core::tai64n::Tai64n;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Two peers that have made a handshake, and the receiver's keys.
pub(crate) fn connected(now: Instant) -> (Peer, Peer, Arc<KeyPair>) {
    let [a, b] = [1, 2].map(|byte| Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([byte; 32]))));
    let mut to_b = Peer::new(&a, b.public_key(), None, None);
    let mut to_a = Peer::new(&b, a.public_key(), None, None);
    let stamp = Tai64n::from_unix(Duration::from_secs(1));
    let initiation = to_b.initiate(Fresh { ephemeral: [3; 32], index: 1 }, stamp, now).expect("usable keys");
    let opened = Initiation::parse(&initiation).and_then(|message| b.open_initiation(&message)).expect("for b");
    let response = to_a.handle_initiation(opened, Fresh { ephemeral: [4; 32], index: 2 }, now).expect("of a");
    to_b.handle_response(&Response::parse(&response).expect("a response"), now).expect("awaited");
    let keys = std::iter::from_fn(|| to_a.poll(now)).find_map(|action| match action {
        Action::Install(keys) => Some(keys),
        _ => None,
    });
    while to_b.poll(now).is_some() {}
    (to_b, to_a, keys.expect("a responder has keys"))
}
