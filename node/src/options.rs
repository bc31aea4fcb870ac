//! What the command line says, with where everything lies by default.

use crate::device::BackendChoice;
use crate::mark::{DEFAULT_MARK, Mark};
use clap::{Args, Parser, Subcommand};
use mesh_types::NodeName;
use std::path::PathBuf;
use std::str::FromStr as _;

const EXAMPLES: &str = "\
Examples:
  # Started by a supervisor; waits for `meshctl join TOKEN`, or goes on as the member it is.
  meshd

  # In a container: join with the token that another container writes, on first start only.
  meshd --state-dir /data --socket /run/meshd.sock --join-token-file /tokens/node

  # WireGuard alone, without a mesh, configured with `wg`.
  meshd wireguard wg0

Exit codes: 0 stopped by a signal; 1 failed; 2 usage; 3 no permission (root or CAP_NET_ADMIN, /dev/net/tun);
4 another meshd runs here (state directory, socket or interface in use); 5 the state directory is damaged;
6 joining was refused (token, name, overlay range).";

const WIREGUARD_EXAMPLES: &str = "\
Examples:
  # Make wg0 and carry its packets until Ctrl-C, or until `ip link delete wg0`.
  meshd wireguard wg0

  # Meanwhile, elsewhere: give it a key and peers, an address, and bring it up.
  wg setconf wg0 wg0.conf && ip address add 10.0.0.1/24 dev wg0 && ip link set wg0 up

  # For wg-quick, which wants one word: a script that says `exec meshd wireguard --detach \"$1\"`.
  WG_QUICK_USERSPACE_IMPLEMENTATION=/usr/local/bin/that-script wg-quick up wg0

It listens for wg(8) on /var/run/wireguard/INTERFACE.sock. Exit codes are those of `meshd --help`.";

/// The node daemon of a meshctl mesh: it programs WireGuard with what the coordinators know.
#[derive(Parser, Clone, Debug)]
#[command(name = "meshd", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Something else than the daemon
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where keys, membership and the journal are kept [default: /var/lib/meshctl/INTERFACE/node]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// The socket that meshctl talks to [default: /run/meshctl/INTERFACE/meshd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// The network interface to make; also names the mesh in the default paths
    #[arg(long, value_name = "NAME", default_value = "mesh0", value_parser = interface_name)]
    pub interface: String,

    /// Which WireGuard to use; auto takes the kernel's where it works
    #[arg(long, value_name = "BACKEND", default_value = "auto", value_parser = BackendChoice::from_str)]
    pub backend: BackendChoice,

    /// UDP port of WireGuard [default: the one of the first start: 51820 if it was free, else a random one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: Option<u16>,

    /// Joins with the token in this file if not yet a member; waits for the file to appear
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// The name to ask for [default: this host's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<NodeName>,

    /// Mark on all packets that go outside the mesh, by which they are kept out of it; the bits of MASK tell it, by
    /// default all. 0 is none: then nothing keeps a kernel device from sending into its own tunnel
    #[arg(long, value_name = "MARK[/MASK]", default_value = DEFAULT_MARK)]
    pub fwmark: Mark,

    /// Lets members of this group ask for `meshctl status`
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// Waits ten minutes, or until the first key expires, and takes a kernel device down whose daemon has not come back;
    /// for supervisors, when the daemon has ended
    #[arg(long)]
    pub guard: bool,

    /// With --guard: waits until the daemon that holds the other end of standard input is gone, or has said a word on it
    #[arg(long, requires = "guard", hide = true)]
    pub after_daemon: bool,

    /// Starts no guard over a kernel device; for supervisors that start one when the daemon has ended
    #[arg(long)]
    pub no_guard: bool,

    /// Logs as JSON, one object a line; RUST_LOG sets the level either way
    #[arg(long)]
    pub log_json: bool,
}

/// What `meshd` does besides being the node's daemon.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Runs the embedded WireGuard engine alone, for wg(8) and wg-quick(8)
    #[command(after_help = WIREGUARD_EXAMPLES)]
    Wireguard(WireguardOptions),
}

/// Options of `meshd wireguard`.
#[derive(Args, Clone, Debug)]
pub struct WireguardOptions {
    /// The network interface to make
    #[arg(value_name = "INTERFACE", value_parser = interface_name)]
    pub interface: String,

    /// Threads that carry packets [default: one for every two cores, eight at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,

    /// Returns when the interface is ready, and goes on in the background
    #[arg(long)]
    pub detach: bool,

    /// Tells the process that reads standard output when the interface is ready
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
}

impl Options {
    /// The state directory, given or by default.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| ["/var/lib/meshctl", &self.interface, "node"].iter().collect())
    }

    /// The socket, given or by default.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| ["/run/meshctl", &self.interface, "meshd.sock"].iter().collect())
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
    if fits && plain {
        Ok(text.to_owned())
    } else {
        Err("an interface name has 1 to 15 letters, digits, dots, hyphens or underscores".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(["meshd"].iter().chain(args))
    }

    #[test]
    fn default_paths_carry_the_interface_name() {
        let options = parse(&["--interface", "lab7"]).unwrap();
        assert_eq!(options.state_dir(), PathBuf::from("/var/lib/meshctl/lab7/node"));
        assert_eq!(options.socket(), PathBuf::from("/run/meshctl/lab7/meshd.sock"));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for args in [
            ["--interface", "much-too-long-name"],
            ["--interface", "a/b"],
            ["--interface", ".."],
            ["--backend", "magic"],
            ["--listen-port", "0"],
            ["--fwmark", "0xg"],
            ["--name", "-x"],
            ["wireguard", "much-too-long-name"],
        ] {
            assert_eq!(parse(&args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
