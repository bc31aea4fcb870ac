//! Sees packets of one kind on an interface, without touching them: a packet socket with a filter in the kernel.

use mesh_cli::lab::Host;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

/// Where things are in an IPv4 header.
const PROTOCOL: u32 = 9;
const SOURCE: u32 = 12;
/// In a UDP header.
const DESTINATION_PORT: u32 = 2;

/// How long to wait for a packet, in milliseconds.
const MOMENT: u16 = 50;

/// A packet socket on one interface.
pub(crate) struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Sees UDP datagrams over IPv4 to this port.
    pub(crate) fn of_port(host: &Host, interface: &str, port: u16) -> Self {
        Self::open(
            host,
            interface,
            &[
                ahead(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, PROTOCOL),
                unless(libc::IPPROTO_UDP as u32, 4),
                ahead(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
                ahead(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, DESTINATION_PORT),
                unless(port.into(), 1),
            ],
        )
    }

    /// Sees IPv4 packets from this /24.
    pub(crate) fn of_source(host: &Host, interface: &str, network: Ipv4Addr) -> Self {
        Self::open(
            host,
            interface,
            &[
                ahead(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, SOURCE),
                ahead(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xffff_ff00),
                unless(network.to_bits(), 1),
            ],
        )
    }

    fn open(host: &Host, interface: &str, wanted: &[libc::sock_filter]) -> Self {
        let program = program(wanted);
        let socket = host.enter(|| {
            // Of protocol 0 until it is bound: it takes nothing before its filter is in place.
            let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None)?;
            attach(&socket, &program)?;
            bind(&socket, nix::net::if_::if_nametoindex(interface)?)?;
            Ok(socket)
        });
        Self { socket: socket.unwrap() }
    }

    /// The next packet, from its IP header on; `None` if there was none for a moment.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(MOMENT)).unwrap();
        let mut packet = vec![0; 65_536];
        let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()).ok()?;
        packet.truncate(length);
        Some(packet)
    }

    /// Sends a packet of IPv4 by this interface, to a neighbour's.
    pub(crate) fn send(&self, packet: &[u8], neighbour: [u8; 6], interface: u32) -> nix::Result<()> {
        let mut to = address(libc::ETH_P_IP, interface);
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&neighbour);
        let (bytes, length) = (packet.as_ptr().cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        // SAFETY: the descriptor is open; packet and address are of the lengths given, and the kernel only reads them.
        let sent =
            unsafe { libc::sendto(self.socket.as_raw_fd(), bytes, packet.len(), 0, (&raw const to).cast(), length) };
        Errno::result(sent).map(drop)
    }

    /// How many packets it has seen since it was asked last; no more than its buffer held.
    pub(crate) fn seen(&self) -> usize {
        let mut byte = [0];
        let packets = std::iter::from_fn(|| match recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => None,
            taken => Some(taken.unwrap()),
        });
        packets.count()
    }
}

/// Takes packets of IPv4 that pass the steps of `wanted`, which jump over one step more than they know of to drop one.
fn program(wanted: &[libc::sock_filter]) -> Vec<libc::sock_filter> {
    let version = [
        ahead(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
        ahead(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xf0),
        unless(0x40, wanted.len() as u8 + 1),
    ];
    let end = [ahead(libc::BPF_RET | libc::BPF_K, 0xffff), ahead(libc::BPF_RET | libc::BPF_K, 0)];
    [&version, wanted, &end].concat()
}

fn ahead(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on if it is equal, else jumps over so many steps.
fn unless(k: u32, over: u8) -> libc::sock_filter {
    libc::sock_filter { jf: over, ..ahead(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) }
}

fn attach(socket: &OwnedFd, program: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the descriptor is open; the kernel copies the program, of the length given, and changes nothing.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const program).cast(), length) };
    Errno::result(result).map(drop)
}

fn bind(socket: &OwnedFd, interface: u32) -> nix::Result<()> {
    let address = address(libc::ETH_P_ALL, interface);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is of the length given.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

fn address(protocol: i32, interface: u32) -> libc::sockaddr_ll {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = interface as i32;
    address
}
