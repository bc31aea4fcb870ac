//! `meshctl down`, `up` and `leave`.

use super::{Context, coordinator};
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

/// A host that leaves must not end the mesh by the way, nor leave a coordinator behind unmentioned.
pub(super) async fn leave(context: &Context, leave: &Leave) -> Result<Exit, Failure> {
    let own = coordinator::own(context).await?;
    match &own {
        Some((name, true)) if !leave.destroy => {
            return Err(Failure::new(
                Exit::Refused,
                format!(
                    "this host has the mesh's last coordinator, {name}: add another one first, or end the mesh for all \
                     with `meshctl leave --destroy`; `meshctl node remove` takes out this host's node alone"
                ),
            ));
        }
        Some((name, false)) if leave.destroy => {
            return Err(Failure::new(
                Exit::Refused,
                format!(
                    "{name} is not the mesh's last coordinator: remove the others first, or leave without --destroy"
                ),
            ));
        }
        None if leave.destroy => coordinator::check_ended(context)?,
        _ => {}
    }
    let request = LocalLeaveRequest { force: leave.force };
    let reply = ask(reach::JOIN, reach::node(&context.paths).await?.leave(request)).await?;
    if reply.told {
        context.note("This host has left the mesh.");
    } else {
        context.note(
            "This host has forgotten the mesh, but no coordinator knows: `meshctl node remove` there ends its membership.",
        );
    }
    match own {
        Some((name, _)) if leave.destroy => coordinator::end_mesh(context, &name).await?,
        Some((name, _)) => context.note(format_args!(
            "It is still a coordinator of the mesh: `meshctl coordinator remove {name}` ends that."
        )),
        None => {}
    }
    Ok(Exit::Done)
}
