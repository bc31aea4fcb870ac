//! The verbs: one file for each that a user would look up.

mod completion;
mod coordinator;
mod init;
mod join;
mod life;
mod node;
mod passphrase;
mod ping;
mod status;
mod token;

use crate::args::{Args, Globals, Verb};
use crate::exit::{Exit, Failure};
use crate::paths::Paths;

/// What every verb is given.
pub(crate) struct Context {
    pub(crate) globals: Globals,
    pub(crate) paths: Paths,
}

impl Context {
    /// Whether to print JSON.
    fn json(&self) -> bool {
        self.globals.json
    }

    /// Says on stderr what went well, unless told to be quiet.
    fn note(&self, text: impl std::fmt::Display) {
        if !self.globals.quiet && !self.globals.json {
            crate::output::note(text);
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(args: Args) -> Result<Exit, Failure> {
    let paths = Paths::of(&args.globals);
    let context = Context { globals: args.globals, paths };
    match args.verb {
        Verb::Demo(_) => unreachable!("the demo starts without a runtime"),
        Verb::Init(init) => init::run(&context, init).await,
        Verb::Join(join) => join::run(&context, join).await,
        Verb::Status { check } => status::run(&context, check).await,
        Verb::Ping(ping) => ping::run(&context, ping).await,
        Verb::Down => life::down(&context).await,
        Verb::Up => life::up(&context).await,
        Verb::Leave(leave) => life::leave(&context, &leave).await,
        Verb::Token(token) => token::run(&context, token).await,
        Verb::Node(node) => node::run(&context, node).await,
        Verb::Coordinator(coordinator) => coordinator::run(&context, coordinator).await,
        Verb::Completion { shell } => completion::run(shell),
    }
}
