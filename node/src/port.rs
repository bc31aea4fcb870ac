//! Which UDP port WireGuard listens on: chosen once, kept ever after.
//!
//! A kernel device that outlived its daemon holds the kept port itself, so that only a port not kept yet is tried.

use crate::state::{StateDir, StateError};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use tracing::info;

/// WireGuard's customary port.
const CUSTOMARY: u16 = 51_820;

/// The port asked for, or kept, or free: the customary one, else any.
pub(crate) fn choose(state: &StateDir, asked: Option<u16>) -> Result<u16, StateError> {
    let kept = state.listen_port()?;
    if let Some(port) = asked.or(kept) {
        if kept != Some(port) {
            state.save_listen_port(port)?;
        }
        return Ok(port);
    }
    let port = match try_port(CUSTOMARY) {
        Ok(port) => port,
        Err(_) => try_port(0).map_err(StateError::io("find a free UDP port for", state.path()))?,
    };
    info!(port, "WireGuard listens here from now on");
    state.save_listen_port(port)?;
    Ok(port)
}

/// Binds for a moment, for IPv4 and, where the host has it, IPv6. Port 0 is any.
fn try_port(port: u16) -> io::Result<u16> {
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let port = v4.local_addr()?.port();
    drop(v4);
    // A socket for IPv6 covers IPv4 as well, so one after the other.
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        _ => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_once_chosen_is_kept_unless_another_is_asked_for() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path()).unwrap();
        let first = choose(&state, None).unwrap();
        let _now_in_use = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, first)).unwrap();
        assert_eq!(choose(&state, None).unwrap(), first);
        assert_eq!(choose(&state, Some(4_000)).unwrap(), 4_000);
        assert_eq!(choose(&state, None).unwrap(), 4_000);
    }

    #[test]
    fn a_customary_port_in_use_leads_to_another() {
        let holder = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert!(try_port(taken).is_err());
        assert_ne!(try_port(0).unwrap(), taken);
    }
}
