//! The play: steps in order, each with a time limit, until one does not hold.

use super::progress::Progress;
use super::report::{Cell, Outcome, Report, Step, millis, read};
use super::roam;
use super::stage::{COORDINATORS, NODES, Stage, nothing_lost};
use crate::args::{Demo, Globals};
use crate::exit::{Exit, Failure};
use crate::lab::{Pings, Way, World};
use crate::output;
use anyhow::{Context as _, Result, bail};
use mesh_proto::v1::{CreateTokenRequest, StatusReply};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

/// No step takes this long unless something is broken, not even on an emulated machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Pings while a mesh forms: often, so that the first reply is seen when it comes.
const EAGER: Duration = Duration::from_millis(5);
/// Pings between all nodes at once while coordinators fail.
const STEADY: Duration = Duration::from_millis(20);
/// How long pings go on around a failure, to see a loss that comes late.
const AROUND: Duration = Duration::from_millis(500);
/// How long nodes are left without any coordinator.
const OUTAGE: Duration = Duration::from_secs(2);

const ALL: [usize; NODES] = [0, 1, 2, 3, 4];
/// The node that is removed, and the others.
const REMOVED: usize = NODES - 1;
const REMAINING: [usize; NODES - 1] = [0, 1, 2, 3];
/// The node that restarts with no coordinator left.
const RESTARTED: usize = 3;

/// Plays everything and prints what was found.
pub(super) async fn run(world: &World, globals: &Globals, demo: &Demo) -> Result<Exit, Failure> {
    let began = Instant::now();
    let mut stage = Stage::new(world, demo.backend).await?;
    let mut play = Play { report: Report::default(), progress: Progress::new(globals.quiet || globals.json) };
    play.all(&mut stage).await;
    play.progress.finish();
    let mut report = play.report;
    report.held = report.steps.iter().all(|step| step.held);
    report.seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    if globals.json {
        output::json(&report);
    } else {
        report.print();
    }
    if !report.held {
        return Ok(Exit::Failed);
    }
    if demo.keep {
        keep(world, &mut stage).await?;
    }
    Ok(Exit::Done)
}

struct Play {
    report: Report,
    progress: Progress,
}

impl Play {
    async fn all(&mut self, stage: &mut Stage) {
        // Each step stands on the one before; the first that does not hold ends the play.
        let held = self.step("3 coordinators", cluster(stage)).await
            && self.step("5 nodes join", join(stage)).await
            && self.matrix(stage).await
            && self.step("leader killed", leader_killed(stage)).await
            && self.step("a node moves", roam::one_moves(stage)).await
            && self.step("a silent node moves", roam::silent_moves(stage)).await
            && self.step("two nodes move at once", roam::both_move(stage)).await
            && self.step("a node removed", removed(stage)).await
            && self.step("all coordinators killed", all_killed(stage)).await
            && self.step("a node restarts alone", restarted(stage)).await;
        if !held {
            output::note("meshctl: a step did not hold, and the demo ends there");
        }
    }

    async fn step(&mut self, name: &'static str, step: impl Future<Output = Result<Outcome>>) -> bool {
        self.progress.begin(name);
        let began = Instant::now();
        let outcome = tokio::time::timeout(LIMIT, step).await;
        let outcome = outcome.unwrap_or_else(|_| bail!("not done after {} s", LIMIT.as_secs()));
        let step = Step::new(name, began.elapsed(), outcome);
        self.progress.end(&step);
        let held = step.held;
        self.report.steps.push(step);
        held
    }

    async fn matrix(&mut self, stage: &mut Stage) -> bool {
        let mut cells = Vec::new();
        let held = self.step("ping matrix", matrix(stage, &mut cells)).await;
        self.report.matrix = cells;
        self.report.meshd_rss_kib = stage.nodes.iter().filter_map(super::process::Process::memory).max();
        if let Ok(status) = stage.status(0).await {
            self.report.backend = status.self_.map(|own| own.backend).unwrap_or_default();
        }
        held
    }
}

