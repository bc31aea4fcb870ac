//! Tells when the underlay changes, from the kernel's events.
//!
//! A change comes as a burst: an address goes, its routes go, the next address comes. The first event is acted upon after
//! a few milliseconds of quiet, and under a lasting storm all the same. Events that change nothing of the [`Underlay`]
//! are swallowed here. Events that were lost are no loss: what counts is read anew each time.

use super::netlink::Background;
use super::{LinkError, Links, Underlay};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
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

/// A watch on the underlay of one network namespace.
pub struct Monitor {
    own: String,
    mark: u32,
    links: Links,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    underlay: Underlay,
    next_look: Instant,
    /// Whether something happened since the last look.
    pending: bool,
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
        let next_look = Instant::now();
        Ok(Self { own: own.to_owned(), mark, links, events, underlay, next_look, pending: false, _task: task })
    }

    /// The underlay as it was last seen.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Waits for the next change and returns what is now. May be dropped at any await and called again.
    pub async fn changed(&mut self) -> Result<&Underlay, LinkError> {
        loop {
            self.next_burst().await?;
            let now = self.links.underlay(&self.own, self.mark).await?;
            self.next_look = Instant::now() + PACE;
            self.pending = false;
            if now != self.underlay {
                debug!(addresses = now.addresses.len(), mtu = now.overlay_mtu, "the underlay changed");
                self.underlay = now;
                return Ok(&self.underlay);
            }
        }
    }

    /// Waits until something happened and has settled.
    async fn next_burst(&mut self) -> Result<(), LinkError> {
        let closed = || LinkError::system("watch the host's links", std::io::ErrorKind::BrokenPipe.into());
        if !self.pending {
            self.events.next().await.ok_or_else(closed)?;
            self.pending = true;
        }
        let latest = Instant::now() + LONGEST_BURST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet, self.events.next()).await {
                Ok(Some(_)) if Instant::now() < latest => {}
                Ok(None) => return Err(closed()),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        sleep_until(self.next_look).await;
        // What came while waiting is covered by the look that follows.
        while self.events.try_recv().is_ok() {}
        Ok(())
    }
}
