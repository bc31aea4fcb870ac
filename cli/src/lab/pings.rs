//! Pings from one host to several addresses, all the time, and what they met.
//!
//! A task sends to every target at a fixed interval and keeps when each request went and when its reply came. `stop`
//! ends the sending, waits a moment for replies under way and reports each flow. It judges nothing: what is a loss too
//! many is for the caller to say.

use super::echo::EchoSocket;
use super::host::Host;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How long `stop` waits for replies under way: far above any round trip inside one machine.
const GRACE: Duration = Duration::from_secs(1);

static NEXT_MARK: AtomicU64 = AtomicU64::new(1);

/// What one flow of pings met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The address that was pinged.
    pub to: IpAddr,
    /// Requests sent.
    pub sent: u64,
    /// Requests never answered.
    pub lost: u64,
    /// The longest time without a reply, from the first request to the last.
    pub longest_gap: Duration,
    /// When the last reply came; none without a reply.
    pub last_reply: Option<Instant>,
    /// The shortest, middle and longest round trip; none without a reply.
    pub latency: Option<[Duration; 3]>,
}

/// What has come from a target so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// When the first reply came.
    first: Instant,
    /// When the latest request that was answered had been sent.
    answered: Instant,
}

/// Pings under way from one host.
#[derive(Debug)]
pub struct Pings {
    targets: mpsc::UnboundedSender<IpAddr>,
    seen: watch::Receiver<BTreeMap<IpAddr, Seen>>,
    task: JoinHandle<Result<Vec<Flow>>>,
}

impl Pings {
    /// Starts pinging from `host`, each target once an interval.
    pub fn start(host: &Host, targets: impl IntoIterator<Item = IpAddr>, interval: Duration) -> Result<Self> {
        let socket = EchoSocket::open(host, NEXT_MARK.fetch_add(1, Ordering::Relaxed))?;
        let (add, added) = mpsc::unbounded_channel();
        let (publish, seen) = watch::channel(BTreeMap::new());
        let mut round = Round { socket, flows: BTreeMap::new(), sent: BTreeMap::new(), next: 0, publish };
        for target in targets {
            round.flows.insert(target, Vec::new());
        }
        let task = tokio::spawn(round.run(added, interval));
        Ok(Self { targets: add, seen, task })
    }

    /// Pings one more address from now on.
    pub fn add(&self, target: IpAddr) {
        // The task lives until `stop` drops this end; if it failed, `stop` says so.
        let _ = self.targets.send(target);
    }

    /// Waits until all of `targets` have answered at least once; returns when the last of them did so first.
    pub async fn answered(&mut self, targets: &[IpAddr]) -> Result<Instant> {
        let all = |seen: &BTreeMap<IpAddr, Seen>| targets.iter().all(|target| seen.contains_key(target));
        let seen = self.seen.wait_for(all).await.context("pinging has ended")?;
        let last = targets.iter().filter_map(|target| seen.get(target)).map(|seen| seen.first).max();
        last.context("no targets to wait for")
    }

    /// Waits until all of `targets` have answered a request that was sent after `since`.
    pub async fn answered_since(&mut self, targets: &[IpAddr], since: Instant) -> Result<()> {
        let all = |seen: &BTreeMap<IpAddr, Seen>| {
            targets.iter().all(|target| seen.get(target).is_some_and(|seen| seen.answered > since))
        };
        self.seen.wait_for(all).await.context("pinging has ended")?;
        Ok(())
    }

    /// Ends the sending, waits for replies under way, and reports the flows in order of address.
    pub async fn stop(self) -> Result<Vec<Flow>> {
        drop(self.targets);
        self.task.await.context("pinging has ended by itself")?
    }
}

struct Request {
    sent: Instant,
    answered: Option<Instant>,
}

struct Round {
    socket: EchoSocket,
    flows: BTreeMap<IpAddr, Vec<Request>>,
    /// Number of a request on the wire to its place in its flow.
    sent: BTreeMap<u64, (IpAddr, usize)>,
    next: u64,
    publish: watch::Sender<BTreeMap<IpAddr, Seen>>,
}