async fn cluster(stage: &mut Stage) -> Result<Outcome> {
    let began = Instant::now();
    stage.coordinators[0].start(&["--bootstrap"])?;
    stage.until(async |stage: &Stage| Ok(stage.leader(0).await.is_ok())).await?;
    let first = began.elapsed();
    let token = stage.token(0, "coordinator", COORDINATORS - 1).await?.display().to_string();
    for coordinator in &mut stage.coordinators[1..] {
        coordinator.start(&["--join-token-file", &token])?;
    }
    stage.whole_cluster(0).await?;
    let took = began.elapsed();
    let said = format!("one leads after {}, three vote after {}", read(first), read(took));
    Ok(Outcome::said(said).measured("first_leads", first).measured("all_vote", took))
}

/// Four join at once; the fifth joins when they are a mesh, and shows how long joining takes.
async fn join(stage: &mut Stage) -> Result<Outcome> {
    let token = stage.token(1, "node", NODES).await?.display().to_string();
    for node in &mut stage.nodes {
        node.start(&[])?;
    }
    stage.until(async |stage: &Stage| Ok(statuses(stage, &ALL).await.is_ok())).await?;
    let began = Instant::now();
    let arguments = ["join", "--token-file", &token];
    let joins = stage.nodes[..REMOVED].iter().map(|node| node.meshctl(&arguments));
    for joined in futures::future::try_join_all(joins).await? {
        stage.overlay.push(addresses(&joined)?);
    }
    stage.ping_among(&REMAINING, EAGER)?.answered().await?;
    let four = began.elapsed();
    let last = Instant::now();
    let joined = stage.nodes[REMOVED].meshctl(&arguments).await?;
    stage.overlay.push(addresses(&joined)?);
    let mut first = Pings::start(&stage.nodes[REMOVED].host, stage.others(REMOVED, &ALL), EAGER)?;
    let reply = first.answered(&[stage.overlay[0][0]]).await?.duration_since(last);
    stage.ping_among(&ALL, EAGER)?.answered().await?;
    let all = began.elapsed();
    let said = format!("full mesh of 5 after {}; the fifth: join to first reply {}", read(all), read(reply));
    let outcome = Outcome::said(said).measured("mesh_of_four", four).measured("full_mesh", all);
    Ok(outcome.measured("join_to_first_reply", reply))
}

async fn statuses(stage: &Stage, nodes: &[usize]) -> Result<Vec<StatusReply>> {
    futures::future::try_join_all(nodes.iter().map(|node| stage.status(*node))).await
}

fn addresses(joined: &serde_json::Value) -> Result<[IpAddr; 2]> {
    let address = |place: usize| joined["addresses"][place].as_str().and_then(|text| text.parse().ok());
    address(0).zip(address(1)).map(|(v4, v6)| [v4, v6]).context("`meshctl join` printed no addresses")
}

async fn matrix(stage: &mut Stage, cells: &mut Vec<Cell>) -> Result<Outcome> {
    let began: Vec<Pings> = ALL
        .iter()
        .map(|from| {
            let targets = ALL.iter().filter(|to| *to != from).flat_map(|to| stage.overlay[*to]);
            Pings::start(&stage.nodes[*from].host, targets, 2 * STEADY)
        })
        .collect::<Result<_>>()?;
    tokio::time::sleep(2 * AROUND).await;
    let mut all = Vec::new();
    for (from, pings) in began.into_iter().enumerate() {
        for flow in pings.stop().await? {
            let to =
                stage.overlay.iter().position(|addresses| addresses.contains(&flow.to)).context("an unknown flow")?;
            cells.push(Cell {
                from: stage.nodes[from].name.clone(),
                to: stage.nodes[to].name.clone(),
                address: flow.to.to_string(),
                median_ms: flow.latency.map(|latency| millis(latency[1])),
                longest_ms: flow.latency.map(|latency| millis(latency[2])),
                lost: flow.lost,
            });
            all.push(flow);
        }
    }
    let unanswered = all.iter().filter(|flow| flow.latency.is_none()).count();
    if unanswered > 0 {
        bail!("{unanswered} of {} directed pairs do not reach each other", all.len());
    }
    let pings = nothing_lost(super::report::Pinged::sum(&all))?;
    let mut medians: Vec<Duration> = all.iter().filter_map(|flow| Some(flow.latency?[1])).collect();
    medians.sort_unstable();
    let median = medians[medians.len() / 2];
    let said = format!("{} directed pairs over IPv4 and IPv6, median {}", all.len(), read(median));
    Ok(Outcome::said(said).measured("median", median).pinged(pings))
}

