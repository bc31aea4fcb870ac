//! Daemons of the product as real processes, each in a control group of its own.
//!
//! They are killed when they are dropped.

use crate::cgroup::Cgroup;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use mesh_proto::v1::admin_client::AdminClient;
use mesh_proto::{local, v1};
use mesh_types::JoinToken;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

const START: Duration = Duration::from_secs(30);
/// Of an hour: longer than any attack.
const TOKEN_TTL: u64 = 3_600_000;

/// How many files a daemon may open.
#[derive(Clone, Copy)]
pub(crate) struct Descriptors {
    pub(crate) soft: u32,
    /// Up to which it may raise that; none is as many as this process may.
    pub(crate) hard: Option<u32>,
}

/// A process, with what it may use.
pub(crate) struct Daemon {
    // Ends before its control group, and that before its directory.
    child: Child,
    pid: u32,
    cgroup: Option<Cgroup>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Resident {
    pub(crate) now: u64,
    pub(crate) most: u64,
}

impl Daemon {
    fn start(
        program: &Path,
        descriptors: Option<Descriptors>,
        directory: tempfile::TempDir,
        arguments: &[&str],
    ) -> Result<Self> {
        let cgroup = cgroup(directory.path());
        let (log, socket) = (File::create(directory.path().join("log"))?, directory.path().join("socket"));
        let mut script = String::new();
        if let Some(cgroup) = &cgroup {
            script += &format!("echo $$ >{} && ", cgroup.procs().display());
        }
        if let Some(Descriptors { soft, hard }) = descriptors {
            let hard = hard.map_or_else(String::new, |hard| format!(" && ulimit -Hn {hard}"));
            script += &format!("ulimit -Sn {soft}{hard} && ");
        }
        script += "exec \"$0\" \"$@\"";
        let child = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(program)
            .args(arguments)
            .arg("--socket")
            .arg(&socket)
            .env("RUST_LOG", "info,openraft=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().context("it has ended at once")?;
        Ok(Self { child, pid, cgroup, socket, directory })
    }

    /// A daemon without a mesh, which waits to be told to join one.
    pub(crate) async fn node(binaries: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let state = directory.path().join("state");
        let arguments = ["--state-dir", path(&state), "--interface", "attack0", "--no-guard"].map(str::to_owned);
        let mut daemon =
            Self::start(&binaries.join("meshd"), None, directory, &arguments.each_ref().map(String::as_str))?;
        daemon.reachable().await?;
        Ok(daemon)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A channel over its local socket, once it listens.
    async fn reachable(&mut self) -> Result<Channel> {
        let deadline = Instant::now() + START;
        loop {
            match local::connect(&self.socket).await {
                Ok(channel) => return Ok(channel),
                Err(error) if Instant::now() > deadline => bail!("{error}: {}", self.last_log_line()),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it has ended ({status}): {}", self.last_log_line());
            }
        }
    }

    /// Waits until it ends.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Its memory; none once it has ended.
    pub(crate) fn resident(&self) -> Option<Resident> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
        };
        Some(Resident { now: field("VmRSS:")?, most: field("VmHWM:")? })
    }

    /// Lets the most it ever held count from now on.
    pub(crate) fn forget_peak(&self) -> io::Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5")
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Ends it, and waits until it has: only then is its control group empty.
    pub(crate) async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// The last line of its log.
    pub(crate) fn last_log_line(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }
}

/// A control group, or once a line that says why there is none.
fn cgroup(directory: &Path) -> Option<Cgroup> {
    static TOLD: OnceLock<()> = OnceLock::new();
    // The directory's name is that of nobody else, also of none whose end was sudden.
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    Cgroup::new(name.trim_start_matches('.'))
        .map_err(|error| {
            TOLD.get_or_init(|| println!("memory is measured but not bounded: no control group ({error})"))
        })
        .ok()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

/// A mesh of one coordinator.
pub(crate) struct Coordinator {
    pub(crate) daemon: Daemon,
    port: u16,
}

impl Coordinator {
    pub(crate) async fn found(binaries: &Path, descriptors: Option<Descriptors>) -> Result<Self> {
        // Below those that the kernel gives to whoever connects.
        static PORTS: AtomicU16 = AtomicU16::new(18_551);
        let port = PORTS.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir()?;
        let (data, address) = (directory.path().join("data"), format!("127.0.0.1:{port}"));
        let data = path(&data).to_owned();
        let arguments = ["--data-dir", &data, "--advertise", &address, "--bootstrap", "--overlay", "10.77.0.0/16"];
        let program = binaries.join("mesh-coordinator");
        let daemon = Daemon::start(&program, descriptors, directory, &arguments)?;
        let mut coordinator = Self { daemon, port };
        coordinator.daemon.reachable().await?;
        Ok(coordinator)
    }

    /// Where it is called, at an address of this host.
    pub(crate) fn at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port)
    }

    /// Where it is called over IPv4.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at(Ipv4Addr::LOCALHOST.into())
    }

    /// What an operator asks of it.
    pub(crate) async fn admin(&self) -> Result<AdminClient<Channel>> {
        Ok(AdminClient::new(local::connect(self.daemon.socket()).await?))
    }

    /// A join token for many nodes.
    pub(crate) async fn token(&self) -> Result<JoinToken> {
        let request =
            v1::CreateTokenRequest { request_id: Bytes::new(), role: "node".into(), ttl: TOKEN_TTL, uses: 60_000 };
        Ok(self.admin().await?.create_token(request).await?.into_inner().token.parse()?)
    }
}
