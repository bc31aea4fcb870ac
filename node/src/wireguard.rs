//! `meshd wireguard INTERFACE`: the embedded engine alone, in the foreground, configured by `wg(8)` over its socket.
//!
//! Ends on a signal, or when the interface is taken away; the interface goes with it. No mesh, no state on disk.

use crate::device::DeviceError;
use crate::failure::Failure;
use crate::options::WireguardOptions;
use mesh_wireguard::engine::Engine;
use mesh_wireguard::uapi::{self, Uapi};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use tracing::info;

/// Runs until a signal or the end of the interface.
pub fn run(options: &WireguardOptions) -> Result<(), Failure> {
    // Before the engine's threads start, which inherit it: only this one hears of signals.
    let signals = watch_signals().map_err(|errno| Failure::Start(errno.into()))?;
    let engine = Engine::start(&options.interface, options.workers.map(usize::from)).map_err(DeviceError::from)?;
    let engine = Arc::new(engine);
    let uapi = Uapi::serve(engine.clone(), Path::new(uapi::DIRECTORY)).map_err(Failure::Uapi)?;
    info!(interface = engine.interface(), socket = %uapi.path().display(), "ready for wg(8)");
    let signal = PollFd::new(signals.as_fd(), PollFlags::POLLIN);
    let ended = PollFd::new(engine.ended(), PollFlags::POLLIN);
    loop {
        match poll(&mut [signal.clone(), ended.clone()], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Start(errno.into())),
            Ok(_) if engine.is_alive() => {
                info!(interface = engine.interface(), "stopping; the interface goes with it");
                return Ok(());
            }
            Ok(_) => {
                let interface = engine.interface().to_owned();
                return Err(DeviceError::Gone { interface }.into());
            }
        }
    }
}

fn watch_signals() -> Result<SignalFd, Errno> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}
