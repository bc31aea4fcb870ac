//! Requests that were answered lately, so that asking again does nothing again.

use crate::command::Command;
use crate::reply::{Rejection, Reply};
use mesh_types::{Fingerprint, RequestId, limits};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// The last [`limits::MAX_REQUESTS`] requests with an id; the oldest are forgotten first.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub(super) struct RequestLog {
    answered: BTreeMap<RequestId, Answered>,
    order: VecDeque<RequestId>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Answered {
    /// Of the command, so that nobody reads the answer to another's request by guessing or reusing its id.
    request: Fingerprint,
    reply: Reply,
}

impl RequestLog {
    /// The remembered reply to the same request, or a refusal if the id stands for another one.
    pub(super) fn find(&self, id: RequestId, command: &Command) -> Option<Reply> {
        let answered = self.answered.get(&id)?;
        if answered.request == fingerprint(command) {
            return Some(answered.reply.clone());
        }
        Some(Reply::Rejected(Rejection::RequestReused))
    }

    /// Remembers the reply.
    pub(super) fn remember(&mut self, id: RequestId, command: &Command, reply: Reply) {
        let answered = Answered { request: fingerprint(command), reply };
        if self.answered.insert(id, answered).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > limits::MAX_REQUESTS {
            if let Some(oldest) = self.order.pop_front() {
                self.answered.remove(&oldest);
            }
        }
    }
}

fn fingerprint(command: &Command) -> Fingerprint {
    let mut bytes = command.kind().to_be_bytes().to_vec();
    command.encode_fields(&mut bytes);
    Fingerprint::of(&bytes)
}
