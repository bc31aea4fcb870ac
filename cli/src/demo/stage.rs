//! The stage: the lab's hosts with the daemons on them, and what every step needs to ask of them.

use super::process::Process;
use super::report::Pinged;
use crate::args::Backend;
use crate::lab::{Flow, Lab, Pings, World};
use anyhow::{Context as _, Result, bail};
use mesh_proto::v1::{ListCoordinatorsReply, ListCoordinatorsRequest, StatusReply, StatusRequest};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// Coordinators of the demo: the smallest cluster that survives one.
pub(super) const COORDINATORS: usize = 3;
/// Nodes of the demo.
pub(super) const NODES: usize = 5;

const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a daemon may take to answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// Everything on the stage.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) coordinators: Vec<Process>,
    pub(super) nodes: Vec<Process>,
    /// Overlay addresses of the nodes that have joined, IPv4 and IPv6, in the order of `nodes`.
    pub(super) overlay: Vec<[IpAddr; 2]>,
}

/// Where a node stands in the lab's network; `place` changes when it moves.
pub(super) fn underlay(node: usize, place: u8) -> IpAddr {
    let number = u8::try_from(node).expect("the demo has a handful of nodes") + 11;
    Ipv4Addr::new(192, 0, 2, number + 40 * place).into()
}

impl Stage {
    /// Hosts for everyone, nobody running yet.
    pub(super) async fn new(world: &World, backend: Backend) -> Result<Self> {
        let mut lab = Lab::new(world).await?;
        let directory = world.directory();
        let mut coordinators = Vec::new();
        for number in 1..=COORDINATORS {
            let address = Ipv4Addr::new(192, 0, 2, u8::try_from(number)?).into();
            let host = lab.host(&format!("coordinator-{number}"), &[address]).await?;
            coordinators.push(Process::coordinator(host, address, directory));
        }
        let mut nodes = Vec::new();
        for node in 0..NODES {
            let host = lab.host(&format!("node-{}", node + 1), &[underlay(node, 0)]).await?;
            nodes.push(Process::node(host, backend, directory));
        }
        Ok(Self { lab, coordinators, nodes, overlay: Vec::new() })
    }

