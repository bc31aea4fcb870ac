//! What happens to a world: acts drawn by chance, the way operators and networks behave on a bad day.

use super::World;
use super::network::Host;
use super::{coordinator_now, mesh_time};
use mesh_coordinator_core::command::{Command, RemoveNode};
use mesh_types::CoordinatorId;

/// Most nodes of a random world: enough for every kind of pair, few enough for many worlds.
const NODES: usize = 8;

impl World {
    /// One random act, then some time.
    pub fn act(&mut self) {
        match self.rng.below(100) {
            0..15 => self.join_one(),
            15..20 => self.remove_one(),
            20..38 => self.roam_some(),
            38..50 => self.cut_node_off(),
            50..60 => self.cut_coordinators_apart(),
            60..72 => self.restart_node(),
            72..80 => self.crash_coordinator(),
            80..85 => self.skew_clock(),
            _ => {
                self.note("the network heals");
                self.network.heal();
            }
        }
        let pause = [50, 300, 2_000, 10_000, 40_000][usize::try_from(self.rng.below(5)).expect("small")];
        self.run(pause);
    }

    fn some_node(&mut self) -> Option<usize> {
        let all: Vec<usize> = (0..self.machines.len()).collect();
        self.rng.pick(&all)
    }

    fn some_coordinator(&mut self) -> CoordinatorId {
        let ids = self.cluster.ids();
        self.rng.pick(&ids).expect("there are coordinators")
    }

    fn join_one(&mut self) {
        if self.machines.len() < NODES && self.join().is_none() {
            self.note("a join finds no quorum");
        }
    }

    fn remove_one(&mut self) {
        let Some(machine) = self.some_node() else { return };
        let remove = Command::RemoveNode(RemoveNode { node: self.machines[machine].record.id });
        let at = self.some_coordinator();
        let now = mesh_time(self.now());
        if self.cluster.propose(at, remove, &self.network, now).is_some() {
            self.note(format_args!("node {machine} is removed"));
        }
    }

    fn roam_some(&mut self) {
        for _ in 0..=self.rng.below(2) {
            let Some(machine) = self.some_node() else { return };
            let address = self.roam(machine);
            self.note(format_args!("node {machine} moves to {address}"));
        }
    }

    fn cut_node_off(&mut self) {
        let Some(machine) = self.some_node() else { return };
        if self.rng.chance(50) {
            let coordinator = self.some_coordinator();
            self.note(format_args!("node {machine} loses coordinator {coordinator}"));
            self.network.cut(Host::Node(machine), Host::Coordinator(coordinator.0));
        } else if let Some(other) = self.some_node().filter(|other| *other != machine) {
            self.note(format_args!("node {machine} loses node {other}"));
            self.network.cut(Host::Node(machine), Host::Node(other));
        }
    }

    fn cut_coordinators_apart(&mut self) {
        let (a, b) = (self.some_coordinator(), self.some_coordinator());
        if a != b {
            self.note(format_args!("coordinators {a} and {b} lose each other"));
            self.network.cut(Host::Coordinator(a.0), Host::Coordinator(b.0));
        }
    }

    fn restart_node(&mut self) {
        let Some(machine) = self.some_node() else { return };
        if self.machines[machine].node.is_some() {
            let torn = self.rng.chance(50);
            self.note(format_args!("node {machine} is killed{}", if torn { " while it writes" } else { "" }));
            self.machines[machine].kill(torn);
        } else {
            self.note(format_args!("node {machine} starts again"));
            self.start(machine);
        }
    }

    fn crash_coordinator(&mut self) {
        let id = self.some_coordinator();
        if self.cluster.running(id).is_some() {
            self.note(format_args!("coordinator {id} is killed"));
            self.cluster.crash(id);
        } else {
            self.note(format_args!("coordinator {id} starts again"));
            let now = coordinator_now(self.now());
            self.cluster.restart(id, now);
        }
    }

    fn skew_clock(&mut self) {
        let Some(machine) = self.some_node() else { return };
        let hours = i64::try_from(self.rng.below(49)).expect("small") - 24;
        self.note(format_args!("the clock of node {machine} is now {hours} hours ahead"));
        self.machines[machine].skew = hours * 3_600_000;
        self.machines[machine].clock_jumped = true;
    }
}
