//! What local callers ask for.

use super::{Daemon, FIRST_NETMAP, FIRST_WORD, Intender, Joiner, Life, Outcome, Step};
use crate::ask::AskError;
use crate::local::{Answer, Ping, Request};
use crate::refusal::Refusal;
use crate::state::Standing;
use crate::status::{self, Scene};
use mesh_node_core::node::PingError;
use mesh_node_core::{Intent, Now};
use mesh_proto::v1::{LocalJoinReply, LocalLeaveReply};
use mesh_types::{JoinToken, NodeName};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info;

/// Pings under way; the core has its own, lower bound, this one is against callers who never come back for theirs.
const MAX_PINGS: usize = 1_024;

impl Daemon {
    pub(super) fn handle_request(&mut self, request: Request, now: Now) {
        // A caller who is gone does not need the answer.
        match request {
            Request::Status(answer) => drop(answer.send(Ok(self.picture(now)))),
            Request::Join { token, name, answer } => self.handle_join(token, name, answer, now),
            Request::Ping { peer, answer } => drop(answer.send(self.ping(&peer, now))),
            Request::Down(answer) => match self.intend(Intent::Down, now) {
                Ok(()) => self.intenders.push(Intender::Down(answer)),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Request::Up(answer) => {
                let until = matches!(self.life, Life::Removed(_)).then(|| Instant::now() + FIRST_WORD);
                match self.intend(Intent::Up, now) {
                    Ok(()) => self.intenders.push(Intender::Up { answer, until }),
                    Err(refusal) => drop(answer.send(Err(refusal))),
                }
            }
            Request::Leave { force, answer } => self.handle_leave(force, answer),
        }
    }

    fn handle_join(&mut self, token: JoinToken, name: Option<NodeName>, answer: Answer<LocalJoinReply>, now: Now) {
        let mut already = false;
        match &mut self.life {
            Life::Joining(joining) if joining.token == token.id => {}
            // The token that came with the start may never lead anywhere; a person knows better.
            Life::Joining(joining) if joining.by_file => {
                joining.task.abort();
                self.steps.push(Step::BeginJoin { token, name, by_file: false });
            }
            Life::Joining(_) => return drop(answer.send(Err(Refusal::Busy))),
            Life::New | Life::Removed(_) if self.leaving.is_some() => return drop(answer.send(Err(Refusal::Busy))),
            Life::New | Life::Removed(_) => self.steps.push(Step::BeginJoin { token, name, by_file: false }),
            // The registry was restored to before this node joined: only a new identity leads back in.
            Life::Member(member) if member.is_of(&token) && member.node.is_forgotten() => {
                self.steps.push(Step::BeginJoin { token, name, by_file: false });
            }
            Life::Member(member) if member.is_of(&token) => {
                if member.learn_places(&token)
                    && let Err(error) = self.state.save_membership(&member.membership)
                {
                    return drop(answer.send(Err(Refusal::State(error))));
                }
                already = true;
                member.node.handle_intent(Intent::Up, now);
                self.steps.push(Step::Remake);
                self.patience.get_or_insert(Instant::now() + FIRST_NETMAP);
            }
            Life::Member(member) => {
                let refusal = Refusal::OtherMesh(member.membership.mesh());
                return drop(answer.send(Err(refusal)));
            }
        }
        self.joiners.push(Joiner { answer, already });
    }

    fn ping(&mut self, peer: &str, now: Now) -> Result<Ping, Refusal> {
        let member = match &mut self.life {
            Life::Member(member) => member,
            Life::Removed(_) => return Err(Refusal::Removed),
            Life::New | Life::Joining(_) => return Err(Refusal::NotJoined),
        };
        let record = member.node.find_peer(peer).ok_or_else(|| Refusal::NoPeer(peer.chars().take(80).collect()))?;
        let (id, addresses) = (record.id, record.addresses);
        if member.pings.len() >= MAX_PINGS {
            return Err(Refusal::Ping(PingError::TooMany));
        }
        let asked = peer.parse().ok().filter(|asked| addresses.iter().any(|address| address == *asked));
        let address = asked.unwrap_or(addresses.v4.into());
        let token = member.node.handle_ping(id, address, now)?;
        let (ponged, pong) = oneshot::channel();
        member.pings.insert(token, ponged);
        let peers = member.node.status(now).peers;
        let endpoint = peers.into_iter().find(|peer| peer.node.id == id).and_then(|peer| peer.endpoint);
        Ok(Ping { address, endpoint, pong })
    }

    fn intend(&mut self, intent: Intent, now: Now) -> Result<(), Refusal> {
        match &mut self.life {
            Life::Member(member) => {
                info!(?intent, "asked for by a person");
                member.node.handle_intent(intent, now);
                // What somebody has changed by hand is put right even if it was not noticed.
                self.steps.push(Step::Remake);
                Ok(())
            }
            // Perhaps it is allowed again: the coordinators know, and say so at once if not.
            Life::Removed(membership) if intent == Intent::Up => {
                let mut membership = membership.clone();
                membership.standing = Standing::Member;
                self.state.save_membership(&membership)?;
                self.steps.push(Step::BecomeMember { membership, fresh: false });
                Ok(())
            }
            Life::Removed(_) => Ok(()),
            Life::New | Life::Joining(_) => Err(Refusal::NotJoined),
        }
    }

    fn handle_leave(&mut self, force: bool, answer: Answer<LocalLeaveReply>) {
        if self.leaving.is_some() {
            return drop(answer.send(Err(Refusal::Busy)));
        }
        match &self.life {
            // There is nothing left to tell.
            Life::New => drop(answer.send(Ok(LocalLeaveReply { told: true }))),
            Life::Joining(_) => drop(answer.send(Err(Refusal::Busy))),
            Life::Removed(_) => {
                self.leaving = Some((answer, force));
                self.steps.push(Step::Forget { told: true });
            }
            Life::Member(member) => {
                self.leaving = Some((answer, force));
                let asker = member.asker();
                self.tasks.spawn(async move { Outcome::Left(asker.leave().await) });
            }
        }
    }

    pub(super) fn handle_left(&mut self, result: Result<(), AskError>) {
        let forced = self.leaving.as_ref().is_some_and(|(_, force)| *force);
        match result {
            // The session may have told of the removal before the reply came.
            _ if matches!(self.life, Life::Removed(_)) => self.steps.push(Step::Forget { told: true }),
            Ok(()) => self.steps.push(Step::Forget { told: true }),
            Err(error) if forced => {
                info!(%error, "leaving without having told the mesh");
                self.steps.push(Step::Forget { told: false });
            }
            Err(error) => {
                if let Some((answer, _)) = self.leaving.take() {
                    // A caller who is gone does not need the answer.
                    let _ = answer.send(Err(Refusal::Leave(error)));
                }
            }
        }
    }

    fn picture(&self, now: Now) -> crate::local::Picture {
        let scene = match &self.life {
            Life::New => Scene::Without("new"),
            Life::Joining(_) => Scene::Without("joining"),
            Life::Removed(membership) => Scene::Removed(membership),
            Life::Member(member) => Scene::Member(member),
        };
        status::picture(&scene, &self.host, now)
    }
}
