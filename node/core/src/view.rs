//! What a path sees of the rest of the node.

use crate::barred::Barred;
use std::net::{IpAddr, SocketAddr};

/// What a coordinator knows of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Online {
    Yes,
    No,
    Unknown,
}

/// What a path needs to know of the rest of the node.
pub(crate) struct View<'a> {
    /// This host's own addresses.
    pub(crate) underlay: &'a [IpAddr],
    /// Where no endpoint may be.
    pub(crate) barred: &'a Barred,
    /// Where the peer last answered from, in this life or an earlier one.
    pub(crate) worked: Option<SocketAddr>,
    /// What a coordinator says.
    pub(crate) online: Online,
    /// Whether the device was looked at just now.
    pub(crate) fresh: bool,
}
