//! Our own datagrams kept out of our own tunnel, by a table of our own in the host's nf_tables.
//!
//! One chain where packets leave, with one rule: what bears our mark and goes out by our own interface is dropped and
//! counted. The mark stays on a packet that a VXLAN or a bridge of this namespace wraps and passes on, so that this stops
//! those too. The table is made, replaced and removed in one transaction each, and outlives the daemon as a kernel device
//! does; at the next start it is replaced. Nothing of anybody else's is touched.
//!
//! The kernel answers such requests before the call that sends them returns, so that nothing here waits.

mod message;

use crate::mark::Mark;
use message::{Reply, replies};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;

/// A whole answer: acknowledgements, or one rule.
const ANSWER_BYTES: usize = 16 * 1024;

/// The rule of one interface.
#[derive(Clone, Debug)]
pub struct DropRule {
    interface: String,
    mark: Mark,
}

impl DropRule {
    /// For packets with this mark.
    pub fn new(interface: &str, mark: Mark) -> Self {
        Self { interface: interface.to_owned(), mark }
    }

    /// Puts the rule in place, in the place of an earlier one. The count begins at 0.
    pub fn make(&self) -> io::Result<()> {
        transact(&message::replace(&self.interface, self.mark))
    }

    /// How many packets were dropped; `NotFound` if somebody has removed the rule.
    pub fn count(&self) -> io::Result<u64> {
        let socket = send(&message::ask(&self.interface))?;
        let mut packets = None;
        loop {
            for reply in replies(&receive(&socket)?) {
                match reply {
                    Reply::Rule(count) => packets = packets.or(count),
                    Reply::Error(0) | Reply::Done => return packets.ok_or(io::ErrorKind::NotFound.into()),
                    Reply::Error(code) => return Err(io::Error::from_raw_os_error(-code)),
                    Reply::Other => {}
                }
            }
        }
    }
}

/// Removes the rule of an interface; there being none is as good.
pub fn remove(interface: &str) -> io::Result<()> {
    match transact(&message::remove(interface)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Sends what is done as a whole or not at all, and waits for the last acknowledgement.
fn transact(batch: &message::Batch) -> io::Result<()> {
    let socket = send(&batch.bytes)?;
    let mut outstanding = batch.acknowledged;
    while outstanding > 0 {
        for reply in replies(&receive(&socket)?) {
            match reply {
                Reply::Error(0) => outstanding = outstanding.saturating_sub(1),
                Reply::Error(code) => return Err(io::Error::from_raw_os_error(-code)),
                Reply::Rule(_) | Reply::Done | Reply::Other => {}
            }
        }
    }
    Ok(())
}

fn send(bytes: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ANSWER_BYTES);
    socket.recv_from(&mut bytes, 0)?;
    Ok(bytes)
}
