//! `meshctl down`, `up` and `leave`.
//!
//! What `join` started and enabled, `leave` stops and disables: the membership first, its daemon after it.

use super::{Context, coordinator};
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
    let note = match reach::node(&context.paths).await {
        Err(failure) if failure.exit == Exit::NotRunning && is_forgotten(&context.paths) => "This host is in no mesh.",
        Err(failure) => return Err(failure),
        Ok(mut client) => match ask(reach::JOIN, client.leave(LocalLeaveRequest { force: leave.force })).await?.told {
            true => "This host has left the mesh.",
            false => {
                "This host has forgotten the mesh, but no coordinator knows: `meshctl node remove` there ends its \
                 membership."
            }
        },
    };
    daemons::retire_node(&context.globals, &context.paths).await?;
    context.note(note);
    match own {
        Some((name, _)) if leave.destroy => coordinator::end_mesh(context, &name).await?,
        Some((name, _)) => context.note(format_args!(
            "It is still a coordinator of the mesh: `meshctl coordinator remove {name}` ends that."
        )),
        None => {}
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
