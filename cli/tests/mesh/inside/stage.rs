//! Three members with traffic between them, and what may be asked of each: where its device sends, and how much.

use super::cable::{CABLE, Holder, Sent, route_all};
use super::tap::Tap;
use crate::machine::Machine;
use mesh_cli::lab::Lab;
use nix::mount::{MsFlags, mount};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The networks on the lab's cable: the one whose addresses change, and one whose addresses stay.
pub(crate) const CHANGING: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);
pub(crate) const STAYING: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);

const OVERLAY: &str = "10.77.0.0/24";
const OVERLAY_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
pub(crate) const LISTEN_PORT: u16 = 51820;
const DISCARD: u16 = 9;
/// A flood ends by itself at this many datagrams.
const FLOOD: u64 = 2_000_000;
/// How soon a member must have noticed that the kernel took an endpoint that it may not have; on a slow machine.
const LOOK: Duration = Duration::from_secs(3);

/// Where hosts have their underlay addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// On the cable, whose network's route goes with the last of them.
    Cable,
    /// On another interface, as where routing reaches to the host: routes over the cable stay.
    Beside,
}

/// A member of the mesh and its host.
pub(crate) struct Member {
    pub(crate) machine: Machine,
    /// What has its underlay addresses.
    pub(crate) holder: Holder,
    pub(crate) overlay: Ipv4Addr,
    interface: String,
    /// Datagrams of WireGuard that are in the tunnel themselves.
    wrapped: Tap,
    /// What came or went by cable with an overlay address as source.
    strange: Tap,
}

/// Makes a mesh of three, the first of whom is its coordinator.
pub(crate) async fn mesh(lab: &mut Lab, place: Place) -> [Member; 3] {
    // Engines answer wg(8) by the name of their interface, and several worlds live on one machine.
    mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let mut machines = Vec::new();
    for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
        let machine = Machine::new(lab, name, number).await;
        let mut holder = Holder::cable(&machine).await;
        if place == Place::Beside {
            let beside = Holder::beside(&machine).await;
            beside.add(host(CHANGING, number)).await;
            holder.delete(host(CHANGING, number)).await;
            holder = beside;
        }
        // Only where there is a route does the kernel choose a source address.
        route_all(&machine).await;
        machines.push((machine, holder));
    }
    let backend = backend();
    let made = ["--mesh", "first0", "init", "--advertise", "192.0.2.1", "--overlay", OVERLAY, "--backend", &backend];
    let made = machines[0].0.json(&made).await;
    let token = made["token"].as_str().unwrap();
    let mut members = Vec::new();
    for (machine, holder) in machines {
        let interface = format!("{}0", machine.host.name());
        let joined = machine.json(&["--mesh", &interface, "join", token, "--backend", &backend]).await;
        let overlay = joined["addresses"][0].as_str().unwrap().parse().unwrap();
        let wrapped = Tap::of_port(&machine.host, &interface, LISTEN_PORT);
        let strange = Tap::of_source(&machine.host, CABLE, OVERLAY_NETWORK);
        members.push(Member { machine, holder, overlay, interface, wrapped, strange });
    }
    members.try_into().ok().unwrap()
}

/// Which WireGuard the members use.
fn backend() -> String {
    std::env::var("MESH_BACKEND").unwrap_or_else(|_| "userspace".to_owned())
}

/// Whether the members have kernel devices.
pub(crate) fn is_kernel() -> bool {
    backend() == "kernel"
}

/// An address of a /24.
pub(crate) fn host(network: Ipv4Addr, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// Whether an address is one of the lab's.
pub(crate) fn is_underlay(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else { return false };
    [CHANGING, STAYING].iter().any(|network| host(*network, address.octets()[3]) == address)
}

impl Member {
    /// Where the device sends to, as it says itself.
    pub(crate) async fn endpoints(&self) -> Vec<SocketAddr> {
        let said = if is_kernel() { self.ask_kernel().await } else { self.ask_engine() };
        said.iter().filter_map(|endpoint| endpoint.parse().ok()).collect()
    }

    async fn ask_kernel(&self) -> Vec<String> {
        let mut command = Command::new("wg");
        command.args(["show", &self.interface, "endpoints"]).stdout(Stdio::piped());
        let output = self.machine.host.spawn(command).unwrap().wait_with_output().await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().filter_map(|line| line.split_once('\t')).map(|(_key, endpoint)| endpoint.to_owned()).collect()
    }

    fn ask_engine(&self) -> Vec<String> {
        let mut socket = UnixStream::connect(format!("/var/run/wireguard/{}.sock", self.interface)).unwrap();
        socket.write_all(b"get=1\n\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        said.lines().filter_map(|line| line.strip_prefix("endpoint=")).map(str::to_owned).collect()
    }

    /// Fails if the device sends to anywhere but the underlay; a kernel's may until it has been looked at.
    pub(crate) async fn sends_to_the_underlay(&self, when: &str) {
        let deadline = tokio::time::Instant::now() + if is_kernel() { LOOK } else { Duration::ZERO };
        loop {
            let strange: Vec<_> =
                self.endpoints().await.into_iter().filter(|endpoint| !is_underlay(endpoint.ip())).collect();
            if strange.is_empty() {
                return;
            }
            let name = self.machine.host.name();
            let now = tokio::time::Instant::now();
            assert!(now < deadline, "{when}: {name} sends to {strange:?}{}", self.machine.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many datagrams of WireGuard have been in the tunnel since this was asked.
    pub(crate) fn wrapped(&self) -> usize {
        self.wrapped.seen()
    }

    /// How many packets with an overlay address as source have been on the cable since this was asked.
    pub(crate) fn strange(&self) -> usize {
        self.strange.seen()
    }

    /// What has gone into the tunnel, and out by the cable.
    pub(crate) async fn sent(&self) -> [Sent; 2] {
        [Sent::by(&self.machine, &self.interface).await, Sent::by(&self.machine, CABLE).await]
    }

    /// Whether the kernel makes a secondary address primary when that goes.
    pub(crate) fn set_promotion(&self, promote: bool) {
        let set = |interface| {
            let file = format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries");
            Ok(std::fs::write(file, if promote { "1" } else { "0" })?)
        };
        for interface in ["all", CABLE] {
            self.machine.host.enter(|| set(interface)).unwrap();
        }
    }

    /// What a failed test says of it.
    pub(crate) async fn picture(&self) -> String {
        let [tunnel, cable] = self.sent().await;
        let wrapped = self.wrapped();
        let endpoints = self.endpoints().await;
        format!("sends to {endpoints:?}; {tunnel:?} in the tunnel, {wrapped} wrapped, {cable:?} by cable")
    }

    /// Sends datagrams to a peer through the tunnel, as fast as they go, until it is stopped.
    pub(crate) fn flood(&self, peer: &Self) -> Flood {
        // Nobody reads them there; without a socket, each would be answered with an error.
        let sink = peer.machine.host.enter(|| Ok(UdpSocket::bind((peer.overlay, DISCARD)).ok())).unwrap();
        let socket = self.machine.host.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
        socket.connect((peer.overlay, DISCARD)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let _sink = sink;
            let going = (1..FLOOD).take_while(|_| !stopped.load(Ordering::Relaxed));
            // Packets of one size would go out as one train, with one choice of a source address for all.
            going.inspect(|n| drop(socket.send(&[0; 100][..(n % 2) as usize * 100]))).last().unwrap_or_default()
        });
        Flood { stop, thread }
    }
}

/// Datagrams under way.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// Ends it; how many there were.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
