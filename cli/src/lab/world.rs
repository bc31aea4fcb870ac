//! A world of its own: namespaces from which nothing escapes and of which nothing is left.
//!
//! `World::command` makes a command whose process becomes the first one (PID 1) of new namespaces. Between it and the
//! caller stands a guard process, which only waits and passes the exit status on. Both are killed by the kernel when
//! their parent dies, and with PID 1 the kernel kills everything inside: `kill -9` of the caller leaves no process, no
//! interface and no mount. Files in the world's directory are the caller's to remove.
//!
//! Everything between `fork` and `exec` is system calls on memory that was prepared before.

use nix::errno::Errno;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// Names the world's directory to the processes inside.
const DIRECTORY: &str = "MESHCTL_WORLD";
/// Says that the world has a user namespace of its own.
const OWN_USER: &str = "MESHCTL_WORLD_USER";
/// Holds the PID of the world's first process as the outside sees it.
const INIT_PID: &str = "init.pid";
const TUN: &std::ffi::CStr = c"/dev/net/tun";

/// How the namespaces are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// With the caller's own privileges: root.
    Root,
    /// As root of a new user namespace.
    UserNamespace,
}

/// What was being done when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Making a user namespace.
    User,
    /// Mapping the caller to its root.
    Map,
    /// Making the other namespaces.
    Namespaces,
    /// Forking the first process.
    Fork,
    /// Mounting `/proc`, and making mounts private.
    Mount,
    /// Writing the PID file.
    PidFile,
    /// Opening `/dev/net/tun`.
    OpenTun,
    /// Making a TUN interface.
    MakeTun,
}

impl Step {
    const ALL: [Self; 8] =
        [Self::User, Self::Map, Self::Namespaces, Self::Fork, Self::Mount, Self::PidFile, Self::OpenTun, Self::MakeTun];

    fn code(self) -> i32 {
        self as i32
    }

    fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.code() == code)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "make a user namespace",
            Self::Map => "become root of a user namespace",
            Self::Namespaces => "make network, mount and PID namespaces",
            Self::Fork => "start a first process",
            Self::Mount => "mount /proc",
            Self::PidFile => "write a PID file",
            Self::OpenTun => "open /dev/net/tun",
            Self::MakeTun => "make a TUN interface",
        })
    }
}

/// Why no world can be made here.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The system refused a step.
    #[error("cannot {step} ({errno}){}", advice(.way))]
    Refused {
        /// The way that was tried.
        way: Way,
        /// What was refused.
        step: Step,
        /// How.
        errno: Errno,
    },
    /// The trial itself went wrong.
    #[error("cannot try whether namespaces work here ({0})")]
    Trial(Errno),
}

fn advice(way: &Way) -> &'static str {
    match way {
        Way::Root => {
            ": run it as root of a real machine or VM, or give the container CAP_SYS_ADMIN, CAP_NET_ADMIN and /dev/net/tun"
        }
        Way::UserNamespace => ": this system does not let users do that; run it as root, with sudo",
    }
}

/// The inside of a world: proof that this process may do as it likes.
#[derive(Debug, Clone)]
pub struct World {
    directory: PathBuf,
    way: Way,
}

impl World {
    /// Finds a way that really works here, by trying it: namespaces, `/proc`, and a TUN interface in them.
    pub fn find_way() -> Result<Way, Obstacle> {
        if nix::unistd::geteuid().is_root() {
            return try_way(Way::Root).map(|()| Way::Root).or_else(|as_root| {
                // Root of a container without privileges may still be allowed a user namespace.
                try_way(Way::UserNamespace).map(|()| Way::UserNamespace).map_err(|_| as_root)
            });
        }
        try_way(Way::UserNamespace).map(|()| Way::UserNamespace)
    }

    /// A command whose process will be the first of a new world.
    ///
    /// `directory` must exist and be the caller's own. Spawn it from a thread that outlives it: the kernel ends the
    /// world with that thread.
    pub fn command(way: Way, program: &Path, directory: &Path) -> io::Result<Command> {
        let entry = Entry::prepare(way, Some(&directory.join(INIT_PID)))?;
        let mut command = Command::new(program);
        command.env(DIRECTORY, directory);
        if way == Way::UserNamespace {
            command.env(OWN_USER, "1");
        }
        // SAFETY: `enter` makes only system calls on memory prepared above; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || enter(&entry).map_err(|(_, errno)| errno.into())) };
        Ok(command)
    }

    /// The world this process is the first of; `None` outside.
    pub fn inside() -> Option<Self> {
        let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
        let way = if std::env::var_os(OWN_USER).is_some() { Way::UserNamespace } else { Way::Root };
        (std::process::id() == 1).then_some(Self { directory, way })
    }

