//! The demo's daemons as real processes, started in the forms that the product promises to keep.

use crate::args::Backend;
use crate::lab::{Host, World};
use crate::programs;
use anyhow::{Context as _, Result, bail};
use mesh_proto::v1::admin_client::AdminClient;
use mesh_proto::v1::local_client::LocalClient;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Child;
use tonic::transport::Channel;

/// How long one `meshctl` may take.
const VERB: Duration = Duration::from_secs(30);

/// A daemon on a host of the lab.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) host: Arc<Host>,
    pub(super) socket: PathBuf,
    program: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A coordinator that will be reached at `address`.
    pub(super) fn coordinator(host: Arc<Host>, address: IpAddr, directory: &Path) -> Self {
        let data = directory.join(host.name());
        let arguments =
            vec!["--data-dir".into(), data.display().to_string(), "--advertise".into(), address.to_string()];
        Self::new(programs::COORDINATOR, host, arguments, directory)
    }

    /// A node that will join when it is asked to.
    pub(super) fn node(host: Arc<Host>, backend: Backend, directory: &Path) -> Self {
        let state = directory.join(host.name());
        let mut arguments = vec!["--state-dir".into(), state.display().to_string()];
        arguments.extend(["--interface".into(), "mesh0".into(), "--backend".into(), backend.as_str().into()]);
        Self::new(programs::NODE, host, arguments, directory)
    }

    fn new(program: &'static str, host: Arc<Host>, mut arguments: Vec<String>, directory: &Path) -> Self {
        let name = host.name().to_owned();
        let socket = directory.join(format!("{name}.sock"));
        arguments.extend(["--socket".into(), socket.display().to_string()]);
        let log = directory.join(format!("{name}.log"));
        Self { name, host, socket, program, arguments, log, child: None }
    }

    /// Starts it; `extra` arguments are for this start alone.
    pub(super) fn start(&mut self, extra: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = Command::new(programs::find(self.program)?);
        command.args(&self.arguments).args(extra).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        World::forget_in(&mut command);
        self.child = Some(self.host.spawn(command)?);
        Ok(())
    }

    /// Kills it, as `kill -9` does.
    pub(super) async fn kill(&mut self) -> Result<()> {
        match &mut self.child {
            Some(child) => child.kill().await.with_context(|| format!("cannot kill {}", self.name))?,
            None => bail!("{} does not run", self.name),
        }
        self.child = None;
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
            bail!("{} has ended by itself ({}): see {}", self.name, status?, self.log.display());
        }
        Ok(())
    }

    /// Resident memory in KiB, as the kernel counts it.
    pub(super) fn memory(&self) -> Option<u64> {
        let pid = self.child.as_ref()?.id()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Its admin service, for a coordinator.
    pub(super) async fn admin(&self) -> Result<AdminClient<Channel>> {
        Ok(AdminClient::new(mesh_proto::local::connect(&self.socket).await?))
    }

    /// Its local service, for a node.
    pub(super) async fn local(&self) -> Result<LocalClient<Channel>> {
        Ok(LocalClient::new(mesh_proto::local::connect(&self.socket).await?))
    }

    /// Runs `meshctl --json` against this daemon and returns what it printed.
    pub(super) async fn meshctl(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let option = if self.program == programs::NODE { "--socket" } else { "--coordinator-socket" };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(option).arg(&self.socket).arg("--json").args(arguments).stdin(Stdio::null());
        World::forget_in(&mut command);
        let mut command = tokio::process::Command::from(command);
        let output = tokio::time::timeout(VERB, command.kill_on_drop(true).output());
        let words = arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        let output =
            output.await.with_context(|| format!("`meshctl {words}` takes more than {} s", VERB.as_secs()))??;
        if !output.status.success() {
            bail!("`meshctl {words}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if output.stdout.is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("`meshctl {words}` printed no JSON"))
    }
}
