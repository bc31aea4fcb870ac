//! Starting the daemons that `init` and `join` need, where they do not run yet.
//!
//! With systemd where the units are installed and the paths are the default ones; else detached, with a log and a PID
//! file that are printed; or as children, in the foreground. Leaving undoes the first two. No token ever stands on a command line: it goes over the
//! socket, or lies in a file that only root reads.

use crate::args::{Backend, Globals, Start};
use crate::exit::{Exit, Failure};
use crate::paths::Paths;
use crate::{output, programs};
use anyhow::Context as _;
use ipnet::IpNet;
use mesh_types::{CoordinatorAddress, MeshDuration, NodeName};
use std::ffi::OsString;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a daemon may take until its socket is there.
const READY: Duration = Duration::from_secs(15);
/// How long a coordinator that joins may take: it catches up first.
const READY_JOINING: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long daemons in the foreground may take to stop; a coordinator hands over leadership.
const STOP: Duration = Duration::from_secs(20);
/// How much of a log is shown when its daemon did not start.
const LOG_TAIL: u64 = 2_000;

const UNIT_DIRECTORIES: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

/// What a new coordinator does first.
pub(crate) enum Beginning {
    /// Makes a new mesh.
    Bootstrap { overlay: Vec<IpNet>, key_ttl: Option<MeshDuration> },
    /// Joins with the token in this file.
    Join { token_file: PathBuf },
}

/// Which daemon, and with what.
pub(crate) struct Daemon {
    program: &'static str,
    socket: PathBuf,
    /// Where it keeps its state; its log lies beside it.
    state: PathBuf,
    paths: Vec<OsString>,
    settings: Vec<OsString>,
    ready_within: Duration,
}

impl Daemon {
    /// The node daemon.
    pub(crate) fn node(paths: &Paths, start: &Start) -> Self {
        let mut settings = Vec::new();
        if start.backend != Backend::Auto {
            settings.extend(["--backend".into(), start.backend.as_str().into()]);
        }
        if let Some(port) = start.listen_port {
            settings.extend(["--listen-port".into(), port.to_string().into()]);
        }
        let mut own_paths = vec!["--interface".into(), OsString::from(&paths.mesh)];
        own_paths.extend(["--state-dir".into(), paths.node_state.clone().into()]);
        own_paths.extend(["--socket".into(), paths.node_socket.clone().into()]);
        let socket = paths.node_socket.clone();
        let state = paths.node_state.clone();
        Self { program: programs::NODE, socket, state, paths: own_paths, settings, ready_within: READY }
    }

    /// The coordinator daemon.
    pub(crate) fn coordinator(
        paths: &Paths,
        advertise: &[CoordinatorAddress],
        name: Option<&NodeName>,
        beginning: &Beginning,
    ) -> Self {
        let mut settings: Vec<OsString> = Vec::new();
        for address in advertise {
            settings.extend(["--advertise".into(), address.to_string().into()]);
        }
        if let Some(name) = name {
            settings.extend(["--name".into(), name.to_string().into()]);
        }
        let ready_within = match beginning {
            Beginning::Bootstrap { overlay, key_ttl } => {
                settings.push("--bootstrap".into());
                for range in overlay {
                    settings.extend(["--overlay".into(), range.to_string().into()]);
                }
                if let Some(ttl) = key_ttl {
                    settings.extend(["--default-key-ttl".into(), format!("{}ms", ttl.0).into()]);
                }
                READY
            }
            Beginning::Join { token_file } => {
                settings.extend(["--join-token-file".into(), token_file.clone().into()]);
                READY_JOINING
            }
        };
        let own_paths = vec![
            "--data-dir".into(),
            paths.coordinator_data.clone().into(),
            "--socket".into(),
            paths.coordinator_socket.clone().into(),
        ];
        let socket = paths.coordinator_socket.clone();
        let state = paths.coordinator_data.clone();
        Self { program: programs::COORDINATOR, socket, state, paths: own_paths, settings, ready_within }
    }

    async fn answers(&self) -> bool {
        mesh_proto::local::connect(&self.socket).await.is_ok()
    }

    fn command(&self) -> Result<Command, Failure> {
        let mut command = Command::new(programs::find(self.program)?);
        command.args(&self.paths).args(&self.settings);
        // A token in our environment is for us; daemons get theirs over the socket or from a file.
        command.env_remove("MESH_JOIN_TOKEN");
        Ok(command)
    }
}

