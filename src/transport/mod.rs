//! Who is at the other end: keys, whom they let in, and TLS 1.3 between them.
//!
//! Each node has one Ed25519 key, made at its first use. Both ends show the raw public key
//! (RFC 7250): there are no certificates and no authorities, as with ssh. What is authenticated is
//! that a peer has the private key; whether it is let in, [`peers`] say.

pub mod key;
pub mod peers;
pub mod tls;

pub use key::{KeyError, NodeKey, PublicKey};
pub use peers::{Authorized, KnownUpstreams, PeersError};
pub use tls::TlsConfig;

use crate::role::Peer;

/// How a role shows who it is and judges who others are, on either side of it.
#[derive(Debug, Clone, Default)]
pub struct TlsConfigs {
    /// For those who connect to it.
    pub downstreams: Option<TlsConfig>,
    /// For the one that it connects to.
    pub upstream: Option<TlsConfig>,
}

impl TlsConfigs {
    /// Returns what is for peers of this kind.
    pub fn of(&self, peer: Peer) -> Option<&TlsConfig> {
        match peer {
            Peer::Upstream => self.upstream.as_ref(),
            Peer::Downstream => self.downstreams.as_ref(),
        }
    }
}
