mod wycheproof;

use super::poly1305::finish;
use super::*;
use crate::aead::library;
use crate::message::{DATA_HEADER, DATA_MIN};
use proptest::collection::vec;
use proptest::prelude::*;

/// What a processor without the instructions cannot try.
fn has_instructions() -> bool {
    let has = Key::new(&[0; 32]).is_some();
    if !has {
        eprintln!("skipped: this processor has no AVX-512 with integer multiply-add");
    }
    has
}

/// A train as it is before sealing: text everywhere, and a counter in each header.
fn train(count: usize, stride: usize, last: usize, counter: u64, text: impl Fn(usize) -> u8) -> Vec<u8> {
    let mut train: Vec<u8> = (0..(count - 1) * stride + last).map(text).collect();
    for (message, counter) in train.chunks_mut(stride).zip((0..).map(|n| counter.wrapping_add(n))) {
        message[8..DATA_HEADER].copy_from_slice(&counter.to_le_bytes());
    }
    train
}

/// Seals and opens a train both ways; of the messages whose bit is set in `forged` a bit of the text or tag is changed.
fn check(key: &[u8; 32], plain: &[u8], stride: usize, forged: u32) {
    let (wide, library) = (Key::new(key).unwrap(), library::key(key));
    let (mut sealed, mut expected) = (plain.to_vec(), plain.to_vec());
    wide.seal(&mut sealed, stride);
    library::seal(&library, &mut expected, stride);
    assert_eq!(hex::encode(&sealed), hex::encode(&expected), "messages of {stride}");

    for (n, message) in sealed.chunks_mut(stride).enumerate().filter(|(n, _)| forged >> n & 1 == 1) {
        let bits = (message.len() - DATA_HEADER) * 8;
        let bit = n * 7_919 % bits;
        message[DATA_HEADER + bit / 8] ^= 1 << (bit % 8);
    }
    let arrived = sealed.clone();
    let authentic = wide.open(&mut sealed, stride);
    assert_eq!(authentic, library::open(&library, &mut arrived.clone(), stride));
    for (n, message) in sealed.chunks(stride).enumerate() {
        let range = n * stride..n * stride + message.len() - TAG;
        let expected = if forged >> n & 1 == 1 { &arrived } else { plain };
        assert_eq!(message[..message.len() - TAG], expected[range], "message {n} of {stride}, forged {forged:b}");
        assert_eq!(authentic >> n & 1, !forged >> n & 1, "message {n} of {stride}, forged {forged:b}");
    }
}

#[test]
fn every_length_is_sealed_and_opened_as_the_library_does() {
    if !has_instructions() {
        return;
    }
    for length in DATA_MIN..DATA_MIN + 1_100 {
        check(&[length as u8; 32], &train(1, length, length, 1 << 40, |n| n as u8), length, 0);
        check(&[length as u8; 32], &train(1, length, length, u64::MAX, |n| (n * n) as u8), length, 1);
    }
}

#[test]
fn every_number_of_messages_and_every_last_one_is_sealed_and_opened_as_the_library_does() {
    if !has_instructions() {
        return;
    }
    for count in 1..=BATCH {
        for stride in [DATA_MIN, 48, 95, 96, 97, 160, 1_024 + DATA_MIN, 1_452] {
            for last in (DATA_MIN..=stride).step_by(stride / 16) {
                check(&[7; 32], &train(count, stride, last, u64::from(u32::MAX) - 3, |n| (n * 31) as u8), stride, 0);
            }
        }
    }
}

#[test]
fn the_key_stream_is_that_of_rfc_8439() {
    if !has_instructions() {
        return;
    }
    // Appendix A.1, vectors 1 and 2.
    let expected = [
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7\
         da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
         29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ];
    let inputs = Inputs { block: std::array::from_fn(|lane| lane as u32 % 2), ..Inputs::default() };
    // SAFETY: The instructions are there, and a vector is 64 bytes of which every value is one.
    let blocks = unsafe { std::mem::transmute::<[__m512i; BLOCKS], [[u8; 64]; BLOCKS]>(key_stream(&[0; 8], &inputs)) };
    for (lane, block) in blocks.iter().enumerate() {
        assert_eq!(hex::encode(block), expected[lane % 2], "lane {lane}");
    }
}