/// The daemons that one `init` or `join` holds in the foreground, in the order they were started.
pub(crate) struct Daemons {
    foreground: bool,
    children: Vec<(&'static str, Child)>,
}

/// Does `work`, which may start daemons. In the foreground, stays with them until a signal comes or one of them ends,
/// and then stops them all; a signal during `work` does the same.
pub(crate) async fn with_daemons(
    foreground: bool,
    work: impl AsyncFnOnce(&mut Daemons) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let mut daemons = Daemons { foreground, children: Vec::new() };
    if !foreground {
        return work(&mut daemons).await.map(|()| Exit::Done);
    }
    // From here on, before there is a child that a signal would orphan.
    let mut signals = Signals::new()?;
    let worked = tokio::select! {
        worked = work(&mut daemons) => worked,
        () = signals.any() => {
            daemons.stop().await;
            return Ok(Exit::Done);
        }
    };
    let verdict = match worked {
        Ok(()) => daemons.stay(&mut signals).await,
        Err(failure) => Err(failure),
    };
    daemons.stop().await;
    verdict.map(|()| Exit::Done)
}

/// The signals that ask a program to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Daemons {
    /// Sees to it that the daemon runs and answers.
    pub(crate) async fn ensure(&mut self, daemon: &Daemon, globals: &Globals, paths: &Paths) -> Result<(), Failure> {
        let by_unit = !self.foreground && Paths::are_default(globals) && has_unit(daemon.program);
        if daemon.answers().await {
            // Started by hand, perhaps, and wanted from now on at every boot.
            let enable = by_unit && nix::unistd::geteuid().is_root() && is_active(&unit(daemon.program, paths));
            return if enable { systemctl(&["enable", "--quiet", &unit(daemon.program, paths)]) } else { Ok(()) };
        }
        need_root()?;
        if self.foreground {
            let child = tokio::process::Command::from(daemon.command()?)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {}", daemon.program))?;
            self.children.push((daemon.program, child));
            let (_, child) = self.children.last_mut().expect("one was pushed");
            return wait_until_ready(daemon, Some(child), None).await;
        }
        if by_unit {
            start_unit(daemon, paths)?;
            return wait_until_ready(daemon, None, None).await;
        }
        start_detached(daemon, globals.quiet || globals.json).await
    }

    /// Waits for a signal; fails if a daemon ends before.
    async fn stay(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        if self.children.is_empty() {
            return Err(Failure::new(Exit::Failed, "the daemons run already, and not in this foreground"));
        }
        let any = futures::future::select_all(self.children.iter_mut().map(|(_, child)| Box::pin(child.wait())));
        let (status, index) = tokio::select! {
            (status, index, _) = any => (status, index),
            () = signals.any() => return Ok(()),
        };
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Err(Failure::new(Exit::Failed, format!("{} has ended ({how})", self.children[index].0)))
    }

    async fn stop(&mut self) {
        for (_, child) in &self.children {
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                // It may have ended by itself meanwhile.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            }
        }
        for (_, child) in &mut self.children {
            if tokio::time::timeout(STOP, child.wait()).await.is_err() {
                // Killed when it is dropped.
                output::note("meshctl: a daemon did not stop in time and is killed");
            }
        }
    }
}

/// Undoes what [`Daemons::ensure`] did for the node daemon: it starts at no boot any more, and does not run. Harmless
/// where that is so already; a daemon that somebody else supervises is theirs to stop.
pub(crate) async fn retire_node(globals: &Globals, paths: &Paths) -> Result<(), Failure> {
    if Paths::are_default(globals) && has_unit(programs::NODE) {
        retire_unit(paths)?;
    }
    stop_detached(&paths.node_socket).await
}

fn need_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::Permission, "starting a daemon needs root: run this with sudo"))
}

fn has_unit(program: &str) -> bool {
    let unit = format!("{program}@.service");
    let booted = Path::new("/run/systemd/system").is_dir();
    booted && UNIT_DIRECTORIES.iter().any(|directory| Path::new(directory).join(&unit).exists())
}

fn unit(program: &str, paths: &Paths) -> String {
    format!("{program}@{}.service", paths.mesh)
}

fn is_active(unit: &str) -> bool {
    Command::new("systemctl").args(["is-active", "--quiet", unit]).status().is_ok_and(|status| status.success())
}

/// Where the settings of one machine are for its node's unit.
fn drop_in(paths: &Paths) -> PathBuf {
    PathBuf::from(format!("/etc/systemd/system/{}.d/meshctl.conf", unit(programs::NODE, paths)))
}

fn retire_unit(paths: &Paths) -> Result<(), Failure> {
    systemctl(&["disable", "--now", "--quiet", &unit(programs::NODE, paths)])?;
    let settings = drop_in(paths);
    if !settings.exists() {
        return Ok(());
    }
    std::fs::remove_file(&settings).with_context(|| format!("cannot remove {}", settings.display()))?;
    if let Some(directory) = settings.parent() {
        // It stays if there are drop-ins of the administrator's own.
        let _ = std::fs::remove_dir(directory);
    }
    systemctl(&["daemon-reload"])
}

