//! What else the mesh does with an engine's packets: a say in which pass, and frames of its own on the same port.
//!
//! Both cost nothing while nobody asks for them.

use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Mutex, RwLock};
use crate::barred::Barred;
use crate::udp::Endpoint;
use mesh_types::PublicKey;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError};

/// What a frame begins with. WireGuard's messages begin with 1 to 4 and three zero bytes, so that a kernel device drops
/// frames as any other nonsense.
pub const FRAME_MAGIC: [u8; 4] = *b"mesh";
/// Frames that wait to be taken; more are dropped, as a network does.
const MAX_FRAMES: usize = 256;

/// Decides which packets of the tunnel pass. Asked once for a super-packet, after routing; it must not wait.
pub trait PacketFilter: Send + Sync {
    /// Whether a packet passes. It is whole, of IPv4 or IPv6, and its source or destination is one of the peer's.
    fn admits(&self, peer: &PublicKey, direction: Direction, packet: &[u8]) -> bool;
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the peer to this host.
    Inbound,
    /// From this host to the peer.
    Outbound,
}

/// A datagram of the mesh's own. Nobody vouches for it: it may come from anyone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Who sent it, or is said to have.
    pub from: SocketAddr,
    /// Its bytes, [`FRAME_MAGIC`] among them.
    pub bytes: Vec<u8>,
}

/// Where the hooks hang.
#[derive(Default)]
pub(crate) struct Hooks {
    filter: RwLock<Option<Arc<dyn PacketFilter>>>,
    listened: AtomicBool,
    frames: Mutex<Option<SyncSender<Frame>>>,
}

impl Hooks {
    pub(crate) fn set_filter(&self, filter: Option<Arc<dyn PacketFilter>>) {
        *self.filter.write().unwrap_or_else(PoisonError::into_inner) = filter;
    }

    /// The filter, for a batch of packets.
    pub(crate) fn filter(&self) -> Option<Arc<dyn PacketFilter>> {
        self.filter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins to listen for frames; who listened before hears no more.
    pub(crate) fn listen(&self) -> Receiver<Frame> {
        let (sender, receiver) = sync_channel(MAX_FRAMES);
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.listened.store(true, Ordering::Relaxed);
        receiver
    }

    /// Takes a datagram if it is a frame; says whether it was one. One from a barred address is heard by nobody.
    pub(crate) fn take_frame(&self, packet: &[u8], endpoint: Endpoint, barred: &Barred) -> bool {
        if !packet.starts_with(&FRAME_MAGIC) {
            return false;
        }
        if self.listened.load(Ordering::Relaxed) && !barred.contains(endpoint.remote.ip()) {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            let frame = Frame { from: endpoint.remote, bytes: packet.to_vec() };
            if let Some(Err(TrySendError::Disconnected(_))) = frames.as_ref().map(|frames| frames.try_send(frame)) {
                *frames = None;
                self.listened.store(false, Ordering::Relaxed);
            }
        }
        true
    }
}