impl Round {
    async fn run(mut self, mut added: mpsc::UnboundedReceiver<IpAddr>, interval: Duration) -> Result<Vec<Flow>> {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                target = added.recv() => match target {
                    Some(target) => { self.flows.entry(target).or_default(); }
                    None => break,
                },
                _ = ticks.tick() => self.send_all(),
                reply = self.socket.receive() => self.note(reply.context("cannot receive echo replies")?),
            }
        }
        let stopped = Instant::now();
        let late = async {
            while !self.sent.is_empty() {
                let reply = self.socket.receive().await?;
                self.note(reply);
            }
            Ok::<_, std::io::Error>(())
        };
        if let Ok(received) = tokio::time::timeout(GRACE, late).await {
            received.context("cannot receive echo replies")?;
        }
        Ok(self.flows.into_iter().map(|(to, requests)| report(to, &requests, stopped)).collect())
    }

    fn send_all(&mut self) {
        for (target, requests) in &mut self.flows {
            self.next += 1;
            // A request that the own host refuses to send is a request without an answer.
            if self.socket.send(*target, self.next).is_ok() {
                self.sent.insert(self.next, (*target, requests.len()));
            }
            requests.push(Request { sent: Instant::now(), answered: None });
        }
    }

    fn note(&mut self, reply: super::echo::Reply) {
        let now = Instant::now();
        let Some((target, place)) = self.sent.get(&reply.number).copied() else { return };
        if target != reply.from {
            return;
        }
        self.sent.remove(&reply.number);
        let Some(request) = self.flows.get_mut(&target).and_then(|requests| requests.get_mut(place)) else { return };
        request.answered = Some(now);
        let sent = request.sent;
        self.publish.send_modify(|seen| {
            let seen = seen.entry(target).or_insert(Seen { first: now, answered: sent });
            seen.answered = seen.answered.max(sent);
        });
    }
}

fn report(to: IpAddr, requests: &[Request], stopped: Instant) -> Flow {
    let mut latencies: Vec<Duration> =
        requests.iter().filter_map(|request| Some(request.answered?.duration_since(request.sent))).collect();
    latencies.sort_unstable();
    let latency = match latencies.as_slice() {
        [] => None,
        [shortest, ..] => Some([*shortest, latencies[latencies.len() / 2], latencies[latencies.len() - 1]]),
    };
    let sent = requests.len() as u64;
    let lost = sent - latencies.len() as u64;
    let last_reply = requests.iter().filter_map(|request| request.answered).max();
    Flow { to, sent, lost, longest_gap: longest_gap(requests, stopped), last_reply, latency }
}

fn longest_gap(requests: &[Request], stopped: Instant) -> Duration {
    let Some(first) = requests.first() else { return Duration::ZERO };
    let mut arrivals: Vec<Instant> = requests.iter().filter_map(|request| request.answered).collect();
    arrivals.sort_unstable();
    let mut longest = Duration::ZERO;
    let mut last = first.sent;
    for arrival in arrivals {
        longest = longest.max(arrival.duration_since(last));
        last = arrival;
    }
    // The end counts only if requests at the end were lost; a reply that came after the stop closes its gap.
    match requests.last() {
        Some(Request { answered: None, .. }) => longest.max(stopped.saturating_duration_since(last)),
        _ => longest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(answers: &[Option<u64>]) -> (Vec<Request>, Instant) {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let requests = answers
            .iter()
            .enumerate()
            .map(|(place, answer)| Request { sent: at(place as u64 * 10), answered: answer.map(at) });
        (requests.collect(), at(answers.len() as u64 * 10))
    }

    fn flow(answers: &[Option<u64>]) -> Flow {
        let (requests, stopped) = requests(answers);
        report("192.0.2.1".parse().unwrap(), &requests, stopped)
    }

    #[test]
    fn a_gap_in_the_middle_is_measured_between_replies() {
        let flow = flow(&[Some(1), None, None, Some(32), Some(41)]);
        assert_eq!((flow.sent, flow.lost, flow.longest_gap), (5, 2, Duration::from_millis(31)));
    }

    #[test]
    fn a_flow_that_never_comes_back_has_a_gap_until_the_end() {
        assert_eq!(flow(&[Some(1), None, None]).longest_gap, Duration::from_millis(29));
        assert_eq!(flow(&[None, None, None]).longest_gap, Duration::from_millis(30));
        assert_eq!(flow(&[None, None, None]).latency, None);
    }

    #[test]
    fn replies_out_of_order_are_no_gap() {
        let flow = flow(&[Some(25), Some(11), Some(24)]);
        assert_eq!((flow.lost, flow.longest_gap), (0, Duration::from_millis(13)));
        assert_eq!(flow.latency, Some([Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(25)]));
    }
}