    /// Makes a join token by way of a coordinator's socket, and leaves it in a file.
    pub(super) async fn token(&self, coordinator: usize, role: &str, uses: usize) -> Result<PathBuf> {
        let uses = uses.to_string();
        let arguments = ["token", "create", "--role", role, "--ttl", "10m", "--uses", &uses];
        let made = self.coordinators[coordinator].meshctl(&arguments).await?;
        let token = made["token"].as_str().context("`meshctl token create` printed no token")?;
        let file = self.lab.directory().join(format!("token-{role}"));
        let mut written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file)?;
        written.write_all(token.as_bytes())?;
        Ok(file)
    }

    /// What a coordinator says about its cluster.
    pub(super) async fn cluster(&self, coordinator: usize) -> Result<ListCoordinatorsReply> {
        let mut admin = self.coordinators[coordinator].admin().await?;
        let answer = tokio::time::timeout(ANSWER, admin.list_coordinators(ListCoordinatorsRequest {})).await??;
        Ok(answer.into_inner())
    }

    /// Which coordinator leads, by its place on the stage, as `asked` sees it.
    pub(super) async fn leader(&self, asked: usize) -> Result<usize> {
        let cluster = self.cluster(asked).await?;
        let leader =
            cluster.coordinators.iter().find(|found| found.role == "leader").context("no coordinator leads")?;
        let name = leader.record.as_ref().map(|record| record.name.as_str()).unwrap_or_default();
        let place = self.coordinators.iter().position(|coordinator| coordinator.name == name);
        place.with_context(|| format!("the leader is unknown here: {name:?}"))
    }

    /// Waits until all coordinators are voters that `asked` reaches, one of them leading.
    pub(super) async fn whole_cluster(&mut self, asked: usize) -> Result<()> {
        loop {
            self.check()?;
            if let Ok(cluster) = self.cluster(asked).await {
                let count = |role: &str| cluster.coordinators.iter().filter(|found| found.role == role).count();
                let reachable = cluster.coordinators.iter().all(|found| found.reachable);
                if reachable && count("leader") == 1 && count("follower") == COORDINATORS - 1 {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What a node says about itself.
    pub(super) async fn status(&self, node: usize) -> Result<StatusReply> {
        let mut local = self.nodes[node].local().await?;
        Ok(tokio::time::timeout(ANSWER, local.status(StatusRequest {})).await??.into_inner())
    }

    /// Fails if a daemon has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.coordinators.iter_mut().chain(&mut self.nodes).try_for_each(Process::check)
    }

    /// Waits for `condition`, asked again and again; fails if a daemon ends meanwhile.
    pub(super) async fn until(&mut self, condition: impl AsyncFn(&Self) -> Result<bool>) -> Result<()> {
        loop {
            self.check()?;
            if condition(self).await.unwrap_or(false) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Pings from every node of `among` to the IPv4 overlay addresses of the others there.
    pub(super) fn ping_among(&self, among: &[usize], interval: Duration) -> Result<Traffic> {
        let mut flows = Vec::new();
        for from in among {
            let targets = self.others(*from, among);
            let pings = Pings::start(&self.nodes[*from].host, targets.iter().copied(), interval)?;
            flows.push(Sender { from: *from, targets, pings });
        }
        Ok(Traffic { flows })
    }

    /// The same for steps that must lose nothing: starts when everyone has just reached everyone, so that no loss of the
    /// step before is counted.
    pub(super) async fn ping_settled(&self, among: &[usize], interval: Duration) -> Result<Traffic> {
        self.ping_among(among, interval)?.answered().await?;
        let mut traffic = self.ping_among(among, interval)?;
        traffic.answered().await?;
        Ok(traffic)
    }

    /// Pings from one node to another.
    pub(super) fn ping_between(&self, pairs: &[(usize, usize)], interval: Duration) -> Result<Traffic> {
        let mut flows = Vec::new();
        for (from, to) in pairs {
            let targets = vec![self.overlay[*to][0]];
            let pings = Pings::start(&self.nodes[*from].host, targets.iter().copied(), interval)?;
            flows.push(Sender { from: *from, targets, pings });
        }
        Ok(Traffic { flows })
    }

    /// The IPv4 overlay addresses of all of `among` but `from`.
    pub(super) fn others(&self, from: usize, among: &[usize]) -> Vec<IpAddr> {
        among.iter().filter(|node| **node != from).map(|node| self.overlay[*node][0]).collect()
    }
}

struct Sender {
    from: usize,
    targets: Vec<IpAddr>,
    pings: Pings,
}

/// Pings under way between nodes.
pub(super) struct Traffic {
    flows: Vec<Sender>,
}

impl Traffic {
    /// Waits until every target of every sender has answered.
    pub(super) async fn answered(&mut self) -> Result<()> {
        for sender in &mut self.flows {
            sender.pings.answered(&sender.targets).await?;
        }
        Ok(())
    }

    /// Waits until every target has answered a request that was sent after `since`.
    pub(super) async fn answered_since(&mut self, since: std::time::Instant) -> Result<()> {
        for sender in &mut self.flows {
            sender.pings.answered_since(&sender.targets, since).await?;
        }
        Ok(())
    }

    /// Ends the pings; what each sender met.
    pub(super) async fn stop(self) -> Result<Vec<(usize, Flow)>> {
        let ended = futures::future::try_join_all(
            self.flows
                .into_iter()
                .map(|sender| async move { Ok::<_, anyhow::Error>((sender.from, sender.pings.stop().await?)) }),
        );
        let flows = ended.await?;
        Ok(flows.into_iter().flat_map(|(from, flows)| flows.into_iter().map(move |flow| (from, flow))).collect())
    }

    /// Ends the pings and adds them up.
    pub(super) async fn sum(self) -> Result<Pinged> {
        let flows = self.stop().await?;
        Ok(Pinged::sum(flows.iter().map(|(_, flow)| flow)))
    }
}

/// Fails if a ping was lost.
pub(super) fn nothing_lost(pings: Pinged) -> Result<Pinged> {
    if pings.lost == 0 {
        return Ok(pings);
    }
    bail!("{} of {} pings were lost; the promise is none", pings.lost, pings.sent)
}
