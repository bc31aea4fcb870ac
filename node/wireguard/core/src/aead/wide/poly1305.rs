//! Poly1305 (RFC 8439, section 2.5) of eight messages at a time: a lane for each message.
//!
//! Numbers are three limbs of 44, 44 and 42 bits, which the 52-bit multiply-add instructions leave room for. Blocks are
//! taken four at a time, h = (h + m0)r⁴ + m1 r³ + m2 r² + m3 r, so that one carry serves four. Messages of different
//! length end together: a shorter one begins later, and until then its lane stays zero.
//! Nothing branches or indexes on a secret; lengths are none.

use std::arch::x86_64::*;
use zeroize::Zeroize;

/// Messages at a time.
pub(super) const LANES: usize = 8;

/// Bytes of a tag and of a block.
pub(super) const TAG: usize = 16;

/// Blocks between two carries.
const STEP: usize = 4;

/// Bytes of a message that one step takes: one vector.
const STEP_BYTES: usize = STEP * TAG;

/// The number whose product the tag is, and the number that is added in the end; each in two 64-bit words.
#[derive(Clone, Copy, Default, Zeroize)]
pub(super) struct OneTimeKey {
    pub(super) r: [u64; 2],
    pub(super) s: [u64; 2],
}

const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

/// Which bits of r are used (RFC 8439, section 2.5).
const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// 2¹²⁸, which ends a block, in the highest limb.
const END: u64 = 1 << 40;

/// A number in every lane: its limbs, the lowest first.
#[derive(Clone, Copy)]
struct Number([__m512i; 3]);

/// A factor in every lane: its limbs, and the upper two of them times 20. A product's part from 2¹³² on counts from 1 on
/// again, times 20, since 2¹³⁰ is 5.
#[derive(Clone, Copy)]
struct Factor {
    limbs: [__m512i; 3],
    folded: [__m512i; 2],
}

/// Sums of products, not carried yet: their lower 52 bits and what is above those, for every limb.
#[derive(Clone, Copy)]
struct Sums {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

/// The tags of messages as ChaCha20-Poly1305 makes them (RFC 8439, section 2.8): each text is filled up with zeros to
/// whole blocks, and a block with the lengths of associated data and text follows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn tags(
    keys: &[OneTimeKey; LANES],
    texts: &[&[u8]; LANES],
    closing: &[[u64; 2]; LANES],
) -> [[u8; TAG]; LANES] {
    let lengths = texts.map(<[u8]>::len);
    let blocks = lengths.map(|length| length.div_ceil(TAG) + 1);
    let longest = blocks.into_iter().max().unwrap_or(1);
    let steps = longest.div_ceil(STEP);
    // In which block of the lane its message begins.
    let begins = blocks.map(|blocks| steps * STEP - blocks);
    // In all steps from `even` on, but for the last, every lane has whole blocks only.
    let even = begins.into_iter().max().unwrap_or(0).div_ceil(STEP);

    let [r1, r2, r3, r4] = powers(keys);
    let mut hash = Number([_mm512_setzero_si512(); 3]);
    for step in 0..steps {
        let is_last = step + 1 == steps;
        let mut vectors = [_mm512_setzero_si512(); LANES];
        let mut ends = [_mm512_set1_epi64(END.cast_signed()); STEP];
        if step >= even && !is_last {
            for ((vector, text), begin) in vectors.iter_mut().zip(texts).zip(begins) {
                *vector = load(text, (step * STEP - begin) * TAG);
            }
        } else {
            for ((vector, text), begin) in vectors.iter_mut().zip(texts).zip(begins) {
                *vector = load_part(text, ((step * STEP) as isize - begin as isize) * TAG as isize);
            }
            for (block, end) in ends.iter_mut().enumerate() {
                let begun = lanes(begins.map(|begin| step * STEP + block >= begin));
                *end = _mm512_maskz_mov_epi64(begun, *end);
            }
        }
        let mut words = transposed(vectors);
        if is_last {
            words[STEP - 1] = [vector(&closing.map(|[first, _]| first)), vector(&closing.map(|[_, second]| second))];
        }
        let number = |block: usize| Number::of_block(words[block], ends[block]);
        let mut sums = Sums::zero();
        sums.add_product(&number(1), &r3);
        sums.add_product(&number(2), &r2);
        sums.add_product(&number(3), &r1);
        sums.add_product(&hash.plus(&number(0)), &r4);
        hash = sums.carried();
    }
    let limbs = hash.0.map(|limb| array(limb));
    std::array::from_fn(|lane| finish(limbs.map(|limb| limb[lane]), keys[lane].s))
}

