//! The command line: parse, check, hand over, exit status.
//!
//! [`args`] is what people type, [`config`] what the program uses.

pub mod args;
pub mod config;
mod logging;
mod progress;
pub mod security;
pub mod state_dir;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::event_loop::{EventLoop, RoleId, Upstream};
use crate::role::identity::{self, Claim};
use crate::role::{OpenError, Relay, Sink, Source};
use crate::transport::NodeKey;
use args::Args;
use config::{Config, Environment, Job};
use progress::ProgressLine;
use security::Security;
use state_dir::StateDir;

/// Why the program ends other than well; each has its exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense or is not built yet: status 2.
    #[error("{0}")]
    Usage(String),
    /// What was asked for cannot be done: status 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Failure {
    /// Returns the exit status that tells of this failure.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
        }
    }
}

/// Runs the program with the process's arguments and environment.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return answer(&error),
    };
    let progress = logging::start(&args.log);
    raise_descriptor_limit();
    let config = Config::new(args, &Environment::of_process());
    let result = config.and_then(|config| Ok(run(config, progress.clone())?));
    if let Some(progress) = progress {
        progress.show(None);
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::say(&failure.to_string());
            ExitCode::from(failure.status())
        }
    }
}

/// Shows the help or the version that was asked for, or says in one line what was typed wrong.
fn answer(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Who cannot be shown it has the exit status.
        let _ = error.print();
    } else {
        logging::say(&usage_line(error, std::env::args_os().skip(1)));
    }
    ExitCode::from(error.exit_code() as u8)
}

/// Returns what is wrong, in one line, and where to read what would be right.
fn usage_line(error: &clap::Error, typed: impl Iterator<Item = OsString>) -> String {
    // What is wrong and tips come first; the usage, which is many lines with some roles, and
    // where to find help come last.
    let rendered = error.render().to_string();
    let text = rendered.split("\nUsage:").next().unwrap_or_default();
    let text = text.split("\nFor more information").next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    // A tip is a paragraph of its own.
    let text = text.trim().replace("\n\n", "; ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let command = Args::command();
    let role = typed.into_iter().find_map(|word| command.find_subcommand(word));
    let role = role.map(|role| format!("{} ", role.get_name())).unwrap_or_default();
    format!("{}; see mirror {role}--help", words.join(" "))
}

/// Does what was asked for, until it is done or a signal ends it.
fn run(config: Config, progress: Option<ProgressLine>) -> anyhow::Result<()> {
    // Held until the end: a second process must not share the state. To print its key is no harm.
    let _state_dir = match &config.job {
        Job::Key { comment } => return print_key(&config.state_dir, comment),
        _ => StateDir::lock(&config.state_dir)?,
    };
    let mut event_loop = EventLoop::new()?;
    if let Some(progress) = progress {
        event_loop.show_progress(move |received| progress.show(received));
    }
    // Held until the end likewise.
    let _claim;
    match config.job {
        Job::Source { options, listen, security } => {
            identity::refuse_replica(&options.root)?;
            let source = Source::open(options)?;
            let source = event_loop.add_role("source", Box::new(source), &listen, None)?;
            secure(&mut event_loop, source, security)?;
        }
        Job::Sink { options, upstream, security } => {
            _claim = Claim::of_sink(&options.root)?;
            security.ask()?;
            if let Some(sink) = open(|| Sink::open(options.clone()), &mut event_loop)? {
                let upstream = Some(Upstream::Url(upstream));
                let sink = event_loop.add_role("sink", Box::new(sink), &[], upstream)?;
                secure(&mut event_loop, sink, security)?;
            }
        }
        Job::Relay { options, upstream, listen, security } => {
            _claim = Claim::of_sink(&options.sink.root)?;
            security.ask()?;
            if let Some(relay) = open(|| Relay::open_relay(options.clone()), &mut event_loop)? {
                let upstream = Some(Upstream::Url(upstream));
                let relay = event_loop.add_role("relay", Box::new(relay), &listen, upstream)?;
                secure(&mut event_loop, relay, security)?;
            }
        }
        Job::Key { .. } => {}
        Job::CopyFollow { source, sink } => {
            state_dir::create(&source.state_dir)?;
            state_dir::create(&sink.state_dir)?;
            identity::refuse_replica(&source.root)?;
            state_dir::create_replica(&sink.root)?;
            _claim = Claim::of_sink(&sink.root)?;
            // The sink first: it refuses a directory that is not to be overwritten.
            let sink = Sink::open(sink)?;
            let source = Source::open(source)?;
            let source = event_loop.add_role("source", Box::new(source), &[], None)?;
            event_loop.add_role("sink", Box::new(sink), &[], Some(Upstream::Local(source)))?;
        }
    }
    Ok(event_loop.run()?)
}

fn secure(event_loop: &mut EventLoop, role: RoleId, security: Security) -> anyhow::Result<()> {
    if security.is_needed() {
        event_loop.secure(role, move || security.load())?;
    }
    Ok(())
}

/// Prints the line by which others know this node, and as a comment the digest by which people
/// compare keys.
fn print_key(state_dir: &Path, comment: &str) -> anyhow::Result<()> {
    state_dir::create(state_dir)?;
    let key = NodeKey::load_or_make(state_dir)?.public();
    let text = format!("{key} {comment}\n# {}\n", key.fingerprint());
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the key")
}

/// Lets the process have as many descriptors as it may: each connection takes some, and the soft
/// limit is low only for the sake of programs that use select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
}

/// Time between two attempts to open a replica on a disk that is full or read-only.
const OPEN_RETRY: Duration = Duration::from_secs(1);

/// Opens a replica as soon as its disk lets it; `None` if a signal comes before.
fn open<T>(
    open: impl Fn() -> Result<T, OpenError>,
    event_loop: &mut EventLoop,
) -> anyhow::Result<Option<T>> {
    let mut said = String::new();
    loop {
        match open() {
            Ok(role) => return Ok(Some(role)),
            Err(OpenError::NotYet(reason)) => {
                if reason != said {
                    tracing::error!("{reason}; it is tried again until it succeeds");
                    said = reason;
                }
            }
            Err(OpenError::Role(error)) => return Err(error.into()),
        }
        if !event_loop.pause(OPEN_RETRY)? {
            return Ok(None);
        }
    }
}
