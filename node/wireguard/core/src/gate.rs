//! What stands before handshakes: each message is judged by what it proves, and by how many others came.
//!
//! Load is made by messages that prove to know this side's public key, and by no others: garbage costs a MAC and changes
//! nothing for peers. Under load a message must bring a cookie as well. The clock and random bytes are given in.

use crate::cookie::{CookieChecker, CookieRandom, Verdict};
use crate::identity::LocalIdentity;
use crate::message::COOKIE_REPLY_LEN;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Handshake messages of one kind that a device lets wait; more are dropped, as in the kernel.
pub const MAX_QUEUED_HANDSHAKES: usize = 4_096;
/// With this many waiting, it is under load.
const LOADED_AT: usize = MAX_QUEUED_HANDSHAKES / 8;
/// With more messages in a second, too: answered in full, so many take about a tenth of a core, and a flood should take
/// no more. Cookies cost a tenth of a handshake.
const BUSY: u32 = 1_000;
/// And for this long after.
const LOADED_FOR: Duration = Duration::from_secs(1);

/// Judges handshake messages; one for a device.
pub struct Gate {
    checker: CookieChecker,
    load: Load,
}

/// Whether handshakes must bring a cookie.
#[derive(Debug, Default)]
struct Load {
    /// When it was last under load.
    last: Option<Instant>,
    /// Messages that were counted since the second began.
    counted: Option<(Instant, u32)>,
}

impl Gate {
    /// A gate before `identity`, without load.
    pub fn new(identity: &LocalIdentity) -> Self {
        Self { checker: CookieChecker::new(identity), load: Load::default() }
    }

    /// Judges a whole handshake message, initiation or response, that came from `source`.
    pub fn judge(&mut self, message: &[u8], source: SocketAddr, now: Instant) -> Verdict {
        let verdict = self.checker.check(message, source, self.load.lasts(now), now);
        if verdict != Verdict::Invalid {
            self.load.count(now);
        }
        verdict
    }

    /// Takes note of how many judged messages wait to be worked on.
    pub fn observe(&mut self, waiting: usize, now: Instant) {
        if waiting >= LOADED_AT {
            self.load.last = Some(now);
        }
    }

    /// The answer to a message that needs a cookie; see `CookieChecker::reply`.
    pub fn reply(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        random: CookieRandom,
        now: Instant,
    ) -> Option<[u8; COOKIE_REPLY_LEN]> {
        self.checker.reply(message, source, random, now)
    }
}

impl Load {
    fn lasts(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < LOADED_FOR)
    }

    fn count(&mut self, now: Instant) {
        let second = self.counted.filter(|(since, _)| now.saturating_duration_since(*since) < Duration::from_secs(1));
        let (since, before) = second.unwrap_or((now, 0));
        let count = before.saturating_add(1);
        self.counted = Some((since, count));
        if count > BUSY {
            self.last = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cookie::CookieJar;
    use crate::message::{CookieReply, INITIATION_LEN};
    use mesh_types::PrivateKey;

    const SOURCE: ([u8; 4], u16) = ([192, 0, 2, 1], 51_820);

    fn both() -> (Gate, CookieJar) {
        let identity = LocalIdentity::new(&PrivateKey::from_bytes([1; 32]));
        (Gate::new(&identity), CookieJar::new(&identity.public_key()))
    }

    fn signed(jar: &mut CookieJar, now: Instant) -> [u8; INITIATION_LEN] {
        let mut message = [7; INITIATION_LEN];
        jar.sign(&mut message, now);
        message
    }

    #[test]
    fn garbage_makes_no_load_however_much_comes() {
        let start = Instant::now();
        let (mut gate, mut jar) = both();
        for number in 0..20 * BUSY {
            let now = start + Duration::from_micros(50) * number;
            let mut garbage = [7; INITIATION_LEN];
            garbage[..4].copy_from_slice(&number.to_le_bytes());
            assert_eq!(gate.judge(&garbage, SOURCE.into(), now), Verdict::Invalid);
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(gate.judge(&signed(&mut jar, now), SOURCE.into(), now), Verdict::Valid);
    }

    #[test]
    fn under_load_who_brings_a_cookie_is_served_and_the_rest_is_told_to() {
        let now = Instant::now();
        let (mut gate, mut jar) = both();
        let message = signed(&mut jar, now);
        let flood = |gate: &mut Gate, at| {
            (0..=BUSY).filter(|_| gate.judge(&message, SOURCE.into(), at) == Verdict::Valid).count()
        };
        assert_eq!(flood(&mut gate, now), BUSY as usize + 1, "a second's worth is answered in full");
        assert_eq!(gate.judge(&message, SOURCE.into(), now), Verdict::NeedsCookie);
        let random = CookieRandom { secret: [1; 32], nonce: [2; 24] };
        let reply = gate.reply(&message, SOURCE.into(), random, now).unwrap();
        assert!(jar.take(&CookieReply::parse(&reply).unwrap(), now));
        let later = now + Duration::from_millis(900);
        assert_eq!(flood(&mut gate, later), 0);
        assert_eq!(gate.judge(&signed(&mut jar, later), SOURCE.into(), later), Verdict::Valid);
    }

    #[test]
    fn load_lasts_for_a_second_after_the_queue_was_long() {
        let now = Instant::now();
        let (mut gate, mut jar) = both();
        let message = signed(&mut jar, now);
        let verdict = |gate: &mut Gate, at| gate.judge(&message, SOURCE.into(), at);
        gate.observe(LOADED_AT - 1, now);
        assert_eq!(verdict(&mut gate, now), Verdict::Valid);
        gate.observe(LOADED_AT, now);
        gate.observe(0, now + Duration::from_millis(500));
        assert_eq!(verdict(&mut gate, now + Duration::from_millis(999)), Verdict::NeedsCookie);
        assert_eq!(verdict(&mut gate, now + Duration::from_secs(1)), Verdict::Valid);
    }
}
