//! The session with a coordinator: one task that keeps exactly one open, whatever happens to coordinators and networks.
//!
//! Life-cycle: spawned when the node is a member and its interface is wanted, ended by dropping the [`Session`]. It
//! dials, says hello, hands on what comes, and dials again, jittered, when the stream ends. It understands nothing of
//! what it carries but the first message's freshness: the core decides when a session is of no more use.

mod backoff;
mod open;
mod places;

pub(crate) use open::Opener;
pub(crate) use places::Places;

use crate::session::backoff::Backoff;
use crate::session::open::{Open, OpenError};
use mesh_node_core::EndReason;
use mesh_proto::convert::Wire as _;
use mesh_proto::v1;
use mesh_types::session::{CloseReason, CoordinatorMessage};
use mesh_types::{CoordinatorId, limits};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// A session that lasted this long was a good one: the next dial waits no longer than the first.
const GOOD: Duration = Duration::from_secs(10);
/// The least wait after being told that another daemon has our identity and lives, doubled each time and up to twice as
/// long: a person has to end one of the two.
const DUPLICATE_PAUSE: Duration = Duration::from_secs(1);
/// How often it is doubled: whoever ended the other one does not want to wait long for this one.
const DUPLICATE_DOUBLINGS: u32 = 3;
/// The loop's orders are few; more waiting than this means that the task hangs.
const ORDERS: usize = 16;

/// What the session tells the loop, in order.
#[derive(Debug)]
pub(crate) enum News {
    /// A stream is open, hello was sent on it; any earlier one is gone.
    Opened {
        /// Who is at the other end.
        coordinator: CoordinatorId,
        /// For what the node says.
        to: mpsc::Sender<v1::NodeMessage>,
    },
    /// The coordinator said something.
    Heard(CoordinatorMessage),
    /// The stream has ended.
    Closed,
    /// No coordinator could be reached, and why.
    Unreachable(String),
}

/// What the loop tells the session.
#[derive(Debug)]
enum Order {
    End(EndReason),
    LookElsewhere,
    Underlay(Vec<IpAddr>),
}

/// The running task; dropping it ends session and task.
pub(crate) struct Session {
    orders: mpsc::Sender<Order>,
    news: mpsc::Receiver<News>,
    task: JoinHandle<()>,
}

impl Session {
    /// Begins to dial at once, from a host with these addresses.
    pub(crate) fn spawn(opener: Opener, addresses: Vec<IpAddr>) -> Self {
        let (orders, ordered) = mpsc::channel(ORDERS);
        // As bounded as the coordinator's queue: when the loop is slow, TCP holds the coordinator back.
        let (told, news) = mpsc::channel(limits::SESSION_QUEUE);
        let task =
            tokio::spawn(Keeper { opener, orders: ordered, news: told, addresses, avoid: None, refusals: 0 }.run());
        Self { orders, news, task }
    }

    /// The next news; `None` if the task has ended, which it does only by a bug.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Ends the stream; another is opened, with another coordinator if there is one.
    pub(crate) fn end(&self, reason: EndReason) {
        self.order(Order::End(reason));
    }

    /// Looks for a coordinator that has contact to a leader, and changes over when one is found.
    pub(crate) fn look_elsewhere(&self) {
        self.order(Order::LookElsewhere);
    }

    /// Tells the addresses of the host, so that a stream from one that is gone is given up at once.
    pub(crate) fn underlay(&self, addresses: Vec<IpAddr>) {
        self.order(Order::Underlay(addresses));
    }

