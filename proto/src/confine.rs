//! What a daemon with keys in its memory does at its start, so that they stay there: no core dump, no debugger of the
//! same user, and no line of a library that shows what passes through it.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use std::io;
use tracing::{Level, Metadata};

/// Sees to it that no core of this process is written, whatever the host's settings are, and that no process without
/// CAP_SYS_PTRACE reads its memory. Processes that it starts are not dumped either.
pub fn keep_memory_private() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_dumpable(false)?;
    Ok(())
}

/// Whether a log may show this at all, whatever `RUST_LOG` asks for. Netlink libraries print whole messages, and with them
/// the private key of a kernel device; others print what they carry at the finest level.
pub fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let library = !metadata.target().starts_with("mesh");
    let netlink = ["netlink", "genetlink", "rtnetlink", "wireguard_control"];
    let messages = netlink.iter().any(|name| metadata.target().starts_with(name));
    let finest = library && *metadata.level() > Level::DEBUG;
    !(messages || finest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_process_can_neither_be_dumped_nor_become_so_again() {
        // In this test's process: nothing else here needs a core.
        keep_memory_private().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
