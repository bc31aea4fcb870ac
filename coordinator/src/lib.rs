//! The authority of a mesh: a replica of the registry on Raft and disk, and the gRPC services over it.

mod backup;
mod clock;
pub mod ending;
mod exchange;
mod grpc;
mod health;
mod home;
mod join;
mod level;
pub mod options;
mod orders;
mod overlay;
mod peers;
mod queue;
mod raft;
mod random;
mod rates;
mod recover;
mod replica;
pub mod run;
mod sessions;
#[cfg(test)]
mod tests;
mod token;

pub use home::Gone;

use options::{Action, Options};

/// Does what the command line asks for, until `stop` resolves.
///
/// # Errors
///
/// What kept it from doing so, with what to do next.
pub async fn main(options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    match (options.action, options.serve) {
        (None, Some(serve)) => run::run(serve, stop).await,
        (Some(Action::Restore(restore)), _) => recover::restore(&restore).await,
        (Some(Action::Recover(recover)), _) => recover::recover(&recover).await,
        (None, None) => anyhow::bail!("nothing to do: see --help"),
    }
}
