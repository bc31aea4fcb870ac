//! Join tokens: what an operator hands to a machine so that it may join.
//!
//! Text form: `mesh1` and base64url without padding of: layout version (1 byte), role (1), mesh id (16), CA fingerprint
//! (32), token id (8), secret (20), number of addresses (1), each address as length (1) and text, and the first four
//! bytes of the SHA-256 of all that, against typing errors.

use crate::coordinator::CoordinatorAddress;
use crate::id::{MeshId, TokenId};
use crate::key::{Fingerprint, TokenSecret};
use crate::limits::MAX_COORDINATORS;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use zeroize::Zeroizing;

const PREFIX: &str = "mesh1";
const LAYOUT: u8 = 1;
/// Addresses in one token: all coordinators of a large mesh, some with two.
const MAX_ADDRESSES: usize = 2 * MAX_COORDINATORS;

/// What a token, and a certificate, lets its holder be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A node daemon.
    Node,
    /// A coordinator replica. Holds the mesh CA's key.
    Coordinator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Coordinator => "coordinator",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "node" => Ok(Self::Node),
            "coordinator" => Ok(Self::Coordinator),
            other => Err(format!("role {other:?} not known: expected node or coordinator")),
        }
    }
}

/// Everything a machine needs to join: where to go, whom to trust there, and a secret to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinToken {
    /// What the holder may become.
    pub role: Role,
    /// The mesh.
    pub mesh: MeshId,
    /// SHA-256 of the mesh CA's certificate (DER): the only thing trusted before the first answer.
    pub authority: Fingerprint,
    /// The token's name in the registry.
    pub id: TokenId,
    /// The proof of holding it.
    pub secret: TokenSecret,
    /// Where coordinators answer, at least one.
    pub addresses: Vec<CoordinatorAddress>,
}

/// Why a text is not a join token.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum ParseTokenError {
    /// Does not start as a token does.
    #[error("not a join token: it starts with {PREFIX:?}; ask for one with `meshctl token create`")]
    Prefix,
    /// Cut, mistyped or mangled on the way.
    #[error("join token is damaged (cut off or mistyped): copy it again, whole")]
    Damaged,
    /// Made by a later version.
    #[error("join token has layout {0}, which this version does not know: upgrade this machine's meshctl")]
    Layout(u8),
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Zeroizing::new(Vec::with_capacity(256));
        out.push(LAYOUT);
        out.push(match self.role {
            Role::Node => 0,
            Role::Coordinator => 1,
        });
        out.extend_from_slice(self.mesh.as_bytes());
        out.extend_from_slice(self.authority.as_bytes());
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.secret.as_bytes());
        let addresses = &self.addresses[..self.addresses.len().min(MAX_ADDRESSES)];
        out.push(u8::try_from(addresses.len()).expect("MAX_ADDRESSES fits a byte"));
        for address in addresses {
            let text = address.to_string();
            out.push(u8::try_from(text.len()).map_err(|_| fmt::Error)?);
            out.extend_from_slice(text.as_bytes());
        }
        let check = Fingerprint::of(&out);
        out.extend_from_slice(&check.as_bytes()[..4]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(out.as_slice()))
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(ParseTokenError::Prefix)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| ParseTokenError::Damaged)?);
        let (content, check) = bytes.split_last_chunk::<4>().ok_or(ParseTokenError::Damaged)?;
        if Fingerprint::of(content).as_bytes()[..4] != *check {
            return Err(ParseTokenError::Damaged);
        }
        match content.first() {
            Some(&LAYOUT) => parse_content(&content[1..]).ok_or(ParseTokenError::Damaged),
            Some(&other) => Err(ParseTokenError::Layout(other)),
            None => Err(ParseTokenError::Damaged),
        }
    }
}

fn parse_content(mut rest: &[u8]) -> Option<JoinToken> {
    let role = match take(&mut rest, 1)? {
        [0] => Role::Node,
        [1] => Role::Coordinator,
        _ => return None,
    };
    let mesh = take(&mut rest, MeshId::LEN)?.try_into().ok()?;
    let authority = take(&mut rest, Fingerprint::LEN)?.try_into().ok()?;
    let id = take(&mut rest, TokenId::LEN)?.try_into().ok()?;
    let secret = take(&mut rest, TokenSecret::LEN)?.try_into().ok()?;
    let count = usize::from(take(&mut rest, 1)?[0]);
    if count == 0 || count > MAX_ADDRESSES {
        return None;
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(take(&mut rest, 1)?[0]);
        addresses.push(std::str::from_utf8(take(&mut rest, length)?).ok()?.parse().ok()?);
    }
    rest.is_empty().then_some(JoinToken { role, mesh, authority, id, secret, addresses })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken {
            role: Role::Node,
            mesh: MeshId::from_bytes([1; 16]),
            authority: Fingerprint::from_bytes([2; 32]),
            id: TokenId::from_bytes([3; 8]),
            secret: TokenSecret::from_bytes([4; 20]),
            addresses: vec!["203.0.113.10".parse().unwrap(), "coordinator.example.org:7".parse().unwrap()],
        }
    }

    #[test]
    fn a_token_survives_its_text_form_also_with_white_space_around() {
        let text = token().to_string();
        assert!(text.starts_with("mesh1"));
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token());
    }

    #[test]
    fn a_mangled_token_says_so() {
        let text = token().to_string();
        assert_eq!("hello".parse::<JoinToken>(), Err(ParseTokenError::Prefix));
        assert_eq!(text[..text.len() - 3].parse::<JoinToken>(), Err(ParseTokenError::Damaged));
        let mistyped = text.replacen("AQEB", "AQEC", 1);
        assert_ne!(mistyped, text);
        assert_eq!(mistyped.parse::<JoinToken>(), Err(ParseTokenError::Damaged));
    }

    proptest! {
        #[test]
        fn parsing_hostile_text_never_panics(text in "mesh1[A-Za-z0-9_-]{0,200}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
