//! `meshctl down`, `up` and `leave`.

use super::Context;
use crate::args::Leave;
use crate::exit::{Exit, Failure};
use crate::reach::{self, ask};
use mesh_proto::v1::{DownRequest, LocalLeaveRequest, UpRequest};

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
    let request = LocalLeaveRequest { force: leave.force };
    let reply = ask(reach::JOIN, reach::node(&context.paths).await?.leave(request)).await?;
    if reply.told {
        context.note("This host has left the mesh.");
    } else {
        context.note(
            "This host has forgotten the mesh, but no coordinator knows: `meshctl node remove` there ends its membership.",
        );
    }
    Ok(Exit::Done)
}
