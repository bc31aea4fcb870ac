//! What the daemon has on its host: the device, the interface's addresses and routes, the probe sockets.
//!
//! All of it stands or falls together: made by [`Host::make`], taken away by [`Host::take_down`]. It decides nothing.
//! Every operation is bounded in time: a kernel that hangs must not hang the loop.

use crate::device::{Backend, Device, DeviceError};
use crate::ground::Ground;
use crate::guard::child::GuardChild;
use crate::link::{HostRoute, LinkConfig, LinkError};
use crate::probe::{Datagram, ProbeSockets};
use futures::TryFutureExt as _;
use mesh_node_core::device::{ActualDevice, DeviceUpdate};
use mesh_node_core::{DesiredLink, Link};
use mesh_types::PublicKey;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

/// More than a thousand peers take; a kernel that needs longer is stuck.
const LONGEST: Duration = Duration::from_secs(10);
/// Between two attempts to make the interface.
const RETRY: Duration = Duration::from_secs(2);
/// The least time between two looks at the interface because it was touched: our own touch counts, and another program
/// may undo ours each time.
const PACE: Duration = Duration::from_secs(1);

/// Why something could not be done on the host.
#[derive(Debug, Error)]
pub enum HostError {
    /// With the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// With addresses or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// With the probe sockets.
    #[error("cannot open the probe sockets on {interface}: {source}")]
    Probe {
        /// The interface.
        interface: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{doing} took longer than {} s", LONGEST.as_secs())]
    Slow {
        /// What was being done.
        doing: &'static str,
    },
}

impl HostError {
    /// Whether it is for lack of rights or of /dev/net/tun.
    pub fn is_permission(&self) -> bool {
        fn device(error: &DeviceError) -> bool {
            match error {
                DeviceError::Privilege { .. } | DeviceError::NoTun { .. } => true,
                DeviceError::NoBackend { userspace, .. } => device(userspace),
                _ => false,
            }
        }
        match self {
            Self::Device(error) => device(error),
            Self::Link(error) => matches!(error, LinkError::Privilege { .. }),
            Self::Probe { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
            Self::Slow { .. } => false,
        }
    }

    /// Whether the interface's name belongs to somebody else.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_taken())
    }

    /// Whether it stays until a person mends it: rights, or a name or a port that is taken.
    fn is_lasting(&self) -> bool {
        self.is_permission() || self.is_taken() || matches!(self, Self::Device(DeviceError::PortTaken { .. }))
    }
}

/// Whether our own datagrams are kept out of our own interface.
#[derive(PartialEq, Eq)]
enum Rule {
    /// Not yet, or no more.
    Absent,
    Stands,
    /// They are not.
    Failed(String),
}

/// What stands on the host now, and what should.
pub(crate) struct Host {
    ground: Arc<dyn Ground>,
    interface: String,
    /// By which our device is told from another's; none while there are no keys, and so no device.
    ours: Option<PublicKey>,
    device: Option<Box<dyn Device>>,
    guard: Option<GuardChild>,
    /// Whether it was said that there is no guard.
    unguarded: bool,
    probes: Option<ProbeSockets>,
    drop_rule: Rule,
    desired: Option<Link>,
    mtu: u16,
    /// Why it does not stand as desired, and when to try again.
    trouble: Option<(HostError, Instant)>,
    /// When to see whether the interface is still as desired: somebody has touched it.
    look_at: Option<Instant>,
    /// When it was last made.
    made: Option<Instant>,
    /// Why the device did not do as asked, the last time.
    device_trouble: Option<HostError>,
    /// The host's routes that the overlay overlaps, as last seen.
    overlaps: Vec<HostRoute>,
}

impl Host {
    pub(crate) fn new(ground: Arc<dyn Ground>, interface: &str, ours: Option<PublicKey>, mtu: u16) -> Self {
        Self {
            ground,
            interface: interface.to_owned(),
            ours,
            device: None,
            guard: None,
            unguarded: false,
            probes: None,
            drop_rule: Rule::Absent,
            desired: None,
            mtu,
            trouble: None,
            look_at: None,
            made: None,
            device_trouble: None,
            overlaps: Vec::new(),
        }
    }

    /// What it stands on.
    pub(crate) fn ground(&self) -> Arc<dyn Ground> {
        self.ground.clone()
    }

    /// The name of the interface.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// What runs the tunnels, if anything does.
    pub(crate) fn backend(&self) -> Option<Backend> {
        self.device.as_ref().map(|device| device.backend())
    }

    /// Whether all is as desired.
    pub(crate) fn stands(&self) -> bool {
        self.desired.is_some() && self.device.is_some() && self.why_not().is_none()
    }

