//! From the network to the interface: a train is opened in place, packet by packet, judged as one, and what it carried is
//! joined to super-packets again.
//!
//! The bytes stay where the kernel put them until the interface takes them. What is no data packet is for the control
//! thread; what does not authenticate is dropped in silence.

use super::clock;
use super::hooks::Direction;
use super::inbox::Knock;
use super::indices::Indexed;
use super::shared::{Shared, Tables};
use crate::tun::{self, Queue};
use crate::udp::{Endpoint, Receiver, Socket};
use mesh_wireguard_core::carried::{mark_congestion, source_and_length};
use mesh_wireguard_core::keys::DATA_HEADER;
use mesh_wireguard_core::message::{DATA_MIN, DataHeader};
use mesh_wireguard_core::offload::{Group, Joiner, MAX_JOINED, Place};
use mesh_wireguard_core::peer::Incoming;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Instant;
use tracing::trace;

/// Pieces that one write hands to the interface: its header, the packet's headers, and the payloads.
const PIECES: usize = MAX_JOINED + 2;

/// Packets on their way in.
pub(crate) struct Inbound {
    receiver: Receiver,
    joiner: Joiner,
    batch: Batch,
}

/// Packets of one session that follow each other in one train; empty but for its room when none are looked at.
#[derive(Default)]
struct Batch {
    /// The header of each, and its length.
    headers: Vec<(Option<DataHeader>, usize)>,
    /// Those that were authentic.
    incoming: Vec<Incoming>,
    /// Where the plaintext of each of these begins in the train.
    starts: Vec<usize>,
}

/// The train that is looked at.
struct Arrival<'a> {
    bytes: &'a mut [u8],
    /// Which of the receiver's buffers it lies in.
    buffer: u32,
    stride: usize,
    endpoint: Endpoint,
    ecn: u8,
}

impl Inbound {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { receiver: Receiver::new(), joiner: Joiner::new(shared.tun.capabilities()), batch: Batch::default() }
    }

    /// Takes what the socket has, as much as fits in one go. Says whether there was anything.
    pub(crate) fn pump(&mut self, shared: &Shared, socket: &Socket, queue: &Queue) -> io::Result<bool> {
        let count = match self.receiver.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // What an ICMP message says of a packet sent before; there may be packets behind it.
            Err(error) => {
                trace!(%error, "receive");
                return Ok(true);
            }
        };
        let now = clock::now();
        let tables = shared.tables();
        for n in 0..count {
            self.open(n, shared, &tables, now);
        }
        drop(tables);
        self.write(queue)?;
        Ok(true)
    }

    /// Opens the packets of one train: those of one session that follow each other at once.
    fn open(&mut self, n: usize, shared: &Shared, tables: &Tables, now: Instant) {
        let Some(train) = self.receiver.train(n) else { return };
        let (stride, endpoint) = (train.stride, train.endpoint);
        let mut arrival = Arrival { bytes: train.bytes, buffer: n as u32, stride, endpoint, ecn: train.ecn };
        let mut start = 0;
        while start < arrival.bytes.len() {
            let end = (start + stride).min(arrival.bytes.len());
            let packet = &mut arrival.bytes[start..end];
            match DataHeader::parse(packet) {
                Some(DataHeader { receiver, .. }) => {
                    let rest = &arrival.bytes[start..];
                    let run = rest.chunks(stride).take_while(|packet| is_of(packet, receiver)).count();
                    let end = arrival.bytes.len().min(start + run * stride);
                    if let Some(indexed) = tables.indices.get(receiver) {
                        self.batch.take(
                            &mut arrival,
                            start..end,
                            receiver,
                            indexed,
                            shared,
                            tables,
                            &mut self.joiner,
                            now,
                        );
                    }
                    start = end;
                    continue;
                }
                None if shared.hooks.take_frame(packet, endpoint, &shared.barred) => {}
                None => {
                    let knock = Knock::judge(packet, endpoint, &shared.identity, tables, now);
                    knock.into_iter().for_each(|knock| shared.inbox.knock(knock));
                }
            }
            start = end;
        }
    }

    /// Hands all that was opened to the interface.
    fn write(&mut self, queue: &Queue) -> io::Result<()> {
        let mut result = Ok(());
        let receiver = &self.receiver;
        self.joiner.drain(|group| {
            if let Err(error) = write_group(queue, receiver, group) {
                if tun::is_gone(&error) {
                    result = Err(error);
                } else {
                    trace!(%error, "packet not taken by the interface");
                }
            }
        });
        result
    }
}

