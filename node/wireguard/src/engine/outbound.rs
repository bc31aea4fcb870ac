//! From the interface to the network: a super-packet is cut into a train, which is sealed in place and sent.
//!
//! Packets are copied once, from the super-packet to their place in a train. Packets that follow each other on the same
//! way continue a train, whichever super-packet they came in. A train is sealed when it leaves, all of it at once: many
//! packets are sealed faster than one, and a burst of the host's is out of its queue sooner.

use super::hooks::Direction;
use super::shared::{Cell, CellState, Shared};
use crate::udp::{Endpoint, MAX_TRAIN_BYTES, MAX_TRAIN_PACKETS, MAX_TRAINS, Outgoing, Socket};
use mesh_wireguard_core::carried::udp_payload;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG, padded_len};
use mesh_wireguard_core::message::Named;
use mesh_wireguard_core::offload::{Segments, VnetHeader, split};
use mesh_wireguard_core::peer::Outgoing as Grant;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tracing::trace;

/// Bytes that are gathered before they are sent: a super-packet makes two trains at most, and more would leave the cache.
const BYTES: usize = 4 * MAX_TRAIN_BYTES;
/// Trains that are gathered before they are sent: as many as there may be packets in one, when each goes its own way.
const TRAINS: usize = MAX_TRAIN_PACKETS;

/// Trains under way, one behind the other.
pub(crate) struct Outbound {
    bytes: Box<[u8]>,
    used: usize,
    /// The last of them may be continued.
    trains: Vec<Train>,
}

struct Train {
    range: Range<usize>,
    packets: usize,
    stride: usize,
    way: Way,
    closed: bool,
}

/// What packets have in common that go in one train.
#[derive(Clone)]
struct Way {
    cell: Arc<Cell>,
    keys: Arc<KeyPair>,
    endpoint: Endpoint,
    class: u8,
}

/// Permission to send a number of packets.
struct Granted {
    way: Way,
    counter: u64,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; BYTES].into_boxed_slice(), used: 0, trains: Vec::with_capacity(TRAINS) }
    }

    /// Takes what one read of the interface gave: to a train, to the peer's waiting room, or nowhere. A datagram of our own
    /// goes nowhere, whatever routes led it here: a tunnel must not carry itself. Of one in fragments the rest may be
    /// carried, once: what carries it is whole.
    pub(crate) fn take(&mut self, raw: &[u8], shared: &Shared, socket: Option<&Socket>, now: Instant) {
        let Some((header, packet)) = part(raw) else { return };
        let Some(destination) = destination(packet) else { return };
        let cell = {
            let tables = shared.tables();
            let Some(cell) = tables.allowed.lookup(destination).and_then(|id| tables.peers.get(&id)) else {
                trace!(%destination, "no peer has this address");
                return;
            };
            if let Some(message) = udp_payload(packet).and_then(Named::parse)
                && tables.indices.is_own(message)
            {
                let datagrams = split(&header, packet).map_or(1, |segments| segments.count());
                return shared.note_looped(destination, datagrams as u64);
            }
            cell.clone()
        };
        let filter = shared.hooks.filter();
        if filter.is_some_and(|filter| !filter.admits(&cell.key, Direction::Outbound, packet)) {
            return;
        }
        let segments = match split(&header, packet) {
            Ok(segments) => segments,
            Err(error) => {
                trace!(%error, "packet of the host dropped");
                return;
            }
        };
        // Read once: others may change it meanwhile.
        let mtu = shared.mtu();
        if !fits(&segments, mtu) {
            trace!(length = segments.len(0), "no UDP packet holds this packet of the host");
            return;
        }
        let mut state = cell.lock();
        // Those that wait go first.
        let granted =
            if state.staged.is_empty() { grant(&cell, &mut state, packet, &segments, mtu, now) } else { None };
        if granted.is_none() {
            state.stage(raw);
        }
        let sooner = state.sooner(now);
        drop(state);
        if sooner {
            shared.inbox.attend(cell.id);
        }
        if let Some(granted) = granted {
            self.load(&granted, &segments, mtu, socket);
        }
    }

    /// Sends what waits for a session, as far as there is one. The peer stays locked, so that nothing overtakes.
    pub(crate) fn release_staged(
        &mut self,
        cell: &Arc<Cell>,
        state: &mut CellState,
        shared: &Shared,
        socket: Option<&Socket>,
        now: Instant,
    ) {
        while let Some(raw) = state.unstage() {
            let Some((header, packet)) = part(&raw) else { continue };
            let Ok(segments) = split(&header, packet) else { continue };
            let mtu = shared.mtu();
            if !fits(&segments, mtu) {
                continue;
            }
            match grant(cell, state, packet, &segments, mtu, now) {
                Some(granted) => self.load(&granted, &segments, mtu, socket),
                None => {
                    state.restage(raw);
                    return;
                }
            }
        }
    }

    /// Sends an empty packet.
    pub(crate) fn keepalive(&mut self, cell: &Arc<Cell>, state: &mut CellState, socket: Option<&Socket>, now: Instant) {
        let Some(endpoint) = way_to(cell, state) else { return };
        if let Grant::Session { keys, first_counter } = state.core.send_keepalive(now) {
            let way = Way { cell: cell.clone(), keys, endpoint, class: 0 };
            let message = self.room(&way, DATA_HEADER + TAG, socket);
            way.keys.begin(first_counter, message);
        }
    }

    /// Puts the packets on a train.
    fn load(&mut self, granted: &Granted, segments: &Segments<'_>, mtu: usize, socket: Option<&Socket>) {
        let Granted { way, counter } = granted;
        for n in 0..segments.count() {
            let length = segments.len(n);
            let padded = padded_len(length, mtu);
            let message = self.room(way, DATA_HEADER + padded + TAG, socket);
            way.keys.begin(counter + n as u64, message);
            segments.write(n, &mut message[DATA_HEADER..DATA_HEADER + length]);
            message[DATA_HEADER + length..DATA_HEADER + padded].fill(0);
        }
    }

    /// Room for one packet, in the train that goes the same way or in a new one.
    fn room(&mut self, way: &Way, length: usize, socket: Option<&Socket>) -> &mut [u8] {
        if self.used + length > self.bytes.len() {
            self.flush(socket);
        }
        if !self.trains.last().is_some_and(|train| train.takes(way, length)) {
            if self.trains.len() == TRAINS {
                self.flush(socket);
            }
            let range = self.used..self.used;
            self.trains.push(Train { range, packets: 0, stride: length, way: way.clone(), closed: false });
        }
        let start = self.used;
        self.used += length;
        if let Some(train) = self.trains.last_mut() {
            train.range.end = self.used;
            train.packets += 1;
            // A shorter packet ends a train.
            train.closed = length < train.stride;
        }
        &mut self.bytes[start..start + length]
    }

    /// Seals and sends all trains.
    pub(crate) fn flush(&mut self, socket: Option<&Socket>) {
        for train in &self.trains {
            train.way.keys.seal(&mut self.bytes[train.range.clone()], train.stride);
        }
        if let Some(socket) = socket {
            for trains in self.trains.chunks(MAX_TRAINS) {
                let outgoing = std::array::from_fn::<_, MAX_TRAINS, _>(|n| {
                    let Train { range, stride, way, .. } = trains.get(n).unwrap_or(&trains[0]);
                    let bytes = &self.bytes[range.clone()];
                    Outgoing { bytes, stride: *stride, endpoint: way.endpoint, class: way.class }
                });
                let outgoing = &outgoing[..trains.len()];
                socket.send_all(outgoing, |n, result| note(&trains[n].way.cell, &outgoing[n], result));
            }
        }
        self.trains.clear();
        self.used = 0;
    }
}

