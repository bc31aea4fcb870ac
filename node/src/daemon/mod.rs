//! The loop: one place where everything that happens is taken in, and everything that must be done is done.
//!
//! Each turn awaits one event ([`Daemon::next`]), takes it in without waiting ([`Daemon::handle`]), and then does, in
//! order, what the core and the event ask for ([`Daemon::settle`]). What takes long (joining, renewing, leaving) runs
//! in tasks that report back as events. The daemon knows when to do things, the core knows what.

mod actions;
pub(crate) mod journal;
pub(crate) mod member;
mod requests;
mod steps;

use crate::clock;
use crate::failure::Failure;
use crate::host::Host;
use crate::join::{Join, JoinError, join};
use crate::link::{Change, LinkError, Monitor, Underlay};
use crate::local::{Answer, Request};
use crate::options::Options;
use crate::probe::Datagram;
use crate::refusal::Refusal;
use crate::session::{News, Session};
use crate::state::{Keys, Membership, Standing, StateDir, StateError};
use crate::token;
use member::Member;
use mesh_node_core::{Now, SessionEvent};
use mesh_proto::v1::{DownReply, LocalJoinReply, LocalLeaveReply, UpReply};
use mesh_types::netmap::Certificate;
use mesh_types::{AllowedIp, JoinToken, MeshTime, NodeName, TokenId};
use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError as TaskError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

/// Timers run on a clock that stands still while the host sleeps: after waking up, this is the longest that is lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// Between two attempts to watch the underlay.
const MONITOR_RETRY: Duration = Duration::from_secs(1);
/// From being a member to the first netmap: what `meshctl join` waits for, more than a dial and a page take.
const FIRST_NETMAP: Duration = Duration::from_secs(15);
/// What `meshctl up` of a removed node waits for: more than a dial and a first word take, less than a person's patience.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Where this host is in its life.
enum Life {
    /// No membership.
    New,
    /// A join is under way.
    Joining(Joining),
    /// A member.
    Member(Box<Member>),
    /// Removed by an operator; the membership is kept in case they allow it again.
    Removed(Box<Membership>),
}

/// A join that is under way.
struct Joining {
    token: TokenId,
    /// With the token that came with the start, however long it takes.
    by_file: bool,
    task: AbortHandle,
}

/// Something that happened.
enum Event {
    Request(Request),
    News(Option<News>),
    Links(Result<Change, LinkError>),
    Probe(Datagram),
    Done(Result<Outcome, TaskError>),
    Wake,
}

/// What a task reports at its end.
enum Outcome {
    Token(Result<JoinToken, Failure>),
    Joined { result: Result<Box<Membership>, JoinError>, by_file: bool },
    RenewedKey(Option<MeshTime>),
    RenewedCertificate(Option<(Certificate, Certificate)>),
    Left(Result<(), crate::ask::AskError>),
}

/// Something to do that takes a moment, asked for by an event.
enum Step {
    BeginJoin { token: JoinToken, name: Option<NodeName>, by_file: bool },
    EndJoin { refusal: Refusal, by_file: bool },
    BecomeMember { membership: Box<Membership>, fresh: bool },
    Forget { told: bool },
    TakeDown,
    SetMtu(u16),
    Remake,
}

/// A caller of join, who waits for interface and netmap.
struct Joiner {
    answer: Answer<LocalJoinReply>,
    already: bool,
}

/// A caller of `up` or `down`, who waits for it to be done.
enum Intender {
    Up {
        answer: Answer<UpReply>,
        /// Of a removed node: how long to wait for a coordinator to say whether it is allowed again.
        until: Option<Instant>,
    },
    Down(Answer<DownReply>),
}

impl Intender {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Up { until, .. } => *until,
            Self::Down(_) => None,
        }
    }
}

/// The daemon.
pub(crate) struct Daemon {
    options: Options,
    state: StateDir,
    /// None before the first join, and after leaving.
    keys: Option<Arc<Keys>>,
    host: Host,
    requests: mpsc::Receiver<Request>,
    life: Life,
    steps: Vec<Step>,
    tasks: JoinSet<Outcome>,
    joiners: Vec<Joiner>,
    intenders: Vec<Intender>,
    /// When the joiners are told that no session has begun.
    patience: Option<Instant>,
    leaving: Option<(Answer<LocalLeaveReply>, bool)>,
    /// The task that waits for the token that comes with the start.
    awaiting: Option<AbortHandle>,
    monitor: Option<Monitor>,
    watch_again: Instant,
    underlay: Vec<IpAddr>,
    /// What the host routes through the mesh.
    carried: BTreeSet<AllowedIp>,
    /// What ends the daemon.
    fatal: Option<Failure>,
}