    /// Why it does not stand as desired, or the device does not do as asked.
    pub(crate) fn why_not(&self) -> Option<String> {
        self.trouble().or(self.device_trouble()).map(ToString::to_string)
    }

    /// Whether it will not stand before a person mends something on this host.
    pub(crate) fn awaits_mending(&self) -> bool {
        self.trouble().into_iter().chain(self.device_trouble()).any(HostError::is_lasting)
    }

    /// Why it does not stand as desired.
    pub(crate) fn trouble(&self) -> Option<&HostError> {
        self.trouble.as_ref().map(|(error, _)| error)
    }

    /// Why the device did not do as asked, if it did not the last time.
    pub(crate) fn device_trouble(&self) -> Option<&HostError> {
        self.device_trouble.as_ref()
    }

    /// The host's routes that the overlay overlaps: they came after the join, and are left alone.
    pub(crate) fn overlaps(&self) -> &[HostRoute] {
        &self.overlaps
    }

    /// When to call [`Host::remake`].
    pub(crate) fn remake_at(&self) -> Option<Instant> {
        self.trouble.as_ref().map(|(_, at)| *at).into_iter().chain(self.look_at).min()
    }

    /// Takes the news that somebody, perhaps we, has changed something of the interface.
    pub(crate) fn look_soon(&mut self) {
        if self.desired.is_some() {
            let now = Instant::now();
            self.look_at.get_or_insert(self.made.map_or(now, |made| now.max(made + PACE)));
        }
    }

    /// What keeps the interface from standing, if only a person can mend it.
    pub(crate) fn take_hopeless(&mut self) -> Option<HostError> {
        match self.trouble.take() {
            Some((error, _)) if error.is_lasting() => Some(error),
            trouble => {
                self.trouble = trouble;
                None
            }
        }
    }

    /// Another key makes another device: after leaving, the next membership begins with new ones.
    pub(crate) fn set_key(&mut self, ours: Option<PublicKey>) {
        self.ours = ours;
    }

    /// Makes the interface, still without addresses, to learn early whether this host lets us.
    pub(crate) async fn prepare(&mut self) -> Result<(), HostError> {
        if self.device.is_none() {
            let ours = self.ours.expect("keys are made before a join, and a member has them");
            let opened = timeout(LONGEST, self.ground.open(ours)).await;
            let device = opened.map_err(|_| HostError::Slow { doing: "making the interface" })??;
            info!(interface = self.interface, backend = %device.backend(), "device open");
            self.device = Some(device);
            self.keep_guard();
        }
        Ok(())
    }

    /// Sees to it that a device which would outlive this process has its guard.
    fn keep_guard(&mut self) {
        let stands = self.guard.as_mut().is_some_and(GuardChild::stands);
        if stands || self.backend() != Some(Backend::Kernel) {
            return;
        }
        self.guard = match self.ground.guard() {
            Ok(guard) => guard,
            Err(error) => {
                // Tried again at each look at the device: said once.
                if !std::mem::replace(&mut self.unguarded, true) {
                    let interface = &self.interface;
                    warn!(interface, %error, "no guard: nobody would take the device down without this daemon");
                }
                None
            }
        };
    }

    /// Makes the interface what it should be. What fails is tried again later, see [`Host::remake_at`].
    pub(crate) async fn make(&mut self, desired: &DesiredLink) {
        match desired {
            // What fails is in the log and in the status, and tried again.
            DesiredLink::Down => drop(self.take_down().await),
            DesiredLink::Up(link) => {
                if self.desired.as_ref().is_some_and(|held| held.addresses != link.addresses) {
                    // They are bound to the addresses.
                    self.probes = None;
                }
                self.desired = Some(link.clone());
                self.remake().await;
            }
        }
    }

    /// Tries again what [`Host::make`] was asked for. Harmless when all is well.
    pub(crate) async fn remake(&mut self) {
        self.look_at = None;
        self.made = Some(Instant::now());
        let Some(link) = self.desired.clone() else {
            if self.trouble.is_some() {
                drop(self.take_down().await);
            }
            return;
        };
        let before = self.trouble.take().map(|(error, _)| error.to_string());
        let stood = self.device.is_some();
        if let Err(error) = self.try_make(&link).await {
            // Tried again for as long as it takes: said once.
            if before.is_none_or(|before| before != error.to_string()) {
                warn!(interface = self.interface, %error, "the interface is not as it should be");
            }
            // One that somebody removed is made anew at once.
            let gone = stood && matches!(error, HostError::Link(LinkError::NoInterface { .. }));
            self.trouble = Some((error, Instant::now() + if gone { Duration::ZERO } else { RETRY }));
        }
    }

