//! `meshd wireguard INTERFACE`: the embedded engine alone, configured by `wg(8)` over its socket.
//!
//! Ends on a signal, or when the interface is taken away; the interface goes with it. No mesh, no state on disk. In the
//! foreground, unless it is told to detach: then this process starts another, waits until that is ready, and goes.

use crate::device::DeviceError;
use crate::failure::Failure;
use crate::options::WireguardOptions;
use mesh_wireguard::engine::Engine;
use mesh_wireguard::uapi::{self, Uapi};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::{self, Read as _, Write as _, stdout};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tracing::info;

/// What a detached engine writes to its starter when it is ready.
const READY: &[u8] = b"ready\n";

/// Runs until a signal or the end of the interface.
pub fn run(options: &WireguardOptions) -> Result<(), Failure> {
    if options.detach {
        return detach(options);
    }
    // Before the engine's threads start, which inherit it: only this one hears of signals.
    let signals = watch_signals().map_err(|errno| Failure::Start(errno.into()))?;
    let engine = Engine::start(&options.interface, options.workers.map(usize::from)).map_err(DeviceError::from)?;
    let engine = Arc::new(engine);
    let uapi = Uapi::serve(engine.clone(), Path::new(uapi::DIRECTORY)).map_err(Failure::Uapi)?;
    info!(interface = engine.interface(), socket = %uapi.path().display(), "ready for wg(8)");
    if options.detached {
        // Whoever started this may have gone meanwhile.
        let _ = stdout().write_all(READY).and_then(|()| stdout().flush());
    }
    let signal = PollFd::new(signals.as_fd(), PollFlags::POLLIN);
    let ended = PollFd::new(engine.ended(), PollFlags::POLLIN);
    loop {
        match poll(&mut [signal.clone(), ended.clone()], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Start(errno.into())),
            // As wg-quick ends it: by taking the interface away.
            Ok(_) if engine.lost_interface() => {
                info!(interface = engine.interface(), "the interface was removed");
                return Ok(());
            }
            Ok(_) if engine.is_alive() => {
                info!(interface = engine.interface(), "stopping; the interface goes with it");
                return Ok(());
            }
            Ok(_) => return Err(Failure::Start(io::Error::other("a thread of the engine has ended"))),
        }
    }
}

/// Starts this program anew in a session of its own, and waits until it is ready or has ended. What it says goes where
/// ours does.
fn detach(options: &WireguardOptions) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe().map_err(Failure::Start)?);
    command.args(["wireguard", "--detached", &options.interface]).current_dir("/");
    command.args(options.workers.map(|workers| format!("--workers={workers}")));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: one system call; a session of its own keeps the engine when the terminal closes.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    let mut child = command.spawn().map_err(Failure::Start)?;
    let mut said = Vec::new();
    let stdout = child.stdout.take().ok_or_else(|| Failure::Start(io::ErrorKind::BrokenPipe.into()))?;
    stdout.take(READY.len() as u64).read_to_end(&mut said).map_err(Failure::Start)?;
    if said == READY {
        return Ok(());
    }
    // It has told why.
    let code = child.wait().map_err(Failure::Start)?.code().and_then(|code| u8::try_from(code).ok());
    Err(Failure::Detached(code.unwrap_or(1)))
}

fn watch_signals() -> Result<SignalFd, Errno> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}
