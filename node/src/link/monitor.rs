//! Tells when the underlay changes, from the kernel's events.
//!
//! A change comes as a burst: an address goes, its routes go, the next address comes. The first event is acted upon after
//! a few milliseconds of quiet, and under a lasting storm all the same. Events that change nothing of the [`Underlay`]
//! are swallowed here. Events that were lost are no loss: what counts is read anew each time.

use super::netlink::Background;
use super::{LinkError, Links, Underlay};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

/// A burst is over when nothing came for so long.
const QUIET: Duration = Duration::from_millis(3);

/// No burst is waited out for longer.
const LONGEST_BURST: Duration = Duration::from_millis(20);

/// The least time between two looks, so that a host with restless routes is not kept busy by us.
const PACE: Duration = Duration::from_millis(20);

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What is other than before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The underlay, as it is now.
    Underlay(Underlay),
    /// Something of our own interface: its being up, an address, a route. Our own changes are told as well.
    OwnInterface,
}

/// A watch on one network namespace.
pub struct Monitor {
    own: String,
    /// Index of our own interface, while it is there.
    own_index: Option<u32>,
    mark: u32,
    links: Links,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    underlay: Underlay,
    next_look: Instant,
    /// Whether something happened since the last look.
    pending: bool,
    /// Whether some of it was to our own interface and is not told yet.
    touched: bool,
    _task: Background,
}

impl Monitor {
    /// Starts to watch; see [`Links::underlay`] for what `own` and `mark` leave out and bring in.
    pub async fn start(own: &str, mark: u32) -> Result<Self, LinkError> {
        // The watch comes first, so that no change falls between the first look and it.
        let (connection, _handle, events) =
            new_multicast_connection(&GROUPS).map_err(|error| LinkError::system("watch the host's links", error))?;
        let task = Background::spawn(connection);
        let links = Links::open()?;
        let underlay = links.underlay(own, mark).await?;
        Ok(Self {
            own: own.to_owned(),
            own_index: links.index(own).await?,
            mark,
            links,
            events,
            underlay,
            next_look: Instant::now(),
            pending: false,
            touched: false,
            _task: task,
        })
    }

    /// The underlay as it was last seen.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Waits for the next change. May be dropped at any await and called again.
    pub async fn changed(&mut self) -> Result<Change, LinkError> {
        loop {
            if !self.pending && std::mem::take(&mut self.touched) {
                return Ok(Change::OwnInterface);
            }
            self.next_burst().await?;
            let now = self.links.underlay(&self.own, self.mark).await?;
            self.next_look = Instant::now() + PACE;
            self.pending = false;
            if now != self.underlay {
                debug!(addresses = now.addresses.len(), mtu = now.overlay_mtu, "the underlay changed");
                self.underlay = now.clone();
                return Ok(Change::Underlay(now));
            }
        }
    }

    /// Waits until something happened and has settled.
    async fn next_burst(&mut self) -> Result<(), LinkError> {
        let closed = || LinkError::system("watch the host's links", std::io::ErrorKind::BrokenPipe.into());
        if !self.pending {
            let (message, _) = self.events.next().await.ok_or_else(closed)?;
            self.note(&message);
            self.pending = true;
        }
        let latest = Instant::now() + LONGEST_BURST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet, self.events.next()).await {
                Ok(Some((message, _))) => {
                    self.note(&message);
                    if Instant::now() >= latest {
                        break;
                    }
                }
                Ok(None) => return Err(closed()),
                Err(_) => break,
            }
        }
        sleep_until(self.next_look).await;
        // What came while waiting is covered by the look that follows.
        while let Ok((message, _)) = self.events.try_recv() {
            self.note(&message);
        }
        Ok(())
    }

    /// Notes whether an event is about our own interface, by its index, or by its name where it is new.
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        let NetlinkPayload::InnerMessage(message) = &message.payload else { return };
        let index = match message {
            RouteNetlinkMessage::NewLink(link) => {
                if link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(name) if *name == self.own)) {
                    self.own_index = Some(link.header.index);
                }
                Some(link.header.index)
            }
            RouteNetlinkMessage::DelLink(link) => Some(link.header.index),
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                Some(address.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
            }
            _ => None,
        };
        self.touched |= index.is_some() && index == self.own_index;
    }
}
