//! A whole daemon over its real doors: the local socket on one side, TLS and gRPC on the other; only the device is in
//! memory. Nothing here needs root.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod stage;

use clap::Parser as _;
use mesh_node::failure::Failure;
use mesh_node::link::HostRoute;
use mesh_node::options::Options;
use mesh_node::run::run_on;
use mesh_node_core::journal::{Cache, Intent, Record, encode};
use mesh_proto::local;
use mesh_proto::v1::local_client::LocalClient;
use mesh_proto::v1::{
    DownRequest, LocalJoinRequest, LocalLeaveRequest, PingRequest, StatusReply, StatusRequest, UpRequest,
};
use mesh_types::{Fingerprint, JoinToken, Role, TokenId};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use stage::{Mood, Pretence, Stage, overlay, peer};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

/// Nothing here takes a tenth of this; it only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(30);

struct Daemon {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), Failure>>,
    client: LocalClient<Channel>,
}

/// Starts a daemon that keeps its things in `home`.
async fn start(home: &Path, ground: &Pretence, more: &[&str]) -> Daemon {
    let socket = home.join("meshd.sock");
    let (stop, task) = spawn(home, ground, more);
    let connect = async {
        loop {
            match local::connect(&socket).await {
                Ok(channel) => return channel,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let channel = timeout(PATIENCE, connect).await.unwrap();
    Daemon { stop: Some(stop), task, client: LocalClient::new(channel) }
}

fn spawn(home: &Path, ground: &Pretence, more: &[&str]) -> (oneshot::Sender<()>, JoinHandle<Result<(), Failure>>) {
    let (state, socket) = (home.join("state"), home.join("meshd.sock"));
    let own = ["meshd", "--state-dir", state.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    let named = ["--interface", "pretence", "--name", "alpha"];
    let options = Options::try_parse_from(own.iter().chain(&named).chain(more)).unwrap();
    let (stop, stopped) = oneshot::channel();
    let ground = Arc::new(ground.clone());
    let task = tokio::spawn(run_on(ground, options, async move { drop(stopped.await) }));
    (stop, task)
}

impl Daemon {
    async fn status(&mut self) -> StatusReply {
        self.client.status(StatusRequest {}).await.unwrap().into_inner()
    }

    async fn join(&mut self, token: &JoinToken) -> Result<mesh_proto::v1::LocalJoinReply, tonic::Status> {
        let request = LocalJoinRequest { token: token.to_string(), name: String::new() };
        timeout(PATIENCE, self.client.join(request)).await.unwrap().map(tonic::Response::into_inner)
    }

    async fn wait_for(&mut self, what: impl Fn(&StatusReply) -> bool) -> StatusReply {
        let waiting = async {
            loop {
                let status = self.status().await;
                if what(&status) {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap()
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        timeout(PATIENCE, &mut self.task).await.unwrap().unwrap().unwrap();
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

/// Whether there is such a process.
fn is_alive(process: u32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(process.cast_signed()), None).is_ok()
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_membership_says_so_to_everything() {
    let (home, ground) = (home(), Pretence::default());
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert_eq!(daemon.status().await.phase, "new");
    assert_eq!(daemon.client.up(UpRequest {}).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(daemon.client.down(DownRequest {}).await.unwrap_err().code(), Code::FailedPrecondition);
    let ping = PingRequest { peer: "beta".to_owned(), count: 1, interval_ms: 0 };
    assert_eq!(daemon.client.ping(ping).await.unwrap_err().code(), Code::FailedPrecondition);
    daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap();
    assert!(ground.device().is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_node_has_interface_and_peers_when_join_returns() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    let reply = daemon.join(&stage.token).await.unwrap();
    let own = overlay().addresses(1).unwrap();
    assert_eq!((reply.name.as_str(), reply.already), ("alpha", false));
    assert_eq!(reply.addresses, [own.v4.to_string(), own.v6.to_string()]);
    assert_eq!(ground.link().unwrap().addresses, own);
    let device = ground.device().unwrap().device();
    assert_eq!(device.public_key, Some(stage.joined_keys()[0]));
    assert_eq!(device.peers.keys().collect::<Vec<_>>(), [&peer().public_key]);

    let status = daemon.status().await;
    assert_eq!((status.phase.as_str(), status.revision, status.fresh), ("up", 2, true));
    let this = status.self_.unwrap();
    assert_eq!((this.name.as_str(), this.interface.as_str()), ("alpha", "pretence"));
    assert_eq!(u32::from(device.listen_port), this.listen_port);
    assert_eq!(status.coordinators[0].role, "leader");
    assert!(status.coordinators[0].reachable);
    assert_eq!(status.peers[0].name, "beta");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_is_harmless_and_costs_no_use_of_the_token() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    let first = daemon.join(&stage.token).await.unwrap();
    let again = daemon.join(&stage.token).await.unwrap();
    assert_eq!((first.id, again.already), (again.id, true));
    assert_eq!(stage.joined_keys().len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_asked_for_again_with_the_same_keys() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    stage.set_mood(Mood::LosesReply);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    let keys = stage.joined_keys();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_that_it_comes_too_often_comes_again_later() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    stage.push_back(2);
    daemon.join(&stage.token).await.unwrap();
    stage.push_back(2);
    stage.cut_sessions();
    daemon.wait_for(|status| stage.pushbacks() == 0 && status.session.is_some()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_join_says_why_and_leaves_nothing_on_the_host() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    let elsewhere = JoinToken { authority: Fingerprint::of(b"another CA"), ..stage.token.clone() };
    let coordinators = JoinToken { role: Role::Coordinator, ..stage.token.clone() };
    let silent = JoinToken { addresses: vec!["127.0.0.1:1".parse().unwrap()], ..stage.token.clone() };
    for (mood, token, code, words) in [
        (Mood::TokenExpired, &stage.token, Code::FailedPrecondition, "the join token expired"),
        (Mood::Willing, &elsewhere, Code::FailedPrecondition, "pins another CA"),
        (Mood::Willing, &coordinators, Code::FailedPrecondition, "makes a coordinator"),
        (Mood::Willing, &silent, Code::Unavailable, "127.0.0.1:1: connection refused"),
    ] {
        stage.set_mood(mood);
        let error = daemon.join(token).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(words), "{words:?} is not in {:?}", error.message());
        assert_eq!(daemon.status().await.phase, "new");
        assert!(ground.device().unwrap().is_removed(), "{words}");
    }
    stage.set_mood(Mood::Willing);
    daemon.join(&stage.token).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_that_would_hide_a_route_of_the_host_is_refused_by_name_before_anything_is_registered() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    ground.set_routes(vec![HostRoute { destination: "198.18.7.0/24".parse().unwrap(), interface: "eth0".to_owned() }]);
    let mut daemon = start(home.path(), &ground, &[]).await;
    // A coordinator that does not tell its ranges beforehand is found out by its reply.
    for (mood, registered) in [(Mood::Willing, 0), (Mood::Discreet, 1)] {
        stage.set_mood(mood);
        let error = daemon.join(&stage.token).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let named = "range 198.18.0.0/16 overlaps this host's route 198.18.7.0/24 through eth0: remove";
        assert!(error.message().contains(named), "{error}");
        assert_eq!(stage.joined_keys().len(), registered, "{mood:?}");
        assert!(ground.device().unwrap().is_removed());
        assert_eq!(ground.link(), None, "no address was ever given");
    }
    ground.set_routes(Vec::new());
    daemon.join(&stage.token).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_comes_after_the_join_is_warned_of_and_tears_nothing_down() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    ground.set_routes(vec![HostRoute { destination: "198.18.9.0/24".parse().unwrap(), interface: "eth7".to_owned() }]);
    daemon.stop().await;
    let mut daemon = start(home.path(), &ground, &[]).await;
    let status = daemon.status().await;
    assert_eq!(status.phase, "up");
    assert!(status.warnings.iter().any(|warning| warning.contains("198.18.9.0/24 through eth7")), "{status:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_forbids_interfaces_is_found_out_before_any_coordinator_is_asked() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    ground.forbid();
    let mut daemon = start(home.path(), &ground, &[]).await;
    let error = daemon.join(&stage.token).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("CAP_NET_ADMIN"), "{error}");
    assert!(stage.joined_keys().is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_has_its_peers_back_without_any_coordinator() {
    let (home, ground) = (home(), Pretence::default());
    let port = {
        let stage = Stage::open().await;
        let mut daemon = start(home.path(), &ground, &[]).await;
        daemon.join(&stage.token).await.unwrap();
        let port = daemon.status().await.self_.unwrap().listen_port;
        stage.close().await;
        daemon.stop().await;
        port
    };
    let ground = Pretence::default();
    let mut daemon = start(home.path(), &ground, &[]).await;
    let status = daemon.wait_for(|status| status.phase == "up" && !status.warnings.is_empty()).await;
    assert_eq!((status.revision, status.session), (2, None));
    assert_eq!(status.self_.unwrap().listen_port, port);
    assert!(!status.coordinators[0].reachable);
    assert!(status.warnings.iter().any(|warning| warning.contains("no coordinator reached")), "{:?}", status.warnings);
    let device = ground.device().unwrap().device();
    assert_eq!(device.peers.keys().collect::<Vec<_>>(), [&peer().public_key]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn down_takes_the_interface_away_also_over_a_restart_and_up_brings_it_back() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    for _ in 0..2 {
        daemon.client.down(DownRequest {}).await.unwrap();
    }
    daemon.wait_for(|status| status.phase == "down" && status.session.is_none()).await;
    assert!(ground.device().unwrap().is_removed());
    daemon.stop().await;

    let ground = Pretence::default();
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert_eq!(daemon.status().await.phase, "down");
    assert!(ground.device().is_none());
    daemon.client.up(UpRequest {}).await.unwrap();
    daemon.wait_for(|status| status.phase == "up" && status.session.is_some()).await;
    assert_eq!(ground.device().unwrap().device().peers.len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_and_down_are_done_when_they_return() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    for _ in 0..10 {
        daemon.client.down(DownRequest {}).await.unwrap();
        assert!(ground.device().unwrap().is_removed());
        daemon.client.up(UpRequest {}).await.unwrap();
        assert!(!ground.device().unwrap().is_removed());
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_does_not_go_is_no_success_and_is_tried_for_again() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    ground.cling(true);
    let error = daemon.client.down(DownRequest {}).await.unwrap_err();
    assert!(error.message().contains("still there"), "{error}");
    let error = daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap_err();
    assert!(error.message().contains("still there"), "{error}");
    let kept = |name| std::fs::read(home.path().join("state").join(name)).ok();
    let key = kept("wireguard.key");
    assert!(kept("membership").is_some(), "it is known who must leave, and by the key what is ours");
    ground.cling(false);
    daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap();
    assert!(ground.device().unwrap().is_removed());
    assert!(key.is_some() && kept("membership").is_none() && kept("wireguard.key").is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_a_run_cut_off_in_down_left_behind_is_taken_away_by_the_next() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    daemon.stop().await;
    assert!(!ground.device().unwrap().is_removed(), "as the kernel's, which outlives its daemon");
    // What was decided is on disk, and then the power went.
    let mut journal = std::fs::File::options().append(true).open(home.path().join("state/journal")).unwrap();
    std::io::Write::write_all(&mut journal, &encode(&Record::Intent(Intent::Down))).unwrap();
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert_eq!(daemon.status().await.phase, "down");
    assert!(ground.device().unwrap().is_removed());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_outlives_its_daemon_has_a_guard_beside_it_as_long_as_it_stands() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    ground.outlive(&home.path().join("state"));
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert!(ground.guards().is_empty(), "there is no device yet");
    daemon.join(&stage.token).await.unwrap();
    let [first] = ground.guards()[..] else { panic!("{:?}", ground.guards()) };
    assert!(is_alive(first));

    nix::sys::signal::kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
    until(|| ground.guards().len() == 2).await;
    assert!(is_alive(ground.guards()[1]), "another has taken the place of the one that was killed");

    daemon.client.down(DownRequest {}).await.unwrap();
    assert_eq!(ground.guards().into_iter().filter(|&guard| is_alive(guard)).count(), 0);
    daemon.client.up(UpRequest {}).await.unwrap();
    daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap();
    assert_eq!(ground.guards().len(), 3);
    assert_eq!(ground.guards().into_iter().filter(|&guard| is_alive(guard)).count(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_old_stream_is_not_missed_yet_comes_in_as_soon_as_it_is() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.refuse_as_duplicate(2);
    stage.cut_sessions();
    daemon.wait_for(|status| stage.refusals() == 0 && status.session.is_some() && status.warnings.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_takes_its_interface_down_and_stays_so() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.remove_node().await;
    let status = daemon.wait_for(|status| status.phase == "left").await;
    assert!(status.warnings[0].contains("meshctl node allow"), "{:?}", status.warnings);
    assert!(ground.device().unwrap().is_removed());
    daemon.stop().await;

    let ground = Pretence::default();
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert_eq!(daemon.status().await.phase, "left");
    assert!(ground.device().is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_of_a_removed_node_says_what_the_coordinators_say() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.remove_node().await;
    daemon.wait_for(|status| status.phase == "left").await;
    let error = daemon.client.up(UpRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("was removed") && ground.device().unwrap().is_removed(), "{error}");
    assert_eq!(daemon.status().await.phase, "left");

    stage.allow_node();
    stage.be_silent(true);
    let mut client = daemon.client.clone();
    let up = tokio::spawn(async move { client.up(UpRequest {}).await });
    daemon.wait_for(|status| status.phase == "up").await;
    assert!(!up.is_finished(), "nobody has said yet that it is welcome");
    stage.be_silent(false);
    timeout(PATIENCE, up).await.unwrap().unwrap().unwrap();
    daemon.stop().await;

    // With nobody to ask, what stands is up.
    stage.remove_node().await;
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.wait_for(|status| status.phase == "left").await;
    stage.close().await;
    daemon.client.up(UpRequest {}).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_puts_right_what_somebody_did_to_the_interface() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    let link = ground.link();
    ground.strip();
    daemon.client.up(UpRequest {}).await.unwrap();
    assert_eq!(ground.link(), link);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has_is_no_success() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    ground.take_port(true);
    let mut daemon = start(home.path(), &ground, &["--listen-port", "7777"]).await;
    let error = daemon.join(&stage.token).await.unwrap_err();
    assert!(error.message().contains("UDP port 7777 is taken"), "{error}");
    assert!(daemon.status().await.trouble.is_some_and(|trouble| trouble.contains("7777")));
    let error = daemon.client.up(UpRequest {}).await.unwrap_err();
    assert!(error.message().contains("7777"), "{error}");
    ground.take_port(false);
    daemon.wait_for(|status| status.trouble.is_none()).await;
    daemon.client.up(UpRequest {}).await.unwrap();
    assert!(daemon.join(&stage.token).await.unwrap().already);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_tells_the_mesh_and_forgets_keys_and_all() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    assert!(daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap().into_inner().told);
    assert!(stage.has_left());
    assert!(ground.device().unwrap().is_removed());
    assert_eq!(daemon.status().await.phase, "new");
    let key = |name: &str| home.path().join("state").join(name).exists();
    assert!(!key("wireguard.key") && !key("identity.key"), "the next are made when they are needed");
    daemon.stop().await;
    let mut daemon = start(home.path(), &ground, &[]).await;
    assert!(!key("wireguard.key") && !key("identity.key"), "nor does a start need any");
    daemon.join(&stage.token).await.unwrap();
    let keys = stage.joined_keys();
    assert_ne!(keys[0], keys[1], "the keys of a membership that was given up are barred");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_untold_needs_force() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.close().await;
    let error = daemon.client.leave(LocalLeaveRequest { force: false }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(daemon.status().await.phase, "up");
    assert!(!daemon.client.leave(LocalLeaveRequest { force: true }).await.unwrap().into_inner().told);
    assert_eq!(daemon.status().await.phase, "new");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_appears_later_is_joined_with() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let file = home.path().join("token");
    let mut daemon = start(home.path(), &ground, &["--join-token-file", file.to_str().unwrap()]).await;
    assert_eq!(daemon.status().await.phase, "new");
    std::fs::write(&file, stage.token.to_string()).unwrap();
    daemon.wait_for(|status| status.phase == "up").await;
    daemon.stop().await;

    // Whoever is a member already goes on, token or not.
    let mut daemon = start(home.path(), &ground, &["--join-token-file", file.to_str().unwrap()]).await;
    daemon.wait_for(|status| status.phase == "up" && status.session.is_some()).await;
    assert_eq!(stage.joined_keys().len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_leads_nowhere_gives_way_to_one_from_a_person() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let nowhere = JoinToken {
        id: TokenId::from_bytes([7; 8]),
        addresses: vec!["127.0.0.1:1".parse().unwrap()],
        ..stage.token.clone()
    };
    let file = home.path().join("token");
    std::fs::write(&file, nowhere.to_string()).unwrap();
    let mut daemon = start(home.path(), &ground, &["--join-token-file", file.to_str().unwrap()]).await;
    daemon.wait_for(|status| status.phase == "joining").await;
    assert_eq!(daemon.join(&stage.token).await.unwrap().name, "alpha");
    assert_eq!(daemon.status().await.phase, "up");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_appears_once_a_person_has_joined_is_left_alone() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let file = home.path().join("token");
    let mut daemon = start(home.path(), &ground, &["--join-token-file", file.to_str().unwrap()]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.set_mood(Mood::TokenExpired);
    std::fs::write(&file, stage.token.to_string()).unwrap();
    // Several times as long as from one look for the file to the next.
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        assert_eq!(daemon.status().await.phase, "up");
    }
    assert_eq!(stage.joined_keys().len(), 1);
    assert!(!ground.device().unwrap().is_removed());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_learns_from_a_new_token_where_its_coordinators_have_gone() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    stage.close().await;
    let restored = stage.elsewhere().await;
    daemon.wait_for(|status| status.session.is_none()).await;
    let forged = JoinToken { authority: Fingerprint::of(b"another CA"), ..restored.token.clone() };
    assert!(daemon.join(&forged).await.unwrap().already);
    let named = |home: &TempDir| std::fs::read(home.path().join("state/membership")).unwrap();
    let before = named(&home);
    assert!(daemon.join(&restored.token).await.unwrap().already);
    assert_ne!(named(&home), before, "only now is there something to keep");
    daemon.wait_for(|status| status.session.is_some()).await;
    daemon.stop().await;
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.wait_for(|status| status.session.is_some()).await;
    assert_eq!(stage.joined_keys().len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joined_after_the_backup_is_told_so_and_joins_again_with_a_token() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    let first = daemon.join(&stage.token).await.unwrap();
    stage.forget_node();
    let said = |status: &StatusReply| status.warnings.iter().any(|warning| warning.contains("meshctl join TOKEN"));
    daemon.wait_for(said).await;

    stage.set_mood(Mood::TokenExpired);
    let error = daemon.join(&stage.token).await.unwrap_err();
    assert!(error.message().contains("expired"), "{error}");
    let status = daemon.wait_for(said).await;
    assert_eq!((status.phase.as_str(), status.self_.unwrap().id), ("up", first.id.clone()));
    assert!(!ground.device().unwrap().is_removed());

    stage.set_mood(Mood::Willing);
    let second = daemon.join(&stage.token).await.unwrap();
    assert!(!second.already && second.id != first.id);
    daemon.wait_for(|status| status.session.is_some() && status.warnings.is_empty()).await;
    assert_eq!(ground.device().unwrap().device().peers.len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_is_kept_when_the_daemon_stops() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    let node = daemon.join(&stage.token).await.unwrap().id;
    let kept = || {
        let journal = std::fs::read(home.path().join("state/journal")).unwrap();
        let (cache, _) = Cache::replay(&journal, stage::MESH, node.parse().unwrap()).unwrap();
        cache.clock.unwrap().highest
    };
    let before = kept();
    daemon.wait_for(|status| status.time > before.0).await;
    daemon.stop().await;
    assert!(kept() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_file_ends_the_daemon_with_its_own_exit_code() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    stage.set_mood(Mood::TokenExpired);
    let file = home.path().join("token");
    std::fs::write(&file, stage.token.to_string()).unwrap();
    let (_stop, task) = spawn(home.path(), &ground, &["--join-token-file", file.to_str().unwrap()]);
    let failure = timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&failure, Failure::Refused(why) if why.contains("expired")), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_is_kept_out() {
    let (home, ground) = (home(), Pretence::default());
    let daemon = start(home.path(), &ground, &[]).await;
    let (_stop, task) = spawn(home.path(), &ground, &[]);
    let failure = timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(failure.to_string().contains("in use by another meshd"), "{failure}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_membership_is_named_and_not_thrown_away() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    daemon.stop().await;
    let path = home.path().join("state").join("membership");
    std::fs::write(&path, b"\0\0\0\x01nonsense").unwrap();
    let (_stop, task) = spawn(home.path(), &ground, &[]);
    let failure = timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    assert!(failure.to_string().contains("membership is damaged"), "{failure}");
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_key_does_not_start_as_somebody_else() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    daemon.stop().await;
    let path = home.path().join("state").join("wireguard.key");
    std::fs::remove_file(&path).unwrap();
    let (_stop, task) = spawn(home.path(), &ground, &[]);
    let failure = timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
    let said = failure.to_string();
    assert!(said.contains(path.to_str().unwrap()) && said.contains("restore") && said.contains("join again"), "{said}");
    assert_eq!(failure.exit_code(), ExitCode::from(5));
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_somebody_removes_is_made_anew_with_its_peers() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    ground.device().unwrap().pull();
    let again = async {
        loop {
            let device = ground.device().unwrap();
            if !device.is_removed() && device.device().peers.len() == 1 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pinging_an_unknown_peer_is_an_error_and_a_silent_one_a_loss() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    let ping = |peer: &str| PingRequest { peer: peer.to_owned(), count: 1, interval_ms: 10 };
    assert_eq!(daemon.client.ping(ping("gamma")).await.unwrap_err().code(), Code::NotFound);
    let mut replies = daemon.client.ping(ping("beta")).await.unwrap().into_inner();
    let reply = timeout(PATIENCE, replies.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((reply.sequence, reply.latency_ms), (1, None));
    assert_eq!(reply.address, peer().addresses.v4.to_string());
    assert!(replies.message().await.unwrap().is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_lost_is_opened_again() {
    let (home, ground, stage) = (home(), Pretence::default(), Stage::open().await);
    let mut daemon = start(home.path(), &ground, &[]).await;
    daemon.join(&stage.token).await.unwrap();
    for count in 2..4 {
        stage.cut_sessions();
        daemon.wait_for(|status| status.session.is_some() && stage.opened() == count).await;
    }
    daemon.stop().await;
}