    async fn try_make(&mut self, link: &Link) -> Result<(), HostError> {
        self.prepare().await?;
        self.keep_out();
        let config = LinkConfig { addresses: link.addresses, overlay: link.overlay, mtu: self.mtu };
        let configured = timeout(LONGEST, self.ground.configure(config)).await;
        let configured = configured.map_err(|_| HostError::Slow { doing: "configuring the interface" })?;
        if let Err(LinkError::NoInterface { .. }) = &configured {
            self.device = None;
            self.probes = None;
        }
        configured?;
        if self.probes.is_none() {
            let interface = self.interface.clone();
            self.probes = self.ground.probes(link).map_err(|source| HostError::Probe { interface, source })?;
        }
        self.look_for_overlaps(link).await;
        Ok(())
    }

    /// Keeps our own datagrams out of our own interface, before there is anything that they could be sent to. A host
    /// where that cannot be goes on without.
    fn keep_out(&mut self) {
        if self.drop_rule == Rule::Stands {
            return;
        }
        let made = match self.ground.make_drop_rule() {
            Ok(true) => Rule::Stands,
            Ok(false) => Rule::Failed("they bear no mark (--fwmark 0)".to_owned()),
            Err(error) => Rule::Failed(format!("the host's nf_tables refuse the rule: {error}")),
        };
        if let Rule::Failed(reason) = &made
            && self.drop_rule != made
        {
            warn!(interface = self.interface, reason, "own datagrams are not kept out of the own tunnel");
        }
        self.drop_rule = made;
    }

    /// Why our own datagrams are not kept out of our own tunnel, if they are not.
    pub(crate) fn unfiltered(&self) -> Option<&str> {
        match &self.drop_rule {
            Rule::Failed(reason) if self.device.is_some() => Some(reason),
            Rule::Failed(_) | Rule::Stands | Rule::Absent => None,
        }
    }

    /// How many own datagrams were kept out; `None` if nobody counts. A rule that somebody flushed is made anew.
    pub(crate) fn count_dropped(&mut self) -> Option<u64> {
        if self.drop_rule != Rule::Stands {
            return None;
        }
        match self.ground.count_dropped() {
            Ok(count) => Some(count),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                warn!(interface = self.interface, "somebody removed the rule that drops own datagrams: made anew");
                self.drop_rule = Rule::Absent;
                self.keep_out();
                None
            }
            Err(error) => {
                debug!(%error, "dropped datagrams not counted");
                None
            }
        }
    }

    /// The end of the daemon: what a kernel device needs stays with it.
    pub(crate) fn leave_standing(&mut self) {
        if self.backend() == Some(Backend::Userspace) {
            self.let_through();
        }
    }

    fn let_through(&mut self) {
        if std::mem::replace(&mut self.drop_rule, Rule::Absent) == Rule::Absent && self.device.is_some() {
            return;
        }
        if let Err(error) = self.ground.remove_drop_rule() {
            debug!(interface = self.interface, %error, "no rule removed");
        }
    }

    async fn look_for_overlaps(&mut self, link: &Link) {
        let Ok(Ok(found)) = timeout(LONGEST, self.ground.overlaps(link.overlay)).await else { return };
        for route in found.iter().filter(|route| !self.overlaps.contains(route)) {
            warn!(interface = self.interface, %route, "a route of this host overlaps the mesh's range");
        }
        self.overlaps = found;
    }

    /// Takes the interface away, with everything on it, also one that an earlier run left. Harmless if there is none;
    /// what fails is tried again later, see [`Host::remake_at`].
    pub(crate) async fn take_down(&mut self) -> Result<(), String> {
        self.desired = None;
        self.probes = None;
        self.trouble = None;
        self.look_at = None;
        self.device_trouble = None;
        self.overlaps.clear();
        let removed = match (self.device.take(), self.ours) {
            (Some(device), _) => timeout(LONGEST, device.remove().map_ok(|()| true)).await,
            (None, Some(ours)) => timeout(LONGEST, self.ground.clear(ours)).await,
            (None, None) => return Ok(()),
        };
        let error = match removed {
            Ok(Ok(removed)) => {
                self.stand_down(removed).await;
                return Ok(());
            }
            Ok(Err(DeviceError::Gone { .. })) => {
                self.stand_down(true).await;
                return Ok(());
            }
            Ok(Err(error)) => HostError::Device(error),
            Err(_) => HostError::Slow { doing: "removing the interface" },
        };
        warn!(interface = self.interface, %error, "interface not removed");
        let reason = error.to_string();
        self.trouble = Some((error, Instant::now() + RETRY));
        Err(reason)
    }

    /// What there is to do once nothing stands any more.
    async fn stand_down(&mut self, removed: bool) {
        if removed {
            info!(interface = self.interface, "interface removed");
        }
        self.let_through();
        if let Some(guard) = self.guard.take() {
            guard.dismiss().await;
        }
    }

