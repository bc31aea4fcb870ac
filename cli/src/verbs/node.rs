//! `meshctl node list|show|rename|remove|allow`.

use super::Context;
use crate::args::Node;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask, request_id};
use mesh_proto::v1::{AllowNodeRequest, ListNodesRequest, NodeInfo, NodeRecord, RemoveNodeRequest, RenameNodeRequest};
use mesh_types::{MeshTime, NodeId, NodeName, PublicKey};
use serde::Serialize;
use std::net::{Ipv4Addr, Ipv6Addr};

/// One of what `meshctl node list --json` prints, and what `node show --json` does.
#[derive(Serialize)]
struct Listed {
    id: String,
    name: String,
    addresses: Vec<String>,
    public_key: String,
    online: bool,
    expires_at: String,
    state: String,
}

pub(super) async fn run(context: &Context, node: Node) -> Result<Exit, Failure> {
    match node {
        Node::List => {
            let nodes = fetch(context).await?;
            print(context, &nodes);
            Ok(Exit::Done)
        }
        Node::Show { node } => show(context, &node).await,
        Node::Rename { node, name } => rename(context, node, name).await,
        Node::Remove { node } => remove(context, node).await,
        Node::Allow { node } => allow(context, node).await,
    }
}

async fn fetch(context: &Context) -> Result<Vec<Listed>, Failure> {
    let reply = ask(reach::ANSWER, reach::coordinator(&context.paths).await?.list_nodes(ListNodesRequest {})).await?;
    if !reply.fresh {
        output::note("meshctl: the coordinators have no quorum; this may be out of date");
    }
    reply.nodes.into_iter().map(listed).collect()
}

fn listed(info: NodeInfo) -> Result<Listed, Failure> {
    let record = info.record.unwrap_or_default();
    let nonsense = || Failure::new(Exit::Failed, "the coordinator's answer makes no sense: upgrade meshctl");
    Ok(Listed {
        id: NodeId::try_from(record.id.as_ref()).map_err(|_| nonsense())?.to_string(),
        addresses: addresses(&record).ok_or_else(nonsense)?,
        public_key: PublicKey::try_from(record.public_key.as_ref()).map_err(|_| nonsense())?.to_string(),
        name: record.name,
        online: info.online,
        expires_at: MeshTime(record.expires_at).to_string(),
        state: info.state,
    })
}

fn addresses(record: &NodeRecord) -> Option<Vec<String>> {
    let v4 = Ipv4Addr::from(<[u8; 4]>::try_from(record.address_v4.as_ref()).ok()?);
    let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(record.address_v6.as_ref()).ok()?);
    Some(vec![v4.to_string(), v6.to_string()])
}

fn print(context: &Context, nodes: &[Listed]) {
    if context.json() {
        return output::json(&nodes);
    }
    let mut table = output::table(["NAME", "ADDRESS", "STATE", "ONLINE", "EXPIRES", "ID"]);
    for node in nodes {
        let address = node.addresses.first().map_or("", String::as_str);
        let online = output::verdict(if node.online { "yes" } else { "no" }, node.online);
        table.add_row([&node.name, address, &node.state, &online, &node.expires_at, &node.id]);
    }
    output::print(&table);
}

async fn show(context: &Context, node: &str) -> Result<Exit, Failure> {
    let nodes = fetch(context).await?;
    // A removed node may have left its name to another; the living come first.
    let named = |listed: &&Listed| listed.name == node || listed.id == node;
    let found = nodes.iter().filter(named).min_by_key(|listed| listed.state == "removed");
    let found = found.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("no node {node:?}: `meshctl node list` shows all names and ids"))
    })?;
    if context.json() {
        output::json(found);
        return Ok(Exit::Done);
    }
    output::line(format_args!("name        {}", found.name));
    output::line(format_args!("id          {}", found.id));
    output::line(format_args!("addresses   {}", found.addresses.join(", ")));
    output::line(format_args!("public key  {}", found.public_key));
    output::line(format_args!("state       {}", found.state));
    output::line(format_args!("online      {}", if found.online { "yes" } else { "no" }));
    output::line(format_args!("expires     {}", found.expires_at));
    Ok(Exit::Done)
}

async fn rename(context: &Context, node: String, name: NodeName) -> Result<Exit, Failure> {
    let request = RenameNodeRequest { request_id: request_id()?, node: node.clone(), name: name.to_string() };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.rename_node(request)).await?;
    context.note(format_args!("{node} is now called {name}."));
    Ok(Exit::Done)
}

/// What `meshctl node remove --json` prints.
#[derive(Serialize)]
struct Removed {
    id: String,
}

async fn remove(context: &Context, node: String) -> Result<Exit, Failure> {
    let request = RemoveNodeRequest { request_id: request_id()?, node: node.clone() };
    let reply = ask(reach::ANSWER, reach::coordinator(&context.paths).await?.remove_node(request)).await?;
    let id = NodeId::try_from(reply.id.as_ref()).map(|id| id.to_string()).unwrap_or_default();
    if context.json() {
        output::json(&Removed { id });
    } else {
        context.note(format_args!("{node} is removed; `meshctl node allow {id}` would let it back in."));
    }
    Ok(Exit::Done)
}

async fn allow(context: &Context, node: String) -> Result<Exit, Failure> {
    let request = AllowNodeRequest { request_id: request_id()?, node: node.clone() };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.allow_node(request)).await?;
    context.note(format_args!("{node} may come back: `meshctl up` there, or `meshctl join` with a new token."));
    Ok(Exit::Done)
}
