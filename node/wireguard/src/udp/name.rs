//! Socket addresses as the kernel writes them, in the one form that has room for both families. No system calls.

use super::Family;
use std::ffi::c_int;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr;

/// The sender's address, IPv4 in its own notation.
pub(super) fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(match ip.to_canonical() {
                IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
                // The scope tells link-local addresses apart and means nothing for others.
                IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        _ => None,
    }
}

/// The address as the socket's family writes it; `None` if it cannot.
pub(super) fn name(family: Family, remote: SocketAddr) -> Option<(libc::sockaddr_in6, libc::socklen_t)> {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut name: libc::sockaddr_in6 = unsafe { zeroed() };
    match (family, remote) {
        (Family::Both, remote) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = remote.port().to_be();
            let (ip, scope) = match remote {
                SocketAddr::V4(remote) => (remote.ip().to_ipv6_mapped(), 0),
                SocketAddr::V6(remote) => (*remote.ip(), remote.scope_id()),
            };
            name.sin6_addr = libc::in6_addr { s6_addr: ip.octets() };
            name.sin6_scope_id = scope;
            Some((name, size_of::<libc::sockaddr_in6>() as libc::socklen_t))
        }
        (Family::V4, SocketAddr::V4(remote)) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: remote.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*remote.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_in` is smaller than a `sockaddr_in6`, and both are plain data.
            unsafe { ptr::from_mut(&mut name).cast::<libc::sockaddr_in>().write_unaligned(v4) };
            Some((name, size_of::<libc::sockaddr_in>() as libc::socklen_t))
        }
        (Family::V4, SocketAddr::V6(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_a_family_is_read_again() {
        for remote in ["192.0.2.1:51820", "[2001:db8::1]:7", "[fe80::1%3]:65535", "0.0.0.0:0"] {
            let remote: SocketAddr = remote.parse().unwrap();
            for family in [Family::Both, Family::V4] {
                let read = name(family, remote).and_then(|(name, length)| {
                    let whole = if family == Family::Both { 28 } else { 16 };
                    assert_eq!(length, whole);
                    address(&name)
                });
                assert_eq!(read, (family == Family::Both || remote.is_ipv4()).then_some(remote));
            }
        }
    }

    #[test]
    fn a_name_of_no_family_is_nobody() {
        // SAFETY: plain data, for which all zeroes are a value.
        assert_eq!(address(&unsafe { zeroed() }), None);
    }
}