impl Daemon {
    /// Takes up what is in the state directory; nothing is done before [`Daemon::run`].
    pub(crate) async fn new(
        options: Options,
        state: StateDir,
        host: Host,
        keys: Option<Keys>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, Failure> {
        let monitor = Monitor::start(host.interface(), options.fwmark.value).await?;
        let mut daemon = Self {
            options,
            state,
            keys: keys.map(Arc::new),
            host,
            requests,
            life: Life::New,
            steps: Vec::new(),
            tasks: JoinSet::new(),
            joiners: Vec::new(),
            intenders: Vec::new(),
            patience: None,
            leaving: None,
            awaiting: None,
            monitor: Some(monitor),
            watch_again: Instant::now(),
            underlay: Vec::new(),
            carried: BTreeSet::new(),
            fatal: None,
        };
        if let Some(underlay) = daemon.monitor.as_ref().map(|monitor| monitor.underlay().clone()) {
            daemon.take_underlay(&underlay);
        }
        daemon.take_up()?;
        Ok(daemon)
    }

    fn take_up(&mut self) -> Result<(), Failure> {
        match self.state.membership()? {
            Some(membership) if membership.standing == Standing::Member => {
                self.steps.push(Step::BecomeMember { membership: Box::new(membership), fresh: false });
            }
            Some(membership) => {
                warn!(node = %membership.record.name, "this node was removed from the mesh");
                self.steps.push(Step::TakeDown);
                self.life = Life::Removed(Box::new(membership));
            }
            None => self.wait_for_token(),
        }
        Ok(())
    }

    fn wait_for_token(&mut self) {
        self.awaiting = match (token::from_environment(), self.options.join_token_file.clone()) {
            (Some(token), _) => Some(self.tasks.spawn(async move { Outcome::Token(token) })),
            (None, Some(file)) => Some(self.tasks.spawn(async move { Outcome::Token(token::from_file(&file).await) })),
            (None, None) => {
                info!("not a member yet: waiting for `meshctl join TOKEN`");
                None
            }
        };
    }

    /// Runs until `stop`; then a kernel device is left as it is, and one of this process ends with it.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Failure> {
        tokio::pin!(stop);
        self.settle().await;
        self.check_start()?;
        loop {
            if let Some(failure) = self.fatal.take() {
                return Err(failure);
            }
            let event = tokio::select! {
                event = self.next() => event,
                () = &mut stop => {
                    self.stop(clock::now()).await;
                    return Ok(());
                }
            };
            self.handle(event, clock::now());
            self.settle().await;
        }
    }

    /// Keeps what is otherwise kept now and then; all else is on disk already.
    async fn stop(&mut self, now: Now) {
        if let Life::Member(member) = &mut self.life {
            member.node.handle_stop(now);
        }
        self.perform().await;
        self.host.leave_standing();
    }

    /// A start that cannot make its interface for want of rights ends: a person has to act, not time to pass.
    fn check_start(&mut self) -> Result<(), Failure> {
        match self.host.take_hopeless() {
            Some(error) => Err(Failure::Host(error)),
            None => Ok(()),
        }
    }

    async fn next(&mut self) -> Event {
        let wake = self.wake();
        let session = match &mut self.life {
            Life::Member(member) => member.session.as_mut(),
            _ => None,
        };
        tokio::select! {
            Some(request) = self.requests.recv() => Event::Request(request),
            news = next_news(session) => Event::News(news),
            change = next_change(self.monitor.as_mut()) => Event::Links(change),
            datagram = self.host.receive() => Event::Probe(datagram),
            Some(done) = self.tasks.join_next() => Event::Done(done),
            () = sleep_until(wake) => Event::Wake,
        }
    }

    /// When something is due, if nothing happens before.
    fn wake(&self) -> Instant {
        let latest = Instant::now() + LONGEST_SLEEP;
        let core = match &self.life {
            Life::Member(member) => member.node.poll_timeout(),
            _ => None,
        };
        let core = core.map(|at| Instant::now() + at.since(clock::since_boot()));
        let watch = self.monitor.is_none().then_some(self.watch_again);
        let word = self.intenders.iter().filter_map(Intender::until).min();
        [core, self.host.remake_at(), self.patience, watch, word].into_iter().flatten().fold(latest, Instant::min)
    }

    fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Request(request) => self.handle_request(request, now),
            Event::News(news) => self.handle_news(news, now),
            Event::Links(Ok(Change::Underlay(underlay))) => self.take_underlay(&underlay),
            Event::Links(Ok(Change::OwnInterface)) => self.host.look_soon(),
            Event::Links(Err(error)) => {
                warn!(%error, "the host's links are not watched, trying again");
                self.monitor = None;
                self.watch_again = Instant::now() + MONITOR_RETRY;
            }
            Event::Probe(datagram) => {
                if let Life::Member(member) = &mut self.life {
                    member.node.handle_probe(datagram.from, &datagram.bytes, now);
                }
            }
            Event::Done(Ok(outcome)) => self.handle_outcome(outcome, now),
            // Another took its place.
            Event::Done(Err(error)) if error.is_cancelled() => {}
            Event::Done(Err(error)) => error!(%error, "a task ended without a result"),
            Event::Wake => {
                if let Life::Member(member) = &mut self.life {
                    member.node.handle_timeout(now);
                }
            }
        }
    }

    fn handle_news(&mut self, news: Option<News>, now: Now) {
        let Life::Member(member) = &mut self.life else { return };
        match news {
            Some(News::Opened { coordinator, to }) => {
                member.coordinator = Some(coordinator);
                member.to = Some(to);
                member.unreachable = None;
                member.node.handle_session(SessionEvent::Opened, now);
            }
            Some(News::Heard(message)) => member.node.handle_message(message, now),
            Some(News::Closed) => member.closed(now),
            Some(News::Unreachable(why)) => {
                // Once for each outage; the order in which addresses fail is another each time.
                if member.unreachable.is_none() {
                    warn!(reason = why, "no session with a coordinator; the tunnels go on without");
                }
                member.unreachable = Some(why);
            }
            None => {
                error!("the session's task ended; it is begun anew");
                member.session = None;
                member.closed(now);
            }
        }
    }

    fn take_underlay(&mut self, underlay: &Underlay) {
        self.carried.clone_from(&underlay.carried);
        self.underlay = underlay.addresses.iter().map(|known| known.address).collect();
        self.steps.push(Step::SetMtu(underlay.overlay_mtu));
        if let Life::Member(member) = &mut self.life {
            debug!(addresses = ?self.underlay, "the underlay changed");
            member.node.handle_carried(self.carried.clone(), clock::now());
            member.node.handle_underlay(self.underlay.clone(), clock::now());
            if let Some(session) = &member.session {
                session.underlay(self.underlay.clone());
            }
        }
    }

    fn is_joining(&self, by_file: bool) -> bool {
        matches!(&self.life, Life::Joining(joining) if joining.by_file == by_file)
    }

    /// The node's keys, made if there are none; whose device is ours goes by them.
    fn own_keys(&mut self) -> Result<Arc<Keys>, StateError> {
        if let Some(keys) = &self.keys {
            return Ok(keys.clone());
        }
        let keys = Arc::new(self.state.keys()?);
        self.host.set_key(Some(keys.public_key()));
        self.keys = Some(keys.clone());
        Ok(keys)
    }

    fn begin_join(&mut self, keys: Arc<Keys>, token: JoinToken, name: Option<NodeName>, by_file: bool) {
        let id = token.id;
        let wish = name.or_else(|| self.options.name.clone()).unwrap_or_else(own_name);
        let (ground, fwmark) = (self.host.ground(), self.options.fwmark.on_sockets());
        let asked = Join { token, name: wish, keys, ground, fwmark };
        let task = self.tasks.spawn(async move {
            let result = if by_file { token::join_at_last(asked).await } else { join(asked).await };
            Outcome::Joined { result: result.map(Box::new), by_file }
        });
        self.life = Life::Joining(Joining { token: id, by_file, task });
    }
}

/// The host's name, as far as it can be a node's.
fn own_name() -> NodeName {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.and_then(|name| NodeName::from_hostname(&name)).unwrap_or_else(|| "node".parse().expect("a DNS label"))
}

async fn next_news(session: Option<&mut Session>) -> Option<News> {
    match session {
        Some(session) => session.next().await,
        None => pending().await,
    }
}

async fn next_change(monitor: Option<&mut Monitor>) -> Result<Change, LinkError> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => pending().await,
    }
}
