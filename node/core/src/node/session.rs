//! The session as the node takes it: welcome, netmap, presence, time, and the end.

use super::{Node, Session};
use crate::action::{Action, EndReason, Warning};
use crate::clock::Now;
use crate::journal::Record;
use crate::netmap::{Incoming, NetmapError};
use crate::status::SessionStatus;
use mesh_types::session::{CloseReason, SnapshotPage, Tick, Welcome};
use mesh_types::{Changes, CoordinatorId, CoordinatorMessage, NodeMessage};

impl Node {
    pub(super) fn take_message(&mut self, message: CoordinatorMessage, now: Now) {
        let Some(session) = &self.session else { return };
        let taken = match (message, session.welcomed.is_some()) {
            (CoordinatorMessage::Close(reason), _) => {
                self.take_close(reason);
                Ok(())
            }
            (CoordinatorMessage::Welcome(welcome), false) => self.take_welcome(welcome, now),
            (CoordinatorMessage::Snapshot(page), true) => self.take_page(page, now),
            (CoordinatorMessage::Delta(changes), true) => self.take_delta(changes, now),
            (CoordinatorMessage::Presence(update), true) => {
                self.take_presence_update(update, now);
                Ok(())
            }
            (CoordinatorMessage::Tick(tick), true) => {
                self.take_tick(tick, now);
                Ok(())
            }
            (CoordinatorMessage::Ping, true) => {
                self.actions.push_back(Action::Say(NodeMessage::Pong));
                Ok(())
            }
            (CoordinatorMessage::Welcome(_), true) | (_, false) => Err(EndReason::Protocol),
        };
        if let Err(reason) = taken {
            self.end_session(reason);
        }
    }

    fn end_session(&mut self, reason: EndReason) {
        self.session = None;
        self.actions.push_back(Action::EndSession(reason));
    }

    fn take_welcome(&mut self, welcome: Welcome, now: Now) -> Result<(), EndReason> {
        let Welcome { coordinator, epoch, incarnation, tick } = welcome;
        let incoming = Incoming::new(self.cache.mesh, self.cache.netmap.as_ref(), epoch).map_err(end_reason)?;
        self.removed = false;
        self.online.clear();
        self.warn(Warning::DuplicateIdentity, false);
        self.warn(Warning::Forgotten, false);
        self.session = Some(Session { welcomed: Some((incoming, picture(coordinator, &tick))) });
        self.take_tick(tick, now);
        if self.voice.rise_above(incarnation) {
            self.remember(Record::Incarnation(self.voice.incarnation()));
        }
        if let Some(signed) = self.voice.last_word() {
            self.actions.push_back(Action::Say(NodeMessage::Presence(signed.clone())));
        }
        Ok(())
    }

    fn take_page(&mut self, page: SnapshotPage, now: Now) -> Result<(), EndReason> {
        let held = self.cache.netmap.as_ref();
        let Some((incoming, _)) = self.session.as_mut().and_then(|s| s.welcomed.as_mut()) else { return Ok(()) };
        let Some(netmap) = incoming.page(held, page).map_err(end_reason)? else { return Ok(()) };
        if held.is_none() && !netmap.nodes.contains_key(&self.setup.record.id) {
            // The join is committed, this coordinator has not heard of it: no word about our membership.
            return Err(EndReason::Behind);
        }
        self.adopt(Record::Netmap(Box::new(netmap)), now);
        Ok(())
    }

    fn take_delta(&mut self, changes: Changes, now: Now) -> Result<(), EndReason> {
        let Some((incoming, _)) = self.session.as_ref().and_then(|s| s.welcomed.as_ref()) else { return Ok(()) };
        if let Some(delta) = incoming.delta(self.cache.netmap.as_ref(), changes).map_err(end_reason)? {
            self.adopt(Record::Delta(delta), now);
        }
        Ok(())
    }

    fn take_tick(&mut self, tick: Tick, now: Now) {
        self.clock.hear(&tick, now);
        if let Some((_, status)) = self.session.as_mut().and_then(|s| s.welcomed.as_mut()) {
            *status = picture(status.coordinator, &tick);
        }
    }

    fn take_close(&mut self, reason: CloseReason) {
        match reason {
            CloseReason::Removed => self.removed = true,
            CloseReason::DuplicateIdentity => {
                self.warn(Warning::DuplicateIdentity, true);
            }
            CloseReason::WrongHistory => {
                self.warn(Warning::Forgotten, true);
            }
            CloseReason::Protocol | CloseReason::SlowReader | CloseReason::GoElsewhere | CloseReason::Full => {}
        }
        self.end_session(EndReason::Closed(reason));
    }
}

fn picture(coordinator: CoordinatorId, tick: &Tick) -> SessionStatus {
    SessionStatus { coordinator, fresh: tick.fresh, leader: tick.leader, voters: tick.voters.clone() }
}

fn end_reason(error: NetmapError) -> EndReason {
    tracing::warn!(%error, "coordinator's word refused");
    match error {
        NetmapError::OldEpoch { .. } | NetmapError::SplitEpoch { .. } | NetmapError::OtherMesh { .. } => {
            EndReason::WrongHistory
        }
        NetmapError::Gap { .. } | NetmapError::NoBase => EndReason::OutOfStep,
        NetmapError::Backwards { .. } | NetmapError::StrayPage(_) | NetmapError::TooMany { .. } => EndReason::Protocol,
    }
}
