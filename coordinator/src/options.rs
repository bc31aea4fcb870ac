//! The command line of `mesh-coordinator`. These forms are stable.

use clap::{Args, Parser, Subcommand};
use mesh_types::{CoordinatorAddress, MeshDuration, NodeName};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The authority of a mesh: one of a few replicas that know who is a member.
#[derive(Parser, Debug, Clone)]
#[command(
    name = "mesh-coordinator",
    version,
    about,
    args_conflicts_with_subcommands = true,
    after_help = "Example, the first coordinator of a new mesh:\n  mesh-coordinator --data-dir /var/lib/meshctl/mesh0/coordinator --advertise 203.0.113.10 \\\n    --socket /run/meshctl/mesh0/coordinator.sock --bootstrap\n\nA further one:\n  MESH_JOIN_TOKEN=mesh1... mesh-coordinator --data-dir D --advertise 203.0.113.11 --socket P\n\nA restart needs neither --bootstrap nor a token."
)]
pub struct Options {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Option<Serve>,
    /// Log in JSON, one object a line, instead of text.
    #[arg(long, global = true)]
    pub log_json: bool,
}

/// Work on a data directory whose coordinator is stopped.
#[derive(Subcommand, Debug, Clone)]
pub enum Action {
    /// Makes the first coordinator of a new history of a mesh from a backup.
    #[command(
        after_help = "Example:\n  MESH_BACKUP_PASSPHRASE=... mesh-coordinator restore --data-dir D --from mesh.backup --advertise 203.0.113.10"
    )]
    Restore(Restore),
    /// Lets one surviving coordinator go on alone after the majority was lost for good.
    #[command(after_help = "Example, with the coordinator stopped:\n  mesh-coordinator recover --data-dir D")]
    Recover(Recover),
}

/// How to serve.
#[derive(Args, Debug, Clone)]
pub struct Serve {
    /// Directory of keys and of the replicated log; made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where nodes and other coordinators reach this one: ADDR[:PORT]. Repeat it for several addresses. It is announced
    /// when it is not what the last start advertised; otherwise what `meshctl coordinator set-address` has set stays.
    #[arg(long, value_name = "ADDR[:PORT]", required = true, value_parser = CoordinatorAddress::parse_advertised)]
    pub advertise: Vec<CoordinatorAddress>,
    /// Unix socket for administration.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Makes a new mesh. Does nothing on a data directory that has one, and is refused on one whose mesh was ended.
    #[arg(long, conflicts_with = "join_token_file")]
    pub bootstrap: bool,
    /// Overlay range of the new mesh; at most one IPv4 and one IPv6 range. What is missing is drawn at random.
    #[arg(long, value_name = "CIDR", requires = "bootstrap")]
    pub overlay: Vec<ipnet::IpNet>,
    /// File with a coordinator's join token; or put the token into MESH_JOIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Address to listen on; by default every address, at the port of the first --advertise.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// This coordinator's name; by default the host's.
    #[arg(long)]
    pub name: Option<NodeName>,
    /// How long the key of a node lives between renewals, for a new mesh.
    #[arg(long, value_name = "DURATION", default_value = "30d")]
    pub default_key_ttl: MeshDuration,
    /// Time without a leader after which a replica stands for election (at most twice that).
    #[arg(long, value_name = "DURATION", default_value = "500ms")]
    pub election_timeout: MeshDuration,
    /// How often a leader says that it is there; a fifth of the election timeout or less, and more than a round trip
    /// between coordinators and a write to disk take, since it waits no longer for the answer.
    #[arg(long, value_name = "DURATION", default_value = "100ms")]
    pub heartbeat: MeshDuration,
    /// Vouches for this host's clock: after a long stop a lone coordinator refuses writes until its clock is known to be
    /// right.
    #[arg(long)]
    pub clock_is_right: bool,
    /// Group that may read (lists, not changes) over the socket.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
}

impl Serve {
    /// Where to listen.
    pub fn listen_address(&self) -> SocketAddr {
        let port = self.advertise.first().map_or(mesh_types::coordinator::DEFAULT_COORDINATOR_PORT, |first| first.port);
        self.listen.unwrap_or_else(|| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)))
    }

    /// Whether the address is one that other hosts cannot reach.
    pub fn advertises_only_loopback(&self) -> bool {
        self.advertise.iter().all(CoordinatorAddress::is_loopback)
    }
}

/// Fields of `restore`.
#[derive(Args, Debug, Clone)]
pub struct Restore {
    /// Directory for the restored coordinator: empty or missing.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The backup that `meshctl coordinator snapshot` wrote.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// Where nodes reach the restored coordinator.
    #[arg(long, value_name = "ADDR[:PORT]", required = true, value_parser = CoordinatorAddress::parse_advertised)]
    pub advertise: Vec<CoordinatorAddress>,
    /// The coordinator's name; by default the host's.
    #[arg(long)]
    pub name: Option<NodeName>,
    /// File with the backup's passphrase; or put it into MESH_BACKUP_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// Fields of `recover`.
#[derive(Args, Debug, Clone)]
pub struct Recover {
    /// Directory of the surviving coordinator.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
}
