//! Progress on stderr while the demo works: a spinner for people, a line for each step otherwise.

use super::report::Step;
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{OwoColorize as _, Stream};
use std::io::IsTerminal as _;
use std::time::Duration;

const TURN: Duration = Duration::from_millis(100);

/// Where the demo says what it does.
pub(super) struct Progress {
    spinner: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let spinner = shown.then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is well-formed");
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.enable_steady_tick(TURN);
            spinner
        });
        Self { spinner, quiet }
    }

    /// A step begins.
    pub(super) fn begin(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.reset_elapsed();
            spinner.set_message(what.to_owned());
        }
    }

    /// A step has ended.
    pub(super) fn end(&self, step: &Step) {
        if self.quiet {
            return;
        }
        let mark = if step.held {
            "ok".if_supports_color(Stream::Stderr, |text| text.green()).to_string()
        } else {
            "FAILED".if_supports_color(Stream::Stderr, |text| text.red()).to_string()
        };
        let line = format!("{mark} {}: {}", step.name, step.said);
        match &self.spinner {
            Some(spinner) => spinner.println(line),
            None => crate::output::note(line),
        }
    }

    /// All is done.
    pub(super) fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
