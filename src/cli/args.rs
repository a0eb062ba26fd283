//! What people type.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::transport::PublicKey;
use crate::wire::Url;

/// Keeps copies of a directory tree on other hosts identical within milliseconds.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  Mirror a directory to another one, live, until Ctrl-C:
    mirror copy --follow /srv/site /backup/site

  The same from host to host, once each has told the other its key (see mirror key --help):
    a$ mirror source /srv/site
    b$ mirror sink a /backup/site

Exit status: 0 success, 1 failure, 2 usage, 3 finished but some entries had problems.
More: man mirror, man mirror-protocol."
)]
pub struct Args {
    /// What is logged and how.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What is logged and how.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Logs more: once for what happens to connections, twice for everything.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Logs warnings and errors only; twice: errors only.
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "verbose")]
    pub quiet: u8,
    /// How log lines look on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watches a tree and serves its changes to any number of sinks.
    Source(SourceArgs),
    /// Makes a directory equal to an upstream's tree and keeps it so.
    Sink(SinkArgs),
    /// Follows an upstream as a sink does, and serves others from its replica.
    Relay(RelayArgs),
    /// Prints the public key of a node, for the authorized_peers and known_upstreams of others.
    Key(KeyArgs),
    /// Makes one directory equal to another, live, in one process (without --follow not built yet).
    Copy(CopyArgs),
}

/// `mirror source`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Serve a site to sinks on this machine:
    mirror source --listen unix:/run/site.sock /srv/site

  Serve it to other hosts, those whose keys are in authorized_peers (see mirror key --help):
    mirror source /srv/site

A tree with more directories than the kernel lets you watch is rescanned where it is not
watched; the log then says how to raise fs.inotify.max_user_watches.")]
pub struct SourceArgs {
    /// Whom it serves, and from what.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Keeps the journal and everything else about the tree here, outside ROOT.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Looks this often for changes that the kernel does not report (long-lived mmaps).
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = positive_duration)]
    pub rescan_interval: Duration,
    /// Takes ROOT, or what is mounted in it, as the tree although it is not what it was before.
    #[arg(long)]
    pub accept_root: bool,
    /// What it may send in the clear.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// The directory to watch.
    pub root: PathBuf,
}

/// `mirror sink`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Follow a source on this machine into an empty directory:
    mirror sink unix:/run/site.sock /backup/site

  Follow one on another host, whose key is known (see mirror key --help):
    mirror sink a.example /backup/site

  Turn an old copy, made by other means, into a replica; what is equal is kept:
    mirror sink --adopt unix:/run/site.sock /backup/site

