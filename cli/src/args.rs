//! The arguments of `meshctl`: a stable interface.

use crate::exit::EXIT_CODES;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;
use mesh_types::limits::{MAX_KEY_TTL, MIN_KEY_TTL};
use mesh_types::{CoordinatorAddress, MeshDuration, NodeName, Role};
use std::path::PathBuf;

/// Forms and runs a WireGuard mesh.
#[derive(Parser, Debug)]
#[command(name = "meshctl", version, about = "Forms and runs a WireGuard mesh", after_help = EXIT_CODES, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb understands.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Globals {
    /// The mesh on this host; names its interface and default paths
    #[arg(long, global = true, help_heading = "Global options", default_value = "mesh0", value_name = "NAME", value_parser = parse_mesh)]
    pub(crate) mesh: String,
    /// The socket of meshd [default: /run/meshctl/MESH/meshd.sock]
    #[arg(long, global = true, help_heading = "Global options", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The socket of mesh-coordinator [default: /run/meshctl/MESH/coordinator.sock]
    #[arg(long, global = true, help_heading = "Global options", value_name = "PATH")]
    pub(crate) coordinator_socket: Option<PathBuf>,
    /// The state of meshd [default: /var/lib/meshctl/MESH/node]
    #[arg(long, global = true, help_heading = "Global options", value_name = "PATH", hide_short_help = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The data of mesh-coordinator [default: /var/lib/meshctl/MESH/coordinator]
    #[arg(long, global = true, help_heading = "Global options", value_name = "PATH", hide_short_help = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print JSON; its fields are stable
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Print nothing but answers and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Show a whole mesh on this machine, with real processes and packets, touching nothing of the host
    #[command(after_help = "Example:\n  meshctl demo")]
    Demo(Demo),
    /// Make a new mesh: its first coordinator and first node, on this host
    #[command(after_help = "Example:\n  meshctl init --advertise 203.0.113.10")]
    Init(Init),
    /// Join a mesh with a token
    #[command(after_help = "Examples:\n  meshctl join mesh1...\n  meshctl join --token-file /root/token --coordinator")]
    Join(Join),
    /// Show this node and its peers
    #[command(after_help = "Example:\n  meshctl status --json | jq -r '.peers[] | select(.online) | .name'")]
    Status {
        /// Exit with 1 unless this node is a member with a live lease and its interface stands: for health checks
        #[arg(long)]
        check: bool,
    },
    /// Probe a peer through its tunnel
    #[command(after_help = "Example:\n  meshctl ping node-2 -c 3")]
    Ping(Ping),
    /// Take the interface down; the membership stays
    #[command(after_help = "Example:\n  meshctl down")]
    Down,
    /// Bring the interface up again
    #[command(after_help = "Example:\n  meshctl up")]
    Up,
    /// Leave the mesh and remove this node from this host. A coordinator on it stays one
    #[command(after_help = "Examples:\n  meshctl leave\n  meshctl leave --destroy")]
    Leave(Leave),
    /// Join tokens; on a coordinator's host
    #[command(subcommand)]
    Token(Token),
    /// Nodes; on a coordinator's host
    #[command(subcommand)]
    Node(Node),
    /// Coordinators; on a coordinator's host
    #[command(subcommand)]
    Coordinator(Coordinator),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  meshctl completion bash > /etc/bash_completion.d/meshctl")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// How meshd drives WireGuard.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    /// The kernel's where it works, else our own
    Auto,
    /// The kernel's WireGuard
    Kernel,
    /// WireGuard inside meshd
    Userspace,
}

