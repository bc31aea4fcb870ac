//! Join tokens: how they are made, used and ended.

use super::Registry;
use super::state::Token;
use crate::command::{CreateToken, RevokeToken};
use crate::reply::{Rejection, Reply};
use mesh_types::{Fingerprint, MeshDuration, Role, TokenId, limits};

/// How long an ended token is remembered, so that whoever shows it is told that it expired, not that it is unknown.
const REMEMBERED: MeshDuration = MeshDuration::from_secs(7 * 86_400);
const MIN_TTL: MeshDuration = MeshDuration::from_secs(1);

impl Registry {
    pub(super) fn create_token(&mut self, create: &CreateToken) -> Result<Reply, Rejection> {
        self.mesh()?;
        if create.ttl < MIN_TTL || create.ttl > limits::MAX_TOKEN_TTL {
            return Err(Rejection::TokenTtl(create.ttl));
        }
        if create.uses == 0 {
            return Err(Rejection::TokenUses);
        }
        if self.state.tokens.contains_key(&create.id) {
            return Err(Rejection::TokenExists(create.id));
        }
        self.make_room_for_a_token()?;
        let now = self.state.time;
        let token = Token {
            id: create.id,
            secret_hash: create.secret_hash,
            role: create.role,
            created_at: now,
            expires_at: now + create.ttl,
            uses_left: create.uses,
        };
        let reply = Reply::TokenCreated { id: token.id, expires_at: token.expires_at };
        self.state.tokens.insert(token.id, token);
        Ok(reply)
    }

    pub(super) fn revoke_token(&mut self, revoke: &RevokeToken) -> Result<Reply, Rejection> {
        self.mesh()?;
        match self.state.tokens.remove(&revoke.id) {
            Some(_) => Ok(Reply::Done),
            None => Err(Rejection::TokenNotListed(revoke.id)),
        }
    }

    /// Whether the token lets its holder become `wanted`; spends nothing.
    pub(super) fn check_token(&self, id: TokenId, secret: Fingerprint, wanted: Role) -> Result<(), Rejection> {
        let token = self.state.tokens.get(&id).filter(|token| token.secret_hash == secret);
        let token = token.ok_or(Rejection::TokenUnknown)?;
        if token.role != wanted {
            return Err(Rejection::TokenRole { token: token.role, wanted });
        }
        if token.uses_left == 0 {
            return Err(Rejection::TokenUsedUp);
        }
        if self.state.time >= token.expires_at {
            return Err(Rejection::TokenExpired { expired_at: token.expires_at });
        }
        Ok(())
    }

    pub(super) fn spend_token(&mut self, id: TokenId) {
        if let Some(token) = self.state.tokens.get_mut(&id) {
            token.uses_left = token.uses_left.saturating_sub(1);
        }
    }

    fn make_room_for_a_token(&mut self) -> Result<(), Rejection> {
        let now = self.state.time;
        self.state.tokens.retain(|_, token| now < token.expires_at + REMEMBERED);
        if self.state.tokens.len() >= limits::MAX_TOKENS {
            self.state.tokens.retain(|_, token| token.is_live(now));
        }
        if self.state.tokens.len() >= limits::MAX_TOKENS { Err(Rejection::TooManyTokens) } else { Ok(()) }
    }
}