    /// For a test that needs a world: inside one, returns it. Outside, runs the test `name` of this same executable
    /// again as the first process of a new world, fails if it fails, and returns `None`.
    ///
    /// # Panics
    /// If no world can be made here, or the test fails in it.
    pub fn for_test(name: &str) -> Option<Self> {
        if let Some(world) = Self::inside() {
            return Some(world);
        }
        let way = Self::find_way().unwrap_or_else(|obstacle| panic!("this test needs namespaces: {obstacle}"));
        let directory = tempfile::tempdir().expect("a directory for the world can be made");
        let program = std::env::current_exe().expect("a test knows its executable");
        let mut command = Self::command(way, &program, directory.path()).expect("the directory's name has no NUL");
        let output = command.args([name, "--exact", "--nocapture", "--include-ignored"]).output();
        let output = output.expect("an executable that runs can be run again");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "failed in its world:\n{said}");
        println!("{said}");
        None
    }

    /// The directory that outlives the world.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How it was made.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Makes `command`, which runs inside, take nothing for a world of its own.
    pub fn forget_in(command: &mut Command) {
        command.env_remove(DIRECTORY).env_remove(OWN_USER);
    }

    /// The PID of the first process of the world in `directory`, as seen from outside.
    pub fn init_pid(directory: &Path) -> Option<i32> {
        fs::read_to_string(directory.join(INIT_PID)).ok()?.trim().parse().ok()
    }
}

/// Everything that entering needs, allocated before the fork.
struct Entry {
    way: Way,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
    pid_file: Option<CString>,
}

impl Entry {
    fn prepare(way: Way, pid_file: Option<&Path>) -> io::Result<Self> {
        let pid_file = pid_file.map(|path| CString::new(path.as_os_str().as_bytes())).transpose()?;
        Ok(Self {
            way,
            uid_map: format!("0 {} 1", nix::unistd::geteuid()).into_bytes(),
            gid_map: format!("0 {} 1", nix::unistd::getegid()).into_bytes(),
            pid_file,
        })
    }
}

type Refusal = (Step, Errno);

/// Returns in the first process of the new namespaces; the process that called stays behind as its guard.
fn enter(entry: &Entry) -> Result<(), Refusal> {
    die_with_parent();
    if entry.way == Way::UserNamespace {
        unshare(libc::CLONE_NEWUSER).map_err(|errno| (Step::User, errno))?;
        write_file(c"/proc/self/setgroups", b"deny").map_err(|errno| (Step::Map, errno))?;
        write_file(c"/proc/self/uid_map", &entry.uid_map).map_err(|errno| (Step::Map, errno))?;
        write_file(c"/proc/self/gid_map", &entry.gid_map).map_err(|errno| (Step::Map, errno))?;
    }
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    unshare(flags).map_err(|errno| (Step::Namespaces, errno))?;
    fork_first().map_err(|errno| (Step::Fork, errno))?;
    // The old /proc still shows the PID by which the outside knows this process.
    let pid = own_pid_outside().map_err(|errno| (Step::PidFile, errno))?;
    if let Some(path) = &entry.pid_file {
        write_file(path, pid.as_bytes()).map_err(|errno| (Step::PidFile, errno))?;
    }
    mount_private().map_err(|errno| (Step::Mount, errno))
}

