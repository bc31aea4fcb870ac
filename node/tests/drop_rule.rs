//! The rule that keeps own datagrams out of the own interface, in a network namespace of the test's own. Needs root.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use mesh_node::drop_rule::{self, DropRule};
use mesh_node::mark::DEFAULT_MARK;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::UdpSocket;
use std::process::Command;

/// Sends from a namespace whose way to 192.0.2.0/24 is the interface `mesh0`, with a mark.
fn send(mark: u32) -> io::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    socket.send_to(b"datagram", "192.0.2.9:9")
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}");
}

#[test]
fn marked_packets_into_the_own_interface_are_dropped_and_counted_and_no_others() {
    // Of this thread alone, and gone with it.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for line in [
        "ip link add mesh0 type veth peer name far0",
        "ip link add eth0 type veth peer name far1",
        "ip address add 192.0.2.1/24 dev mesh0",
        "ip address add 198.51.100.1/24 dev eth0",
        "ip link set mesh0 up",
        "ip link set eth0 up",
        "ip link set far0 up",
        "ip link set far1 up",
    ] {
        run(line);
    }
    drop_rule::remove("mesh0").unwrap();
    let rule = DropRule::new("mesh0", DEFAULT_MARK.parse().unwrap());
    assert_eq!(rule.count().unwrap_err().kind(), io::ErrorKind::NotFound);
    rule.make().unwrap();
    DropRule::new("mesh1", DEFAULT_MARK.parse().unwrap()).make().unwrap();
    assert_eq!(rule.count().unwrap(), 0);
    // Dropped; a bit of kube-proxy's on top changes nothing.
    for marked in [0x1000, 0x5000] {
        drop(send(marked));
    }
    assert_eq!(rule.count().unwrap(), 2);
    for other in [0, 0x2000, 0x3000, 0x4000] {
        send(other).unwrap();
    }
    assert_eq!(rule.count().unwrap(), 2);
    // Replaced at a restart, and removed with the interface; another mesh's stays.
    rule.make().unwrap();
    assert_eq!(rule.count().unwrap(), 0);
    drop_rule::remove("mesh0").unwrap();
    assert_eq!(rule.count().unwrap_err().kind(), io::ErrorKind::NotFound);
    send(0x1000).unwrap();
    assert_eq!(DropRule::new("mesh1", DEFAULT_MARK.parse().unwrap()).count().unwrap(), 0);
}
