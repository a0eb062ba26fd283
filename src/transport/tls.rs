//! TLS 1.3 over any stream, both ends known by their raw public keys (RFC 7250).
//!
//! A client may write before the server has judged its key, and in TLS 1.3 learns only by its next
//! read that it was turned away: whoever waits for the server's hello is told so.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConnection};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerConnection};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Connection, DigitallySignedStruct,
    DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};

use super::key::{NodeKey, PublicKey};

/// What both ends must agree to speak.
const PROTOCOL: &[u8] = b"mirror";

/// Most that waits encrypted for its socket.
const PENDING_BYTES_MAX: usize = 64 << 10;

/// What is asked of the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Says whether a peer with this key is let in.
pub type Admits = dyn Fn(&PublicKey) -> bool + Send + Sync;

/// What a node needs to show who it is and to judge who others are, at one end of connections.
#[derive(Clone)]
pub struct TlsConfig {
    side: Side,
    own: PublicKey,
    admits: Arc<Admits>,
}

#[derive(Clone)]
enum Side {
    Server(Arc<ServerConfig>),
    Client(Arc<ClientConfig>),
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Server(_) => "server",
            Side::Client(_) => "client",
        };
        write!(formatter, "TlsConfig of a {side}, {}", self.own)
    }
}

/// A key that was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its key is not known here: {0}")]
pub struct NotAdmitted(pub PublicKey);

/// Why two ends did not come to an understanding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The peer has a key that is not let in.
    #[error(transparent)]
    Unknown(#[from] NotAdmitted),
    /// The peer does not let our key in.
    #[error("it does not let this node's key in")]
    Rejected,
    /// The peer speaks something else, or wrote what nobody honest does.
    #[error("{0}")]
    Protocol(String),
}

impl TlsError {
    /// Returns what an error of a [`TlsSession`] was about, `None` if only the stream failed.
    pub fn of(error: &io::Error) -> Option<&TlsError> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    /// Returns whether it will be the same until a person does something.
    pub fn is_lasting(&self) -> bool {
        matches!(self, TlsError::Unknown(_) | TlsError::Rejected)
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> TlsError {
        match &error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                if let Some(unknown) = inner.downcast_ref::<NotAdmitted>() {
                    return TlsError::Unknown(*unknown);
                }
            }
            rustls::Error::AlertReceived(
                AlertDescription::CertificateUnknown | AlertDescription::AccessDenied,
            ) => return TlsError::Rejected,
            rustls::Error::InvalidMessage(_) => {
                return TlsError::Protocol(format!("it does not speak TLS ({error})"));
            }
            _ => {}
        }
        TlsError::Protocol(error.to_string())
    }
}

impl TlsConfig {
    /// Returns what accepts peers whose key is admitted.
    pub fn server(key: &NodeKey, admits: Arc<Admits>) -> TlsConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(&provider, admits.clone());
        let resolver = AlwaysResolvesServerRawPublicKeys::new(certified(key));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A peer whose key is taken back must not come again by a ticket.
        config.send_tls13_tickets = 0;
        TlsConfig { side: Side::Server(Arc::new(config)), own: key.public(), admits }
    }

    /// Returns what connects to upstreams whose key is admitted.
    pub fn client(key: &NodeKey, admits: Arc<Admits>) -> TlsConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(&provider, admits.clone());
        let resolver = AlwaysResolvesClientRawPublicKeys::new(certified(key));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous() // For rustls, whatever is no certificate is.
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        TlsConfig { side: Side::Client(Arc::new(config)), own: key.public(), admits }
    }

    /// Returns the key that peers see.
    pub fn own(&self) -> PublicKey {
        self.own
    }

    /// Returns whether a peer with this key is let in.
    pub fn admits(&self, key: &PublicKey) -> bool {
        (self.admits)(key)
    }

    /// Begins a session over a stream.
    ///
    /// # Errors
    ///
    /// Only what rustls cannot do with such a configuration.
    pub fn begin<S: Read + Write>(&self, stream: S) -> Result<TlsSession<S>, TlsError> {
        let mut connection = match &self.side {
            Side::Server(config) => ServerConnection::new(config.clone())?.into(),
            Side::Client(config) => {
                // The key is who it is, under whatever name.
                let nobody = ServerName::try_from("mirror").expect("it is a name");
                Connection::from(ClientConnection::new(config.clone(), nobody)?)
            }
        };
        connection.set_buffer_limit(Some(PENDING_BYTES_MAX));
        Ok(TlsSession { stream, connection, incoming: vec![0; READ_BYTES], filled: 0..0 })
    }
}

