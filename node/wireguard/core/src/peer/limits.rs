//! The protocol's constants: the paper's section 6.1, and the kernel's where the paper has none.

use std::time::Duration;

/// After this many messages on one key a new handshake is wanted.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A key takes no more messages than this.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// An initiator that sends wants a new handshake when its key is as old as this.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A key as old as this neither sends nor receives.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Time between handshake messages to one peer.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Random time, below this, is added to timeouts that both sides may start at the same moment.
pub const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);
/// Having received data and sent nothing for this long, a keepalive is sent.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Initiations sent in a row before the peer counts as unreachable: 90 seconds (Rekey-Attempt-Time), counted as the
/// kernel does it.
pub const MAX_ATTEMPTS: u32 = 90 / 5 + 2;
/// Initiations taken from one peer in a second.
pub const INITIATIONS_PER_SECOND: u32 = 50;
/// Without a new session all key material is wiped after this.
pub const ZERO_KEYS_AFTER: Duration = Duration::from_secs(3 * 180);
/// A receiving initiator wants a new handshake when its key is as old as this: late enough that a peer which only
/// receives seldom does so, early enough for a handshake before the key is refused.
pub const REKEY_ON_RECEIVE_AFTER: Duration = Duration::from_secs(180 - 10 - 5);