/// Forks; returns in the child, which is PID 1. The parent waits for it and ends as it ends.
fn fork_first() -> Result<(), Errno> {
    let mut alive = [0; 2];
    // SAFETY: `alive` has room for the two descriptors.
    Errno::result(unsafe { libc::pipe2(alive.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: the child goes on with system calls alone until it replaces itself.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child != 0 {
        guard(child, alive[1]);
    }
    die_with_parent();
    // SAFETY: closes this process's own copy of the guard's end.
    unsafe { libc::close(alive[1]) };
    let mut byte = 0u8;
    // SAFETY: reads at most one byte into `byte`. End of file means the guard died before the line above took effect.
    let read = unsafe { libc::read(alive[0], (&raw mut byte).cast(), 1) };
    if read == 0 {
        // SAFETY: ends this process at once, without handlers of the program it was forked from.
        unsafe { libc::_exit(1) };
    }
    Ok(())
}

/// Holds nothing but the end of `alive` open, waits for the child and exits as it did; never returns.
fn guard(child: libc::pid_t, alive: libc::c_int) -> ! {
    // SAFETY: plain system calls on integers; `status` outlives the call that fills it. Descriptors are closed because
    // whoever spawned us waits for the last copy of its pipe to close.
    unsafe {
        let end = alive.unsigned_abs();
        if end > 3 {
            libc::close_range(3, end - 1, 0);
        }
        libc::close_range(end + 1, u32::MAX, 0);
        // The keys of a terminal go to the process that the user sees; it passes on what matters.
        libc::setsid();
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0 && Errno::last() == Errno::EINTR {}
        if libc::WIFEXITED(status) {
            libc::_exit(libc::WEXITSTATUS(status));
        }
        libc::_exit(128 + libc::WTERMSIG(status))
    }
}

fn die_with_parent() {
    // SAFETY: sets an attribute of this process; cannot fail with a valid signal number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: changes namespaces of this process alone.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

fn mount_private() -> Result<(), Errno> {
    let none: *const libc::c_void = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let proc_flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all strings are literals that end with NUL; null pointers stand where the kernel reads nothing.
    unsafe {
        Errno::result(libc::mount(none.cast(), c"/".as_ptr(), none.cast(), private, none))?;
        Errno::result(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), proc_flags, none))?;
    }
    Ok(())
}

/// Decimal digits of a PID, on the stack.
struct PidText {
    digits: [u8; 16],
    length: usize,
}

impl PidText {
    fn as_bytes(&self) -> &[u8] {
        &self.digits[..self.length]
    }
}

fn own_pid_outside() -> Result<PidText, Errno> {
    let mut digits = [0u8; 16];
    // SAFETY: writes at most `digits.len()` bytes into `digits`.
    let length = unsafe { libc::readlink(c"/proc/self".as_ptr(), digits.as_mut_ptr().cast(), digits.len()) };
    let length = usize::try_from(length).map_err(|_| Errno::last())?;
    Ok(PidText { digits, length })
}

fn write_file(path: &std::ffi::CStr, content: &[u8]) -> Result<(), Errno> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
    // SAFETY: `path` ends with NUL, `content` is valid for its length, and the descriptor is this function's own.
    unsafe {
        let file = Errno::result(libc::open(path.as_ptr(), flags, 0o600))?;
        let written = Errno::result(libc::write(file, content.as_ptr().cast(), content.len()));
        libc::close(file);
        written.map(drop)
    }
}

fn try_way(way: Way) -> Result<(), Obstacle> {
    let entry = Entry::prepare(way, None).map_err(|_| Obstacle::Trial(Errno::EINVAL))?;
    let mut report = [0; 2];
    // SAFETY: `report` has room for the two descriptors.
    Errno::result(unsafe { libc::pipe2(report.as_mut_ptr(), libc::O_CLOEXEC) }).map_err(Obstacle::Trial)?;
    // SAFETY: the child makes system calls on prepared memory and ends by `_exit`.
    let child = Errno::result(unsafe { libc::fork() }).map_err(Obstacle::Trial)?;
    if child == 0 {
        trial(&entry, report[1]);
    }
    let mut answer = [0i32; 2];
    let expected = size_of_val(&answer);
    // SAFETY: the descriptors are ours; the read fills at most `answer`; the wait is for our own child.
    let read = unsafe {
        libc::close(report[1]);
        let read = libc::read(report[0], answer.as_mut_ptr().cast(), expected);
        libc::close(report[0]);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0 && Errno::last() == Errno::EINTR {}
        read
    };
    if usize::try_from(read) != Ok(expected) {
        return Err(Obstacle::Trial(Errno::EPIPE));
    }
    match Step::from_code(answer[0]) {
        Some(step) => Err(Obstacle::Refused { way, step, errno: Errno::from_raw(answer[1]) }),
        None => Ok(()),
    }
}

/// Enters a world, makes a TUN interface in it, reports how it went as (step or -1, errno), and ends.
fn trial(entry: &Entry, report: libc::c_int) -> ! {
    // `enter` closes what it does not know in the guard; the report is written by the first process, which keeps it.
    let outcome = enter(entry).and_then(|()| make_tun());
    let answer = match outcome {
        Ok(()) => [-1, 0],
        Err((step, errno)) => [step.code(), errno as i32],
    };
    // SAFETY: writes the two integers and ends the process.
    unsafe {
        libc::write(report, answer.as_ptr().cast(), size_of_val(&answer));
        libc::_exit(0)
    }
}

fn make_tun() -> Result<(), Refusal> {
    // SAFETY: an `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the path is a literal with NUL, and the request outlives the call. The descriptor ends with the process.
    unsafe {
        let tun = Errno::result(libc::open(TUN.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC));
        let tun = tun.map_err(|errno| (Step::OpenTun, errno))?;
        Errno::result(libc::ioctl(tun, libc::TUNSETIFF, &raw mut request)).map_err(|errno| (Step::MakeTun, errno))?;
    }
    Ok(())
}
