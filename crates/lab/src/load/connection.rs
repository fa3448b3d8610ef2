//! Where requests go, and sockets on the way there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::str::FromStr;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;

/// An HTTP resource at a numeric address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    address: SocketAddr,
    path: String,
}

/// Why a URL is no target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// Only plain HTTP is spoken.
    #[error("target {0:?}: must begin with http://")]
    Scheme(String),
    /// Names are not resolved: a lookup would be part of the response time.
    #[error("target {0:?}: the host must be an IP address, with a port if it is not 80")]
    Address(String),
    /// It would break the request line.
    #[error("target {0:?}: the path holds a blank or a control character")]
    Path(String),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let rest = url.strip_prefix("http://").ok_or_else(|| TargetError::Scheme(url.to_owned()))?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(TargetError::Path(url.to_owned()));
        }
        let address = parse_authority(authority).ok_or_else(|| TargetError::Address(url.to_owned()))?;
        Ok(Self { address, path: path.to_owned() })
    }
}

fn parse_authority(authority: &str) -> Option<SocketAddr> {
    let bare = || authority.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(authority).parse();
    authority.parse().ok().or_else(|| Some(SocketAddr::new(bare().ok()?, 80)))
}

impl Target {
    /// Address and port of the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The octets of one request.
    pub(super) fn request(&self, keepalive: bool) -> Vec<u8> {
        let host = match (self.address.port(), self.address.ip()) {
            (80, IpAddr::V4(address)) => address.to_string(),
            (80, IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.address.to_string(),
        };
        let connection = if keepalive { "keep-alive" } else { "close" };
        format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n", self.path).into_bytes()
    }
}

/// Starts a connection; it stands once the socket is writable and has no error.
///
/// The server closes first (`Connection: close`), so TIME-WAIT stays on its side and ports are free again at once.
pub(super) fn open(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(source) = source {
        // Without it bind(2) takes a port for the source address alone: 28 000 for all targets together.
        bind_address_no_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the descriptor is open and `on` is a C int that outlives the call. Linux takes the IPv4 level for
    // IPv6 sockets too.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_with_an_optional_port() {
        let target: Target = "http://10.100.0.1/".parse().unwrap();
        assert_eq!(target.address(), "10.100.0.1:80".parse().unwrap());
        assert_eq!(target.request(false), b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nConnection: close\r\n\r\n");
        let target: Target = "http://[::1]:8080/page?x=1".parse().unwrap();
        assert_eq!(target.address(), "[::1]:8080".parse().unwrap());
        assert!(
            target
                .request(true)
                .starts_with(b"GET /page?x=1 HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: keep-alive")
        );
        assert_eq!("http://[::1]".parse::<Target>().unwrap().address(), "[::1]:80".parse().unwrap());
    }

    #[test]
    fn what_is_no_target_is_refused() {
        let refuse = |url: &str| url.parse::<Target>().unwrap_err();
        assert!(matches!(refuse("https://10.0.0.1/"), TargetError::Scheme(_)));
        assert!(matches!(refuse("http://example.org/"), TargetError::Address(_)));
        assert!(matches!(refuse("http://10.0.0.1/a b"), TargetError::Path(_)));
    }
}
