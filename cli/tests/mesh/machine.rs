//! A host of the lab with a user at its keyboard, who has `meshctl` and nothing else.

use crate::LIMIT;
use futures::TryStreamExt as _;
use mesh_cli::lab::{Host, Lab};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteMessage;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A host with a user at its keyboard.
pub(crate) struct Machine {
    pub(crate) host: Arc<Host>,
    directory: PathBuf,
}

impl Machine {
    pub(crate) async fn new(lab: &mut Lab, name: &str, number: u8) -> Self {
        let host = lab.host(name, &[IpAddr::from([192, 0, 2, number])]).await.unwrap();
        let directory = lab.directory().join(name);
        std::fs::create_dir(&directory).unwrap();
        Self { host, directory }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let program = program("meshctl");
        for daemon in ["meshd", "mesh-coordinator"] {
            let file = program.with_file_name(daemon);
            assert!(file.exists(), "{} is missing: run `cargo build --workspace` first", file.display());
        }
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).env_remove("MESH_JOIN_TOKEN");
        for (option, file) in [
            ("--socket", "node.sock"),
            ("--state-dir", "node"),
            ("--coordinator-socket", "coordinator.sock"),
            ("--data-dir", "coordinator"),
        ] {
            command.arg(option).arg(self.file(file));
        }
        command
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> tokio::process::Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null());
        self.host.spawn(command).unwrap()
    }

    /// Starts a meshd as its administrator would, with what `meshctl` has no option for.
    pub(crate) fn meshd(&self, arguments: &[&str]) -> tokio::process::Child {
        let mut command = Command::new(program("meshd"));
        command.args(arguments).arg("--state-dir").arg(self.file("node")).arg("--socket").arg(self.file("node.sock"));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(self.file("meshd.log")).unwrap());
        self.host.spawn(command).unwrap()
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.host.spawn(command).unwrap().wait_with_output().await.unwrap()
    }

    pub(crate) async fn done(&self, arguments: &[&str]) {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}{}", text(&output.stderr), self.logs());
    }

    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}{}", text(&output.stderr), self.logs());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Routes a range to the host's cable, as another tunnel or a container network of the host would.
    pub(crate) async fn route(&self, network: &str, length: u8) -> RouteMessage {
        let links = self.links();
        let eth0 = links.link().get().match_name("eth0").execute().try_next().await.unwrap().unwrap();
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.parse().unwrap(), length)
            .output_interface(eth0.header.index)
            .build();
        links.route().add(route.clone()).execute().await.unwrap();
        route
    }

    pub(crate) async fn unroute(&self, route: RouteMessage) {
        self.links().route().del(route).execute().await.unwrap();
    }

    /// A netlink socket in the host's network.
    pub(crate) fn links(&self) -> rtnetlink::Handle {
        self.host
            .enter(|| {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(handle)
            })
            .unwrap()
    }

    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT / 4;
        while !condition().await {
            assert!(tokio::time::Instant::now() < deadline, "{what}: not so in time{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn until_it_pings(&self, peer: &str) {
        self.until(peer, async || self.run(&["ping", peer, "-c", "1"]).await.status.success()).await;
    }

    pub(crate) async fn role_of(&self, coordinator: &str) -> String {
        let all = self.json(&["coordinator", "list"]).await;
        let found = all.as_array().unwrap().iter().find(|found| found["name"] == coordinator).unwrap();
        found["role"].as_str().unwrap().to_owned()
    }

    /// How many coordinators vote.
    pub(crate) async fn votes(&self) -> usize {
        let all = self.json(&["coordinator", "list"]).await;
        let roles = all.as_array().unwrap().iter().filter_map(|found| found["role"].as_str());
        roles.filter(|role| ["leader", "follower"].contains(role)).count()
    }

    pub(crate) async fn stop(&self, daemon: &str) {
        self.end(daemon, nix::sys::signal::Signal::SIGTERM).await;
    }

    pub(crate) async fn kill(&self, daemon: &str) {
        self.end(daemon, nix::sys::signal::Signal::SIGKILL).await;
    }

    /// Sends a signal to a daemon that `meshctl` has started.
    pub(crate) fn signal(&self, daemon: &str, signal: nix::sys::signal::Signal) -> nix::unistd::Pid {
        let pid = std::fs::read_to_string(self.file(&format!("{daemon}.pid"))).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        pid
    }

    /// Ends a daemon that `meshctl` has started, and waits until it is gone.
    async fn end(&self, daemon: &str, signal: nix::sys::signal::Signal) {
        let pid = self.signal(daemon, signal);
        // An orphan of this world's first process, which is this one: nobody else waits for it.
        self.until("the daemon has ended", async || {
            use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
            !matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        })
        .await;
    }

    /// What the daemons said, for whoever reads why a test failed.
    pub(crate) fn logs(&self) -> String {
        let said = ["mesh-coordinator.log", "meshd.log"].map(|log| {
            let said = std::fs::read_to_string(self.file(log)).unwrap_or_default();
            format!("\n--- {log} of {}\n{said}", self.host.name())
        });
        said.concat()
    }
}

/// A program of the product: the one that was built along, or the one in `MESH_BINARIES`.
fn program(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_meshctl")).with_file_name(name);
    std::env::var_os("MESH_BINARIES").map_or(built, |directory| Path::new(&directory).join(name))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
