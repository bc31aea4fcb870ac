//! Requests that are begun and never gone on with, on the local sockets: whoever may only look may do that.

use super::{Attack, streams};
use crate::scene::{Scene, Seen, Target};
use crate::stranger::unix;
use anyhow::Result;

pub(super) const COORDINATOR: Attack = Attack {
    name: "local-coordinator",
    about: "50,000 request heads on the coordinator's local socket",
    waits: false,
    run: |stage| Box::pin(async move { run(stage.coordinator().await?, "/mesh.v1.Admin/ListNodes").await }),
};

pub(super) const NODE: Attack = Attack {
    name: "local-node",
    about: "50,000 request heads on the local socket of a node's daemon",
    waits: false,
    run: |stage| Box::pin(async move { run(stage.node().await?, "/mesh.v1.Local/Status").await }),
};

const HEADS: u32 = 50_000;

async fn run<T: Target>(mut scene: Scene<T>, path: &'static str) -> Result<Seen> {
    let socket = scene.target.daemon().socket().to_owned();
    scene.judge(async move { Ok(Seen::saw(streams::flood(path, HEADS, || unix(&socket)).await?)) }).await
}
