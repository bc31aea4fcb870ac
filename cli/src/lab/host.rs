//! One host of the lab: a network namespace, and the processes and sockets in it.
//!
//! The namespace lives as long as the `Host` or any process in it. It is also mounted on `netns/NAME` in the world's
//! directory, so that `nsenter --net=` finds it from inside the world.

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};
use std::ffi::CString;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A host: its own interfaces, routes and host name.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: File,
    mounted: PathBuf,
    addresses: Mutex<Vec<IpAddr>>,
}

impl Host {
    /// Makes the namespace, with loopback still down.
    pub(super) fn new(name: &str, directory: &Path) -> Result<Self> {
        let mounted = directory.join("netns").join(name);
        std::fs::create_dir_all(directory.join("netns"))?;
        File::create(&mounted).with_context(|| format!("cannot make {}", mounted.display()))?;
        let target = mounted.clone();
        // A thread of its own: a namespace is entered by a thread, and this one ends in it.
        let namespace = std::thread::spawn(move || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            let own = Path::new("/proc/thread-self/ns/net");
            nix::mount::mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot mount a namespace on {}", target.display()))?;
            Ok(File::open(own)?)
        })
        .join()
        .expect("the thread has no way to panic")?;
        Ok(Self { name: name.to_owned(), namespace, mounted, addresses: Mutex::default() })
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses of its interface in the lab's network now.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.lock().expect("nobody panics while holding this").clone()
    }

    pub(super) fn set_addresses(&self, addresses: Vec<IpAddr>) {
        *self.addresses.lock().expect("nobody panics while holding this") = addresses;
    }

    pub(super) fn namespace(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }

    /// Where the namespace is mounted, for `nsenter --net=`.
    pub fn mounted(&self) -> &Path {
        &self.mounted
    }

    /// Runs `make` in the host's network, on a thread of its own: sockets made there stay there.
    ///
    /// To be called inside a tokio runtime, which `make` may use.
    pub fn enter<T: Send>(&self, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the host's network")?;
                let _guard = runtime.enter();
                make()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes `command` run on this host: in its network and under its host name.
    pub fn place(&self, command: &mut std::process::Command) -> Result<()> {
        use std::os::unix::process::CommandExt as _;
        let namespace = self.namespace.try_clone()?;
        let name = CString::new(self.name.as_str())?;
        let in_host = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWUTS)?;
            // SAFETY: the name is valid for its length.
            nix::errno::Errno::result(unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) })?;
            Ok(())
        };
        // SAFETY: three system calls on memory prepared above.
        unsafe { command.pre_exec(in_host) };
        Ok(())
    }

    /// Starts a process on this host; it is killed when its handle is dropped.
    pub fn spawn(&self, mut command: std::process::Command) -> Result<tokio::process::Child> {
        self.place(&mut command)?;
        let program = command.get_program().to_owned();
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start {} on {}", program.display(), self.name))
    }
}
