//! `meshctl join`: this host becomes a node, and with `--coordinator` a coordinator replica as well.

use super::passphrase::read_secret;
use super::{Context, token};
use crate::args::Join;
use crate::daemons::{Beginning, Daemon, Daemons, make_private, with_daemons};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask};
use mesh_proto::v1::{LocalJoinRequest, StatusReply, StatusRequest};
use mesh_types::coordinator::{DEFAULT_COORDINATOR_PORT, Host};
use mesh_types::{CoordinatorAddress, JoinToken, MeshDuration, NodeName, Role};
use serde::Serialize;
use std::net::{Ipv4Addr, ToSocketAddrs as _, UdpSocket};
use std::path::Path;

/// The variable that may hold the token.
const VARIABLE: &str = "MESH_JOIN_TOKEN";
/// The own node's token is used at once.
const OWN_TTL: MeshDuration = MeshDuration::from_secs(600);

/// What `meshctl join --json` prints.
#[derive(Serialize)]
pub(super) struct Joined {
    id: String,
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
    /// Whether this host was a member before.
    already: bool,
}

pub(super) async fn run(context: &Context, join: Join) -> Result<Exit, Failure> {
    with_daemons(join.start.foreground, async |daemons| join_with(context, &join, daemons).await).await
}

async fn join_with(context: &Context, join: &Join, daemons: &mut Daemons) -> Result<(), Failure> {
    let node = Daemon::node(&context.paths, &join.start);
    let Some(text) = token_text(join)? else {
        return without_token(context, &node, daemons).await;
    };
    let token: JoinToken = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    check_role(&token, join.coordinator)?;
    let node_token =
        if join.coordinator { join_coordinator(context, join, &token, &text, daemons).await? } else { text };
    daemons.ensure(&node, &context.globals, &context.paths).await?;
    let joined = join_node(context, node_token, join.name.as_ref()).await?;
    announce(context, &joined);
    Ok(())
}

