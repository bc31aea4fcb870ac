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
        let (sealed, tags) = unsafe { crypt(test, &test.pt, Direction::Seal) };
        // SAFETY: As before.
        let (opened, expected_tags) = unsafe { crypt(test, &test.ct, Direction::Open) };
        let is_authentic = expected_tags.iter().all(|tag| tag[..] == test.tag[..]);
        if test.result == TestResult::Invalid {
            assert!(!is_authentic, "case {} opens", test.tc_id);
        } else {
            assert!(is_authentic, "case {} does not open", test.tc_id);
            assert!(sealed.iter().all(|text| text[..] == test.ct[..]), "case {}", test.tc_id);
            assert!(tags.iter().all(|tag| tag[..] == test.tag[..]), "case {}", test.tc_id);
            assert!(opened.iter().all(|text| text[..] == test.pt[..]), "case {}", test.tc_id);
        }
        tried += 1;
    }
    assert!(tried > 100, "{tried} cases");
}

/// Whether the tag is that of the text as it becomes, or as it is.
#[derive(PartialEq)]
enum Direction {
    Seal,
    Open,
}

/// Adds the key stream to a text, as often as there are messages in a batch, and makes their tags.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn crypt(test: &Test, text: &[u8], direction: Direction) -> (Vec<Vec<u8>>, Vec<[u8; TAG]>) {
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
    let one_time = batch.one_time_keys(&stream);
    let before = bytes.clone();
    row.apply(&stream, &mut bytes, u32::MAX);
    batch.apply_rest(&key.words, cursor, &mut bytes, u32::MAX);

    let authenticated = |slot: &Slot| {
        let mut authenticated = test.aad.to_vec();
        authenticated.resize(test.aad.len().next_multiple_of(TAG), 0);
        authenticated.extend(if direction == Direction::Seal { &bytes[slot.text()] } else { &before[slot.text()] });
        authenticated
    };
    let authenticated: Vec<_> = batch.slots().iter().map(authenticated).collect();
    let closing = [[test.aad.len() as u64, text.len() as u64]; LANES];
    let made = one_time.as_chunks::<LANES>().0.iter().zip(authenticated.chunks(LANES)).flat_map(|(keys, texts)| {
        let texts = std::array::from_fn(|lane| &texts[lane][..]);
        tags(keys, &texts, &closing)
    });
    let made = made.collect();
    (batch.slots().iter().map(|slot| bytes[slot.text()].to_vec()).collect(), made)
}
