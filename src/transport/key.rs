//! The key of a node, and public keys as people pass them on.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustix::fs::OFlags;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;

/// What a line with a public key begins with.
const ALGORITHM: &str = "mirror-ed25519";

/// The name of the key's file in the state directory.
const FILE_NAME: &str = "key";

/// A key's file is a few hundred bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;

const KEY_BYTES: usize = 32;

/// What comes before the 32 bytes of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410).
const SPKI_PREFIX: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// A public Ed25519 key. As text it is `mirror-ed25519 BASE64`, with anything behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Returns the key in a `SubjectPublicKeyInfo`, `None` if that is no Ed25519 key.
    pub fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        key.try_into().ok().map(PublicKey)
    }

    /// Returns the key's `SubjectPublicKeyInfo`.
    pub fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// Returns a short name of the key that nobody can give to another one: `SHA256:` and the
    /// digest of its `SubjectPublicKeyInfo`.
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.to_spki());
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(digest))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{ALGORITHM} {}", BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no key; it looks like: {ALGORITHM} BASE64", .0.escape_debug())]
pub struct NoPublicKey(String);

impl FromStr for PublicKey {
    type Err = NoPublicKey;

    /// Reads the line that `mirror key` prints; what is behind the key is a comment.
    fn from_str(text: &str) -> Result<Self, NoPublicKey> {
        let mut words = text.split_ascii_whitespace();
        let is_ours = words.next() == Some(ALGORITHM);
        let key = words.next().filter(|_| is_ours).and_then(|key| BASE64_STANDARD.decode(key).ok());
        let key = key.and_then(|key| key.try_into().ok());
        key.map(PublicKey).ok_or_else(|| NoPublicKey(text.chars().take(100).collect()))
    }
}

/// The key pair of this node.
#[derive(Debug, Clone)]
pub struct NodeKey {
    signing: Arc<dyn SigningKey>,
    public: PublicKey,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its file cannot be read or made.
    #[error("cannot use the key {}: {reason}", path.display())]
    Io {
        /// The key's file.
        path: PathBuf,
        /// Why not; no `source`, for the message has it already.
        reason: io::Error,
    },
    /// Others may have read it.
    #[error(
        "the key {} can be read by others (mode {mode:04o}); if nobody has, chmod 600 it, else remove \
         it and tell your peers the new one", path.display()
    )]
    Open {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else, who can exchange it.
    #[error("the key {} belongs to the user {uid}; chown it to the one who runs this", path.display())]
    Foreign {
        /// The key's file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// It is not what was written.
    #[error(
        "the key {} is no Ed25519 key in PKCS #8; put it back from a backup, or remove it and tell \
         your peers the new one", path.display()
    )]
    Damaged {
        /// The key's file.
        path: PathBuf,
    },
}

impl NodeKey {
    /// Returns the key in a state directory, `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// What keeps it from being used, too liberal a mode included.
    pub fn load(state_dir: &Path) -> Result<Option<NodeKey>, KeyError> {
        let path = state_dir.join(FILE_NAME);
        let error = |reason| KeyError::Io { path: path.clone(), reason };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags as i32).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(error(reason)),
        };
        let metadata = file.metadata().map_err(error)?;
        let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
        if !metadata.is_file() {
            return Err(KeyError::Damaged { path });
        }
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path, mode });
        }
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(KeyError::Foreign { path, uid });
        }
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(error)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).ok();
        let key = der.and_then(|der| NodeKey::from_pkcs8(der.secret_pkcs8_der()));
        key.map(Some).ok_or(KeyError::Damaged { path })
    }

    /// Returns the key in a state directory; makes it if there is none yet.
    ///
    /// # Errors
    ///
    /// As [`load`](NodeKey::load), and what keeps it from being made.
    pub fn load_or_make(state_dir: &Path) -> Result<NodeKey, KeyError> {
        if let Some(key) = NodeKey::load(state_dir)? {
            return Ok(key);
        }
        let path = state_dir.join(FILE_NAME);
        let error = |reason| KeyError::Io { path: path.clone(), reason };
        let unlucky = |_| error(io::Error::other("the system gives no random numbers"));
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(unlucky)?;
        let key = NodeKey::from_pkcs8(pkcs8.as_ref());
        let key = key.ok_or_else(|| KeyError::Damaged { path: path.clone() })?;
        // Under its name it is whole, and on the disk before a peer learns of it.
        let new = state_dir.join(format!("{FILE_NAME}.new"));
        match std::fs::remove_file(&new) {
            Err(reason) if reason.kind() != io::ErrorKind::NotFound => return Err(error(reason)),
            _ => {}
        }
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(pem(pkcs8.as_ref()).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(state_dir)?.sync_all()
        };
        write().map_err(error)?;
        tracing::info!("{}: made the key of this node, {}", path.display(), key.public);
        Ok(key)
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns what proves to peers that this node has the key.
    pub(super) fn signing(&self) -> Arc<dyn SigningKey> {
        self.signing.clone()
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Option<NodeKey> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
        let signing = rustls::crypto::ring::sign::any_eddsa_type(match &der {
            PrivateKeyDer::Pkcs8(der) => der,
            _ => return None,
        });
        Some(NodeKey { signing: signing.ok()?, public })
    }
}

/// Returns a private key as `openssl pkey` reads it.
fn pem(pkcs8: &[u8]) -> String {
    let mut text = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in BASE64_STANDARD.encode(pkcs8).as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        assert!(NodeKey::load(directory.path()).unwrap().is_none());
        let made = NodeKey::load_or_make(directory.path()).unwrap();
        let again = NodeKey::load_or_make(directory.path()).unwrap();
        assert_eq!(made.public(), again.public());
        let file = directory.path().join(FILE_NAME);
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        std::fs::remove_file(&file).unwrap();
        assert_ne!(NodeKey::load_or_make(directory.path()).unwrap().public(), made.public());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        NodeKey::load_or_make(directory.path()).unwrap();
        let file = directory.path().join(FILE_NAME);
        for mode in [0o640, 0o604, 0o620, 0o602] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let error = NodeKey::load(directory.path()).unwrap_err();
            assert!(matches!(error, KeyError::Open { mode: found, .. } if found == mode));
        }
    }

    #[test]
    fn a_key_that_is_no_key_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        NodeKey::load_or_make(directory.path()).unwrap();
        let file = directory.path().join(FILE_NAME);
        let whole = std::fs::read(&file).unwrap();
        for text in [&whole[..whole.len() / 2], b"", b"-----BEGIN PRIVATE KEY-----\n"] {
            std::fs::write(&file, text).unwrap();
            let error = NodeKey::load_or_make(directory.path()).unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
            assert_eq!(std::fs::read(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_public_key_is_the_same_as_text_and_as_spki() {
        let directory = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_make(directory.path()).unwrap().public();
        assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
        assert_eq!(format!("{key} of a host").parse(), Ok(key));
        assert!(key.fingerprint().starts_with("SHA256:"));
        let known = PublicKey([7; 32]);
        assert_eq!(
            known.to_string(),
            "mirror-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
        );
        for text in
            ["", "mirror-ed25519", "ssh-ed25519 BwcH", "mirror-ed25519 BwcH", "mirror-ed25519 !"]
        {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