async fn leader_killed(stage: &mut Stage) -> Result<Outcome> {
    let leader = stage.leader(0).await?;
    let other = (leader + 1) % COORDINATORS;
    let traffic = stage.ping_settled(&ALL, STEADY).await?;
    stage.coordinators[leader].kill().await?;
    let killed = Instant::now();
    acknowledged_write(stage, other).await?;
    let written = killed.elapsed();
    tokio::time::sleep(AROUND).await;
    let name = stage.coordinators[leader].name.clone();
    stage.coordinators[leader].start(&[])?;
    stage.whole_cluster(other).await?;
    let back = killed.elapsed();
    let pings = nothing_lost(traffic.sum().await?)?;
    let said =
        format!("{name}: next write acknowledged after {}; back in the cluster after {}", read(written), read(back));
    Ok(Outcome::said(said).measured("next_write", written).measured("back", back).pinged(pings))
}

/// Asks a coordinator for a token until it is acknowledged; every try is the same request, so that it is done once.
async fn acknowledged_write(stage: &Stage, coordinator: usize) -> Result<()> {
    let request_id = crate::reach::request_id()?;
    loop {
        let request = CreateTokenRequest { request_id: request_id.clone(), role: "node".into(), ttl: 60_000, uses: 1 };
        let mut admin = stage.coordinators[coordinator].admin().await?;
        match tokio::time::timeout(AROUND, admin.create_token(request)).await {
            Ok(Ok(_acknowledged)) => return Ok(()),
            Ok(Err(_no_quorum_yet)) => tokio::time::sleep(EAGER).await,
            Err(_no_answer_yet) => {}
        }
    }
}

async fn removed(stage: &mut Stage) -> Result<Outcome> {
    let name = stage.nodes[REMOVED].name.clone();
    let pairs: Vec<(usize, usize)> = REMAINING.iter().map(|from| (*from, REMOVED)).collect();
    let mut gone = stage.ping_between(&pairs, EAGER * 2)?;
    gone.answered().await?;
    let rest = stage.ping_settled(&REMAINING, STEADY).await?;
    stage.coordinators[2].meshctl(&["node", "remove", &name]).await?;
    let acknowledged = Instant::now();
    stage
        .until(async |stage: &Stage| {
            let all = statuses(stage, &REMAINING).await?;
            Ok(all.iter().all(|status| status.peers.iter().all(|peer| peer.name != name)))
        })
        .await?;
    let dropped = Instant::now();
    tokio::time::sleep(AROUND).await;
    let flows = gone.stop().await?;
    let last = flows.iter().filter_map(|(_, flow)| flow.last_reply).max().context("it never answered")?;
    if last > dropped {
        bail!("{name} still answered {} after all others had dropped it", read(last - dropped));
    }
    let pings = nothing_lost(rest.sum().await?)?;
    let took = dropped.duration_since(acknowledged);
    let answered = last.saturating_duration_since(acknowledged);
    let said = format!(
        "all others dropped {name} {} after the reply; its last answer came after {}",
        read(took),
        read(answered)
    );
    Ok(Outcome::said(said).measured("all_dropped", took).measured("last_answer", answered).pinged(pings))
}

