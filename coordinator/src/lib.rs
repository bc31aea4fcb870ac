//! The authority of a mesh: a replica of the registry on Raft and disk, and the gRPC services over it.

mod clock;
mod exchange;
mod grpc;
mod health;
mod home;
mod join;
pub mod options;
mod orders;
mod peers;
mod raft;
mod random;
mod replica;
pub mod run;
mod sessions;

use options::Options;

/// Does what the command line asks for, until `stop` resolves.
///
/// # Errors
///
/// What kept it from doing so, with what to do next.
pub async fn main(options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    match (options.action, options.serve) {
        (None, Some(serve)) => run::run(serve, stop).await,
        (Some(_), _) => anyhow::bail!("not here yet"),
        (None, None) => anyhow::bail!("nothing to do: see --help"),
    }
}
