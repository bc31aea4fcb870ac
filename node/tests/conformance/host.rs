//! A host: a network namespace of its own, with a runtime whose threads live in it.

use futures::channel::oneshot;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use std::fs::File;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::runtime::Runtime;

/// No step of a test takes longer; it is there so that a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace with a runtime in it.
pub(crate) struct Host {
    runtime: Option<Runtime>,
    namespace: OwnedFd,
}

impl Host {
    /// A host with nothing but loopback.
    pub(crate) fn new() -> Self {
        let host = Self::make(|| {});
        host.run(async { set_up(&netlink(), "lo").await });
        host
    }

    /// A host on which nothing may be changed.
    pub(crate) fn without_rights() -> Self {
        Self::make(drop_capabilities)
    }

    fn make(prepare: impl FnOnce() + Send + 'static) -> Self {
        // The threads of a runtime inherit namespace and capabilities of the thread that makes them.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect(
                "this test needs root, to make a network namespace of its own; without root, set \
                 MESHCTL_SKIP_ROOT_TESTS=1 to skip it",
            );
            let namespace = File::open("/proc/thread-self/ns/net").expect("a thread has a network namespace");
            prepare();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            (runtime.expect("a runtime needs only threads"), OwnedFd::from(namespace))
        });
        let (runtime, namespace) = made.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        Self { runtime: Some(runtime), namespace }
    }

    /// Runs something on this host and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = oneshot::channel();
        let task = self.runtime().spawn(async move {
            let _ = sender.send(tokio::time::timeout(PATIENCE, work).await);
        });
        match futures::executor::block_on(receiver) {
            Ok(done) => done.expect("a step of a test ends well before its deadline"),
            Err(_) => match futures::executor::block_on(task) {
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                Ok(()) => unreachable!("a task that ends without panic has sent its result"),
            },
        }
    }

    /// Starts something on this host, for as long as the host lives.
    pub(crate) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(work);
    }

    /// Lays a cable to another host, with an address at each end.
    pub(crate) fn connect(&self, name: &'static str, own: &[&str], other: &Host, others: &[&str]) {
        let target = other.namespace.as_raw_fd();
        self.run(async move {
            let handle = netlink();
            // The far end is made here and carried over.
            handle.link().add(LinkVeth::new(name, "far").build()).execute().await.unwrap();
            let far = index(&handle, "far").await;
            let message = LinkUnspec::new_with_index(far).setns_by_fd(target).name(name).build();
            handle.link().set(message).execute().await.unwrap();
        });
        self.address(name, own);
        other.address(name, others);
    }

    /// Gives an interface addresses and brings it up.
    pub(crate) fn address(&self, name: &'static str, addresses: &[&str]) {
        let addresses: Vec<(IpAddr, u8)> = addresses.iter().map(|text| parse(text)).collect();
        self.run(async move {
            let handle = netlink();
            let at = index(&handle, name).await;
            for (address, prefix) in addresses {
                let mut request = handle.address().add(at, address, prefix);
                if address.is_ipv6() {
                    use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
                    request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                }
                request.execute().await.unwrap();
            }
            set_up(&handle, name).await;
        });
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is there until the host is dropped")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// A netlink socket in the namespace of the thread that this runs on.
pub(crate) fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().expect("netlink sockets can be opened");
    tokio::spawn(connection);
    handle
}

pub(crate) async fn index(handle: &Handle, name: &str) -> u32 {
    use futures::TryStreamExt;
    let links: Vec<_> = handle.link().get().match_name(name).execute().try_collect().await.unwrap();
    links[0].header.index
}

async fn set_up(handle: &Handle, name: &str) {
    let at = index(handle, name).await;
    handle.link().set(LinkUnspec::new_with_index(at).up().build()).execute().await.unwrap();
}

fn parse(text: &str) -> (IpAddr, u8) {
    let net: ipnet::IpNet = text.parse().unwrap();
    (net.addr(), net.prefix_len())
}

/// Gives up all capabilities of this thread: root by name only.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // linux/capability.h: version 3, this thread; effective, permitted and inheritable for capabilities 0 to 63.
    let (header, none) = (Header { version: 0x2008_0522, pid: 0 }, [[0u32; 3]; 2]);
    // SAFETY: both point to what capset(2) reads, and live through the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0, "capabilities can always be given up");
}
