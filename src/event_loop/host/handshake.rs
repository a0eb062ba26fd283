//! Connections whose ends come to know each other, and what is said of those that do not.

use std::io;
use std::time::Instant;

use mio::Token;

use super::super::limits::TURNED_AWAY_MAX;
use super::super::link::Link;
use super::super::switchboard::Switchboard;
use super::super::{TlsConfigs, Upstream};
use super::Host;
use crate::role::{LinkId, Peer, RoleError};
use crate::transport::tls::{NotAdmitted, TlsError};
use crate::transport::{KnownUpstreams, PublicKey};
use crate::wire::Url;

impl Host {
    /// Shows and judges keys by `tls` from now on. Whoever is connected and is not let in any more
    /// is turned out.
    pub(in crate::event_loop) fn secure(&mut self, tls: TlsConfigs, switchboard: &mut Switchboard) {
        self.tls = tls;
        self.turned_away.clear();
        let is_out = |link: &Link| {
            let config = self.tls.of(link.peer);
            link.key.is_some_and(|key| config.is_none_or(|config| !config.admits(&key)))
        };
        let out: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| is_out(link)).map(|(id, _)| *id).collect();
        for id in out {
            self.close(id, "its key is not let in any more", switchboard);
        }
    }

    /// Goes on with a handshake, after which the role knows of the link.
    pub(super) fn shake_hands(
        &mut self,
        id: LinkId,
        switchboard: &mut Switchboard,
    ) -> Result<bool, RoleError> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(false) };
        match link.shake_hands() {
            Ok(false) => Ok(false),
            Ok(true) => {
                let peer = link.peer;
                let key = link.key.map(|key| key.fingerprint()).unwrap_or_default();
                tracing::debug!(link = id.0, "{}: {} has the key {key}", self.name, link.name);
                self.role.handle_connected(id, peer, Instant::now());
                Ok(true)
            }
            Err(error) => self.handshake_failed(id, &error, switchboard).map(|()| false),
        }
    }

    /// Gives up a connection whose ends did not come to know each other. Fails if it was to an
    /// upstream that never was another.
    pub(super) fn handshake_failed(
        &mut self,
        id: LinkId,
        error: &io::Error,
        switchboard: &mut Switchboard,
    ) -> Result<(), RoleError> {
        let Some(link) = self.links.remove(&id) else { return Ok(()) };
        switchboard.release(Token(id.0 as usize));
        if link.peer == Peer::Upstream {
            let reason = self.upstream_failure(error);
            if TlsError::of(error).is_some_and(TlsError::is_lasting) && !self.has_met_upstream {
                return Err(RoleError(reason));
            }
            self.is_touched = true;
            // What the role knows of was open: in TLS 1.3 a client learns late that it is rejected.
            self.role.handle_closed(link.is_open().then_some(id), &reason, Instant::now());
            return Ok(());
        }
        match TlsError::of(error) {
            Some(TlsError::Unknown(NotAdmitted(key))) => self.say_turned_away(*key, &link.name),
            _ => tracing::debug!(link = id.0, "{}: no handshake, {error}", self.name),
        }
        Ok(())
    }

    /// Says that a peer was not let in: once for each key, for it will try again and again.
    fn say_turned_away(&mut self, key: PublicKey, name: &str) {
        if self.turned_away.len() < TURNED_AWAY_MAX && self.turned_away.insert(key) {
            tracing::warn!(
                "{}: turned away {name}, whose key is not let in; if it should be, add this line \
                 to authorized_peers, and send SIGHUP: {key}",
                self.name,
            );
        } else {
            tracing::debug!("{}: turned away {name}, {key}", self.name);
        }
    }

    /// Returns what a person must know of a connection to the upstream that failed.
    fn upstream_failure(&self, error: &io::Error) -> String {
        let name = self.upstream_name();
        match (TlsError::of(error), &self.upstream) {
            (Some(TlsError::Unknown(NotAdmitted(key))), Some(Upstream::Url(Url::Tls(at)))) => {
                format!(
                    "{name}: nothing says that its key is {}; ask its owner what mirror key prints \
                     there, and if it is the same, add this line to known_upstreams in the state \
                     directory: {}",
                    key.fingerprint(),
                    KnownUpstreams::line(at, key)
                )
            }
            (Some(TlsError::Rejected), _) => {
                let own = self.tls.of(Peer::Upstream).map(|config| config.own().to_string());
                format!(
                    "{name}: it does not let this node in; have this line added to its \
                     authorized_peers: {}",
                    own.unwrap_or_default()
                )
            }
            (Some(error), _) => format!("{name}: {error}"),
            (None, _) => format!("cannot connect to {name}: {error}"),
        }
    }
}
