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
