//! What people and scripts see: answers on stdout, the rest on stderr.
//!
//! A closed pipe ends the program with success: whoever read had enough.

use crate::exit::Failure;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use owo_colors::{OwoColorize as _, Stream};
use serde::Serialize;
use std::io::{self, Write as _};

/// Prints one line on stdout.
pub(crate) fn line(text: impl std::fmt::Display) {
    finish(writeln!(io::stdout().lock(), "{text}"));
}

/// Prints a value as indented JSON on stdout.
pub(crate) fn json<T: Serialize>(value: &T) {
    let text = serde_json::to_string_pretty(value).expect("our own values have string keys and finite numbers");
    line(text);
}

/// Prints a line on stderr, for people.
pub(crate) fn note(text: impl std::fmt::Display) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints why a verb failed.
pub(crate) fn complain(failure: &Failure) {
    let mark = "meshctl:".if_supports_color(Stream::Stderr, |text| text.red()).to_string();
    note(format_args!("{mark} {failure}"));
}

/// A table without lines, as wide as the terminal lets it be.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a table.
pub(crate) fn print(table: &Table) {
    for row in table.to_string().lines() {
        line(row.trim_end());
    }
}

/// Green for what is well, red for what is not, where the terminal shows colours and NO_COLOR is not set.
pub(crate) fn verdict(text: &str, well: bool) -> String {
    if well {
        text.if_supports_color(Stream::Stdout, |text| text.green()).to_string()
    } else {
        text.if_supports_color(Stream::Stdout, |text| text.red()).to_string()
    }
}

fn finish(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            note(format_args!("meshctl: cannot write to stdout: {error}"));
            std::process::exit(1);
        }
    }
}