async fn all_killed(stage: &mut Stage) -> Result<Outcome> {
    let traffic = stage.ping_settled(&REMAINING, STEADY).await?;
    for coordinator in &mut stage.coordinators {
        coordinator.kill().await?;
    }
    tokio::time::sleep(OUTAGE).await;
    stage.check()?;
    let pings = nothing_lost(traffic.sum().await?)?;
    Ok(Outcome::said(format!("tunnels carry on; longest silence {}", read(pings.longest_gap))).pinged(pings))
}

async fn restarted(stage: &mut Stage) -> Result<Outcome> {
    let others = stage.others(RESTARTED, &REMAINING);
    stage.nodes[RESTARTED].kill().await?;
    let mut pings = Pings::start(&stage.nodes[RESTARTED].host, others.iter().copied(), EAGER)?;
    let began = Instant::now();
    stage.nodes[RESTARTED].start(&[])?;
    pings.answered_since(&others, began).await?;
    let took = began.elapsed();
    // Both ways, also for a mesh in which nobody but the restarted node sends.
    stage.ping_among(&REMAINING, EAGER)?.answered().await?;
    stage.check()?;
    let name = &stage.nodes[RESTARTED].name;
    let said = format!("{name} killed, started from its cache, reaches all others after {}", read(took));
    Ok(Outcome::said(said).measured("reaches_all", took))
}

/// Brings the coordinators back, says how to look around, and waits for ever: Ctrl-C ends it.
async fn keep(world: &World, stage: &mut Stage) -> Result<()> {
    for coordinator in &mut stage.coordinators {
        coordinator.start(&[])?;
    }
    let enter = world.directory().join("enter");
    std::fs::write(&enter, enter_script(world)?)?;
    std::fs::set_permissions(&enter, std::fs::Permissions::from_mode(0o700))?;
    let (enter, directory) = (enter.display(), world.directory().display());
    output::note("");
    output::note(format_args!("It goes on until Ctrl-C. `{enter} HOST COMMAND...` runs a command on a host of it:"));
    output::note(format_args!("  {enter} node-1 meshctl --socket {directory}/node-1.sock status"));
    output::note(format_args!("  {enter} node-1 ping {}", stage.overlay[1][0]));
    output::note(format_args!(
        "  {enter} coordinator-1 meshctl --coordinator-socket {directory}/coordinator-1.sock node list"
    ));
    output::note(format_args!("Logs: {directory}/*.log"));
    loop {
        tokio::time::sleep(LIMIT).await;
        stage.check()?;
    }
}

fn enter_script(world: &World) -> Result<String> {
    let init = World::init_pid(world.directory()).context("the world has no PID file")?;
    let user = match world.way() {
        Way::Root => "",
        Way::UserNamespace => " --user --preserve-credentials",
    };
    let program = std::env::current_exe()?;
    let programs = program.parent().context("a program lies in a directory")?.display();
    let directory = world.directory().display();
    Ok(format!(
        "#!/bin/sh\n# Runs a command on a host of the demo: enter HOST COMMAND...\nhost=${{1:?host name missing}}\nshift\n\
         PATH={programs}:$PATH\nexec nsenter --target {init}{user} --mount --pid \\\n  nsenter --net={directory}/netns/\"$host\" \"$@\"\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::stage::underlay;
    use super::*;

    #[test]
    fn nobody_ever_moves_to_the_address_of_another() {
        let mut all: Vec<IpAddr> = (0..NODES).flat_map(|node| (0..4).map(move |place| underlay(node, place))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), NODES * 4);
    }

    #[test]
    fn both_families_come_from_a_join() {
        let joined = serde_json::json!({"addresses": ["10.1.0.1", "fd00::1"]});
        assert_eq!(addresses(&joined).unwrap()[1], "fd00::1".parse::<IpAddr>().unwrap());
        assert!(addresses(&serde_json::json!({"addresses": []})).is_err());
    }
}
