//! What the program uses: the arguments, checked against each other, the environment and the
//! file system.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use super::args::{
    Args, Command, CopyArgs, NetworkArgs, RelayArgs, ReplicaArgs, ServeArgs, SinkArgs, SourceArgs,
};
use super::state_dir::{StateDirError, name_of, real_path};
use crate::model::limits::{JOURNAL_BYTES_DEFAULT, JOURNAL_BYTES_MIN};
use crate::role::{RelayOptions, SinkOptions, SourceOptions};
use crate::wire::Url;

/// What a copy's source and sink have no options for.
const COPY_RESCAN_INTERVAL: Duration = Duration::from_secs(3600);
const COPY_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// What to do, and where its state is.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// To be locked for as long as the program runs; it may not exist yet.
    pub state_dir: PathBuf,
    /// What to do.
    pub job: Job,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Job {
    /// Serve a tree.
    Source {
        /// How.
        options: SourceOptions,
        /// Where.
        listen: Vec<Url>,
    },
    /// Follow an upstream.
    Sink {
        /// How.
        options: SinkOptions,
        /// Which.
        upstream: Url,
    },
    /// Follow an upstream, and serve what comes of it.
    Relay {
        /// How.
        options: RelayOptions,
        /// Which.
        upstream: Url,
        /// Where.
        listen: Vec<Url>,
    },
    /// Keep one directory equal to another of this machine.
    CopyFollow {
        /// The one.
        source: SourceOptions,
        /// The other; its root may not exist yet.
        sink: SinkOptions,
    },
}

/// What the environment says about where state belongs.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `$STATE_DIRECTORY`, which systemd sets.
    pub state_directory: Option<OsString>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// Whether the process may write to `/var/lib`.
    pub is_root: bool,
}

