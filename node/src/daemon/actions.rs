//! Doing what the core says, strictly in its order.

use super::{Daemon, Life, Outcome};
use crate::clock;
use crate::session;
use mesh_node_core::{Action, EndReason};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, warn};

impl Daemon {
    /// Drains the core's actions, and those that follow from doing them.
    pub(super) async fn perform(&mut self) {
        let mut records = Vec::new();
        let mut removed = false;
        if let Life::Member(member) = &mut self.life {
            member.keep_session(&self.underlay, clock::now());
        }
        while let Life::Member(member) = &mut self.life {
            let action = member.node.poll_action();
            if let Some(Action::Persist(record)) = action {
                // Neighbours share one write and one sync; what follows them waits for it.
                records.push(record);
                continue;
            }
            if !records.is_empty() {
                member.journal.append(&records, member.node.cache());
                records.clear();
            }
            match action {
                Some(Action::Removed) => removed = true,
                Some(action) => self.act(action).await,
                None => {
                    member.publish(clock::now());
                    break;
                }
            }
        }
        if removed {
            self.removed();
        } else if let Life::Member(member) = &mut self.life {
            member.keep_session(&self.underlay, clock::now());
        }
    }

    async fn act(&mut self, action: Action) {
        let Life::Member(member) = &mut self.life else { return };
        match action {
            Action::Persist(_) | Action::Removed => unreachable!("done by the caller"),
            Action::Link(desired) => self.host.make(&desired).await,
            Action::Read => match self.host.read().await {
                Some(actual) => member.node.handle_device(actual, clock::now()),
                None => member.node.handle_device_failed(clock::now()),
            },
            Action::Apply(update) => {
                if self.host.apply(&update).await {
                    member.node.handle_applied(clock::now());
                } else {
                    member.node.handle_device_failed(clock::now());
                }
            }
            Action::CountDropped => {
                if let Some(count) = self.host.count_dropped() {
                    member.node.handle_dropped(count, clock::now());
                }
            }
            Action::SendProbe { to, bytes } => self.host.send_probe(to, &bytes),
            Action::Say(message) => {
                let message = session::to_wire(&message);
                let is_full = |to: &mpsc::Sender<_>| matches!(to.try_send(message), Err(TrySendError::Full(_)));
                if member.to.as_ref().is_some_and(is_full)
                    && let Some(session) = &member.session
                {
                    warn!("the coordinator does not take what this node says: ending the session");
                    session.end(EndReason::Protocol);
                }
            }
            Action::EndSession(reason) => {
                if let Some(session) = &member.session {
                    session.end(reason);
                }
            }
            Action::LookElsewhere => {
                if let Some(session) = &member.session {
                    session.look_elsewhere();
                }
            }
            Action::RenewKey => self.renew_key(),
            Action::RenewCertificate => self.renew_certificate(),
            Action::Pong(pong) => {
                if let Some(asked) = member.pings.remove(&pong.token) {
                    // A caller who is gone does not need the answer.
                    let _ = asked.send(pong.latency);
                }
            }
            Action::Warn(warning) => warn!("{warning}"),
        }
    }

    fn renew_key(&mut self) {
        let Life::Member(member) = &mut self.life else { return };
        if std::mem::replace(&mut member.renewing_key, true) {
            return;
        }
        let asker = member.asker();
        self.tasks.spawn(async move {
            let renewed = asker.renew_key().await;
            Outcome::RenewedKey(renewed.inspect_err(|error| debug!(%error, "lease not renewed")).ok())
        });
    }

    fn renew_certificate(&mut self) {
        let Life::Member(member) = &mut self.life else { return };
        if std::mem::replace(&mut member.renewing_certificate, true) {
            return;
        }
        let (asker, keys) = (member.asker(), member.keys.clone());
        let (mesh, record) = (member.membership.mesh(), member.membership.record.clone());
        self.tasks.spawn(async move {
            let renewed = asker.renew_certificate(keys, mesh, record).await;
            Outcome::RenewedCertificate(renewed.inspect_err(|error| debug!(%error, "certificate not renewed")).ok())
        });
    }
}
