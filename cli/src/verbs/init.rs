//! `meshctl init`: the first coordinator and the first node of a new mesh, on this host.

use super::join::{Joined, by_way_of_loopback, held, join_node};
use super::{Context, token};
use crate::args::Init;
use crate::daemons::{Beginning, Daemon, Daemons, with_daemons};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask};
use mesh_proto::v1::StatusRequest;
use mesh_types::{CoordinatorAddress, JoinToken, MeshDuration, MeshTime, Role};
use serde::Serialize;

/// How long the token that is printed at the end is good: time to walk to the other machines.
const TOKEN_TTL: MeshDuration = MeshDuration::from_secs(3_600);
/// How many may join with it: the machines of an afternoon.
const TOKEN_USES: u32 = 100;
/// The own node's token is used at once.
const OWN_TTL: MeshDuration = MeshDuration::from_secs(600);

/// What `meshctl init --json` prints.
#[derive(Serialize)]
struct Made {
    node: Joined,
    token: String,
    token_expires_at: String,
}

pub(super) async fn run(context: &Context, init: Init) -> Result<Exit, Failure> {
    with_daemons(init.start.foreground, async |daemons| make(context, init, daemons).await).await
}

async fn make(context: &Context, init: Init, daemons: &mut Daemons) -> Result<(), Failure> {
    if !context.paths.holds_coordinator() {
        refuse_member(context).await?;
    } else if !init.overlay.is_empty() || init.default_key_ttl.is_some() {
        output::note(
            "meshctl: there is a mesh here already: --overlay and --default-key-ttl are for a new one and change nothing.",
        );
    }
    let beginning = Beginning::Bootstrap { overlay: init.overlay, key_ttl: init.default_key_ttl };
    let coordinator = Daemon::coordinator(&context.paths, &init.advertise, init.name.as_ref(), &beginning);
    daemons.ensure(&coordinator, &context.globals, &context.paths).await?;
    let node = Daemon::node(&context.paths, &init.start);
    daemons.ensure(&node, &context.globals, &context.paths).await?;
    let others = token::create_when_ready(context, Role::Node, TOKEN_TTL, TOKEN_USES).await?;
    let joined = match member_of(context, &others.token).await? {
        Some(joined) => joined,
        None => {
            let own = token::create(context, Role::Node, OWN_TTL, 1).await?;
            let own_token = by_way_of_loopback(&own.token, &init.advertise);
            join_node(context, own_token, init.name.as_ref()).await?
        }
    };
    announce(context, joined, others.token, MeshTime(others.expires_at));
    if init.advertise.iter().all(CoordinatorAddress::is_loopback) {
        context.note(
            "Only this host reaches the coordinator at a loopback address: see `meshctl coordinator set-address`.",
        );
    }
    Ok(())
}

/// This host's node, if it is up in the mesh of `token`: then it needs none.
async fn member_of(context: &Context, token: &str) -> Result<Option<Joined>, Failure> {
    let status = ask(reach::ANSWER, reach::node(&context.paths).await?.status(StatusRequest {})).await?;
    let same = token.parse::<JoinToken>().is_ok_and(|token| token.mesh.to_string() == status.mesh);
    if same && status.phase == "up" { held(status) } else { Ok(None) }
}

/// The node of a new mesh is this host's: it cannot be a member of another one under the same name.
async fn refuse_member(context: &Context) -> Result<(), Failure> {
    let is_member = match reach::node(&context.paths).await {
        Ok(mut node) => {
            let status = ask(reach::ANSWER, node.status(StatusRequest {})).await?;
            status.self_.is_some() && status.phase != "left"
        }
        Err(_) => context.paths.holds_node(),
    };
    if !is_member {
        return Ok(());
    }
    let mesh = &context.paths.mesh;
    let message = format!(
        "this host is a node of another mesh under the name {mesh}: end that with `meshctl leave`, or make the new mesh \
         under another name with --mesh"
    );
    Err(Failure::new(Exit::Refused, message))
}

fn announce(context: &Context, node: Joined, token: String, expires_at: MeshTime) {
    if context.json() {
        return output::json(&Made { node, token, token_expires_at: expires_at.to_string() });
    }
    context.note(format_args!("The mesh is up: {} has {}.", node.name, node.addresses.join(" and ")));
    context.note(format_args!("On every other machine, until {expires_at}, run:"));
    output::line(format_args!("meshctl join {token}"));
    context.note("For coordinators that can fail, make two more: `meshctl coordinator add --uses 2`.");
}
