//! MACs of handshake messages (WireGuard's paper, section 5.4.4), which whoever knows a public key can make.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use mesh_types::PublicKey;

/// Puts a valid mac1 into a message to the owner of a key.
pub(crate) fn sign(message: &mut [u8], to: &PublicKey) {
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
    let Some((body, macs)) = message.split_last_chunk_mut::<32>() else { return };
    let mut state = Blake2sMac::<U16>::new_from_slice(&key).expect("BLAKE2s takes keys of up to 32 bytes");
    Update::update(&mut state, body);
    macs[..16].copy_from_slice(&state.finalize_fixed());
}
