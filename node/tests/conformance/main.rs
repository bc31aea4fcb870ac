//! One suite for every WireGuard backend: what is applied is what is read, and packets pass.
//!
//! `cargo test -p mesh-node --test conformance` runs the fake and the embedded engine, and what the host's links do.
//! `--backend kernel` (or `userspace`, `fake`, `links`) runs that one alone; the kernel's is left out otherwise, as it
//! needs a kernel with WireGuard. All but the fake need root; without it they fail and say so, unless
//! `MESHCTL_SKIP_ROOT_TESTS` is set. Everything happens in network namespaces that end with this program.

#![allow(clippy::unwrap_used, reason = "a test tells what went wrong by panic")]

mod devices;
mod host;
mod links;
mod stage;
mod traffic;

use libtest_mimic::{Arguments, Failed, Trial};
use stage::Kind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (backend, rest) = take_backend(std::env::args().collect());
    let arguments = Arguments::from_iter(rest);
    let skip_root = std::env::var_os("MESHCTL_SKIP_ROOT_TESTS").is_some();
    let chosen = |name: &str, by_default: bool| backend.as_deref().map_or(by_default, |backend| backend == name);
    let mut trials = Vec::new();
    if chosen("fake", true) {
        trials.extend(devices::trials(Kind::Fake));
    }
    if chosen("userspace", true) {
        trials.extend(devices::trials(Kind::Userspace).into_iter().map(|trial| trial.with_ignored_flag(skip_root)));
        trials.extend(traffic::trials(Kind::Userspace).into_iter().map(|trial| trial.with_ignored_flag(skip_root)));
    }
    if chosen("kernel", false) {
        trials.extend(devices::trials(Kind::Kernel).into_iter().map(|trial| trial.with_ignored_flag(skip_root)));
        trials.extend(traffic::trials(Kind::Kernel).into_iter().map(|trial| trial.with_ignored_flag(skip_root)));
    }
    if chosen("links", true) {
        trials.extend(links::trials().into_iter().map(|trial| trial.with_ignored_flag(skip_root)));
    }
    if trials.is_empty() {
        eprintln!("--backend: use fake, userspace, kernel or links");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Takes `--backend NAME` out of the arguments, the rest of which are those of any Rust test.
fn take_backend(mut arguments: Vec<String>) -> (Option<String>, Vec<String>) {
    let Some(at) = arguments.iter().position(|argument| argument == "--backend") else { return (None, arguments) };
    arguments.remove(at);
    let backend = if at < arguments.len() { arguments.remove(at) } else { String::new() };
    (Some(backend), arguments)
}

/// A trial that fails as a test does, by panic.
fn trial(group: &str, name: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(format!("{group}::{name}"), move || {
        catch_unwind(AssertUnwindSafe(run)).map_err(|cause| {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed::from(text.unwrap_or_else(|| "the test panicked".to_owned()))
        })
    })
}
