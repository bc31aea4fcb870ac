//! Join tokens, drawn so that who asks twice with one request id gets one token, of whichever coordinator.
//!
//! The registry keeps only the hash of a token's secret, so the secret of a repeated request cannot be looked up: it is
//! derived anew from the request id, under the mesh CA's key (HKDF-SHA256, RFC 5869). Every coordinator holds that key,
//! and whoever else held it could make tokens either way.

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use mesh_proto::Authority;
use mesh_types::{RequestId, TokenId, TokenSecret};
use zeroize::Zeroizing;

/// Keeps these derivations apart from any other under the same key.
const PURPOSE: &[u8] = b"meshctl join token 1";

/// The id and the secret of the token that this request makes; of any, if it has no id.
pub(crate) fn draw(authority: &Authority, request: Option<RequestId>) -> (TokenId, TokenSecret) {
    let request = request.unwrap_or_else(|| RequestId::from_bytes(crate::random::bytes()));
    let key = Salt::new(HKDF_SHA256, PURPOSE).extract(&authority.key_der());
    let mut drawn = Zeroizing::new([0; TokenId::LEN + TokenSecret::LEN]);
    let info = [request.as_bytes().as_slice()];
    let expanded = key.expand(&info, Length).and_then(|output| output.fill(drawn.as_mut_slice()));
    expanded.expect("less than 255 hashes are asked for");
    let (id, secret) = drawn.split_at(TokenId::LEN);
    (TokenId::try_from(id).expect("it was split there"), TokenSecret::try_from(secret).expect("it is the rest"))
}

struct Length;

impl aws_lc_rs::hkdf::KeyType for Length {
    fn len(&self) -> usize {
        TokenId::LEN + TokenSecret::LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{MeshId, MeshTime};

    #[test]
    fn a_request_has_one_token_under_one_authority_and_no_other_has_it() {
        let authority = || Authority::create(MeshId::from_bytes([1; 16]), MeshTime(1_000_000)).unwrap();
        let (one, other) = (authority(), authority());
        let request = |number: u8| Some(RequestId::from_bytes([number; 16]));
        let drawn = |authority, request| {
            let (id, secret) = draw(authority, request);
            (id, *secret.as_bytes())
        };
        assert_eq!(drawn(&one, request(1)), drawn(&one, request(1)));
        for (what, authority, asked) in
            [("another request", &one, request(2)), ("another mesh", &other, request(1)), ("no id", &one, None)]
        {
            let (id, secret) = drawn(authority, asked);
            assert_ne!(id, drawn(&one, request(1)).0, "{what}");
            assert_ne!(secret, drawn(&one, request(1)).1, "{what}");
        }
    }
}