fn certified(key: &NodeKey) -> Arc<CertifiedKey> {
    let spki = CertificateDer::from(key.public().to_spki());
    Arc::new(CertifiedKey::new(vec![spki], key.signing()))
}

/// A stream that is encrypted, and the stream below.
///
/// Reading and writing never block if the stream below does not. What was written may wait here
/// until [`flush`](Write::flush) says that the stream has all.
#[derive(Debug)]
pub struct TlsSession<S> {
    stream: S,
    connection: Connection,
    /// What was read from the stream; `filled` says which part was not decrypted yet.
    incoming: Vec<u8>,
    filled: std::ops::Range<usize>,
}

impl<S: Read + Write> TlsSession<S> {
    /// Returns the stream below.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Returns the stream below.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Goes on until both ends know each other, and returns the peer's key then; `None` if the
    /// stream would block before.
    ///
    /// # Errors
    ///
    /// The stream's, or one of which [`TlsError::of`] tells more.
    pub fn handshake(&mut self) -> io::Result<Option<PublicKey>> {
        loop {
            self.write_pending()?;
            if !self.connection.is_handshaking() {
                return Ok(Some(self.peer()?));
            }
            match self.take_in() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that nothing more comes, as far as the stream takes it.
    pub fn say_goodbye(&mut self) {
        self.connection.send_close_notify();
        // Whoever does not take it learns the same from the end of the stream.
        let _ = self.write_pending();
    }

    fn peer(&self) -> io::Result<PublicKey> {
        let key = self.connection.peer_certificates().and_then(|keys| keys.first());
        let key = key.and_then(|key| PublicKey::from_spki(key.as_ref()));
        key.ok_or_else(|| io::Error::other(TlsError::Protocol("it showed no key".into())))
    }

    /// Reads once from the stream and decrypts it; 0 at its end.
    fn take_in(&mut self) -> io::Result<usize> {
        if self.filled.is_empty() {
            let count = self.stream.read(&mut self.incoming)?;
            self.filled = 0..count;
        }
        let mut rest = &self.incoming[self.filled.clone()];
        let count = self.connection.read_tls(&mut rest)?;
        self.filled.start += count;
        if let Err(error) = self.connection.process_new_packets() {
            // The alert tells the peer why, if it can be told.
            let _ = self.write_pending();
            return Err(io::Error::other(TlsError::from(error)));
        }
        Ok(count)
    }

    /// Writes what waits; whether all was taken.
    fn write_pending(&mut self) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<S: Read + Write> Read for TlsSession<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Cut where no end was announced: the frames tell whether anything is missing.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.take_in()?;
            // An answer of TLS itself, such as to a new key; what is not taken goes with the next.
            self.write_pending()?;
        }
    }
}

impl<S: Read + Write> Write for TlsSession<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.write_pending()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.connection.writer().write_vectored(slices)?;
        self.write_pending()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.write_pending()? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Judges a peer by its key, and nothing else.
struct Verifier {
    admits: Arc<Admits>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(provider: &CryptoProvider, admits: Arc<Admits>) -> Verifier {
        Verifier { admits, algorithms: provider.signature_verification_algorithms }
    }

    fn judge(&self, spki: &[u8]) -> Result<(), rustls::Error> {
        let key = PublicKey::from_spki(spki).ok_or(CertificateError::BadEncoding)?;
        match (self.admits)(&key) {
            true => Ok(()),
            false => Err(CertificateError::Other(OtherError(Arc::new(NotAdmitted(key)))).into()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Verifier")
    }
}

/// What TLS 1.2 would ask, which is not spoken.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken".to_string())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    struct Ends {
        server: TlsSession<UnixStream>,
        client: TlsSession<UnixStream>,
    }

    struct Keys {
        _directories: [tempfile::TempDir; 2],
        server: NodeKey,
        client: NodeKey,
    }

