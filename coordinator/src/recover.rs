//! Beginning another history of a mesh, offline: from a backup, or from the one replica that is left.
//!
//! Either way one coordinator goes on alone, as the only voter, in a new epoch under the same CA; others join it again.
//! What the old history had after the backup, removals too, is undone, and tokens of before a restore are void.

use crate::backup;
use crate::home::{Home, Origin, Standing};
use crate::join::host_name;
use crate::options::{Recover, Restore};
use anyhow::{Context as _, ensure};
use mesh_coordinator_core::command::OpenEpoch;
use mesh_coordinator_core::{Proposal, Registry};
use mesh_proto::certificate::identity_key;
use mesh_types::coordinator::distinct;
use mesh_types::{CoordinatorRecord, Epoch, MeshTime};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Makes the first coordinator of a new history from a backup.
pub(crate) async fn restore(options: &Restore) -> anyhow::Result<()> {
    let passphrase = match &options.passphrase_file {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Zeroizing::new(text.with_context(|| format!("cannot read the passphrase from {}", path.display()))?)
        }
        None => Zeroizing::new(
            std::env::var("MESH_BACKUP_PASSPHRASE")
                .context("no passphrase: give it in MESH_BACKUP_PASSPHRASE or with --passphrase-file")?,
        ),
    };
    let home = Home::open(&options.data_dir)?;
    home.check_not_ended()?;
    ensure!(
        home.standing()?.is_none(),
        "{} holds a coordinator already: restore into an empty directory",
        options.data_dir.display()
    );
    let bytes = std::fs::read(&options.from).with_context(|| format!("cannot read {}", options.from.display()))?;
    let backup = backup::open(&bytes, passphrase.trim_end_matches(['\r', '\n']))?;
    let mut registry = backup.registry;
    home.begin()?;
    let key = home.identity()?;
    let coordinator = CoordinatorRecord {
        id: registry.next_coordinator_id().context("the backup holds no mesh")?,
        name: options.name.clone().map_or_else(host_name, Ok)?,
        identity_key: identity_key(&key),
        addresses: distinct(options.advertise.clone()),
    };
    open_epoch(&mut registry, coordinator.clone(), true, wall())?;
    home.keep_authority(&backup.authority)?;
    let standing = Standing {
        mesh: backup.authority.mesh(),
        coordinator: coordinator.id,
        name: coordinator.name,
        origin: Origin::Joined(registry.config().cloned().context("the backup holds no mesh")?),
    };
    home.settle_with(&standing, Some((1, 1, &registry))).await?;
    eprintln!(
        "Restored coordinator {} of mesh {} as of {}, with {} nodes, in epoch {}. Start it, make new join tokens, and let \
         other coordinators join again. Nodes removed since the backup are members again: remove them again.",
        standing.coordinator,
        standing.mesh,
        backup.created,
        registry.node_count(),
        registry.epoch().map(|epoch| epoch.to_string()).unwrap_or_default()
    );
    Ok(())
}

/// Lets this replica go on alone.
pub(crate) async fn recover(options: &Recover) -> anyhow::Result<()> {
    let home = Home::open(&options.data_dir)?;
    home.check_not_ended()?;
    let standing = home.standing()?;
    let standing = standing.with_context(|| format!("{} holds no coordinator", options.data_dir.display()))?;
    let remains = home.store(&standing)?.remains().context("what is left of the log cannot be used")?;
    let mut registry = remains.registry;
    let own = registry.coordinator(standing.coordinator).cloned();
    let own =
        own.context("this coordinator does not know the mesh yet, or was removed from it: recover another one")?;
    open_epoch(&mut registry, own, false, wall())?;
    home.replace_store(&standing, remains.term, remains.index, &registry).await?;
    eprintln!(
        "Coordinator {} of mesh {} goes on alone in epoch {}, with {} nodes. Start it, and let other coordinators join \
         again with empty data directories. The others of before are shut out; the old store is kept beside the new one.",
        standing.coordinator,
        standing.mesh,
        registry.epoch().map(|epoch| epoch.to_string()).unwrap_or_default(),
        registry.node_count()
    );
    Ok(())
}

/// `now` is this host's clock, which nobody has looked at yet: addresses alone rest by it, for too long at worst.
fn open_epoch(
    registry: &mut Registry,
    coordinator: CoordinatorRecord,
    void_tokens: bool,
    now: MeshTime,
) -> anyhow::Result<()> {
    let counter = registry.epoch().context("there is no mesh in the registry")?.counter + 1;
    let epoch = Epoch { counter, id: u64::from_be_bytes(crate::random::bytes()) };
    // Not this host's clock: nobody has looked at it yet, and the registry's time never goes back. Once the coordinator
    // runs, its guard does.
    let time = registry.time();
    let proposal = Proposal::new(OpenEpoch { epoch, void_tokens, coordinator }.into());
    let level = registry.level();
    registry.apply(&proposal.stamp(level, time)).granted()?;
    registry.rest_unseen_addresses(now)?;
    Ok(())
}

fn wall() -> MeshTime {
    MeshTime::from_system(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_coordinator_core::command::Found;
    use mesh_types::netmap::Certificate;
    use mesh_types::{CoordinatorId, Level, MeshDuration, MeshId, Overlay};

    #[test]
    fn a_new_epoch_takes_no_time_from_this_hosts_clock() {
        let coordinator = CoordinatorRecord {
            id: CoordinatorId(1),
            name: "c1".parse().unwrap(),
            identity_key: mesh_types::IdentityKey::from_bytes([1; 32]),
            addresses: vec!["192.0.2.1".parse().unwrap()],
        };
        let found = Found {
            mesh: MeshId::from_bytes([1; 16]),
            overlay: Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap(),
            authority: Certificate(vec![1]),
            epoch: Epoch { counter: 1, id: 7 },
            key_ttl: MeshDuration::from_secs(86_400),
            coordinator: coordinator.clone(),
        };
        let mut registry = Registry::new();
        registry.apply(&Proposal::new(found.into()).stamp(Level::FIRST, MeshTime(1_000))).granted().unwrap();
        open_epoch(&mut registry, coordinator, true, MeshTime(9_000)).unwrap();
        assert_eq!((registry.time(), registry.epoch().unwrap().counter), (MeshTime(1_000), 2));
    }
}