/// r to the powers 1, 2, 3 and 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn powers(keys: &[OneTimeKey; LANES]) -> [Factor; STEP] {
    let word = |n: usize| vector(&keys.map(|key| key.r[n] & CLAMP[n]));
    let r = Number::of_block([word(0), word(1)], _mm512_setzero_si512());
    let first = Factor::new(&r);
    let mut powers = [first; STEP];
    let mut power = r;
    for factor in &mut powers[1..] {
        let mut product = Sums::zero();
        product.add_product(&power, &first);
        power = product.carried();
        *factor = Factor::new(&power);
    }
    powers
}

impl Number {
    /// A block of every lane, with `end` added to the highest limb.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn of_block([low, high]: [__m512i; 2], end: __m512i) -> Self {
        let mask = _mm512_set1_epi64(LOW_44.cast_signed());
        let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
        Self([
            _mm512_and_si512(low, mask),
            _mm512_and_si512(middle, mask),
            _mm512_or_si512(_mm512_srli_epi64::<24>(high), end),
        ])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        for (limb, other) in sum.0.iter_mut().zip(other.0) {
            *limb = _mm512_add_epi64(*limb, other);
        }
        sum
    }
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new(number: &Number) -> Self {
        let [_, middle, high] = number.0;
        let folded = |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
        Self { limbs: number.0, folded: [folded(middle), folded(high)] }
    }
}

impl Sums {
    /// Nothing added yet.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn zero() -> Self {
        let zero = [_mm512_setzero_si512(); 3];
        Self { low: zero, high: zero }
    }

    /// Adds a product.
    ///
    /// The instruction takes factors below 2⁵²: a number's limbs are below 2⁴⁶ (a carried number's below 2⁴⁵, a
    /// block's below 2⁴⁴), a factor's below 2⁴⁵, times 20 below 2⁵⁰. So every product is below 2⁹⁶; it adds less than
    /// 2⁵² to a lower sum and less than 2⁴⁴ to a higher one, and twelve are added between two carries.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn add_product(&mut self, number: &Number, factor: &Factor) {
        let [a0, a1, a2] = number.0;
        let [b0, b1, b2] = factor.limbs;
        let [c1, c2] = factor.folded;
        for (limb, terms) in
            [[(a0, b0), (a1, c2), (a2, c1)], [(a0, b1), (a1, b0), (a2, c2)], [(a0, b2), (a1, b1), (a2, b0)]]
                .into_iter()
                .enumerate()
        {
            for (a, b) in terms {
                self.low[limb] = _mm512_madd52lo_epu64(self.low[limb], a, b);
                self.high[limb] = _mm512_madd52hi_epu64(self.high[limb], a, b);
            }
        }
    }

    /// The number that the sums are, each limb below 2⁴⁵.
    ///
    /// Lower sums are below 2⁵⁶ and higher ones below 2⁴⁸. A higher sum counts 2⁵², that is 2⁸ of the next limb; that of
    /// the highest limb counts 2¹⁴⁰, that is 2¹⁰ of 2¹³⁰, or 5·2¹⁰. With it the lowest limb stays below 2⁶¹, and the
    /// middle one takes less than 2¹⁷ from it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn carried(&self) -> Number {
        let low_44 = _mm512_set1_epi64(LOW_44.cast_signed());
        let low_42 = _mm512_set1_epi64(LOW_42.cast_signed());
        let add = |a, b| _mm512_add_epi64(a, b);
        let (low, high) = (self.low, self.high);
        let middle = add(add(low[1], _mm512_slli_epi64::<8>(high[0])), _mm512_srli_epi64::<44>(low[0]));
        let top = add(add(low[2], _mm512_slli_epi64::<8>(high[1])), _mm512_srli_epi64::<44>(middle));
        let over = add(_mm512_srli_epi64::<42>(top), _mm512_slli_epi64::<10>(high[2]));
        let bottom = add(_mm512_and_si512(low[0], low_44), add(over, _mm512_slli_epi64::<2>(over)));
        Number([
            _mm512_and_si512(bottom, low_44),
            add(_mm512_and_si512(middle, low_44), _mm512_srli_epi64::<44>(bottom)),
            _mm512_and_si512(top, low_42),
        ])
    }
}

