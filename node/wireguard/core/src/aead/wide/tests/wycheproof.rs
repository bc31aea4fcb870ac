//! Project Wycheproof's vectors: edge cases and known attacks. They have any nonce, and associated data, which WireGuard's
//! messages have not; so the parts are put together here as `seal` and `open` do it, with both.

use super::*;
use ::wycheproof::TestResult;
use ::wycheproof::aead::{Test, TestName, TestSet};

#[test]
fn every_lane_seals_and_opens_as_it_should() {
    if !has_instructions() {
        return;
    }
    let set = TestSet::load(TestName::ChaCha20Poly1305).expect("the vectors are in the crate");
    let of_size = set.test_groups.iter().filter(|group| {
        let sizes = (group.key_size, group.nonce_size, group.tag_size);
        sizes == (256, 96, 128)
    });
    let mut tried = 0;
    for test in of_size.flat_map(|group| &group.tests) {
        // SAFETY: The instructions are there.
        let (sealed, one_time) = unsafe { streamed(test, &test.pt) };
        // SAFETY: As before.
        let (opened, _) = unsafe { streamed(test, &test.ct) };
        // SAFETY: As before.
        let tags = unsafe { tags_of_ciphertext(test, &one_time) };
        let is_tag = |tag: &[u8; TAG]| tag[..] == test.tag[..];
        if test.result == TestResult::Invalid {
            assert!(!tags.iter().any(is_tag), "case {} opens", test.tc_id);
        } else {
            assert!(tags.iter().all(is_tag), "case {} does not open", test.tc_id);
            assert!(sealed.iter().all(|text| text[..] == test.ct[..]), "case {}", test.tc_id);
            assert!(opened.iter().all(|text| text[..] == test.pt[..]), "case {}", test.tc_id);
        }
        tried += 1;
    }
    assert!(tried > 100, "{tried} cases");
}

/// Adds the key stream to a text, as often as there are messages in a batch, and makes their one-time keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn streamed(test: &Test, text: &[u8]) -> (Vec<Vec<u8>>, [OneTimeKey; BATCH]) {
    let key = Key::new(test.key[..].try_into().unwrap()).unwrap();
    let stride = DATA_MIN + text.len();
    let mut bytes = train(BATCH, stride, stride, 0, |_| 0);
    for message in bytes.chunks_mut(stride) {
        message[DATA_HEADER..stride - TAG].copy_from_slice(text);
    }
    let mut batch = Batch::of(&bytes, stride);
    let word = |n: usize| u32::from_le_bytes(test.nonce[4 * n..4 * n + 4].try_into().unwrap());
    batch.nonces = [[word(0), word(1), word(2)]; BATCH];

    let mut cursor = Cursor::default();
    let row = batch.first_row(&mut cursor);
    let stream = key_stream(&key.words, &row.inputs);
    row.apply(&stream, &mut bytes, u32::MAX);
    batch.apply_rest(&key.words, cursor, &mut bytes, u32::MAX);
    (batch.slots().iter().map(|slot| bytes[slot.text()].to_vec()).collect(), batch.one_time_keys(&stream))
}

/// The tags of associated data and ciphertext, one for each key.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn tags_of_ciphertext(test: &Test, one_time: &[OneTimeKey; BATCH]) -> Vec<[u8; TAG]> {
    let mut authenticated = test.aad.to_vec();
    authenticated.resize(test.aad.len().next_multiple_of(TAG), 0);
    authenticated.extend(&test.ct[..]);
    let closing = [[test.aad.len() as u64, test.ct.len() as u64]; LANES];
    one_time.as_chunks().0.iter().flat_map(|keys| tags(keys, &[&authenticated[..]; LANES], &closing)).collect()
}