/// Hands the settings to the unit of this mesh, and enables it.
fn start_unit(daemon: &Daemon, paths: &Paths) -> Result<(), Failure> {
    let settings = daemon.settings.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if daemon.program == programs::COORDINATOR {
        let file = Path::new("/etc/meshctl").join(&paths.mesh).join("coordinator");
        write(&file, &format!("COORDINATOR_ARGUMENTS={settings}\n"))?;
    } else if !settings.is_empty() {
        write(&drop_in(paths), &format!("[Service]\nEnvironment=\"MESHD_ARGUMENTS={settings}\"\n"))?;
        systemctl(&["daemon-reload"])?;
    }
    systemctl(&["enable", "--now", &unit(daemon.program, paths)])
}

fn write(file: &Path, content: &str) -> Result<(), Failure> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    std::fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}

fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    let words = arguments.join(" ");
    let status = Command::new("systemctl").args(arguments).status().context("cannot run systemctl")?;
    if status.success() {
        return Ok(());
    }
    let unit = arguments.last().copied().unwrap_or_default();
    Err(Failure::new(Exit::Failed, format!("`systemctl {words}` failed: see `journalctl -u {unit}`")))
}

async fn start_detached(daemon: &Daemon, quiet: bool) -> Result<(), Failure> {
    let around = daemon.state.parent().unwrap_or(&daemon.state);
    make_private(around)?;
    let log = around.join(format!("{}.log", daemon.program));
    let pid_file = pid_file(&daemon.socket);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).append(true).read(true).mode(0o600).open(&log);
    let file = file.as_mut().map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", log.display())))?;
    let begins = file.seek(SeekFrom::End(0)).context("cannot read the log")?;
    let mut command = daemon.command()?;
    let output = file.try_clone().context("cannot share the log")?;
    let errors = file.try_clone().context("cannot share the log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/");
    // SAFETY: one system call; a session of its own keeps the daemon when the terminal closes.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    let mut child =
        tokio::process::Command::from(command).spawn().with_context(|| format!("cannot start {}", daemon.program))?;
    let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
    write(&pid_file, &format!("{pid}\n"))?;
    wait_until_ready(daemon, Some(&mut child), Some((&log, begins))).await?;
    if !quiet {
        let (log, pid_file) = (log.display(), pid_file.display());
        output::note(format_args!("Started {}: PID {pid} in {pid_file}, log {log}.", daemon.program));
    }
    Ok(())
}

/// Where the process id of a detached daemon is.
fn pid_file(socket: &Path) -> PathBuf {
    socket.with_extension("pid")
}

/// Ends the daemon that serves `socket`, if it is the one that was started detached here, and waits until it is gone.
async fn stop_detached(socket: &Path) -> Result<(), Failure> {
    let pid_file = pid_file(socket);
    let Ok(text) = std::fs::read_to_string(&pid_file) else { return Ok(()) };
    // The number in a file may be another process's by now; who answers says for sure.
    let Some(pid) = server(socket).filter(|pid| text.trim() == pid.to_string()) else { return Ok(()) };
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("cannot stop meshd")?;
    let deadline = Instant::now() + STOP;
    while server(socket).is_some() {
        if Instant::now() > deadline {
            return Err(Failure::new(Exit::Failed, format!("meshd (PID {pid}) does not end: see its log")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    std::fs::remove_file(&pid_file).with_context(|| format!("cannot remove {}", pid_file.display()))?;
    Ok(())
}

/// The process that serves a socket.
fn server(socket: &Path) -> Option<nix::unistd::Pid> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    Some(nix::unistd::Pid::from_raw(peer.pid()))
}

/// Makes the directory of a mesh, which holds keys, for root alone.
pub(crate) fn make_private(directory: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(())
}

/// Waits until the daemon answers on its socket; fails at once if it ends.
async fn wait_until_ready(
    daemon: &Daemon,
    mut child: Option<&mut Child>,
    log: Option<(&Path, u64)>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + daemon.ready_within;
    while !daemon.answers().await {
        let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            return Err(explain_end(daemon, status, log));
        }
        if Instant::now() > deadline {
            let secs = daemon.ready_within.as_secs();
            let place = log.map_or_else(|| "its log".to_owned(), |(log, _)| log.display().to_string());
            let message = format!("{} does not answer after {secs} s: see {place}", daemon.program);
            return Err(Failure::new(Exit::NotRunning, message));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// The daemons' exit codes mean what ours do, where they mean anything.
fn explain_end(daemon: &Daemon, status: std::process::ExitStatus, log: Option<(&Path, u64)>) -> Failure {
    let exit = match status.code() {
        Some(3) => Exit::Permission,
        Some(6) => Exit::Refused,
        _ => Exit::Failed,
    };
    let said = log.and_then(|(log, begins)| tail(log, begins)).unwrap_or_default();
    let place = log.map(|(log, _)| format!("; log {}", log.display())).unwrap_or_default();
    Failure::new(exit, format!("{} did not start ({status}){place}\n{}", daemon.program, said.trim_end()))
}

fn tail(log: &Path, begins: u64) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(begins.max(length.saturating_sub(LOG_TAIL)))).ok()?;
    let mut said = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut said).ok()?;
    Some(String::from_utf8_lossy(&said).into_owned())
}
