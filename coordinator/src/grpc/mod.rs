//! The services, and the gate before those that are reached over the network.

mod admin;
mod caller;
mod cluster;
mod gate;
mod membership;
mod session;
mod shown;
mod status;

pub(crate) use admin::AdminService;
pub(crate) use gate::Gate;

use cluster::ClusterService;
use membership::MembershipService;