    fn keys() -> Keys {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [server, client] =
            [0, 1].map(|end: usize| NodeKey::load_or_make(directories[end].path()).unwrap());
        Keys { _directories: directories, server, client }
    }

    fn only(key: PublicKey) -> Arc<Admits> {
        Arc::new(move |other| *other == key)
    }

    /// Two ends, of which the server admits `peer` and the client `upstream`.
    fn ends(keys: &Keys, peer: PublicKey, upstream: PublicKey) -> Ends {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        let server = TlsConfig::server(&keys.server, only(peer)).begin(one).unwrap();
        let client = TlsConfig::client(&keys.client, only(upstream)).begin(other).unwrap();
        Ends { server, client }
    }

    type Shaken = (io::Result<Option<PublicKey>>, io::Result<Option<PublicKey>>);

    /// What server and client come to.
    fn shake(ends: &mut Ends) -> Shaken {
        let mut client = ends.client.handshake();
        let mut server = ends.server.handshake();
        for _ in 0..4 {
            if matches!(client, Ok(None)) {
                client = ends.client.handshake();
            }
            if matches!(server, Ok(None)) {
                server = ends.server.handshake();
            }
        }
        (server, client)
    }

    #[test]
    fn two_ends_that_know_each_other_exchange_much_in_both_directions() {
        let keys = keys();
        let mut ends = ends(&keys, keys.client.public(), keys.server.public());
        let (server, client) = shake(&mut ends);
        assert_eq!(server.unwrap(), Some(keys.client.public()));
        assert_eq!(client.unwrap(), Some(keys.server.public()));
        let mut rng = fastrand::Rng::with_seed(1);
        let sent: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(3 << 20).collect();
        let Ends { mut server, mut client } = ends;
        for (from, to) in
            [(&mut server, &mut client) as (&mut TlsSession<_>, &mut TlsSession<_>)].into_iter()
        {
            let (mut at, mut received, mut is_flushed) = (0, Vec::new(), false);
            let mut buffer = vec![0; 100_000];
            while received.len() < sent.len() {
                let end = sent.len().min(at + 70_000);
                let (first, second) = sent[at..end].split_at((end - at) / 3);
                match from.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
                    Ok(count) => at += count,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                is_flushed = from.flush().is_ok();
                match to.read(&mut buffer) {
                    Ok(count) => received.extend_from_slice(&buffer[..count]),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert!(is_flushed && received == sent);
        }
        server.say_goodbye();
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 0);
    }

    #[test]
    fn a_client_that_the_server_does_not_know_is_turned_away_by_name() {
        let keys = keys();
        let mut ends = ends(&keys, keys.server.public(), keys.server.public());
        let (server, client) = shake(&mut ends);
        let error = server.unwrap_err();
        let unknown = TlsError::Unknown(NotAdmitted(keys.client.public()));
        assert_eq!(TlsError::of(&error), Some(&unknown));
        // It had done its part before, and learns it by reading.
        assert_eq!(client.unwrap(), Some(keys.server.public()));
        let error = ends.client.read(&mut [0; 10]).unwrap_err();
        assert_eq!(TlsError::of(&error), Some(&TlsError::Rejected));
    }

    #[test]
    fn a_server_that_the_client_does_not_know_gets_nothing() {
        let keys = keys();
        let mut ends = ends(&keys, keys.client.public(), keys.client.public());
        let (server, client) = shake(&mut ends);
        let unknown = TlsError::Unknown(NotAdmitted(keys.server.public()));
        assert_eq!(TlsError::of(&client.unwrap_err()), Some(&unknown));
        assert_eq!(TlsError::of(&server.unwrap_err()), Some(&TlsError::Rejected));
    }

    #[test]
    fn what_is_no_tls_is_said_to_be_so() {
        let keys = keys();
        let Ends { mut server, mut client } =
            ends(&keys, keys.client.public(), keys.server.public());
        client
            .stream_mut()
            .write_all(b"W\0\0\0\x01\0\0\0 plain frames, and a lot of them")
            .unwrap();
        let error = server.handshake().unwrap_err();
        assert!(matches!(TlsError::of(&error), Some(TlsError::Protocol(_))), "{error}");
        client.stream_mut().shutdown(std::net::Shutdown::Both).unwrap();
        assert!(client.handshake().is_err());
    }
}