/// Poly1305 in the plainest way: with 512-bit numbers, by the definition.
fn plain_tag(key: &OneTimeKey, text: &[u8]) -> [u8; TAG] {
    let r = [key.r[0] & 0x0fff_fffc_0fff_ffff, key.r[1] & 0x0fff_fffc_0fff_fffc];
    let mut blocks = text.to_vec();
    blocks.resize(text.len().next_multiple_of(TAG), 0);
    blocks.extend(0_u64.to_le_bytes());
    blocks.extend((text.len() as u64).to_le_bytes());
    // Five digits of 26 bits, so that nothing overflows in 64.
    let digits = |low: u64, high: u64, end: u64| {
        let number = u128::from(low) | u128::from(high) << 64;
        std::array::from_fn::<u64, 5, _>(|n| {
            let digit = (number >> (26 * n)) as u64 & 0x3ff_ffff;
            if n == 4 { (number >> 104) as u64 | end << 24 } else { digit }
        })
    };
    let factor = digits(r[0], r[1], 0);
    let mut hash = [0_u64; 5];
    for block in blocks.chunks(TAG) {
        let word = |n: usize| u64::from_le_bytes(block[8 * n..8 * n + 8].try_into().unwrap());
        let added: Vec<u64> = hash.iter().zip(digits(word(0), word(1), 1)).map(|(a, b)| a + b).collect();
        let mut product = [0_u64; 5];
        for (i, a) in added.iter().enumerate() {
            for (j, b) in factor.iter().enumerate() {
                product[(i + j) % 5] += a * b * if i + j < 5 { 1 } else { 5 };
            }
        }
        for _ in 0..3 {
            for n in 0..5 {
                let carry = product[n] >> 26;
                product[n] &= 0x3ff_ffff;
                product[(n + 1) % 5] += if n == 4 { 5 * carry } else { carry };
            }
        }
        hash = product;
    }
    let mut bits = [0_u64; 3];
    for (n, digit) in hash.iter().enumerate() {
        let wide = u128::from(*digit) << (26 * n % 64);
        bits[26 * n / 64] |= wide as u64;
        if 26 * n / 64 < 2 {
            bits[26 * n / 64 + 1] |= (wide >> 64) as u64;
        }
    }
    // 2^130 - 5
    if bits >= [u64::MAX - 4, u64::MAX, 3] && bits[2] == 3 && bits[1] == u64::MAX && bits[0] >= u64::MAX - 4 {
        bits = [bits[0].wrapping_add(5), 0, 0];
    }
    let low = u128::from(bits[0]) | u128::from(bits[1]) << 64;
    low.wrapping_add(u128::from(key.s[0]) | u128::from(key.s[1]) << 64).to_le_bytes()
}

/// Numbers at whose ends carries happen.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        Just(u64::MAX),
        Just(u64::MAX - 4),
        Just(1 << 44),
        Just((1 << 44) - 1),
        any::<u64>()
    ]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![
        Just([0; TAG]),
        Just([0xff; TAG]),
        (word(), word()).prop_map(|(low, high)| { (u128::from(low) | u128::from(high) << 64).to_le_bytes() }),
    ];
    (vec(block, 0..14), 0..TAG).prop_map(|(blocks, cut)| {
        let mut text = blocks.concat();
        text.truncate(text.len().saturating_sub(cut));
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trains_are_sealed_and_opened_as_the_library_does(
        key in any::<[u8; 32]>(), count in 1..=BATCH, stride in DATA_MIN..1_600, short in 0..1_600_usize,
        counter in word(), seed in any::<u32>(), forged in any::<u16>(),
    ) {
        if has_instructions() {
            let last = stride.saturating_sub(short).max(DATA_MIN);
            let plain = train(count, stride, last, counter, |n| (n as u32).wrapping_mul(seed | 1).to_le_bytes()[3]);
            check(&key, &plain, stride, forged.into());
        }
    }

    #[test]
    fn tags_are_those_of_the_definition(
        keys in vec((word(), word(), word(), word()), LANES), texts in vec(text(), LANES),
    ) {
        if has_instructions() {
            let keys: [OneTimeKey; LANES] = std::array::from_fn(|lane| {
                let (r0, r1, s0, s1) = keys[lane];
                OneTimeKey { r: [r0, r1], s: [s0, s1] }
            });
            let slices: [&[u8]; LANES] = std::array::from_fn(|lane| &texts[lane][..]);
            let closing = slices.map(|text| [0, text.len() as u64]);
            // SAFETY: The instructions are there.
            let made = unsafe { tags(&keys, &slices, &closing) };
            for (lane, made) in made.iter().enumerate() {
                prop_assert_eq!(*made, plain_tag(&keys[lane], &texts[lane]), "lane {}", lane);
            }
        }
    }
}

#[test]
fn numbers_next_to_the_modulus_are_reduced() {
    const P: [u64; 3] = [(1 << 44) - 5, (1 << 44) - 1, (1 << 42) - 1];
    let tag = |limbs, s| u128::from_le_bytes(finish(limbs, s));
    assert_eq!(tag(P, [0; 2]), 0);
    assert_eq!(tag([P[0] - 1, P[1], P[2]], [0; 2]), u128::MAX - 5);
    assert_eq!(tag([P[0] + 4, P[1], P[2]], [0; 2]), 4);
    assert_eq!(tag([P[0] + 4, P[1], P[2]], [u64::MAX; 2]), 3, "s is added modulo 2^128");
    // Limbs that are not carried yet: 2^44 in the lowest is 1 in the next.
    assert_eq!(tag([1 << 44, 0, 0], [0; 2]), 1 << 44);
    assert_eq!(tag([1 << 44, P[1], P[2]], [0; 2]), 5, "2^130 is 5");
    assert_eq!(tag([3, (1 << 45) - 1, 1], [0; 2]), 3 | ((1 << 44) - 1) << 44 | 2 << 88);
}