fn token_text(join: &Join) -> Result<Option<String>, Failure> {
    if let Some(token) = &join.token {
        return Ok(Some(token.trim().to_owned()));
    }
    if let Some(file) = &join.token_file {
        return Ok(Some(read_secret(file)?.to_string()));
    }
    Ok(std::env::var(VARIABLE).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
}

/// Joining again needs no token: a member stays one, also while its daemon does not run.
async fn without_token(context: &Context, node: &Daemon, daemons: &mut Daemons) -> Result<(), Failure> {
    let missing = || {
        Failure::usage(format!(
            "no token: give it as argument, by --token-file or in {VARIABLE}; `meshctl token create` on a coordinator's host makes one"
        ))
    };
    if !context.paths.membership().exists() {
        return Err(missing());
    }
    daemons.ensure(node, &context.globals, &context.paths).await?;
    let status = ask(reach::ANSWER, reach::node(&context.paths).await?.status(StatusRequest {})).await?;
    announce(context, &held(status)?.ok_or_else(missing)?);
    Ok(())
}

/// The membership that a status shows, if there is one; one that was ended is an error.
fn held(status: StatusReply) -> Result<Option<Joined>, Failure> {
    if status.phase == "left" {
        let message = "this node was removed from the mesh: let it back in with `meshctl node allow` on a coordinator \
                       and `meshctl up` here, or forget the mesh here with `meshctl leave`";
        return Err(Failure::new(Exit::Refused, message));
    }
    let own = status.self_.filter(|own| !own.addresses.is_empty());
    Ok(own.map(|own| Joined { id: own.id, name: own.name, addresses: own.addresses, already: true }))
}

fn check_role(token: &JoinToken, coordinator: bool) -> Result<(), Failure> {
    match (token.role, coordinator) {
        (Role::Node, true) => Err(Failure::new(
            Exit::Refused,
            "this token is for nodes: `meshctl coordinator add` on a coordinator's host makes one for coordinators",
        )),
        (Role::Coordinator, false) => Err(Failure::new(
            Exit::Refused,
            "this token is for coordinators: add --coordinator, or get one for nodes with `meshctl token create`",
        )),
        (Role::Node, false) | (Role::Coordinator, true) => Ok(()),
    }
}

/// Starts the replica, and lets it make a token for this host's node.
async fn join_coordinator(
    context: &Context,
    join: &Join,
    token: &JoinToken,
    text: &str,
    daemons: &mut Daemons,
) -> Result<String, Failure> {
    let advertise = if join.advertise.is_empty() { vec![facing(&token.addresses)?] } else { join.advertise.clone() };
    let data = &context.paths.coordinator_data;
    make_private(data.parent().unwrap_or(data))?;
    let token_file = data.with_extension("token");
    token::write_secret(&token_file, text)?;
    let beginning = Beginning::Join { token_file: token_file.clone() };
    let daemon = Daemon::coordinator(&context.paths, &advertise, join.name.as_ref(), &beginning);
    let started = daemons.ensure(&daemon, &context.globals, &context.paths).await;
    let created = match started {
        Ok(()) => token::create_when_ready(context, Role::Node, OWN_TTL, 1).await,
        Err(failure) => Err(failure),
    };
    forget(&token_file);
    Ok(by_way_of_loopback(&created?.token, &advertise))
}

/// The same token with this host's own coordinator first: the address it advertises may be one that only others reach.
pub(super) fn by_way_of_loopback(token: &str, advertise: &[CoordinatorAddress]) -> String {
    let Ok(mut token) = token.parse::<JoinToken>() else { return token.to_owned() };
    let port = advertise.first().map_or(DEFAULT_COORDINATOR_PORT, |address| address.port);
    token.addresses.insert(0, CoordinatorAddress { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port });
    token.to_string()
}

fn forget(token_file: &Path) {
    // Used up by now; a copy that cannot be removed opens nothing.
    let _ = std::fs::remove_file(token_file);
}

/// The own address from which the mesh's coordinators are reached.
fn facing(coordinators: &[CoordinatorAddress]) -> Result<CoordinatorAddress, Failure> {
    let own = coordinators.iter().find_map(|address| {
        let host = match &address.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        };
        let far = (host.as_str(), address.port).to_socket_addrs().ok()?.next()?;
        let socket = UdpSocket::bind(if far.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
        // Connecting a UDP socket sends nothing; it asks the routing table.
        socket.connect(far).ok()?;
        socket.local_addr().ok().map(|own| own.ip())
    });
    let host = Host::Ip(own.ok_or_else(|| {
        Failure::usage("no route to the mesh's coordinators: say with --advertise where others reach this host")
    })?);
    Ok(CoordinatorAddress { host, port: DEFAULT_COORDINATOR_PORT })
}

/// Lets this host's meshd join.
pub(super) async fn join_node(context: &Context, token: String, name: Option<&NodeName>) -> Result<Joined, Failure> {
    let request = LocalJoinRequest { token, name: name.map(ToString::to_string).unwrap_or_default() };
    let reply = ask(reach::JOIN, reach::node(&context.paths).await?.join(request)).await?;
    Ok(Joined { id: reply.id, name: reply.name, addresses: reply.addresses, already: reply.already })
}

fn announce(context: &Context, joined: &Joined) {
    if context.json() {
        return output::json(joined);
    }
    let verb = if joined.already { "is a member already" } else { "has joined" };
    context.note(format_args!("{} {verb}: {}.", joined.name, joined.addresses.join(" and ")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::v1::SelfStatus;

    #[test]
    fn only_a_member_needs_no_token_to_join_again() {
        let status = |phase: &str| {
            let own = SelfStatus { name: "n".into(), addresses: vec!["10.0.0.1".into()], ..SelfStatus::default() };
            StatusReply { phase: phase.into(), self_: Some(own), ..StatusReply::default() }
        };
        assert!(held(status("up")).unwrap().is_some_and(|joined| joined.already));
        assert!(held(StatusReply { self_: None, ..status("new") }).unwrap().is_none());
        assert_eq!(held(status("left")).err().map(|failure| failure.exit), Some(Exit::Refused));
    }

    #[test]
    fn the_address_that_faces_the_coordinators_is_the_own_one_there() {
        let own = facing(&["127.0.0.1:1".parse().unwrap()]).unwrap();
        assert_eq!(own.to_string(), "127.0.0.1:8551");
    }

    #[test]
    fn the_own_node_asks_the_own_coordinator_first() {
        let token = JoinToken {
            role: Role::Node,
            mesh: mesh_types::MeshId::from_bytes([1; 16]),
            authority: mesh_types::Fingerprint::from_bytes([2; 32]),
            id: mesh_types::TokenId::from_bytes([3; 8]),
            secret: mesh_types::TokenSecret::from_bytes([4; 20]),
            addresses: vec!["203.0.113.10:7".parse().unwrap()],
        };
        let changed: JoinToken = by_way_of_loopback(&token.to_string(), &token.addresses).parse().unwrap();
        assert_eq!(changed.addresses, ["127.0.0.1:7".parse().unwrap(), "203.0.113.10:7".parse().unwrap()]);
        assert_eq!(JoinToken { addresses: token.addresses.clone(), ..changed }, token);
    }
}
