//! The primitives that the protocol is made of, against Project Wycheproof's vectors: edge cases and known attacks.
//!
//! They are called as the protocol calls them, so that a library taken in the place of another is held to the same.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20poly1305::{AeadInOut as _, KeyInit as _, XChaCha20Poly1305};
use wycheproof::TestResult;

#[test]
fn chacha20_poly1305_seals_and_opens_as_it_should() {
    let mut tried = 0;
    for (group, test) in aead(wycheproof::aead::TestName::ChaCha20Poly1305) {
        if group.nonce_size != 96 || group.key_size != 256 || group.tag_size != 128 {
            continue;
        }
        tried += 1;
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &test.key).expect("256 bits"));
        let nonce = || Nonce::try_assume_unique_for_key(&test.nonce).expect("96 bits");
        let mut sealed = test.pt.to_vec();
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(&test.aad[..]), &mut sealed).expect("short enough");
        let mut opened = [&test.ct[..], &test.tag[..]].concat();
        let plaintext = key.open_in_place(nonce(), Aad::from(&test.aad[..]), &mut opened);
        if test.result == TestResult::Invalid {
            assert!(plaintext.is_err(), "case {} opens", test.tc_id);
        } else {
            assert_eq!((&sealed[..], tag.as_ref()), (&test.ct[..], &test.tag[..]), "case {}", test.tc_id);
            assert_eq!(plaintext.ok().as_deref(), Some(&test.pt[..]), "case {}", test.tc_id);
        }
    }
    assert!(tried > 100, "{tried} cases");
}

#[test]
fn xchacha20_poly1305_seals_and_opens_as_it_should() {
    let mut tried = 0;
    for (group, test) in aead(wycheproof::aead::TestName::XChaCha20Poly1305) {
        if group.nonce_size != 192 || group.key_size != 256 || group.tag_size != 128 {
            continue;
        }
        tried += 1;
        let key = XChaCha20Poly1305::new_from_slice(&test.key).expect("256 bits");
        let nonce = test.nonce[..].try_into().expect("192 bits");
        let tag = test.tag[..].try_into().expect("128 bits");
        let (mut sealed, mut opened) = (test.pt.to_vec(), test.ct.to_vec());
        let text = opened.as_mut_slice().into();
        let is_open = key.decrypt_inout_detached(&nonce, &test.aad, text, &tag).is_ok();
        if test.result == TestResult::Invalid {
            assert!(!is_open, "case {} opens", test.tc_id);
        } else {
            let made = key.encrypt_inout_detached(&nonce, &test.aad, sealed.as_mut_slice().into());
            assert_eq!((made, &sealed[..]), (Ok(tag), &test.ct[..]), "case {}", test.tc_id);
            assert!(is_open && opened == test.pt[..], "case {}", test.tc_id);
        }
    }
    assert!(tried > 100, "{tried} cases");
}

#[test]
fn x25519_agrees_and_shows_what_contributes_nothing() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).expect("the vectors are in the crate");
    let mut tried = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Ok(private), Ok(public)) =
            (<[u8; 32]>::try_from(&test.private_key[..]), <[u8; 32]>::try_from(&test.public_key[..]))
        else {
            continue;
        };
        tried += 1;
        let shared = x25519_dalek::StaticSecret::from(private).diffie_hellman(&public.into());
        assert_eq!(shared.as_bytes()[..], test.shared_secret[..], "case {}", test.tc_id);
        let is_zero = test.shared_secret.iter().all(|byte| *byte == 0);
        assert_eq!(shared.was_contributory(), !is_zero, "case {}", test.tc_id);
    }
    assert!(tried > 400, "{tried} cases");
}

fn aead(name: wycheproof::aead::TestName) -> Vec<(wycheproof::aead::TestGroup, wycheproof::aead::Test)> {
    let set = wycheproof::aead::TestSet::load(name).expect("the vectors are in the crate");
    let of = |group: wycheproof::aead::TestGroup| {
        group.tests.clone().into_iter().map(move |test| (group.clone(), test)).collect::<Vec<_>>()
    };
    set.test_groups.into_iter().flat_map(of).collect()
}
