//! One request to the kernel's WireGuard and its answers, in memory that is wiped: either may hold the private key.
//!
//! The kernel has done a request before the call that sends it returns, and makes each answer when it is read, so that
//! nothing here waits. The netlink libraries' own connections keep what passes in buffers that nobody can wipe; of them
//! only the format is used, and the number of the family, which is no secret.

use genetlink::GenetlinkError;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use zeroize::{Zeroize as _, Zeroizing};

/// The kernel's mark on a dump that a change ran into.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel cuts a dump into answers of at most half of this.
const ANSWER_BYTES: usize = 64 << 10;
/// Bytes before the payload of each message.
const HEADER: usize = 16;

type Message = NetlinkMessage<GenlMessage<WireguardMessage>>;

/// The number by which this kernel knows its WireGuard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family(u16);

impl Family {
    /// Asks for it; there is none before the first WireGuard interface of a host.
    pub(super) async fn find() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = genetlink::new_connection()?;
        let _task = crate::link::netlink::Background::spawn(connection);
        let found = handle.resolve_family::<WireguardMessage>().await;
        found.map(|family| Self(family.id)).map_err(|error| match error {
            GenetlinkError::NetlinkError(error) => error,
            error => io::Error::other(error),
        })
    }

    /// Makes a request and hands over what each answer says. Tells whether the answers belong together: `false` if a
    /// change came between two of them.
    pub(super) fn request(
        self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
        flags: u16,
        mut answer: impl FnMut(&[WireguardAttribute]),
    ) -> io::Result<bool> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        let request = self.serialise(cmd, attributes, flags);
        socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        let mut buffer = Zeroizing::new(vec![0; ANSWER_BYTES]);
        let mut whole = true;
        loop {
            let mut room = &mut buffer[..];
            let length = socket.recv(&mut room, 0)?;
            let received = buffer.get(..length).ok_or_else(|| io::Error::other("the kernel's answer is cut off"))?;
            for message in messages(received) {
                let mut message = Message::deserialize(message).map_err(io::Error::other)?;
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match &mut message.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        answer(&inner.payload.attributes);
                        wipe(&mut inner.payload.attributes);
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(whole),
                    _ => {}
                }
            }
        }
    }

    fn serialise(self, cmd: WireguardCmd, attributes: Vec<WireguardAttribute>, flags: u16) -> Zeroizing<Vec<u8>> {
        let mut inner = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        inner.set_resolved_family_id(self.0);
        let mut message = NetlinkMessage::from(inner);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
        message.serialize(&mut bytes);
        if let NetlinkPayload::InnerMessage(inner) = &mut message.payload {
            wipe(&mut inner.payload.attributes);
        }
        bytes
    }
}

/// Cuts what came in one go into messages; what is shorter than it says is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Wipes the secrets among attributes.
fn wipe(attributes: &mut [WireguardAttribute]) {
    for attribute in attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => key.zeroize(),
            WireguardAttribute::Peers(peers) => {
                for attribute in peers.iter_mut().flat_map(|WireguardPeer(attributes)| attributes) {
                    if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                        key.zeroize();
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_wiped_and_nothing_else_is() {
        let peer = vec![WireguardPeerAttribute::PublicKey([3; 32]), WireguardPeerAttribute::PresharedKey([4; 32])];
        let mut attributes = [
            WireguardAttribute::PrivateKey([1; 32]),
            WireguardAttribute::PublicKey([2; 32]),
            WireguardAttribute::Peers(vec![WireguardPeer(peer)]),
        ];
        wipe(&mut attributes);
        let peer = vec![WireguardPeerAttribute::PublicKey([3; 32]), WireguardPeerAttribute::PresharedKey([0; 32])];
        let expected = [
            WireguardAttribute::PrivateKey([0; 32]),
            WireguardAttribute::PublicKey([2; 32]),
            WireguardAttribute::Peers(vec![WireguardPeer(peer)]),
        ];
        assert_eq!(attributes, expected);
    }

    #[test]
    fn messages_that_came_together_are_taken_apart_and_a_cut_one_is_left_out() {
        let message = |length: u32, fill: u8| [&length.to_ne_bytes()[..], &[fill; 14]].concat();
        let padded = [message(18, 1), vec![0; 2]].concat();
        let both = [padded, message(18, 2), vec![0; 2], message(20, 3)].concat();
        let found: Vec<_> = messages(&both).map(|message| (message.len(), message[4])).collect();
        assert_eq!(found, [(18, 1), (18, 2)]);
        for length in [0, 3, 15] {
            assert_eq!(messages(&message(length, 1)).count(), 0, "{length}");
        }
    }
}
