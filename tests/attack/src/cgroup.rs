//! A control group that a daemon lives in, with a bound on its memory.
//!
//! Removed when it is dropped, which has to be after its processes have ended. Either version of the kernel's interface
//! will do; inside containers there is often neither.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Memory that a small coordinator is given, members at work included.
pub(crate) const LIMIT: u64 = 128 << 20;

const UNIFIED: &str = "/sys/fs/cgroup";
const MEMORY: &str = "/sys/fs/cgroup/memory";

/// One control group.
pub(crate) struct Cgroup {
    path: PathBuf,
    files: &'static Files,
}

/// What the two versions call the same.
struct Files {
    limit: &'static str,
    /// And what to write into it.
    swap: (&'static str, &'static str),
    peak: &'static str,
    events: &'static str,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    swap: ("memory.swappiness", "0"),
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const VERSION_2: Files =
    Files { limit: "memory.max", swap: ("memory.swap.max", "0"), peak: "memory.peak", events: "memory.events" };

impl Cgroup {
    /// Makes one with room for [`LIMIT`].
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let (parent, files) = parent()?;
        let cgroup = Self { path: parent.join(format!("meshctl-attack-{name}")), files };
        fs::create_dir(&cgroup.path)?;
        fs::write(cgroup.path.join(files.limit), LIMIT.to_string())?;
        // What is moved to a disk is not bounded; there is no such file where that is not counted.
        let _ = fs::write(cgroup.path.join(files.swap.0), files.swap.1);
        Ok(cgroup)
    }

    /// Where a process writes its id to get in.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The most it ever held, in bytes: with pages of files that could be dropped, and buffers of sockets.
    pub(crate) fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.path.join(self.files.peak)).ok()?.trim().parse().ok()
    }

    /// How many processes were killed because there was no room.
    pub(crate) fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join(self.files.events)).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Nothing is lost by one that stays: it is empty.
        let _ = fs::remove_dir(&self.path);
    }
}

fn parent() -> io::Result<(&'static Path, &'static Files)> {
    let unified = Path::new(UNIFIED);
    if unified.join("cgroup.controllers").exists() {
        let handed_on = unified.join("cgroup.subtree_control");
        if !fs::read_to_string(&handed_on)?.split_whitespace().any(|controller| controller == "memory") {
            fs::write(&handed_on, "+memory")?;
        }
        return Ok((unified, &VERSION_2));
    }
    let memory = Path::new(MEMORY);
    if memory.join("cgroup.procs").exists() {
        return Ok((memory, &VERSION_1));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no memory controller is mounted"))
}
