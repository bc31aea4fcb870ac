//! What the demo found: steps with their measures, the ping matrix, and how both are printed.

use crate::lab::Flow;
use crate::output;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// One step and how it went.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    /// Whether everything that the product promises about it was so.
    pub(super) held: bool,
    /// How long the whole step took, waiting included.
    pub(super) seconds: f64,
    /// Pings sent while it ran; null where none were counted.
    pub(super) pings_sent: Option<u64>,
    /// Of these, lost.
    pub(super) pings_lost: Option<u64>,
    /// What was measured, in milliseconds.
    pub(super) measures_ms: BTreeMap<&'static str, f64>,
    /// The same in words; why it did not hold, if it did not.
    pub(super) said: String,
}

/// One cell of the ping matrix.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Cell {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) address: String,
    pub(super) median_ms: Option<f64>,
    pub(super) longest_ms: Option<f64>,
    pub(super) lost: u64,
}

/// Everything that `meshctl demo --json` prints.
#[derive(Serialize, Debug, Default)]
pub(super) struct Report {
    pub(super) held: bool,
    pub(super) seconds: f64,
    pub(super) backend: String,
    /// Resident memory of the largest meshd, in KiB, with the whole mesh up.
    pub(super) meshd_rss_kib: Option<u64>,
    pub(super) steps: Vec<Step>,
    pub(super) matrix: Vec<Cell>,
}

/// The outcome of a step that held so far.
#[derive(Default, Debug)]
pub(super) struct Outcome {
    pub(super) said: String,
    pub(super) measures: BTreeMap<&'static str, f64>,
    pub(super) pings: Option<Pinged>,
}

/// Pings of a step, added up.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pinged {
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) longest_gap: Duration,
}

impl Pinged {
    pub(super) fn sum<'a>(flows: impl IntoIterator<Item = &'a Flow>) -> Self {
        flows.into_iter().fold(Self::default(), |sum, flow| Self {
            sent: sum.sent + flow.sent,
            lost: sum.lost + flow.lost,
            longest_gap: sum.longest_gap.max(flow.longest_gap),
        })
    }
}

impl Outcome {
    pub(super) fn said(said: impl Into<String>) -> Self {
        Self { said: said.into(), ..Self::default() }
    }

    pub(super) fn measured(mut self, name: &'static str, time: Duration) -> Self {
        self.measures.insert(name, millis(time));
        self
    }

    pub(super) fn pinged(mut self, pings: Pinged) -> Self {
        self.pings = Some(pings);
        self
    }
}

impl Step {
    pub(super) fn new(name: &'static str, took: Duration, outcome: anyhow::Result<Outcome>) -> Self {
        let seconds = (took.as_secs_f64() * 1e3).round() / 1e3;
        match outcome {
            Ok(outcome) => Self {
                name,
                held: true,
                seconds,
                pings_sent: outcome.pings.map(|pings| pings.sent),
                pings_lost: outcome.pings.map(|pings| pings.lost),
                measures_ms: outcome.measures,
                said: outcome.said,
            },
            Err(error) => Self {
                name,
                held: false,
                seconds,
                pings_sent: None,
                pings_lost: None,
                measures_ms: BTreeMap::new(),
                said: format!("{error:#}"),
            },
        }
    }
}

/// Milliseconds, to a hundredth.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

/// A time as people read it.
pub(super) fn read(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else if time < Duration::from_secs(1) {
        format!("{:.0} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

impl Report {
    /// Prints it for people.
    pub(super) fn print(&self) {
        if !self.matrix.is_empty() {
            output::line("");
            output::line("Round trips through the tunnels, median in ms, IPv4 / IPv6:");
            output::print(&self.matrix_table());
        }
        output::line("");
        output::print(&self.step_table());
        output::line("");
        let memory = self.meshd_rss_kib.map(|kib| format!(", meshd takes {:.1} MiB", kib as f64 / 1024.0));
        let verdict = if self.held { "All of it held" } else { "It did not hold" };
        // No node came as far as to have one when the first steps fail.
        let backend = if self.backend.is_empty() { "no" } else { &self.backend };
        output::line(format_args!(
            "{} ({backend} WireGuard{}), {:.1} s in all.",
            output::verdict(verdict, self.held),
            memory.unwrap_or_default(),
            self.seconds
        ));
    }

    fn step_table(&self) -> Table {
        let mut table = output::table(["STEP", "", "TOOK", "PINGS", "LOST", "WHAT HAPPENED"]);
        for step in &self.steps {
            let count = |count: Option<u64>| count.map(|count| count.to_string()).unwrap_or_default();
            table.add_row([
                step.name.to_owned(),
                output::verdict(if step.held { "ok" } else { "FAILED" }, step.held),
                format!("{:.1} s", step.seconds),
                count(step.pings_sent),
                count(step.pings_lost),
                step.said.clone(),
            ]);
        }
        for column in [2, 3, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    fn matrix_table(&self) -> Table {
        let mut names: Vec<&str> = self.matrix.iter().map(|cell| cell.from.as_str()).collect();
        names.dedup();
        let mut table = output::table([""; 0]);
        table.set_header(std::iter::once("from \\ to").chain(names.iter().copied()));
        for from in &names {
            let mut row = vec![(*from).to_owned()];
            row.extend(names.iter().map(|to| self.between(from, to)));
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    fn between(&self, from: &str, to: &str) -> String {
        let cells = self.matrix.iter().filter(|cell| cell.from == from && cell.to == to);
        let medians = cells.map(|cell| cell.median_ms.map_or("lost".to_owned(), |median| format!("{median:.1}")));
        medians.collect::<Vec<_>>().join(" / ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_failed_says_why_and_counts_nothing() {
        let step = Step::new("x", Duration::from_millis(1_234), Err(anyhow::anyhow!("inner").context("outer")));
        assert!(!step.held);
        assert_eq!((step.seconds, step.said.as_str(), step.pings_sent), (1.234, "outer: inner", None));
    }

    #[test]
    fn times_read_in_the_unit_that_fits() {
        assert_eq!(read(Duration::from_micros(1_500)), "1.5 ms");
        assert_eq!(read(Duration::from_millis(312)), "312 ms");
        assert_eq!(read(Duration::from_millis(2_350)), "2.35 s");
    }
}