/// The tag of one lane: its number, fully reduced, plus s, modulo 2¹²⁸.
pub(super) fn finish([h0, h1, h2]: [u64; 3], s: [u64; 2]) -> [u8; TAG] {
    // The limbs overlap by a bit at most: below 2¹³¹ together, less than twice the modulus twice over.
    let h1 = h1 + (h0 >> 44);
    let h2 = h2 + (h1 >> 44);
    let h0 = (h0 & LOW_44) + 5 * (h2 >> 42);
    let h1 = (h1 & LOW_44) + (h0 >> 44);
    let (h0, h2) = (h0 & LOW_44, (h2 & LOW_42) + (h1 >> 44));
    let h1 = h1 & LOW_44;
    // Below 2¹³⁰ + a few: the modulus 2¹³⁰ - 5 goes in once, or not. Adding 5 shows which.
    let g0 = h0 + 5;
    let g1 = h1 + (g0 >> 44);
    let g2 = h2 + (g1 >> 44);
    let keep = (g2 >> 42).wrapping_sub(1);
    let select = |kept: u64, other: u64| (kept & keep) | (other & !keep);
    let (h0, h1, h2) = (select(h0, g0 & LOW_44), select(h1, g1 & LOW_44), select(h2, g2 & LOW_42));
    let low = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
    let s = u128::from(s[0]) | u128::from(s[1]) << 64;
    low.wrapping_add(s).to_le_bytes()
}

/// Turns one vector of four blocks for every lane into the two words of every block, for all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn transposed(lanes: [__m512i; LANES]) -> [[__m512i; 2]; STEP] {
    // Words of two neighbouring lanes side by side; the quarters are still the blocks.
    let mut low = [lanes[0]; 4];
    let mut high = low;
    for n in 0..4 {
        low[n] = _mm512_unpacklo_epi64(lanes[2 * n], lanes[2 * n + 1]);
        high[n] = _mm512_unpackhi_epi64(lanes[2 * n], lanes[2 * n + 1]);
    }
    let (low, high) = (quarters(low), quarters(high));
    [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
}

/// Of four vectors, makes one of all first quarters, one of all second ones, and so on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab01, ab23) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
    let (cd01, cd23) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(ab01, cd01),
        _mm512_shuffle_i32x4::<0xdd>(ab01, cd01),
        _mm512_shuffle_i32x4::<0x88>(ab23, cd23),
        _mm512_shuffle_i32x4::<0xdd>(ab23, cd23),
    ]
}

/// Four whole blocks of a text.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn load(text: &[u8], position: usize) -> __m512i {
    let bytes: &[u8; STEP_BYTES] = text[position..].first_chunk().expect("every lane has whole blocks here");
    // SAFETY: The array has the vector's 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The 64 bytes of a text from `position` on, which may lie before its beginning; zeros where the text is not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn load_part(text: &[u8], position: isize) -> __m512i {
    let from = (-position).clamp(0, STEP_BYTES as isize) as u32;
    let to = (text.len() as isize - position).clamp(0, STEP_BYTES as isize) as u32;
    let below = |bits: u32| ((1u128 << bits) - 1) as u64;
    let mask = below(to) & !below(from);
    // SAFETY: The mask admits bytes of the text only, and the instruction touches no others.
    unsafe { _mm512_maskz_loadu_epi8(mask, text.as_ptr().wrapping_offset(position).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn vector(words: &[u64; LANES]) -> __m512i {
    // SAFETY: The array has the vector's 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn array(vector: __m512i) -> [u64; LANES] {
    let mut words = [0u64; LANES];
    // SAFETY: The array has the vector's 64 bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}

/// A mask of the lanes that are true.
fn lanes(which: [bool; LANES]) -> u8 {
    which.into_iter().enumerate().fold(0, |mask, (lane, is)| mask | u8::from(is) << lane)
}
