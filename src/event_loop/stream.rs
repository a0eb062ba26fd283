//! TCP and Unix stream sockets under one name, in the clear or encrypted.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::transport::PublicKey;
use crate::transport::tls::{TlsConfig, TlsSession};

/// A connected, or connecting, stream socket that never blocks.
#[derive(Debug)]
pub(super) enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket, or one end of a pair.
    Unix(UnixStream),
    /// TLS over one of these.
    Tls(Box<TlsSession<Stream>>),
}

impl Stream {
    /// Returns the stream with TLS over it.
    pub(super) fn secured(self, config: &TlsConfig) -> io::Result<Stream> {
        let session = config.begin(self).map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(session)))
    }

    /// Returns whether both ends must come to know each other before anything else.
    pub(super) fn needs_handshake(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// Goes on with the handshake; `None` if it would block before its end. The key is that of
    /// the peer, if it has one.
    pub(super) fn handshake(&mut self) -> io::Result<Option<Option<PublicKey>>> {
        match self {
            Stream::Tls(session) => Ok(session.handshake()?.map(Some)),
            Stream::Tcp(_) | Stream::Unix(_) => Ok(Some(None)),
        }
    }

    /// Returns whether a connection that was begun is made by now, or why it failed.
    pub(super) fn finish_connect(&self) -> io::Result<bool> {
        let error = match self {
            Stream::Tcp(stream) => stream.take_error()?,
            Stream::Unix(stream) => stream.take_error()?,
            Stream::Tls(session) => return session.stream().finish_connect(),
        };
        if let Some(error) = error {
            return Err(error);
        }
        let peer = match self {
            Stream::Tcp(stream) => stream.peer_addr().map(drop),
            Stream::Unix(stream) => stream.peer_addr().map(drop),
            Stream::Tls(_) => Ok(()),
        };
        match peer {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends small frames at once: an acknowledgement must not wait for the one before it.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_nodelay(true),
            Stream::Unix(_) => Ok(()),
            Stream::Tls(session) => session.stream().set_nodelay(),
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn shut_down_write(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tls(session) => {
                session.say_goodbye();
                session.stream_mut().shut_down_write()
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tls(session) => session.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tls(session) => session.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write_vectored(slices),
            Stream::Unix(stream) => stream.write_vectored(slices),
            Stream::Tls(session) => session.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => Ok(()),
            Stream::Tls(session) => session.flush(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, on: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.register(registry, token, on),
            Stream::Unix(stream) => stream.register(registry, token, on),
            Stream::Tls(session) => session.stream_mut().register(registry, token, on),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, on: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.reregister(registry, token, on),
            Stream::Unix(stream) => stream.reregister(registry, token, on),
            Stream::Tls(session) => session.stream_mut().reregister(registry, token, on),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
            Stream::Tls(session) => session.stream_mut().deregister(registry),
        }
    }
}
