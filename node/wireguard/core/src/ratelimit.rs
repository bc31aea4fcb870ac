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

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_source_gets_a_burst_of_five_then_twenty_a_second() {
        let start = Instant::now();
        let mut limiter = RateLimiter::default();
        let taken = |limiter: &mut RateLimiter, at| (0..10).filter(|_| limiter.allow(v4(1), start + at)).count();
        assert_eq!(taken(&mut limiter, Duration::ZERO), 5);
        assert_eq!(taken(&mut limiter, Duration::from_millis(49)), 0);
        assert_eq!(taken(&mut limiter, Duration::from_millis(50)), 1);
        assert_eq!(taken(&mut limiter, Duration::from_millis(150)), 2);
        assert_eq!(taken(&mut limiter, Duration::from_millis(900)), 5, "no more than a burst is saved up");
        assert!(limiter.allow(v4(2), start), "another source has its own");
    }

    #[test]
    fn an_ipv6_64_is_one_source_and_a_mapped_address_is_its_ipv4_one() {
        let now = Instant::now();
        let mut limiter = RateLimiter::default();
        let addresses = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "192.0.2.1", "::ffff:192.0.2.1"];
        for pair in addresses.map(|address| address.parse::<IpAddr>().unwrap()).chunks(2) {
            let taken = (0..10).filter(|number| limiter.allow(pair[number % 2], now)).count();
            assert_eq!(taken, 5);
        }
        assert!(limiter.allow("2001:db8:0:2::1".parse().unwrap(), now));
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let now = Instant::now();
        let mut limiter = RateLimiter::default();
        assert!((0..MAX_SOURCES as u32).all(|number| limiter.allow(v4(number), now)));
        assert!(!limiter.allow(v4(u32::MAX), now));
        assert!(limiter.allow(v4(u32::MAX), now + FORGET_AFTER));
        assert_eq!(limiter.sources.len(), 1);
    }
}
