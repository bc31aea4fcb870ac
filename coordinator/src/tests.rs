//! Whole coordinators in this process, over real disks, TLS and gRPC, whose clocks and understanding a test chooses.

mod clock;
mod level;

use crate::clock::{Host, Source};
use crate::options::Options;
use crate::run::{Nature, run_as};
use clap::Parser as _;
use mesh_coordinator_core::clock::Monotonic;
use mesh_proto::local;
use mesh_proto::v1;
use mesh_proto::v1::admin_client::AdminClient;
use mesh_types::{Level, MeshDuration, MeshTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tonic::transport::Channel;

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(40);

/// This host's clocks, as far as a test has not moved them.
#[derive(Debug, Default)]
struct Moved {
    /// Milliseconds that the wall clock is wrong by.
    wrong: AtomicI64,
    /// Milliseconds that passed besides those of the test, on both clocks.
    passed: AtomicU64,
    synchronised: AtomicBool,
}

impl Source for Moved {
    fn wall(&self) -> MeshTime {
        let passed = MeshDuration(self.passed.load(Ordering::Relaxed));
        let wall = Host.wall() + passed;
        MeshTime(wall.0.saturating_add_signed(self.wrong.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Monotonic {
        Host.monotonic() + MeshDuration(self.passed.load(Ordering::Relaxed))
    }

    fn is_synchronised(&self) -> bool {
        self.synchronised.load(Ordering::Relaxed)
    }
}

/// One coordinator; it ends with the test.
struct Coordinator {
    root: PathBuf,
    port: u16,
    level: Level,
    clock: Arc<Moved>,
    running: Option<(oneshot::Sender<()>, oneshot::Receiver<anyhow::Result<()>>)>,
}

impl Coordinator {
    fn new(root: &Path, name: &str) -> Self {
        let root = root.join(name);
        std::fs::create_dir_all(&root).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { root, port, level: Level::SUPPORTED, clock: Arc::default(), running: None }
    }

    fn socket(&self) -> PathBuf {
        self.root.join("coordinator.sock")
    }

    fn start(&mut self, more: &[&str]) {
        let (data, socket) = (self.root.join("data"), self.socket());
        let address = format!("127.0.0.1:{}", self.port);
        let mut words = vec!["mesh-coordinator", "--advertise", &address, "--listen", &address];
        words.extend(["--data-dir", data.to_str().unwrap(), "--socket", socket.to_str().unwrap()]);
        let options = Options::parse_from(words.iter().chain(more)).serve.unwrap();
        let nature = Nature { level: self.level, clock: self.clock.clone() };
        let (sender, mut stop) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        // A runtime of its own, so that nothing of it lives on when it has ended, as with a process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let result = runtime.block_on(async {
                loop {
                    let result = run_as(nature.clone(), options.clone(), async { drop((&mut stop).await) }).await;
                    match result {
                        // The one before lets go of its files a moment after it has ended.
                        Err(error) if error.to_string().contains("in use") => tokio::time::sleep(LOOK).await,
                        result => return result,
                    }
                }
            });
            runtime.shutdown_timeout(LOOK);
            // Nobody asks any more where the test has ended.
            let _ = end.send(result);
        });
        self.running = Some((sender, ended));
    }

    async fn stop(&mut self) {
        let (stop, ended) = self.running.take().unwrap();
        stop.send(()).unwrap();
        ended.await.unwrap().unwrap();
    }

    /// Waits until it ends by itself, and says why.
    async fn ended(&mut self) -> String {
        let (_stop, ended) = self.running.take().unwrap();
        tokio::time::timeout(PATIENCE, ended).await.expect("it does not end").unwrap().unwrap_err().to_string()
    }

    async fn admin(&self) -> AdminClient<Channel> {
        let begun = Instant::now();
        loop {
            if let Ok(channel) = local::connect(&self.socket()).await {
                return AdminClient::new(channel);
            }
            assert!(begun.elapsed() < PATIENCE, "no admin socket: {:?}", self.running);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn try_token(&self, role: &str) -> Result<String, tonic::Status> {
        let request = v1::CreateTokenRequest { role: role.into(), ttl: 3_600_000, uses: 9, ..Default::default() };
        Ok(self.admin().await.create_token(request).await?.into_inner().token)
    }

    /// What it knows of all coordinators, itself among them, as far as a quorum confirms it.
    async fn list(&self) -> v1::ListCoordinatorsReply {
        self.admin().await.list_coordinators(v1::ListCoordinatorsRequest {}).await.unwrap().into_inner()
    }

    /// What it says of one of them.
    async fn info(&self, id: u64) -> v1::CoordinatorInfo {
        let listed = self.list().await.coordinators;
        listed.into_iter().find(|one| one.record.as_ref().unwrap().id == id).unwrap_or_default()
    }
}

const LOOK: Duration = Duration::from_millis(50);

/// A mesh of `count` coordinators, of which an odd number votes; ids count from 1.
async fn mesh(root: &Path, count: usize) -> Vec<Coordinator> {
    let mut all = vec![Coordinator::new(root, "c1")];
    all[0].start(&["--bootstrap", "--overlay", "10.77.0.0/16", "--name", "c1"]);
    let token = all[0].try_token("coordinator").await.unwrap();
    std::fs::write(root.join("token"), token).unwrap();
    for number in 2..=count {
        let mut next = Coordinator::new(root, &format!("c{number}"));
        next.start(&join_arguments(root, number).each_ref().map(String::as_str));
        next.admin().await;
        all.push(next);
    }
    eventually("all of them serve", async || {
        let listed = all[0].list().await.coordinators;
        let voters = listed.iter().filter(|one| one.role != "learner").count();
        voters == count - (count + 1) % 2 && listed.iter().all(|one| one.reachable)
    })
    .await;
    all
}

fn join_arguments(root: &Path, number: usize) -> [String; 4] {
    let file = root.join("token").display().to_string();
    ["--join-token-file".into(), file, "--name".into(), format!("c{number}")]
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(LOOK).await;
    }
}
