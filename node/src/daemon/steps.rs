//! The end of a turn: what events asked for, then what the core asks for, then what callers wait for.

use super::member::{Member, Ports};
use super::{Daemon, FIRST_NETMAP, Intender, Joiner, Life, MONITOR_RETRY, Outcome, Step};
use crate::clock;
use crate::failure::Failure;
use crate::host::{Host, HostError};
use crate::link::Monitor;
use crate::port;
use crate::refusal::Refusal;
use crate::state::{Keys, Membership, Standing};
use mesh_node_core::Now;
use mesh_proto::v1::{DownReply, LocalJoinReply, LocalLeaveReply, UpReply};
use std::sync::Arc;
use tokio::time::Instant;
use tracing::{error, info, warn};

impl Daemon {
    /// Does everything that is to be done now.
    pub(super) async fn settle(&mut self) {
        for step in std::mem::take(&mut self.steps) {
            self.step(step).await;
        }
        if self.host.remake_at().is_some_and(|at| at <= Instant::now()) {
            self.host.remake().await;
        }
        if self.monitor.is_none() && self.watch_again <= Instant::now() {
            self.watch_underlay().await;
        }
        self.perform().await;
        self.answer_joiners();
        self.answer_intenders();
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::BeginJoin { token, name, by_file } => match self.prepare().await {
                Ok(keys) => self.begin_join(keys, token, name, by_file),
                Err(refusal) => self.end_join(refusal, by_file).await,
            },
            Step::EndJoin { refusal, by_file } => self.end_join(refusal, by_file).await,
            Step::BecomeMember { membership, fresh } => self.become_member(*membership, fresh),
            // What fails is in the log, and tried again.
            Step::TakeDown => drop(self.host.take_down().await),
            Step::SetMtu(mtu) => self.host.set_mtu(mtu).await,
            Step::Remake => self.host.remake().await,
            Step::Forget { told } => {
                let forgotten = self.forget().await;
                if let Some((answer, _)) = self.leaving.take() {
                    // A caller who is gone does not need the answer.
                    let _ = answer.send(forgotten.map(|()| LocalLeaveReply { told }));
                }
            }
        }
    }

    /// Makes what a join needs on this host, before any coordinator is asked.
    async fn prepare(&mut self) -> Result<Arc<Keys>, Refusal> {
        let keys = self.own_keys()?;
        self.host.prepare().await.map_err(Refusal::Host)?;
        Ok(keys)
    }

    async fn watch_underlay(&mut self) {
        match Monitor::start(self.host.interface(), self.options.fwmark.value).await {
            Ok(monitor) => {
                let underlay = monitor.underlay().clone();
                self.monitor = Some(monitor);
                self.take_underlay(&underlay);
            }
            Err(error) => {
                warn!(%error, "the underlay cannot be watched");
                self.watch_again = Instant::now() + MONITOR_RETRY;
            }
        }
    }

    /// Takes up a membership. Session and interface begin at once, beside each other.
    fn become_member(&mut self, membership: Membership, fresh: bool) {
        let name = membership.record.name.clone();
        match self.start_member(membership) {
            Ok(mut member) => {
                let now = clock::now();
                info!(node = %name, mesh = %member.membership.mesh(), port = member.listen_port, "a member of the mesh");
                member.node.handle_carried(self.carried.clone(), now);
                member.node.handle_underlay(self.underlay.clone(), now);
                member.keep_session(&self.underlay, now);
                self.life = Life::Member(Box::new(member));
                if let Some(awaiting) = self.awaiting.take() {
                    awaiting.abort();
                }
                if fresh {
                    self.patience = Some(Instant::now() + FIRST_NETMAP);
                }
            }
            Err(failure) => {
                error!(error = %failure, "the membership cannot be taken up");
                self.fatal = Some(failure);
            }
        }
    }

    fn start_member(&mut self, membership: Membership) -> Result<Member, Failure> {
        let listen = port::choose(&self.state, self.options.listen_port)?;
        let keys = self.own_keys()?;
        Ok(Member::start(&self.state, &keys, membership, Ports { listen, fwmark: self.options.fwmark })?)
    }

    /// What a join led to.
    pub(super) fn handle_joined(&mut self, membership: Box<Membership>) {
        match self.state.begin_membership(&membership) {
            Ok(()) => self.steps.push(Step::BecomeMember { membership, fresh: true }),
            Err(error) => self.steps.push(Step::EndJoin { refusal: Refusal::State(error), by_file: false }),
        }
    }

    /// Tells that a join has failed, once nothing of it is left on the host. Who was a member before stays one.
    async fn end_join(&mut self, refusal: Refusal, by_file: bool) {
        warn!(error = %refusal, "not joined");
        match self.state.membership() {
            Ok(Some(membership)) if membership.standing == Standing::Member => self.become_member(membership, false),
            held => {
                // What fails is in the log, and tried again.
                drop(self.host.take_down().await);
                self.life = held.ok().flatten().map_or(Life::New, |held| Life::Removed(Box::new(held)));
            }
        }
        if by_file {
            self.fatal = Some(Failure::from_refusal(refusal));
            return;
        }
        let mut refusal = Some(refusal);
        for joiner in self.joiners.drain(..) {
            let told = refusal.take().unwrap_or(Refusal::Busy);
            // A caller who is gone does not need the answer.
            let _ = joiner.answer.send(Err(told));
        }
    }

    /// Tells those who asked to join, once the interface stands and a netmap is there, or once that will not be: it has
    /// taken too long, or somebody has to mend something first.
    fn answer_joiners(&mut self) {
        let Life::Member(member) = &mut self.life else { return };
        let record = &member.membership.record;
        let ready = self.host.stands() && member.node.cache().netmap.is_some();
        if ready {
            self.patience = None;
        }
        // Who joins again has perhaps mended it, and it was not tried since.
        let in_vain = self.host.awaits_mending() && !self.joiners.iter().any(|joiner| joiner.already);
        let late = self.patience.is_some_and(|at| at <= Instant::now() || in_vain);
        if late {
            self.patience = None;
        }
        if !ready && !late {
            return;
        }
        for Joiner { answer, already } in self.joiners.drain(..) {
            let reply = if ready {
                Ok(LocalJoinReply {
                    id: record.id.to_string(),
                    name: record.name.to_string(),
                    addresses: record.addresses.iter().map(|address| address.to_string()).collect(),
                    already,
                })
            } else {
                Err(not_ready(&self.host, member))
            };
            // A caller who is gone does not need the answer.
            let _ = answer.send(reply);
        }
    }

    /// Tells those who asked for the interface to come or go what became of it.
    fn answer_intenders(&mut self) {
        let unheard = match &self.life {
            Life::Member(member) => !member.has_heard(),
            Life::New | Life::Joining(_) | Life::Removed(_) => false,
        };
        for intender in std::mem::take(&mut self.intenders) {
            // A caller who is gone does not need the answer.
            match intender {
                Intender::Up { until: Some(until), .. } if unheard && Instant::now() < until => {
                    self.intenders.push(intender);
                }
                Intender::Up { answer, .. } => drop(answer.send(self.how_up())),
                Intender::Down(answer) => {
                    let trouble = self.host.trouble();
                    let done = trouble.map_or(Ok(DownReply {}), |error| Err(Refusal::StillThere(error.to_string())));
                    drop(answer.send(done));
                }
            }
        }
    }

    fn how_up(&self) -> Result<UpReply, Refusal> {
        match &self.life {
            Life::Removed(_) => Err(Refusal::Removed),
            _ if self.host.stands() => Ok(UpReply {}),
            _ => Err(not_up(&self.host)),
        }
    }

    /// Removes everything of the membership from this host. The interface comes first: without the key that is wiped
    /// then, nobody could tell that it is ours. Where it does not go, leaving can be asked for again.
    async fn forget(&mut self) -> Result<(), Refusal> {
        self.life = match std::mem::replace(&mut self.life, Life::New) {
            Life::Member(member) => Life::Removed(Box::new(member.membership)),
            other => other,
        };
        self.patience = None;
        self.host.take_down().await.map_err(Refusal::StillThere)?;
        self.state.wipe()?;
        self.life = Life::New;
        // The old keys are barred in the mesh that was left.
        self.keys = None;
        self.host.set_key(None);
        info!("left the mesh; nothing of it remains on this host");
        Ok(())
    }

    /// Takes note that an operator removed this node. The core had the interface taken down before.
    pub(super) fn removed(&mut self) {
        let Life::Member(member) = std::mem::replace(&mut self.life, Life::New) else { return };
        let membership = Membership { standing: Standing::Removed, ..member.membership };
        if let Err(error) = self.state.save_membership(&membership) {
            error!(%error, "that this node was removed could not be kept");
        }
        self.life = Life::Removed(Box::new(membership));
        self.patience = None;
        for joiner in self.joiners.drain(..) {
            // A caller who is gone does not need the answer.
            let _ = joiner.answer.send(Err(Refusal::Removed));
        }
    }

    pub(super) fn handle_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            // A person was first.
            Outcome::Token(_) if !matches!(self.life, Life::New) => info!("the token of the start is not needed"),
            Outcome::Token(Ok(token)) => self.steps.push(Step::BeginJoin { token, name: None, by_file: true }),
            Outcome::Token(Err(failure)) => self.fatal = Some(failure),
            // It ended in the moment in which another took its place.
            Outcome::Joined { by_file, .. } if !self.is_joining(by_file) => {}
            Outcome::Joined { result: Ok(membership), .. } => self.handle_joined(membership),
            Outcome::Joined { result: Err(error), by_file } => {
                self.steps.push(Step::EndJoin { refusal: Refusal::Join(error), by_file });
            }
            Outcome::Left(result) => self.handle_left(result),
            Outcome::RenewedKey(renewed) => {
                if let Life::Member(member) = &mut self.life {
                    member.renewing_key = false;
                    if let Some(expires_at) = renewed {
                        info!(%expires_at, "the key's lease is renewed");
                    }
                }
            }
            Outcome::RenewedCertificate(renewed) => {
                let Life::Member(member) = &mut self.life else { return };
                member.renewing_certificate = false;
                let Some((certificate, authority)) = renewed else { return };
                if let Err(error) = member.replace_certificate(certificate, authority, now) {
                    warn!(%error, "the new certificate does not serve");
                } else if let Err(error) = self.state.save_membership(&member.membership) {
                    warn!(%error, "the new certificate is not kept");
                } else {
                    info!("the certificate is renewed");
                }
            }
        }
    }
}

fn not_up(host: &Host) -> Refusal {
    Refusal::Interface {
        reason: host.why_not().unwrap_or_else(|| "it is being made".to_owned()),
        permission: host.trouble().is_some_and(HostError::is_permission),
    }
}

fn not_ready(host: &Host, member: &Member) -> Refusal {
    if host.why_not().is_some() {
        return not_up(host);
    }
    let reason = member.unreachable.clone().unwrap_or_else(|| "a coordinator answered, but sent no netmap".to_owned());
    Refusal::NoSession { name: member.membership.record.name.to_string(), reason }
}
