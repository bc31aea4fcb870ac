//! What a log shows when everything is asked for. A process of its own: the log is the process's.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use mesh_node::device::{BackendChoice, open};
use mesh_node::link::Links;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing_subscriber::util::SubscriberInitExt as _;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_netlink_message_is_logged_however_much_is_asked_for() {
    let lines = Lines::default();
    let to = lines.clone();
    mesh_node::log::subscriber(Some("trace,netlink_proto=trace"), false, false, move || to.clone()).init();
    // Real requests and replies of the libraries that the keys pass through.
    Links::open().unwrap().underlay("log0", 0).await.unwrap();
    drop(open("log/0", BackendChoice::Kernel, None).await);
    tracing::trace!(target: "mesh_node", "finest");
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("finest"), "the product's own lines are there");
    assert!(!text.contains("netlink"), "{text}");
}
