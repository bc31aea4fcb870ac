//! Randomness from the operating system, for ids, secrets and jitter.

use std::time::Duration;

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's generator does not fail once it has started");
    bytes
}

/// A random time below `span`.
pub(crate) fn jitter(span: Duration) -> Duration {
    span.mul_f64(f64::from(u32::from_be_bytes(bytes())) / (f64::from(u32::MAX) + 1.0))
}