impl Train {
    fn takes(&self, way: &Way, length: usize) -> bool {
        // Keys are of one peer only.
        let same =
            |held: &Way| Arc::ptr_eq(&held.keys, &way.keys) && held.endpoint == way.endpoint && held.class == way.class;
        !self.closed
            && length <= self.stride
            && self.packets < MAX_TRAIN_PACKETS
            && self.range.len() + length <= MAX_TRAIN_BYTES
            && same(&self.way)
    }
}

/// Sends a train to a peer. What does not go is lost: WireGuard promises no more than the network does.
pub(crate) fn send(socket: &Socket, cell: &Cell, train: &Outgoing<'_>) {
    note(cell, train, socket.send(train));
}

/// Takes note of what became of a train.
fn note(cell: &Cell, train: &Outgoing<'_>, result: io::Result<bool>) {
    match result {
        Ok(false) => {}
        Ok(true) => cell.source_lost.store(true, Ordering::Relaxed),
        Err(error) => trace!(endpoint = %train.endpoint.remote, %error, "not sent"),
    }
}

fn grant(
    cell: &Arc<Cell>,
    state: &mut CellState,
    packet: &[u8],
    segments: &Segments<'_>,
    mtu: usize,
    now: Instant,
) -> Option<Granted> {
    let count = segments.count();
    // All but the last are of one length.
    let sealed = |n: usize| DATA_HEADER + padded_len(segments.len(n), mtu) + TAG;
    let bytes = sealed(0) * (count - 1) + sealed(count - 1);
    match state.core.send(count as u32, bytes as u64, now) {
        Grant::Session { keys, first_counter } => {
            let endpoint = way_to(cell, state)?;
            Some(Granted {
                way: Way { cell: cell.clone(), keys, endpoint, class: class(packet) },
                counter: first_counter,
            })
        }
        Grant::NoSession => None,
    }
}

/// Whether a UDP packet holds each of them. All but the last are of one length, and the last is no longer.
fn fits(segments: &Segments<'_>, mtu: usize) -> bool {
    DATA_HEADER + padded_len(segments.len(0), mtu) + TAG <= MAX_TRAIN_BYTES
}

/// Where the peer is, as far as is known.
pub(crate) fn way_to(cell: &Cell, state: &mut CellState) -> Option<Endpoint> {
    if cell.source_lost.swap(false, Ordering::Relaxed) {
        state.endpoint.forget_source();
    }
    state.endpoint.get()
}

/// Parts a read of the interface into header and packet.
fn part(raw: &[u8]) -> Option<(VnetHeader, &[u8])> {
    let (header, packet) = raw.split_first_chunk::<{ VnetHeader::LEN }>()?;
    let header = VnetHeader::parse(header).inspect_err(|error| trace!(%error, "packet of the host dropped")).ok()?;
    Some((header, packet))
}

/// Where a packet goes; `None` if it is none.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// What the outer header takes over: the ECN bits and not the DSCP (RFC 6040).
fn class(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1] & 3,
        _ => (packet[1] >> 4) & 3,
    }
}