Everything in ROOT that the upstream does not have is removed, which is why a directory that
is not empty and was never a replica is refused without --adopt.")]
pub struct SinkArgs {
    /// Keeps what belongs to this sink but not to its tree here, outside ROOT.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Whom it follows.
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    /// What is made of its tree.
    #[command(flatten)]
    pub replica: ReplicaArgs,
    /// What it may send in the clear.
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// `mirror relay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Follow a source on host a, and serve the sinks whose keys are in authorized_peers:
    mirror relay a /backup/site

A sink of a relay has the positions of the source: it can be stopped, and started with the
source's address or any other relay's of the same tree, and goes on where it was. As with a
sink, everything in ROOT that the upstream does not have is removed.")]
pub struct RelayArgs {
    /// Whom it serves, and from what.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Keeps the journal and what belongs to this relay but not to its tree here, outside ROOT.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Whom it follows.
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    /// What is made of its tree.
    #[command(flatten)]
    pub replica: ReplicaArgs,
    /// What it may send in the clear.
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// `mirror copy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Keep a second directory equal to the first until Ctrl-C:
    mirror copy --follow /srv/site /backup/site

DST is made if it does not exist. Everything in it that SRC does not have is removed, which
is why a DST that is not empty and was never a replica is refused without --adopt.")]
pub struct CopyArgs {
    /// Goes on after both are equal and mirrors every change until a signal ends it.
    #[arg(long)]
    pub follow: bool,
    /// Keeps the journal and everything else about this copy here, outside SRC and DST.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Takes a DST that is not empty and was never a replica; what differs is overwritten.
    #[arg(long)]
    pub adopt: bool,
    /// The directory to copy; with a host in front (HOST:SRC) not built yet.
    #[arg(value_name = "[USER@HOST:]SRC")]
    pub source: PathBuf,
    /// The directory that becomes equal to it.
    #[arg(value_name = "[USER@HOST:]DST")]
    pub destination: PathBuf,
}

/// `mirror key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Let a sink in:
    sink$ mirror key /backup/site
    mirror-ed25519 gAq1ESm3Qbr5q5n9dLVXRzoRi2gmaDhcLpUS0vCOLFM= sink:/backup/site
    # SHA256:iVvb2xOWHQvXVW8fOZq3Cnk3nPnbBlyM5A4ISF0kXnc
    source$ cat >> /var/lib/mirror/srv-site/authorized_peers

Each state directory has one key, which is made when it is first needed. To exchange it, remove
the file named key there, tell the peers the new one, and send SIGHUP.")]
pub struct KeyArgs {
    /// The state directory of the role whose key it is.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The directory that the role serves or makes a replica.
    #[arg(required_unless_present = "state_dir")]
    pub root: Option<PathBuf>,
}

/// What all have that serve others.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Accepts sinks at this address, tls://HOST:PORT, tcp://HOST:PORT or unix:/PATH; may be
    /// given many times.
    #[arg(long, value_name = "URL", default_value = "tls://[::]:6477")]
    pub listen: Vec<Url>,
    /// Lets those in by tls:// whose keys are in this file, a line each as mirror key prints it
    /// [default: authorized_peers in the state directory]
    #[arg(long, value_name = "FILE")]
    pub authorized_peers: Option<PathBuf>,
    /// Lets the journal take this much of the disk; sinks further behind compare trees.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub journal_size: ByteSize,
}

/// What all have that follow an upstream.
#[derive(Debug, clap::Args)]
pub struct UpstreamArgs {
    /// Follows a tls:// upstream only if it has this key, as mirror key prints it there; may be
    /// given many times [default: what known_upstreams in the state directory says]
    #[arg(long, value_name = "KEY")]
    pub upstream_key: Vec<PublicKey>,
    /// Where the source, or a relay, is: HOST (by TLS), tls://HOST:PORT, tcp://HOST:PORT or unix:/PATH.
    #[arg(value_name = "UPSTREAM")]
    pub url: Url,
}

/// What all have that keep a replica.
#[derive(Debug, clap::Args)]
pub struct ReplicaArgs {
    /// Takes a ROOT that is not empty and was never a replica; what differs is overwritten.
    #[arg(long)]
    pub adopt: bool,
    /// Makes what was applied durable this often.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_duration)]
    pub checkpoint_interval: Duration,
    /// The directory that becomes a replica.
    pub root: PathBuf,
}

/// What all have that reach others through a network.
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// Lets tcp:// go off this machine: anybody on the way can read and change everything.
    #[arg(long)]
    pub insecure_plaintext: bool,
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than nothing".to_string()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 5s, 10m or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let args = Args::parse_from(["mirror", "source", "/srv"]);
        let Command::Source(source) = args.command else { panic!() };
        assert_eq!(source.serve.journal_size.as_u64(), crate::model::limits::JOURNAL_BYTES_DEFAULT);
        assert_eq!(source.rescan_interval, Duration::from_secs(3600));
        let args = Args::parse_from(["mirror", "sink", "tcp://localhost", "/srv"]);
        let Command::Sink(sink) = args.command else { panic!() };
        assert_eq!(sink.replica.checkpoint_interval, Duration::from_secs(5));
    }
}