impl Environment {
    /// Returns the process's own.
    pub fn of_process() -> Environment {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Environment {
            state_directory: set("STATE_DIRECTORY"),
            xdg_state_home: set("XDG_STATE_HOME"),
            home: set("HOME"),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// Returns the state directory of what is called `name`, a path for each directory that has
    /// a part in it.
    fn state_dir(&self, name: &Path) -> Result<PathBuf, Failure> {
        if let Some(given) = &self.state_directory {
            // systemd separates several by colons; the first is the unit's main one.
            let first = given.as_bytes().split(|byte| *byte == b':').next().unwrap_or_default();
            return Ok(PathBuf::from(std::ffi::OsStr::from_bytes(first)));
        }
        let base = if self.is_root {
            PathBuf::from("/var/lib")
        } else if let Some(state) = &self.xdg_state_home {
            PathBuf::from(state)
        } else if let Some(home) = &self.home {
            Path::new(home).join(".local/state")
        } else {
            return Err(Failure::Usage(
                "there is no place for the state: neither XDG_STATE_HOME nor HOME is set; \
                 use --state-dir DIR"
                    .to_string(),
            ));
        };
        Ok(base.join("mirror").join(name))
    }
}

impl Config {
    /// Checks what was typed.
    pub fn new(args: Args, environment: &Environment) -> Result<Config, Failure> {
        match args.command {
            Command::Source(args) => source(args, environment),
            Command::Sink(args) => sink(args, environment),
            Command::Relay(args) => relay(args, environment),
            Command::Copy(args) => copy(args, environment),
        }
    }
}

fn source(args: SourceArgs, environment: &Environment) -> Result<Config, Failure> {
    let journal_bytes = check_serve(&args.serve, &args.network)?;
    let listen = args.serve.listen;
    let root = real_directory(&args.root)?;
    check_sockets_outside(&listen, &root)?;
    let state_dir = state_dir(args.state_dir, environment, name_of(&root).as_ref())?;
    check_outside(&state_dir, &root)?;
    let options = SourceOptions {
        root,
        state_dir: state_dir.clone(),
        journal_bytes,
        rescan_interval: args.rescan_interval,
        accept_root: args.accept_root,
        lock_root: true,
    };
    Ok(Config { state_dir, job: Job::Source { options, listen } })
}

fn sink(args: SinkArgs, environment: &Environment) -> Result<Config, Failure> {
    let upstream = args.upstream;
    check_transport(&upstream, &args.network)?;
    let options = sink_options(args.replica, args.state_dir, environment)?;
    Ok(Config { state_dir: options.state_dir.clone(), job: Job::Sink { options, upstream } })
}

fn relay(args: RelayArgs, environment: &Environment) -> Result<Config, Failure> {
    let journal_bytes = check_serve(&args.serve, &args.network)?;
    let (upstream, listen) = (args.upstream, args.serve.listen);
    check_transport(&upstream, &args.network)?;
    let sink = sink_options(args.replica, args.state_dir, environment)?;
    check_sockets_outside(&listen, &sink.root)?;
    let state_dir = sink.state_dir.clone();
    let options = RelayOptions { sink, journal_bytes };
    Ok(Config { state_dir, job: Job::Relay { options, upstream, listen } })
}

fn sink_options(
    args: ReplicaArgs,
    given_state_dir: Option<PathBuf>,
    environment: &Environment,
) -> Result<SinkOptions, Failure> {
    let root = real_directory(&args.root)?;
    let state_dir = state_dir(given_state_dir, environment, name_of(&root).as_ref())?;
    check_outside(&state_dir, &root)?;
    Ok(SinkOptions {
        root,
        state_dir,
        adopt: args.adopt,
        checkpoint_interval: args.checkpoint_interval,
    })
}

/// Checks what is served with, and returns how many bytes the journal may have.
fn check_serve(args: &ServeArgs, network: &NetworkArgs) -> Result<u64, Failure> {
    if args.listen.is_empty() {
        return Err(Failure::Usage(
            "--listen is missing: its default, tls://[::]:6477, is not built yet; write \
             --listen unix:/PATH, or --listen tcp://HOST:PORT"
                .to_string(),
        ));
    }
    args.listen.iter().try_for_each(|url| check_transport(url, network))?;
    let size = args.journal_size;
    if size.as_u64() < JOURNAL_BYTES_MIN {
        return Err(Failure::Usage(format!(
            "--journal-size {size} is too small; it must be at least 1MiB"
        )));
    }
    Ok(size.as_u64())
}

fn copy(args: CopyArgs, environment: &Environment) -> Result<Config, Failure> {
    for path in [&args.source, &args.destination] {
        if names_a_host(path) {
            return Err(Failure::Usage(format!(
                "{}: copying to or from another host is not built yet; run mirror source there \
                 and mirror sink here, or write ./{} for a path with a colon",
                path.display(),
                path.display()
            )));
        }
    }
    if !args.follow {
        return Err(Failure::Usage(
            "mirror copy without --follow is not built yet; add --follow and end it by Ctrl-C"
                .to_string(),
        ));
    }
    let source_root = real_directory(&args.source)?;
    let sink_root = if args.destination.exists() {
        real_directory(&args.destination)?
    } else {
        real_path(&args.destination).map_err(|error| {
            let destination = args.destination.display();
            anyhow::anyhow!("cannot use {destination}: {error}; choose another directory")
        })?
    };
    let nested = |outer: &Path, inner: &Path| {
        Failure::Usage(format!(
            "{} lies inside {}; a tree cannot be mirrored into itself, choose two directories \
             apart",
            inner.display(),
            outer.display()
        ))
    };
    if sink_root.starts_with(&source_root) {
        return Err(nested(&source_root, &sink_root));
    }
    if source_root.starts_with(&sink_root) {
        return Err(nested(&sink_root, &source_root));
    }
    // Copies of one tree to several places are apart in what they know.
    let name = Path::new("copy").join(name_of(&source_root)).join(name_of(&sink_root));
    let state_dir = state_dir(args.state_dir, environment, &name)?;
    check_outside(&state_dir, &source_root)?;
    check_outside(&state_dir, &sink_root)?;
    let source = SourceOptions {
        root: source_root,
        state_dir: state_dir.join("source"),
        journal_bytes: JOURNAL_BYTES_DEFAULT,
        rescan_interval: COPY_RESCAN_INTERVAL,
        accept_root: false,
        // Copies of one tree to several places may run side by side, and beside a source.
        lock_root: false,
    };
    let sink = SinkOptions {
        root: sink_root,
        state_dir: state_dir.join("sink"),
        adopt: args.adopt,
        checkpoint_interval: COPY_CHECKPOINT_INTERVAL,
    };
    Ok(Config { state_dir, job: Job::CopyFollow { source, sink } })
}

/// Refuses what is not built and what would send everything in the clear unasked.
fn check_transport(url: &Url, network: &NetworkArgs) -> Result<(), Failure> {
    match url {
        Url::Unix(_) => Ok(()),
        Url::Tcp(at) if at.is_loopback() || network.insecure_plaintext => Ok(()),
        Url::Tcp(_) => Err(Failure::Usage(format!(
            "{url} is plaintext: anybody on the way could read and change everything; if the \
             network is one that you trust, say --insecure-plaintext (on both ends)"
        ))),
        Url::Tls(at) => Err(Failure::Usage(format!(
            "{url}: TLS is not built yet; in a network that you trust write tcp://{at} \
             --insecure-plaintext (on both ends), on one machine unix:/PATH"
        ))),
        Url::Ssh(_) => Err(Failure::Usage(format!(
            "{url}: ssh:// is not built yet; forward a port by ssh -L and write \
             tcp://localhost:PORT"
        ))),
    }
}

/// Returns the real path of a directory that must exist.
fn real_directory(path: &Path) -> Result<PathBuf, Failure> {
    let real = path.canonicalize().map_err(|error| {
        let what_to_do = match error.kind() {
            io::ErrorKind::NotFound => "; make it, or check how it is written",
            io::ErrorKind::PermissionDenied => "; run mirror as a user that may enter it",
            _ => "; check how it is written",
        };
        anyhow::anyhow!("cannot use {}: {error}{what_to_do}", path.display())
    })?;
    if !real.is_dir() {
        return Err(anyhow::anyhow!("{} is not a directory; name one", path.display()).into());
    }
    Ok(real)
}

fn state_dir(
    given: Option<PathBuf>,
    environment: &Environment,
    name: &Path,
) -> Result<PathBuf, Failure> {
    let path = match given {
        Some(path) => path,
        None => environment.state_dir(name)?,
    };
    let real = real_path(&path);
    Ok(real.map_err(|reason| anyhow::Error::from(StateDirError::Io { path, reason }))?)
}

/// What is kept about a tree must not become part of it.
fn check_outside(state_dir: &Path, root: &Path) -> Result<(), Failure> {
    if state_dir.starts_with(root) {
        return Err(Failure::Usage(format!(
            "the state directory {} lies inside the tree {}; choose another by --state-dir",
            state_dir.display(),
            root.display()
        )));
    }
    Ok(())
}

/// A source writes nothing inside its tree, not even the file of its socket.
fn check_sockets_outside(listen: &[Url], root: &Path) -> Result<(), Failure> {
    for url in listen {
        if let Url::Unix(path) = url
            && real_path(path).is_ok_and(|path| path.starts_with(root))
        {
            return Err(Failure::Usage(format!(
                "{url} lies inside the tree {}; put the socket elsewhere, as in \
                 unix:/run/NAME.sock",
                root.display()
            )));
        }
    }
    Ok(())
}

/// Returns whether `path` is written as `HOST:PATH`: a colon comes before any slash.
fn names_a_host(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn state_has_its_place_for_everybody() {
        let name = Path::new("srv-site");
        let mut environment = Environment { is_root: true, ..Environment::default() };
        let place = |environment: &Environment| environment.state_dir(name).unwrap();
        assert_eq!(place(&environment), Path::new("/var/lib/mirror/srv-site"));
        environment.is_root = false;
        assert!(matches!(environment.state_dir(name), Err(Failure::Usage(_))));
        environment.home = Some("/home/me".into());
        assert_eq!(place(&environment), Path::new("/home/me/.local/state/mirror/srv-site"));
        environment.xdg_state_home = Some("/state".into());
        assert_eq!(place(&environment), Path::new("/state/mirror/srv-site"));
        environment.state_directory = Some("/run/a:/run/b".into());
        assert_eq!(place(&environment), Path::new("/run/a"));
    }

    #[test]
    fn copies_of_one_tree_are_apart() {
        let temporary = tempfile::tempdir().unwrap();
        let real = temporary.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        let xdg_state_home = Some(real.join("state").into());
        let environment = Environment { xdg_state_home, ..Environment::default() };
        let place = |destination: &str| {
            let [from, to] = ["a", destination].map(|name| real.join(name).into_os_string());
            let typed = ["mirror", "copy", "--follow"].map(OsString::from);
            let args = Args::parse_from(typed.into_iter().chain([from, to]));
            Config::new(args, &environment).unwrap().state_dir
        };
        let expected = |destination: &str| {
            let copies = real.join("state/mirror/copy");
            copies.join(name_of(&real.join("a"))).join(name_of(&real.join(destination)))
        };
        assert_eq!([place("b"), place("c")], [expected("b"), expected("c")]);
    }

    #[test]
    fn a_colon_before_a_slash_names_a_host() {
        for (path, is_host) in [
            ("host:dir", true),
            ("me@host:/dir", true),
            ("./a:b", false),
            ("/a:b", false),
            ("a", false),
        ] {
            assert_eq!(names_a_host(Path::new(path)), is_host, "{path}");
        }
    }
}
