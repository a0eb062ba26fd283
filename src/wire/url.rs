//! Transports' addresses, as people write them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port when none is given.
pub const DEFAULT_PORT: u16 = 6477;

/// Where an upstream is, or where a source listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// `tls://HOST:PORT`, and what a bare `HOST[:PORT]` means.
    Tls(HostPort),
    /// `tcp://HOST:PORT`, plaintext.
    Tcp(HostPort),
    /// `unix:/PATH`.
    Unix(PathBuf),
    /// `ssh://[USER@]HOST/PATH`.
    Ssh(String),
}

/// A host's name or address, with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Why text is not a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not one of the schemes.
    #[error("unknown scheme \"{0}\"; use tls://HOST:PORT, tcp://HOST:PORT or unix:/PATH")]
    Scheme(String),
    /// Not a host and port.
    #[error("\"{0}\" is not HOST, HOST:PORT or [ADDRESS]:PORT")]
    HostPort(String),
    /// A socket's path must be absolute, or the working directory would decide.
    #[error("the socket's path in \"{0}\" must be absolute, as in unix:/run/mirror.sock")]
    RelativePath(String),
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
            if !path.starts_with('/') {
                return Err(UrlError::RelativePath(text.to_string()));
            }
            return Ok(Url::Unix(PathBuf::from(path)));
        }
        match text.split_once("://") {
            None => Ok(Url::Tls(text.parse()?)),
            Some(("tls", rest)) => Ok(Url::Tls(rest.parse()?)),
            Some(("tcp", rest)) => Ok(Url::Tcp(rest.parse()?)),
            Some(("ssh", rest)) if !rest.is_empty() => Ok(Url::Ssh(rest.to_string())),
            Some((scheme, _)) => Err(UrlError::Scheme(scheme.to_string())),
        }
    }
}

impl FromStr for HostPort {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let error = || UrlError::HostPort(text.to_string());
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or_else(error)?;
            let port = match port {
                "" => None,
                _ => Some(port.strip_prefix(':').ok_or_else(error)?),
            };
            (host, port)
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => (text, None), // A bare IPv6 address.
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let forbidden = |c: char| c == '/' || c == '@' || c.is_whitespace() || c.is_control();
        if host.is_empty() || host.contains(forbidden) {
            return Err(error());
        }
        let port = match port {
            Some(port) => port.parse().map_err(|_| error())?,
            None => DEFAULT_PORT,
        };
        Ok(HostPort { host: host.to_string(), port })
    }
}

impl HostPort {
    /// Returns whether the host is this machine by its name or address alone.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<core::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Url::Tls(at) => write!(f, "tls://{at}"),
            Url::Tcp(at) => write!(f, "tcp://{at}"),
            Url::Unix(path) => write!(f, "unix:{}", path.display()),
            Url::Ssh(rest) => write!(f, "ssh://{rest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, shown) in [
            ("backup", "tls://backup:6477"),
            ("backup:7000", "tls://backup:7000"),
            ("tcp://[::1]:7000", "tcp://[::1]:7000"),
            ("tcp://127.0.0.1", "tcp://127.0.0.1:6477"),
            ("tls://::1", "tls://[::1]:6477"),
            ("unix:/run/m.sock", "unix:/run/m.sock"),
            ("unix:///run/m.sock", "unix:/run/m.sock"),
            ("ssh://me@host/srv", "ssh://me@host/srv"),
        ] {
            assert_eq!(text.parse::<Url>().unwrap().to_string(), shown);
        }
        for bad in
            ["", "http://x", "tcp://", "tcp://h:", "tcp://h:99999", "unix:run/x", "[::1", "a/b"]
        {
            assert!(bad.parse::<Url>().is_err(), "{bad:?}");
        }
    }
}
