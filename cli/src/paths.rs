//! Where things lie by default: derived from the mesh's name, so that several meshes live on one host.

use crate::args::Globals;
use std::path::PathBuf;

/// The paths of one mesh on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Paths {
    /// The local name of the mesh, which is also its interface's.
    pub(crate) mesh: String,
    /// The local socket of meshd.
    pub(crate) node_socket: PathBuf,
    /// The local socket of mesh-coordinator.
    pub(crate) coordinator_socket: PathBuf,
    /// The state directory of meshd.
    pub(crate) node_state: PathBuf,
    /// The data directory of mesh-coordinator.
    pub(crate) coordinator_data: PathBuf,
}

impl Paths {
    pub(crate) fn of(globals: &Globals) -> Self {
        let state = PathBuf::from("/var/lib/meshctl").join(&globals.mesh);
        let run = PathBuf::from("/run/meshctl").join(&globals.mesh);
        Self {
            mesh: globals.mesh.clone(),
            node_socket: globals.socket.clone().unwrap_or_else(|| run.join("meshd.sock")),
            coordinator_socket: globals.coordinator_socket.clone().unwrap_or_else(|| run.join("coordinator.sock")),
            node_state: globals.state_dir.clone().unwrap_or_else(|| state.join("node")),
            coordinator_data: globals.data_dir.clone().unwrap_or_else(|| state.join("coordinator")),
        }
    }

    /// The file in which meshd keeps that this host is a member.
    pub(crate) fn membership(&self) -> PathBuf {
        self.node_state.join("membership")
    }

    /// Whether every path is the default one, which is what the systemd units serve.
    pub(crate) fn are_default(globals: &Globals) -> bool {
        globals.socket.is_none()
            && globals.coordinator_socket.is_none()
            && globals.state_dir.is_none()
            && globals.data_dir.is_none()
    }
}
