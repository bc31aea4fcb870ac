//! The log, to wherever supervisors look.

use mesh_proto::confine::may_be_logged;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, filter, fmt};

/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "info";

/// Writes what `asked`, or else the default, lets through, and never what could show a key.
pub fn subscriber<W>(asked: Option<&str>, json: bool, colours: bool, to: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = asked.and_then(|asked| asked.parse::<EnvFilter>().ok()).unwrap_or_else(|| EnvFilter::new(LOGGED));
    let lines = fmt::layer().with_writer(to).with_ansi(colours);
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    Registry::default().with(wanted).with(filter::filter_fn(may_be_logged)).with(lines)
}