    /// Takes the MTU that the underlay allows, whenever that has changed in any way.
    pub(crate) async fn set_mtu(&mut self, mtu: u16) {
        if self.mtu != mtu {
            self.mtu = mtu;
            self.remake().await;
        } else if let Some(link) = self.desired.clone() {
            self.look_for_overlaps(&link).await;
        }
    }

    /// Reads the device.
    pub(crate) async fn read(&mut self) -> Option<ActualDevice> {
        let device = self.device.as_mut()?;
        let read = timeout(LONGEST, device.read()).await;
        let read = self.judge("reading the device", read);
        self.keep_guard();
        read
    }

    /// Changes the device; whether it was done.
    pub(crate) async fn apply(&mut self, update: &DeviceUpdate) -> bool {
        let Some(device) = self.device.as_mut() else { return false };
        let applied = timeout(LONGEST, device.apply(update)).await;
        self.judge("changing the device", applied).is_some()
    }

    /// The next datagram on the probe port; none ever while there is no interface.
    pub(crate) async fn receive(&mut self) -> Datagram {
        match &self.probes {
            Some(probes) => probes.receive().await,
            None => pending().await,
        }
    }

    /// Sends a probe, if there is an interface.
    pub(crate) fn send_probe(&self, to: IpAddr, bytes: &[u8]) {
        if let Some(Err(error)) = self.probes.as_ref().map(|probes| probes.send(to, bytes)) {
            debug!(%to, %error, "probe not sent");
        }
    }

    fn judge<T>(
        &mut self,
        doing: &'static str,
        result: Result<Result<T, DeviceError>, tokio::time::error::Elapsed>,
    ) -> Option<T> {
        let error = match result {
            Ok(Ok(value)) => {
                self.device_trouble = None;
                return Some(value);
            }
            Ok(Err(error)) => HostError::Device(error),
            Err(_) => HostError::Slow { doing },
        };
        if self.device_trouble.as_ref().map(ToString::to_string) != Some(error.to_string()) {
            warn!(interface = self.interface, %error, doing, "the device does not do as asked");
        }
        if let HostError::Device(DeviceError::Gone { .. }) = &error {
            // Somebody removed the interface. It is made anew at once, and the core reads it again.
            self.device = None;
            self.device_trouble = None;
            self.probes = None;
            self.trouble = Some((error, Instant::now()));
        } else {
            self.device_trouble = Some(error);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fake::Fake;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use mesh_types::{Overlay, OverlayAddresses};
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    /// A host whose interface is loopback; it keeps the addresses that probe sockets were opened on.
    #[derive(Default)]
    struct Loopback(Mutex<Vec<Ipv4Addr>>);

    impl Ground for Loopback {
        fn open(&self, _ours: PublicKey) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
            async { Ok(Box::new(Fake::new("lo").0) as Box<dyn Device>) }.boxed()
        }

        fn clear(&self, _ours: PublicKey) -> BoxFuture<'_, Result<bool, DeviceError>> {
            async { Ok(false) }.boxed()
        }

        fn configure(&self, _config: LinkConfig) -> BoxFuture<'_, Result<(), LinkError>> {
            async { Ok(()) }.boxed()
        }

        fn overlaps(&self, _overlay: Overlay) -> BoxFuture<'_, Result<Vec<HostRoute>, LinkError>> {
            async { Ok(Vec::new()) }.boxed()
        }

        fn make_drop_rule(&self) -> std::io::Result<bool> {
            Ok(true)
        }

        fn count_dropped(&self) -> std::io::Result<u64> {
            Ok(0)
        }

        fn remove_drop_rule(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn guard(&self) -> std::io::Result<Option<GuardChild>> {
            Ok(None)
        }

        fn probes(&self, link: &Link) -> std::io::Result<Option<ProbeSockets>> {
            self.0.lock().unwrap().push(link.addresses.v4);
            ProbeSockets::open("lo", link.addresses).map(Some)
        }
    }

    #[tokio::test]
    async fn probe_sockets_are_bound_to_the_addresses_that_the_interface_has_now() {
        let ground = Arc::new(Loopback::default());
        let mut host = Host::new(ground.clone(), "lo", Some(PublicKey::from_bytes([1; 32])), 1_420);
        let overlay = Overlay::new("198.18.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap();
        let v6 = "::1".parse().unwrap();
        for last in [1, 1, 2] {
            let addresses = OverlayAddresses { v4: Ipv4Addr::new(127, 0, 0, last), v6 };
            host.make(&DesiredLink::Up(Link { addresses, overlay })).await;
            assert!(host.stands(), "{:?}", host.trouble());
        }
        assert_eq!(*ground.0.lock().unwrap(), [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)]);
    }
}