impl Batch {
    /// Opens packets of one session; one look at the peer decides which of them count.
    #[expect(clippy::too_many_arguments, reason = "all that packets meet on their way in")]
    fn take(
        &mut self,
        arrival: &mut Arrival<'_>,
        range: Range<usize>,
        index: u32,
        Indexed { cell, keys }: &Indexed,
        shared: &Shared,
        tables: &Tables,
        joiner: &mut Joiner,
        now: Instant,
    ) {
        let Some(keys) = keys else { return };
        let stride = arrival.stride;
        let packets = &mut arrival.bytes[range.clone()];
        self.headers.clear();
        self.headers.extend(packets.chunks(stride).map(|packet| (DataHeader::parse(packet), packet.len())));
        let mut headers = range.step_by(stride).zip(&self.headers);
        keys.open(packets, stride, |authentic| {
            if let Some((start, (Some(header), length))) = headers.next()
                && authentic
            {
                self.incoming.push(Incoming { counter: header.counter, len: length - DATA_MIN, fresh: false });
                self.starts.push(start + DATA_HEADER);
            }
        });
        if self.incoming.is_empty() {
            return;
        }
        let mut state = cell.lock();
        state.core.receive(index, &mut self.incoming, now);
        let endpoint = arrival.endpoint;
        if self.incoming.iter().any(|incoming| incoming.fresh) && state.endpoint.get() != Some(endpoint) {
            state.endpoint.take(endpoint, &cell.key, &shared.barred);
        }
        let sooner = state.sooner(now);
        drop(state);
        if sooner {
            shared.inbox.attend(cell.id);
        }
        let filter = shared.hooks.filter();
        // Packets that follow each other mostly come from one address: it is looked up once.
        let mut admitted = None;
        for (incoming, start) in self.incoming.drain(..).zip(self.starts.drain(..)) {
            if !incoming.fresh || incoming.len == 0 {
                continue;
            }
            let packet = &mut arrival.bytes[start..start + incoming.len];
            let Some((source, length)) = source_and_length(packet) else { continue };
            if admitted != Some(source) && tables.allowed.lookup(source) != Some(cell.id) {
                trace!(%source, peer = %cell.key, "a source that the peer may not have");
                continue;
            }
            admitted = Some(source);
            let packet = &mut packet[..length];
            if filter.as_ref().is_some_and(|filter| !filter.admits(&cell.key, Direction::Inbound, packet)) {
                continue;
            }
            mark_congestion(packet, arrival.ecn);
            joiner.push(Place { buffer: arrival.buffer, start: start as u32, len: length as u32 }, packet);
        }
    }
}

fn write_group(queue: &Queue, receiver: &Receiver, group: &Group) -> io::Result<()> {
    let vnet = group.vnet().to_bytes();
    let mut pieces = [IoSlice::new(&[]); PIECES];
    pieces[0] = IoSlice::new(&vnet);
    pieces[1] = IoSlice::new(group.headers());
    for (piece, place) in pieces[2..].iter_mut().zip(group.payloads()) {
        let buffer = receiver.buffer(place.buffer as usize);
        *piece = IoSlice::new(&buffer[place.start as usize..][..place.len as usize]);
    }
    queue.write(&pieces[..2 + group.payloads().len()])
}

/// Whether a packet belongs to the session that the index names.
fn is_of(packet: &[u8], index: u32) -> bool {
    DataHeader::parse(packet).is_some_and(|header| header.receiver == index)
}
