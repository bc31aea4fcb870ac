//! `meshctl down`, `up` and `leave`.
//!
//! What `join` started and enabled, `leave` stops and disables: the membership first, its daemon after it.

use super::Context;
use crate::args::Leave;
use crate::daemons;
use crate::exit::{Exit, Failure};
use crate::paths::Paths;
use crate::reach::{self, ask};
use mesh_proto::v1::{DownRequest, LocalLeaveRequest, UpRequest};
use std::io;

pub(super) async fn down(context: &Context) -> Result<Exit, Failure> {
    ask(reach::ANSWER, reach::node(&context.paths).await?.down(DownRequest {})).await?;
    context.note("The interface is down; `meshctl up` brings it back.");
    Ok(Exit::Done)
}

pub(super) async fn up(context: &Context) -> Result<Exit, Failure> {
    ask(reach::ANSWER, reach::node(&context.paths).await?.up(UpRequest {})).await?;
    context.note("The interface is up.");
    Ok(Exit::Done)
}

pub(super) async fn leave(context: &Context, leave: &Leave) -> Result<Exit, Failure> {
    let mut client = match reach::node(&context.paths).await {
        Err(failure) if failure.exit == Exit::NotRunning && is_forgotten(&context.paths) => {
            daemons::retire_node(&context.globals, &context.paths).await?;
            context.note("This host is in no mesh.");
            return Ok(Exit::Done);
        }
        client => client?,
    };
    let reply = ask(reach::JOIN, client.leave(LocalLeaveRequest { force: leave.force })).await?;
    daemons::retire_node(&context.globals, &context.paths).await?;
    if reply.told {
        context.note("This host has left the mesh.");
    } else {
        context.note(
            "This host has forgotten the mesh, but no coordinator knows: `meshctl node remove` there ends its membership.",
        );
    }
    if reach::coordinator(&context.paths).await.is_ok() {
        context.note(
            "The coordinator on this host goes on: `meshctl coordinator remove` takes it out of the mesh where there are \
             others.",
        );
    }
    Ok(Exit::Done)
}

/// Whether a node was here and has left.
fn is_forgotten(paths: &Paths) -> bool {
    let absent = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    paths.node_state.is_dir() && paths.membership().symlink_metadata().is_err_and(absent)
}
