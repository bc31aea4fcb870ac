//! A replica that others cannot reach: its nodes are told, and go on elsewhere where they were.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::{Wire as _, v1};
use mesh_types::digest::{PresenceDigest, hash};
use mesh_types::session::{Hello, PresenceUpdate};
use mesh_types::{
    Candidate, CandidateKind, Changes, CoordinatorMessage, Incarnation, MeshTime, NodeId, NodeMessage, Presence,
    Revision, SignedPresence,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::{Coordinator, Node, PATIENCE, Session, found, leader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What is called in a coordinator's place, and can be shut and opened: what a partition is to those who call.
struct Gate {
    port: u16,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, state) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (caller, _) = listener.accept().await.unwrap();
                if *state.borrow() {
                    tokio::spawn(pass(caller, target, state.clone()));
                }
            }
        });
        Self { port, open }
    }
}

/// Until the gate is shut or either end is gone.
async fn pass(mut caller: TcpStream, target: SocketAddr, mut state: watch::Receiver<bool>) {
    let Ok(mut called) = TcpStream::connect(target).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut caller, &mut called) => {}
        _ = state.wait_for(|open| !open) => {}
    }
}

/// What a node keeps from one session to the next.
#[derive(Default)]
struct Memory {
    revision: Revision,
    words: BTreeMap<NodeId, SignedPresence>,
}

impl Memory {
    fn hello(&self, node: &Node) -> Hello {
        let mut digest = PresenceDigest::default();
        self.words.iter().for_each(|(&id, word)| digest.add(id, hash(word)));
        Hello { presence: digest.sums().to_vec(), ..node.hello(1, self.revision) }
    }

    /// Takes a message; the changes of the registry in it. Nothing may come twice, or be missing in between.
    fn take(&mut self, message: &CoordinatorMessage) -> Option<Changes> {
        match message {
            CoordinatorMessage::Snapshot(page) => {
                assert_eq!(self.revision, Revision::NONE, "a snapshot where a delta would do");
                self.revision = page.revision;
                None
            }
            CoordinatorMessage::Delta(changes) => {
                assert_eq!(changes.from, self.revision);
                self.revision = changes.to;
                Some(changes.clone())
            }
            CoordinatorMessage::Presence(PresenceUpdate { records, .. }) => {
                for word in records {
                    let id = word.parse_unverified().unwrap().node;
                    let before = self.words.insert(id, word.clone());
                    assert_ne!(before.as_ref(), Some(word), "a word that it holds already");
                }
                None
            }
            _ => None,
        }
    }

    /// Listens until `wanted` gives something.
    async fn listen<T>(
        &mut self,
        session: &mut Session,
        mut wanted: impl FnMut(&Self, &CoordinatorMessage, Option<Changes>) -> Option<T>,
    ) -> T {
        let heard = session.until(|message| {
            let changes = self.take(&message);
            wanted(self, &message, changes)
        });
        heard.await
    }
}

fn freshness(message: &CoordinatorMessage) -> Option<bool> {
    match message {
        CoordinatorMessage::Welcome(welcome) => Some(welcome.tick.fresh),
        CoordinatorMessage::Tick(tick) => Some(tick.fresh),
        _ => None,
    }
}

fn word(node: &Node, sequence: u64) -> v1::NodeMessage {
    let endpoint = format!("192.0.2.7:{sequence}").parse().unwrap();
    let candidates = vec![Candidate { kind: CandidateKind::Host, endpoint }];
    let presence =
        Presence { node: node.id, incarnation: Incarnation(1), sequence, signed_at: MeshTime(1), candidates };
    NodeMessage::Presence(presence.sign(node.config.mesh, &node.key)).to_wire()
}

async fn rename(at: &mut Coordinator, node: &str, name: &str) {
    let request = v1::RenameNodeRequest { node: node.into(), name: name.into(), ..Default::default() };
    at.admin().await.rename_node(request).await.unwrap();
}

fn named(changes: Option<Changes>, name: &str) -> Option<()> {
    let changes = changes?;
    let names: Vec<_> = changes.upserts.iter().map(|node| node.name.as_str()).collect();
    assert_eq!((names, changes.removals.len()), (vec![name], 0));
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_replica_loses_its_leader_is_told_and_goes_on_elsewhere_with_nothing_lost_or_repeated() {
    let root = tempfile::tempdir().unwrap();
    let (mut all, mut gates) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        let mut one = Coordinator::new(root.path(), &format!("c{number}"));
        let gate = Gate::before(one.address()).await;
        one.advertise(gate.port);
        all.push(one);
        gates.push(gate);
    }
    let mut all = found(all, root.path()).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let bob = Node::join(&token, 2, "bob").await.unwrap();
    let leads = leader(&mut all).await;
    let cut = (leads + 1) % 3;
    let speaks = Session::open(bob.connect_to(all[leads].address()).await, bob.hello(1, Revision::NONE)).await.unwrap();

    let mut memory = Memory::default();
    let mut session = Session::open(alice.connect_to(all[cut].address()).await, memory.hello(&alice)).await.unwrap();
    speaks.said.send(word(&bob, 1)).await.unwrap();
    memory.listen(&mut session, |memory, _, _| (!memory.words.is_empty()).then_some(())).await;
    rename(&mut all[leads], "bob", "bobby").await;
    memory.listen(&mut session, |_, _, changes| named(changes, "bobby")).await;

    gates[cut].open.send_replace(false);
    memory.listen(&mut session, |_, message, _| (freshness(message) == Some(false)).then_some(())).await;
    rename(&mut all[leads], "bobby", "robert").await;

    let elsewhere = (leads + 2) % 3;
    let begun = Instant::now();
    let mut session = loop {
        // An election may be under way: the node keeps what it has and looks again.
        let connection = alice.connect_to(all[elsewhere].address()).await;
        let mut found = Session::open(connection, memory.hello(&alice)).await.unwrap();
        let fresh = memory.listen(&mut found, |_, message, _| freshness(message)).await;
        if fresh {
            break found;
        }
        assert!(begun.elapsed() < PATIENCE, "no fresh replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    memory.listen(&mut session, |_, _, changes| named(changes, "robert")).await;
    speaks.said.send(word(&bob, 2)).await.unwrap();
    let second = |memory: &Memory| {
        let word = memory.words.get(&bob.id).map(|word| word.parse_unverified().unwrap().sequence);
        (word == Some(2)).then_some(())
    };
    memory.listen(&mut session, |memory, _, _| second(memory)).await;
    rename(&mut all[leads], "robert", "rob").await;
    memory.listen(&mut session, |_, _, changes| named(changes, "rob")).await;

    // Back at the one that was cut off, once it has caught up: nothing comes again.
    gates[cut].open.send_replace(true);
    let begun = Instant::now();
    while !all[cut].nodes().await.fresh {
        assert!(begun.elapsed() < PATIENCE, "it does not catch up: {}", all[cut].log());
    }
    let mut session = Session::open(alice.connect_to(all[cut].address()).await, memory.hello(&alice)).await.unwrap();
    memory.listen(&mut session, |_, message, _| freshness(message)).await;
    rename(&mut all[cut], "rob", "bob").await;
    memory.listen(&mut session, |_, _, changes| named(changes, "bob")).await;
}
