//! ChaCha20 (RFC 8439, section 2.3), sixteen blocks at a time: a vector for each word of the state, a lane for each
//! block.
//!
//! Which block of which message a lane makes is the caller's business. Nothing branches or indexes on a secret.

use std::arch::x86_64::*;

/// Blocks that are made at a time.
pub(super) const BLOCKS: usize = 16;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// What distinguishes the blocks: the block counter, and the nonce in three words.
#[derive(Clone, Copy, Default)]
pub(super) struct Inputs {
    pub(super) block: [u32; BLOCKS],
    pub(super) nonce: [[u32; BLOCKS]; 3],
}

/// A double round on every state. A macro, since a function that is not inlined would keep the state in memory. The four
/// quarter rounds of a half do not wait for each other, nor does one state for another.
macro_rules! double_round {
    ($($state:ident)+) => {
        double_round!(half $($state)+, { [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15] });
        double_round!(half $($state)+, { [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14] });
    };
    (half $($state:ident)+, $words:tt) => {
        $(double_round!(mix $state, 0 1 3, 16, $words);)+
        $(double_round!(mix $state, 2 3 1, 12, $words);)+
        $(double_round!(mix $state, 0 1 3, 8, $words);)+
        $(double_round!(mix $state, 2 3 1, 7, $words);)+
    };
    (mix $state:ident, 0 1 3, $bits:literal, { $([$a:literal, $b:literal, $c:literal, $d:literal]),+ }) => {
        double_round!(step $state, $bits, $([$a, $b, $d]),+);
    };
    (mix $state:ident, 2 3 1, $bits:literal, { $([$a:literal, $b:literal, $c:literal, $d:literal]),+ }) => {
        double_round!(step $state, $bits, $([$c, $d, $b]),+);
    };
    (step $state:ident, $bits:literal, $([$to:literal, $from:literal, $mixed:literal]),+) => {
        $($state[$to] = _mm512_add_epi32($state[$to], $state[$from]);)+
        $($state[$mixed] = _mm512_rol_epi32::<$bits>(_mm512_xor_si512($state[$mixed], $state[$to]));)+
    };
}

/// The key stream's blocks, one in each vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn key_stream(key: &[u32; 8], inputs: &Inputs) -> [__m512i; BLOCKS] {
    let start = start(key, inputs);
    let mut state = start;
    for _ in 0..10 {
        double_round!(state);
    }
    end(state, start)
}

/// The same for two rows of blocks, which is faster than one after the other: the instructions of one fill the time that
/// those of the other wait.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn key_streams(key: &[u32; 8], inputs: [&Inputs; 2]) -> [[__m512i; BLOCKS]; 2] {
    let starts = inputs.map(|inputs| start(key, inputs));
    let [mut one, mut two] = starts;
    for _ in 0..10 {
        double_round!(one two);
    }
    [end(one, starts[0]), end(two, starts[1])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn start(key: &[u32; 8], inputs: &Inputs) -> [__m512i; 16] {
    let mut state = [_mm512_setzero_si512(); 16];
    for (vector, word) in state.iter_mut().zip(CONSTANTS.iter().chain(key)) {
        *vector = _mm512_set1_epi32(word.cast_signed());
    }
    state[12] = vector(&inputs.block);
    for (state, words) in state[13..].iter_mut().zip(&inputs.nonce) {
        *state = vector(words);
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn end(mut state: [__m512i; 16], start: [__m512i; 16]) -> [__m512i; BLOCKS] {
    for (word, start) in state.iter_mut().zip(start) {
        *word = _mm512_add_epi32(*word, start);
    }
    transposed(state)
}

/// Turns vectors of one word of sixteen blocks into vectors of one block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn transposed(words: [__m512i; 16]) -> [__m512i; BLOCKS] {
    // Each step doubles what of a block lies together: 8, 16, 32 and 64 bytes.
    let mut eights = words;
    for n in 0..8 {
        eights[2 * n] = _mm512_unpacklo_epi32(words[2 * n], words[2 * n + 1]);
        eights[2 * n + 1] = _mm512_unpackhi_epi32(words[2 * n], words[2 * n + 1]);
    }
    // Of every four words, `quads[4 * n + k]` holds block `4 * m + k` in its quarter m.
    let mut quads = words;
    for n in 0..4 {
        let [a, b, c, d] = [eights[4 * n], eights[4 * n + 1], eights[4 * n + 2], eights[4 * n + 3]];
        quads[4 * n] = _mm512_unpacklo_epi64(a, c);
        quads[4 * n + 1] = _mm512_unpackhi_epi64(a, c);
        quads[4 * n + 2] = _mm512_unpacklo_epi64(b, d);
        quads[4 * n + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut blocks = words;
    for k in 0..4 {
        let [a, b, c, d] = [quads[k], quads[4 + k], quads[8 + k], quads[12 + k]];
        // Quarters 0 and 1, or 2 and 3, of two vectors.
        let (ab01, ab23) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (cd01, cd23) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        blocks[k] = _mm512_shuffle_i32x4::<0x88>(ab01, cd01);
        blocks[4 + k] = _mm512_shuffle_i32x4::<0xdd>(ab01, cd01);
        blocks[8 + k] = _mm512_shuffle_i32x4::<0x88>(ab23, cd23);
        blocks[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ab23, cd23);
    }
    blocks
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn vector(words: &[u32; 16]) -> __m512i {
    // SAFETY: The array has the vector's 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}
