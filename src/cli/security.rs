//! Keys and peers of a role: where they are, and what a terminal is asked.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::event_loop::TlsConfigs;
use crate::model::limits::HANDSHAKE_MS_MAX;
use crate::role::RoleError;
use crate::transport::tls::{NotAdmitted, TlsError};
use crate::transport::{Authorized, KnownUpstreams, NodeKey, PublicKey, TlsConfig};
use crate::wire::Url;
use crate::wire::url::HostPort;

/// How a role is secured; of use only where one of its addresses is `tls://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Holds the key of this node, and what is known of upstreams.
    pub state_dir: PathBuf,
    /// The file with the keys that are let in, if the role serves any by TLS.
    pub authorized: Option<PathBuf>,
    /// The upstream, if it is followed by TLS.
    pub upstream: Option<PinnedUpstream>,
}

/// An upstream and the keys that were given for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedUpstream {
    /// Where it is.
    pub at: HostPort,
    /// The keys; if there are none, those in the file of known upstreams.
    pub keys: Vec<PublicKey>,
}

impl Security {
    /// Returns whether any of it is of use.
    pub fn is_needed(&self) -> bool {
        self.authorized.is_some() || self.upstream.is_some()
    }

    /// Reads keys and peers.
    ///
    /// # Errors
    ///
    /// What is wrong with any of the files.
    pub fn load(&self) -> Result<TlsConfigs, RoleError> {
        let failed = |error: &dyn std::fmt::Display| RoleError(error.to_string());
        let key = NodeKey::load_or_make(&self.state_dir).map_err(|error| failed(&error))?;
        let mut configs = TlsConfigs::default();
        if let Some(path) = &self.authorized {
            let authorized = Authorized::load(path).map_err(|error| failed(&error))?;
            if authorized.is_empty() {
                tracing::warn!(
                    "{}: it lets nobody in by tls://; add the line that mirror key prints at each \
                     sink, and send SIGHUP",
                    path.display()
                );
            }
            let admits = Arc::new(move |key: &PublicKey| authorized.admits(key));
            configs.downstreams = Some(TlsConfig::server(&key, admits));
        }
        if let Some(upstream) = &self.upstream {
            let keys: BTreeSet<PublicKey> = self.upstream_keys(upstream)?.into_iter().collect();
            let admits = Arc::new(move |key: &PublicKey| keys.contains(key));
            configs.upstream = Some(TlsConfig::client(&key, admits));
        }
        Ok(configs)
    }

    /// Asks at a terminal whether an upstream of which nothing is known is the right one, as ssh
    /// does, and remembers the answer. Elsewhere, and where it cannot be reached, nothing is asked:
    /// the first connection then says what to do.
    ///
    /// # Errors
    ///
    /// What is wrong with any of the files.
    pub fn ask(&self) -> Result<(), RoleError> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        if !self.upstream_keys(upstream)?.is_empty() || !is_terminal() {
            return Ok(());
        }
        let node = NodeKey::load_or_make(&self.state_dir);
        let node = node.map_err(|error| RoleError(error.to_string()))?;
        let Some(key) = key_of(&upstream.at, &node) else { return Ok(()) };
        let mut terminal = io::stderr();
        let question = format!(
            "Nothing is known of {}. It shows the key\n  {key}\n  {}\nIs this what mirror key prints \
             there? (yes/no) ",
            upstream.at,
            key.fingerprint()
        );
        let mut answer = String::new();
        let asked = terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush());
        if asked.and_then(|()| io::stdin().read_line(&mut answer)).is_err() {
            return Ok(());
        }
        if answer.trim() != "yes" {
            return Err(RoleError(format!("{}: its key was not accepted", upstream.at)));
        }
        KnownUpstreams::add(&self.known_upstreams(), &upstream.at, &key)
            .map_err(|error| RoleError(error.to_string()))
    }

    fn upstream_keys(&self, upstream: &PinnedUpstream) -> Result<Vec<PublicKey>, RoleError> {
        if !upstream.keys.is_empty() {
            return Ok(upstream.keys.clone());
        }
        let known = KnownUpstreams::load(&self.known_upstreams());
        let known = known.map_err(|error| RoleError(error.to_string()))?;
        Ok(known.keys(&upstream.at).to_vec())
    }

    fn known_upstreams(&self) -> PathBuf {
        self.state_dir.join("known_upstreams")
    }
}

/// Returns the host and port of an address that is encrypted.
pub fn tls_address(url: &Url) -> Option<&HostPort> {
    match url {
        Url::Tls(at) => Some(at),
        _ => None,
    }
}

fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Returns the key that an upstream shows, `None` if it cannot be asked. Nothing else runs yet, so
/// this may take its time.
fn key_of(at: &HostPort, node: &NodeKey) -> Option<PublicKey> {
    let patience = Duration::from_millis(HANDSHAKE_MS_MAX);
    let addresses = (at.host.as_str(), at.port).to_socket_addrs().ok()?;
    let mut streams =
        addresses.filter_map(|address| TcpStream::connect_timeout(&address, patience).ok());
    let stream = streams.next()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.set_write_timeout(Some(patience)).ok()?;
    // Nobody is admitted: the refusal says whom it refuses, and nothing of ours was shown.
    let mut session = TlsConfig::client(node, Arc::new(|_| false)).begin(stream).ok()?;
    match TlsError::of(&session.handshake().err()?)? {
        TlsError::Unknown(NotAdmitted(key)) => Some(*key),
        _ => None,
    }
}
