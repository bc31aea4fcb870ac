//! How many handshakes one source address may ask for while this side is under load.
//!
//! A token bucket per IPv4 address or IPv6 /64, as in the kernel. Sources are proven by a cookie before they come here,
//! so that the table holds only addresses that someone really receives at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time that one handshake costs: 20 a second.
const COST: Duration = Duration::from_millis(50);
/// Handshakes that may come at once.
const BURST: u32 = 5;
/// Sources at once, the kernel's cap: about 3 MiB. Beyond it new sources are refused until old ones are forgotten.
const MAX_SOURCES: usize = 65_536;
/// A source is forgotten after this; its bucket is full again long before.
const FORGET_AFTER: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct RateLimiter {
    sources: BTreeMap<Source, Bucket>,
    swept: Option<Instant>,
}

/// An IPv4 address or the upper half of an IPv6 one, which one customer has for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6(u64),
}

struct Bucket {
    tokens: Duration,
    filled: Instant,
}

impl RateLimiter {
    /// Whether one more handshake of `address` may be worked on.
    pub(crate) fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        self.sweep(now);
        let source = Source::of(address);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            return false;
        }
        self.sources.entry(source).or_insert(Bucket { tokens: COST * BURST, filled: now }).take(now)
    }

    fn sweep(&mut self, now: Instant) {
        let due = self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= FORGET_AFTER);
        if due {
            self.swept = Some(now);
            self.sources.retain(|_, bucket| now.saturating_duration_since(bucket.filled) < FORGET_AFTER);
        }
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled);
        self.tokens = self.tokens.saturating_add(gained).min(COST * BURST);
        self.filled = self.filled.max(now);
        match self.tokens.checked_sub(COST) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}