    fn order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            warn!(%error, "the session does not take orders");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What comes after a stream.
enum Next {
    /// Dial at once: the network changed, not the coordinator.
    Now,
    /// Dial after a jittered wait.
    Backoff,
    /// Dial after this wait.
    After(Duration),
    /// The loop is gone.
    Stop,
}

struct Keeper {
    opener: Opener,
    orders: mpsc::Receiver<Order>,
    news: mpsc::Sender<News>,
    /// The host's, as last told.
    addresses: Vec<IpAddr>,
    avoid: Option<CoordinatorId>,
    /// Sessions that were refused in a row.
    refusals: u32,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let next = match self.open().await {
                Ok(open) => {
                    let begun = Instant::now();
                    let next = self.keep(open).await;
                    if begun.elapsed() >= GOOD {
                        backoff = Backoff::new();
                    }
                    next
                }
                Err(next) => next,
            };
            let pause = match next {
                Next::Now => Duration::ZERO,
                Next::Backoff => backoff.next(),
                Next::After(pause) => pause,
                Next::Stop => return,
            };
            if !self.pause(pause).await {
                return;
            }
        }
    }

    /// Opens a stream; begins anew whenever the network changes.
    async fn open(&mut self) -> Result<Open, Next> {
        loop {
            let opener = self.opener.clone();
            let opening = opener.open_any(self.avoid);
            tokio::pin!(opening);
            let result = loop {
                tokio::select! {
                    result = &mut opening => break Some(result),
                    order = self.orders.recv() => match order {
                        Some(Order::Underlay(addresses)) => {
                            self.addresses = addresses;
                            break None;
                        }
                        // There is no session to end or to leave.
                        Some(Order::End(_) | Order::LookElsewhere) => {}
                        None => return Err(Next::Stop),
                    },
                }
            };
            match result {
                Some(Ok(open)) => return Ok(open),
                Some(Err(error)) => return Err(self.unreachable(&error).await),
                None => debug!("network changed, dialling anew"),
            }
        }
    }

    async fn unreachable(&mut self, error: &OpenError) -> Next {
        debug!(%error, "no session");
        match self.news.send(News::Unreachable(error.to_string())).await {
            Ok(()) => Next::Backoff,
            Err(_) => Next::Stop,
        }
    }

    /// Hands on what comes until the stream is at its end.
    async fn keep(&mut self, mut open: Open) -> Next {
        let refused = open.refusal();
        if self.announce(&mut open).await.is_err() {
            return Next::Stop;
        }
        let next = match refused {
            Some(reason) => self.closed(open.coordinator, reason),
            None => {
                self.refusals = 0;
                self.hand_on(open).await
            }
        };
        match self.news.send(News::Closed).await {
            Ok(()) => next,
            Err(_) => Next::Stop,
        }
    }

    async fn hand_on(&mut self, mut open: Open) -> Next {
        let mut search = Search::default();
        loop {
            tokio::select! {
                message = open.next() => match message {
                    Ok(Some(message)) => {
                        let closed = match &message {
                            CoordinatorMessage::Close(reason) => Some(*reason),
                            _ => None,
                        };
                        if self.news.send(News::Heard(message)).await.is_err() {
                            return Next::Stop;
                        }
                        if let Some(reason) = closed {
                            break self.closed(open.coordinator, reason);
                        }
                    }
                    Ok(None) => {
                        info!(coordinator = %open.coordinator, "the coordinator ended the session");
                        break self.leave(open.coordinator);
                    }
                    Err(error) => {
                        info!(coordinator = %open.coordinator, %error, "session lost");
                        break self.leave(open.coordinator);
                    }
                },
                order = self.orders.recv() => match order {
                    Some(Order::End(reason)) => {
                        debug!(coordinator = %open.coordinator, ?reason, "ending the session");
                        break match reason {
                            EndReason::OutOfStep => Next::Backoff,
                            EndReason::Closed(reason) => self.closed(open.coordinator, reason),
                            EndReason::WrongHistory | EndReason::Protocol | EndReason::Behind => {
                                self.leave(open.coordinator)
                            }
                        };
                    }
                    Some(Order::LookElsewhere) => search.begin(&self.opener, open.coordinator),
                    Some(Order::Underlay(addresses)) => {
                        let before = std::mem::replace(&mut self.addresses, addresses);
                        if before.contains(&open.local) && !self.addresses.contains(&open.local) {
                            info!(coordinator = %open.coordinator, from = %open.local, "our address is gone, dialling anew");
                            break Next::Now;
                        }
                    }
                    None => return Next::Stop,
                },
                Some(found) = search.next() => {
                    info!(from = %open.coordinator, to = %found.coordinator, "changing to a fresh coordinator");
                    if self.news.send(News::Closed).await.is_err() {
                        return Next::Stop;
                    }
                    open = *found;
                    if self.announce(&mut open).await.is_err() {
                        return Next::Stop;
                    }
                }
            }
        }
    }

    async fn announce(&mut self, open: &mut Open) -> Result<(), mpsc::error::SendError<News>> {
        info!(coordinator = %open.coordinator, address = %open.remote, "session open");
        self.avoid = None;
        self.news.send(News::Opened { coordinator: open.coordinator, to: open.to.clone() }).await?;
        match open.first.take() {
            Some(first) => self.news.send(News::Heard(first)).await,
            None => Ok(()),
        }
    }

    fn closed(&mut self, coordinator: CoordinatorId, reason: CloseReason) -> Next {
        debug!(%coordinator, ?reason, "the coordinator closed the session");
        match reason {
            CloseReason::SlowReader => Next::Backoff,
            CloseReason::DuplicateIdentity | CloseReason::Removed => {
                let pause = DUPLICATE_PAUSE * 2_u32.pow(self.refusals.min(DUPLICATE_DOUBLINGS));
                self.refusals = self.refusals.saturating_add(1);
                Next::After(pause + backoff::jitter(pause))
            }
            CloseReason::GoElsewhere | CloseReason::Full | CloseReason::WrongHistory | CloseReason::Protocol => {
                self.leave(coordinator)
            }
        }
    }

    fn leave(&mut self, coordinator: CoordinatorId) -> Next {
        self.avoid = Some(coordinator);
        Next::Backoff
    }

    /// Waits, but not beyond a change of the network. `false` if the loop is gone.
    async fn pause(&mut self, pause: Duration) -> bool {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return true,
                order = self.orders.recv() => match order {
                    Some(Order::Underlay(addresses)) => {
                        self.addresses = addresses;
                        return true;
                    }
                    Some(Order::End(_) | Order::LookElsewhere) => {}
                    None => return false,
                },
            }
        }
    }
}

/// The look around for a fresh coordinator while a stale session goes on.
#[derive(Default)]
struct Search(Option<futures::future::BoxFuture<'static, Option<Box<Open>>>>);

impl Search {
    fn begin(&mut self, opener: &Opener, stale: CoordinatorId) {
        if self.0.is_none() {
            let opener = opener.clone();
            self.0 = Some(Box::pin(async move {
                sleep(backoff::jitter(Duration::from_millis(500))).await;
                opener.open_fresh(stale).await.map(Box::new)
            }));
        }
    }

    /// What is found; `None` once when nothing is, and never while no search runs.
    async fn next(&mut self) -> Option<Box<Open>> {
        let found = match &mut self.0 {
            Some(search) => search.await,
            None => std::future::pending().await,
        };
        self.0 = None;
        found
    }
}

/// The message as it goes over the wire.
pub(crate) fn to_wire(message: &mesh_types::NodeMessage) -> v1::NodeMessage {
    message.to_wire()
}
