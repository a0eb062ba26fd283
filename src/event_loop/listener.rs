//! Listening sockets.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mio::event::Source;
use mio::net::{TcpListener, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::LoopError;
use super::dial::known_addresses;
use super::stream::Stream;
use crate::wire::url::{HostPort, Url};

/// A listening socket; a Unix socket's file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    url: Url,
    /// Set while the kernel has no descriptor left for another connection.
    pub(super) paused_until: Option<Instant>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, inode: (u64, u64) },
}

impl Listener {
    /// Listens on `url`.
    pub(super) fn bind(url: &Url) -> Result<Listener, LoopError> {
        let error = |error| LoopError::Listen { url: url.clone(), reason: reason(url, &error) };
        let (socket, url) = match url {
            Url::Tcp(at) | Url::Tls(at) => {
                let listener = bind_tcp(at).map_err(error)?;
                let bound = listener.local_addr().map_err(error)?;
                let bound = HostPort { host: bound.ip().to_string(), port: bound.port() };
                let is_tls = matches!(url, Url::Tls(_));
                (Socket::Tcp(listener), if is_tls { Url::Tls(bound) } else { Url::Tcp(bound) })
            }
            Url::Unix(path) => {
                let listener = bind_unix(path).map_err(error)?;
                let file = path.symlink_metadata().map_err(error)?;
                let inode = (file.dev(), file.ino());
                (Socket::Unix { listener, path: path.clone(), inode }, url.clone())
            }
            Url::Ssh(_) => return Err(LoopError::NotBuilt(url.clone())),
        };
        Ok(Listener { socket, url, paused_until: None })
    }

    /// Returns where it listens, with the port that the kernel chose.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Returns the next connection and who it is from.
    pub(super) fn accept(&self) -> io::Result<(Stream, String)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::Unix(stream), self.url.to_string()))
            }
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Socket::Unix { listener, .. } => listener.register(registry, token, Interest::READABLE),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path, inode, .. } = &self.socket {
            // Another process may have replaced the file by its own: that one stays.
            let ours = path.symlink_metadata().is_ok_and(|file| {
                (file.dev(), file.ino()) == *inode && file.file_type().is_socket()
            });
            if ours && let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("cannot remove the socket {}: {error}", path.display());
            }
        }
    }
}

/// Returns why `url` cannot be listened on, and what to do.
fn reason(url: &Url, error: &io::Error) -> String {
    let errno = Errno::from_io_error(error);
    let what_to_do = match (url, errno) {
        (Url::Unix(path), Some(Errno::ADDRINUSE)) => {
            let is_socket = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
            if !is_socket {
                return "what is there is a file and not a socket; choose another path, or remove \
                        it if nobody needs it"
                    .to_string();
            }
            "another process listens there; end that one, or choose another path".to_string()
        }
        (Url::Unix(path), Some(Errno::NOENT)) => {
            let directory = path.parent().unwrap_or(path);
            format!("make the directory {} first, or choose another path", directory.display())
        }
        (Url::Unix(_), Some(Errno::NAMETOOLONG)) => {
            "a socket's path has at most 107 bytes; choose a shorter path".to_string()
        }
        (Url::Unix(_), Some(Errno::ACCESS | Errno::PERM)) => {
            "choose a directory that this user may write to".to_string()
        }
        (Url::Unix(_), _) => "choose another path".to_string(),
        (_, Some(Errno::ADDRINUSE)) => {
            "another process listens there; end that one, or choose another port".to_string()
        }
        (_, Some(Errno::ACCESS | Errno::PERM)) => {
            "choose a port above 1023, or let mirror use it (CAP_NET_BIND_SERVICE)".to_string()
        }
        _ => "write an address of this machine, or [::] for all that it has".to_string(),
    };
    format!("{error}; {what_to_do}")
}

fn bind_tcp(at: &HostPort) -> io::Result<TcpListener> {
    let addresses: Vec<SocketAddr> = match known_addresses(at) {
        Some(addresses) => addresses.into(),
        // Blocking on a name is harmless here: nothing else runs yet.
        None => (at.host.as_str(), at.port).to_socket_addrs()?.collect(),
    };
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Listens on a socket file that only its owner may connect to.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            bind_private(path)
        }
        result => result,
    }
}

/// The mode is set before the file exists, which gets it from the socket: at no moment may
/// somebody else connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from_std(socket.into()))
}

/// Returns whether `path` is a socket that a process left behind when it was killed.
fn is_stale(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
