//! Two hosts with an engine each, network namespaces of this process. Needs root.

use mesh_types::{PrivateKey, PublicKey};
use mesh_wireguard::engine::{Change, Engine, PeerChange, PeerChangeKind};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;

const PORT: u16 = 51_820;

/// A host with an engine on it.
#[derive(Clone)]
pub(crate) struct Host {
    namespace: Arc<File>,
    pub(crate) engine: Arc<Engine>,
}

impl Host {
    /// Two hosts on one cable whose engines know each other.
    pub(crate) fn pair(workers: Option<usize>) -> (Self, Self) {
        let (a, b) = (Self::new(workers), Self::new(workers));
        let far = format!("/proc/{}/fd/{}", std::process::id(), b.namespace.as_raw_fd());
        a.ip(&format!("link add eth0 type veth peer name eth0 netns {far}"));
        for (host, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
            host.ip(&format!("address add 192.0.2.{own}/24 dev eth0"));
            host.ip("link set eth0 up");
            let mut peer = PeerChange::new(key(other).1, PeerChangeKind::Set);
            peer.allowed_ips.push(format!("10.77.0.{other}/32").parse().unwrap());
            peer.endpoint = Some(SocketAddr::from(([192, 0, 2, other], PORT)));
            let changes = [Change::ListenPort(PORT), Change::PrivateKey(Some(key(own).0)), Change::Peer(peer)];
            host.within(|| host.engine.apply(&changes).unwrap());
            host.ip(&format!("address add 10.77.0.{own}/24 dev wg"));
            host.ip("link set wg up");
        }
        (a, b)
    }

    fn new(workers: Option<usize>) -> Self {
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect(
                "this needs root, to make a network namespace of its own; for tests without root, set \
                 MESHCTL_SKIP_ROOT_TESTS=1 to skip them",
            );
            let namespace = Arc::new(File::open("/proc/thread-self/ns/net").unwrap());
            Self { namespace, engine: Arc::new(Engine::start("wg", workers).unwrap()) }
        });
        made.join().unwrap()
    }

    /// Does something in this host's network.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                setns(&*self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            done.join().unwrap()
        })
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let status = self.within(|| Command::new("ip").args(arguments.split(' ')).status());
        let status = status.expect("this test needs `ip`: install the package iproute2");
        assert!(status.success(), "ip {arguments}");
    }
}

/// Private and public key of a host.
pub(crate) fn key(n: u8) -> (PrivateKey, PublicKey) {
    let secret = x25519_dalek::StaticSecret::from([n; 32]);
    (PrivateKey::from_bytes([n; 32]), PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes()))
}
