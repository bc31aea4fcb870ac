//! How flows are drawn from the bytes of an input.

use crate::packets::{Flow, KINDS, Kind};
use arbitrary::{Arbitrary, Result, Unstructured};

impl<'a> Arbitrary<'a> for Kind {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.choose(&KINDS).copied()
    }
}

impl<'a> Arbitrary<'a> for Flow {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: Kind = u.arbitrary()?;
        let words = if kind.is_tcp() { u.int_in_range(0..=10)? } else { 0 };
        Ok(Self {
            kind,
            host: u.arbitrary()?,
            port: u.arbitrary()?,
            tos: u.arbitrary()?,
            ttl: u.arbitrary()?,
            label: u.arbitrary::<u32>()? & 0xf_ffff,
            dont_fragment: u.arbitrary()?,
            ack: u.arbitrary()?,
            window: u.arbitrary()?,
            options: (0..words * 4).map(|_| u.arbitrary()).collect::<Result<_>>()?,
        })
    }
}
