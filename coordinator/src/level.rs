//! Raises the log's level, while this replica leads, as soon as every member understands a higher one.

use crate::replica::Replica;
use mesh_coordinator_core::command::RaiseLevel;
use mesh_coordinator_core::level;
use mesh_types::Level;
use std::sync::Arc;
use std::time::Duration;

/// Members say once a second what they understand.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for ever.
pub(crate) async fn keep(replica: Arc<Replica>) {
    loop {
        if let Some(level) = due(&replica) {
            match replica.write(RaiseLevel { level }, None).await {
                Ok(_) => tracing::info!(level = level.0, "the log's level is raised: every coordinator understands it"),
                Err(error) => tracing::warn!(%error, level = level.0, "the log's level is not raised"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The level to raise to now. Members are those of the registry and those that Raft still counts on.
fn due(replica: &Replica) -> Option<Level> {
    let status = replica.raft.status();
    if !status.leads {
        return None;
    }
    let (log, mut members) = replica.view().read(|registry| {
        let registered = registry.coordinators().iter().map(|record| record.id);
        (registry.level(), registered.collect::<std::collections::BTreeSet<_>>())
    });
    members.extend(status.voters);
    members.extend(status.learners);
    let understood = members.into_iter().map(|id| match id {
        own if own == replica.id => Some(replica.level),
        other => replica.health.recent(other).map(|condition| condition.level),
    });
    level::next(log, understood)
}
