//! `meshctl ping`: probes through the tunnel, answered by the peer's meshd.

use super::Context;
use crate::args::Ping;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask};
use mesh_proto::v1::{PingReply, PingRequest};
use serde::Serialize;
use std::time::Duration;

/// The time a probe may take beyond its interval before the daemon itself counts as stuck.
const SLACK: Duration = Duration::from_secs(10);

/// What `meshctl ping --json` prints, once, at the end.
#[derive(Serialize, Default)]
struct Summary {
    peer: String,
    address: Option<String>,
    endpoint: Option<String>,
    sent: u32,
    received: u32,
    /// Milliseconds; null for a probe that was lost.
    latencies_ms: Vec<Option<f64>>,
}

pub(super) async fn run(context: &Context, ping: Ping) -> Result<Exit, Failure> {
    let request = PingRequest {
        peer: ping.node.clone(),
        count: ping.count,
        interval_ms: u32::try_from(ping.interval.0).unwrap_or(u32::MAX).max(1),
    };
    let mut replies = ask(reach::ANSWER, reach::node(&context.paths).await?.ping(request)).await?;
    let mut summary = Summary { peer: ping.node, ..Summary::default() };
    loop {
        let next = tokio::time::timeout(ping.interval.to_std() + SLACK, replies.message());
        let reply = tokio::select! {
            reply = next => reply.map_err(|_| Failure::new(Exit::Failed, "meshd stopped reporting: look at its log"))??,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(reply) = reply else { break };
        if !context.json() {
            output::line(describe(&summary.peer, &reply));
        }
        summary.note(reply);
    }
    summary.print(context);
    Ok(if summary.received > 0 { Exit::Done } else { Exit::Failed })
}

fn describe(peer: &str, reply: &PingReply) -> String {
    let by = reply.endpoint.as_deref().map(|endpoint| format!(" by way of {endpoint}")).unwrap_or_default();
    match reply.latency_ms {
        Some(latency) => {
            format!("{peer} ({}){by}: probe {} came back in {latency:.2} ms", reply.address, reply.sequence)
        }
        None => format!("{peer} ({}){by}: probe {} was lost", reply.address, reply.sequence),
    }
}

impl Summary {
    fn note(&mut self, reply: PingReply) {
        self.sent += 1;
        self.received += u32::from(reply.latency_ms.is_some());
        self.latencies_ms.push(reply.latency_ms);
        self.address = Some(reply.address);
        self.endpoint = reply.endpoint;
    }

    fn print(&self, context: &Context) {
        if context.json() {
            return output::json(self);
        }
        let mut latencies: Vec<f64> = self.latencies_ms.iter().flatten().copied().collect();
        latencies.sort_by(f64::total_cmp);
        let spread = match latencies.as_slice() {
            [] => String::new(),
            [first, .., last] => format!("; {first:.2} to {last:.2} ms, mostly {:.2}", latencies[latencies.len() / 2]),
            [only] => format!("; {only:.2} ms"),
        };
        output::line(format_args!("{}: {} of {} probes came back{spread}", self.peer, self.received, self.sent));
    }
}