impl Backend {
    /// As meshd spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Demo {
    /// How the demo's nodes drive WireGuard
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// Leave it running at the end, until Ctrl-C, and print how to enter it
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Init {
    /// Where this coordinator is reached by others: ADDR or ADDR:PORT, repeatable
    #[arg(long, required = true, num_args = 1.., value_name = "ADDR", value_parser = CoordinatorAddress::parse_advertised)]
    pub(crate) advertise: Vec<CoordinatorAddress>,
    /// Overlay range, IPv4 or IPv6 [default: a random free /16 of 10.0.0.0/8 and a random unique local /48]
    #[arg(long, value_name = "CIDR")]
    pub(crate) overlay: Vec<IpNet>,
    /// The name of this host in the mesh [default: its host name]
    #[arg(long)]
    pub(crate) name: Option<NodeName>,
    /// How long keys are valid before they are renewed or expire [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = parse_key_ttl)]
    pub(crate) default_key_ttl: Option<MeshDuration>,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Join {
    /// The token; also from --token-file or the environment variable MESH_JOIN_TOKEN
    #[arg(value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// A file with the token; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Become a coordinator replica as well; needs a token with that role
    #[arg(long)]
    pub(crate) coordinator: bool,
    /// With --coordinator: where others reach this one, repeatable [default: the address that faces the mesh]
    #[arg(long, value_name = "ADDR", requires = "coordinator", value_parser = CoordinatorAddress::parse_advertised)]
    pub(crate) advertise: Vec<CoordinatorAddress>,
    /// The name of this host in the mesh [default: its host name]
    #[arg(long)]
    pub(crate) name: Option<NodeName>,
    #[command(flatten)]
    pub(crate) start: Start,
}

/// How daemons are started where they do not run.
#[derive(clap::Args, Debug)]
pub(crate) struct Start {
    /// Stay in the foreground with the daemons as children, for containers and supervisors
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How a newly started meshd drives WireGuard
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// UDP port of a newly started meshd [default: 51820 if free, else random, then kept]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) listen_port: Option<u16>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ping {
    /// Name, overlay address or id
    pub(crate) node: String,
    /// How many probes; 0 for no end
    #[arg(short, long, default_value_t = 4)]
    pub(crate) count: u32,
    /// Time between probes
    #[arg(short, long, default_value = "1s", value_name = "DURATION")]
    pub(crate) interval: MeshDuration,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Leave {
    /// Also when no coordinator can be told; then remove the node with `meshctl node remove` on a coordinator's host
    #[arg(long)]
    pub(crate) force: bool,
    /// End the mesh as well, where this host has its last coordinator: see `meshctl coordinator remove --help`
    #[arg(long)]
    pub(crate) destroy: bool,
}

/// Verbs about join tokens.
#[derive(Subcommand, Debug)]
pub(crate) enum Token {
    /// Make a join token and print it
    #[command(after_help = "Example:\n  meshctl token create --role node --ttl 1h --uses 5")]
    Create {
        /// What its holder may become: node or coordinator
        #[arg(long, default_value = "node")]
        role: Role,
        /// How long it is good
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        ttl: MeshDuration,
        /// How many may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Write the token to this file (mode 0600) instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List tokens that are still good; secrets are not kept, so they cannot be shown again
    #[command(after_help = "Example:\n  meshctl token list")]
    List,
    /// Make a token worthless
    #[command(after_help = "Example:\n  meshctl token revoke 0f1e2d3c4b5a6978")]
    Revoke {
        /// Its id, as in `meshctl token list`
        id: mesh_types::TokenId,
    },
}

/// Verbs about nodes.
#[derive(Subcommand, Debug)]
pub(crate) enum Node {
    /// List the nodes
    #[command(after_help = "Example:\n  meshctl node list --json")]
    List,
    /// Show one node
    #[command(after_help = "Example:\n  meshctl node show node-2")]
    Show {
        /// Name or id
        node: String,
    },
    /// Give a node another name
    #[command(after_help = "Example:\n  meshctl node rename node-2 db-1")]
    Rename {
        /// Name or id
        node: String,
        /// The new name
        name: NodeName,
    },
    /// Remove a node: within seconds no other speaks with it, and it cannot come back
    #[command(after_help = "Example:\n  meshctl node remove node-2")]
    Remove {
        /// Name or id
        node: String,
    },
    /// Let a removed node back in: by `meshctl up` there, or by joining with a new token
    #[command(after_help = "Example:\n  meshctl node allow node-2")]
    Allow {
        /// Name or id
        node: String,
    },
}

/// Verbs about coordinators.
#[derive(Subcommand, Debug)]
pub(crate) enum Coordinator {
    /// List the coordinators
    #[command(after_help = "Example:\n  meshctl coordinator list")]
    List,
    /// Print the command that makes another host a coordinator
    #[command(after_help = "Example:\n  meshctl coordinator add")]
    Add {
        /// How long its token is good
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        ttl: MeshDuration,
        /// How many may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
    /// Remove a coordinator for good; its id is never used again. The last one needs --destroy
    #[command(
        after_help = "Examples:\n  meshctl coordinator remove coordinator-3\n  meshctl coordinator remove coordinator-1 --destroy"
    )]
    Remove {
        /// Name or id
        coordinator: String,
        /// End the mesh with its last coordinator: from then on nobody joins, renews or is removed. Nodes are not
        /// told; they keep their tunnels until their keys' deadlines. The data directory is kept and never serves
        /// again; only a snapshot brings the mesh back
        #[arg(long)]
        destroy: bool,
    },
    /// Hand leadership to another coordinator
    #[command(after_help = "Example:\n  meshctl coordinator transfer-leader coordinator-2")]
    TransferLeader {
        /// Name or id [default: any other voter]
        to: Option<String>,
    },
    /// Say where a coordinator is reached from now on
    #[command(after_help = "Example:\n  meshctl coordinator set-address 203.0.113.20 --of coordinator-2")]
    SetAddress {
        /// All its addresses, in order of preference
        #[arg(required = true, value_name = "ADDR", value_parser = CoordinatorAddress::parse_advertised)]
        addresses: Vec<CoordinatorAddress>,
        /// Name or id [default: the one on this host]
        #[arg(long, value_name = "COORDINATOR")]
        of: Option<String>,
    },
    /// Change how long keys are valid, for those made or renewed from now on
    #[command(after_help = "Example:\n  meshctl coordinator set-key-ttl 7d")]
    SetKeyTtl {
        /// The time
        #[arg(value_name = "DURATION", value_parser = parse_key_ttl)]
        ttl: MeshDuration,
    },
    /// Write the registry, and the mesh CA's key under a passphrase, to a file
    #[command(after_help = "Example:\n  meshctl coordinator snapshot /root/mesh.backup --passphrase-file /root/pass")]
    Snapshot {
        /// The file; must not exist yet
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Make a new coordinator from a snapshot, in an empty data directory
    #[command(after_help = "Example:\n  meshctl coordinator restore /root/mesh.backup --advertise 203.0.113.10")]
    Restore {
        /// The snapshot
        file: PathBuf,
        /// Where the new coordinator is reached by others, repeatable
        #[arg(long, required = true, value_name = "ADDR", value_parser = CoordinatorAddress::parse_advertised)]
        advertise: Vec<CoordinatorAddress>,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Make this coordinator the only one, after the majority was lost for good
    #[command(after_help = "Example:\n  meshctl coordinator recover")]
    Recover,
}

/// Where a passphrase comes from: never the command line, which others can see.
#[derive(clap::Args, Debug)]
pub(crate) struct Passphrase {
    /// A file with the passphrase; - for standard input [default: environment variable MESH_BACKUP_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// A mesh's local name is also its interface's, and part of paths.
fn parse_mesh(text: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 15 letters, digits, - or _: it names an interface".to_owned())
    }
}

/// Before anything is asked for with it.
fn parse_key_ttl(text: &str) -> Result<MeshDuration, String> {
    let ttl: MeshDuration = text.parse().map_err(|error| format!("{error}"))?;
    if (MIN_KEY_TTL..=MAX_KEY_TTL).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(format!("expected {MIN_KEY_TTL} to {MAX_KEY_TTL}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example_in_its_help() {
        use clap::CommandFactory as _;
        fn check(command: &clap::Command) {
            for verb in command.get_subcommands() {
                if verb.has_subcommands() {
                    check(verb);
                } else {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains("meshctl "), "{} has no example", verb.get_name());
                }
            }
        }
        check(&Args::command());
    }

    #[test]
    fn the_stable_forms_are_understood() {
        for line in [
            "meshctl demo --json --keep --backend userspace",
            "meshctl init --advertise 203.0.113.10 2001:db8::1 --overlay 10.7.0.0/16 --overlay fd00:1::/48",
            "meshctl join mesh1abc",
            "meshctl join --coordinator mesh1abc",
            "meshctl --socket /p status --json",
            "meshctl status --socket /p",
            "meshctl --coordinator-socket /p token create --role coordinator --ttl 1h --uses 2 --json",
            "meshctl ping node-2 -c 3 -i 200ms",
            "meshctl coordinator set-address a:1 b:2 --of x",
            "meshctl coordinator transfer-leader",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
