//! One probe of one backend, bounded in time.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout_at;

use super::failure::{Failure, Peer, Phase};
use super::icmp;
use crate::balancer::neighbour::Asker;
pub use crate::config::services::Check;

/// Any port would do where nothing is sent (RFC 863).
const DISCARD: u16 = 9;

/// A backend as probes reach it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its own address, not the VIP.
    pub address: IpAddr,
    /// Send through this device only (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// Send from this address, which must be of the same family.
    pub source: Option<IpAddr>,
    /// For [`Check::Arp`]: who asks, and in which VLAN.
    pub neighbour: Option<(Asker, codec::neighbour::Vlan)>,
}

impl Endpoint {
    /// An address that is reached as the routes say.
    #[must_use]
    pub const fn new(address: IpAddr) -> Self {
        Self { address, device: None, source: None, neighbour: None }
    }
}

/// HTTP statuses from the first to the last, written `200` or `200-399`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// What counts as right unless told otherwise.
    pub const DEFAULT: Self = Self { first: 200, last: 399 };

    const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

/// Why a text is no range of statuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no HTTP status and no range like 200-399 between 100 and 599")]
pub struct StatusRangeError(String);

impl FromStr for StatusRange {
    type Err = StatusRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || StatusRangeError(text.to_owned());
        let status = |part: &str| part.parse().ok().filter(|s| (100..600).contains(s)).ok_or_else(wrong);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: status(first)?, last: status(last)? };
        if range.first <= range.last { Ok(range) } else { Err(wrong()) }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Probes a backend; the answer takes `timeout` at most.
///
/// # Errors
/// [`Failure`]; [`Failure::is_local`] if it says nothing about the backend.
pub async fn probe(check: &Check, endpoint: &Endpoint, timeout: Duration) -> Result<(), Failure> {
    let until = Until { at: tokio::time::Instant::now() + timeout, after: timeout };
    match check {
        Check::Tcp { port } => connect(endpoint, *port, until).await.map(drop),
        Check::Http { port, path, host, status } => {
            let stream = connect(endpoint, *port, until).await?;
            let to = SocketAddr::new(endpoint.address, *port);
            let host = host.clone().unwrap_or_else(|| to.to_string());
            // In a box, or every other probe would be as large.
            let asked = Box::pin(get(stream, to, path, &host));
            let seen = until.bound(asked, Peer::Port(to), Phase::HttpAnswer).await??;
            right_status(to, path, status, seen)
        }
        Check::Icmp => {
            let peer = Peer::Address(endpoint.address);
            until.bound(icmp::echo(endpoint), peer, Phase::EchoReply).await?
        }
        Check::Arp => ask(endpoint, until).await,
    }
}

#[derive(Clone, Copy)]
struct Until {
    at: tokio::time::Instant,
    after: Duration,
}

impl Until {
    async fn bound<T>(self, step: impl Future<Output = T>, peer: Peer, phase: Phase) -> Result<T, Failure> {
        let late = |_| Failure::Timeout { peer, phase, after: self.after };
        timeout_at(self.at, step).await.map_err(late)
    }
}

async fn connect(endpoint: &Endpoint, port: u16, until: Until) -> Result<TcpStream, Failure> {
    let to = SocketAddr::new(endpoint.address, port);
    let peer = Peer::Port(to);
    let socket = bound(endpoint).map_err(|(operation, error)| Failure::local(peer, operation, &error))?;
    let connected = until.bound(socket.connect(to), peer, Phase::Connection).await?;
    connected.map_err(|error| Failure::sending(peer, Phase::Connection, &error, || route(endpoint)))
}

/// What the kernel says when it only looks up the way and sends nothing: no answer of anybody else's. If it cannot even
/// be asked, what is missing is missing here.
pub(super) fn route(endpoint: &Endpoint) -> io::Result<()> {
    let domain = if endpoint.address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = &endpoint.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = endpoint.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&SocketAddr::new(endpoint.address, DISCARD).into())
}

fn bound(endpoint: &Endpoint) -> Result<TcpSocket, (&'static str, io::Error)> {
    let socket = if endpoint.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| ("open a socket", error))?;
    if let Some(device) = &endpoint.device {
        socket.bind_device(Some(device.as_bytes())).map_err(|error| ("bind to the device", error))?;
    }
    if let Some(source) = endpoint.source {
        socket.bind(SocketAddr::new(source, 0)).map_err(|error| ("bind to the source address", error))?;
    }
    Ok(socket)
}

/// The status that the backend answers with.
async fn get(stream: TcpStream, to: SocketAddr, path: &str, host: &str) -> Result<u16, Failure> {
    let wrong = |reason: String| Failure::NotHttp { peer: Peer::Port(to), path: path.to_owned(), reason };
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(String::new())
        .map_err(|error| wrong(error.to_string()))?;
    let handshake = http1::handshake::<_, String>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| wrong(cause(&error)))?;
    let answer = sender.send_request(request);
    let answer = tokio::select! {
        answer = answer => answer,
        // Whatever ended the connection is the answer's error too.
        Err(error) = connection => Err(error),
    };
    Ok(answer.map_err(|error| wrong(cause(&error)))?.status().as_u16())
}

fn right_status(to: SocketAddr, path: &str, expected: &[StatusRange], seen: u16) -> Result<(), Failure> {
    let expected = if expected.is_empty() { &[StatusRange::DEFAULT] } else { expected };
    if expected.iter().any(|range| range.contains(seen)) {
        return Ok(());
    }
    Err(Failure::Status { peer: Peer::Port(to), path: path.to_owned(), expected: expected.to_vec(), seen })
}

async fn ask(endpoint: &Endpoint, until: Until) -> Result<(), Failure> {
    let Some((asker, vlan)) = &endpoint.neighbour else {
        let nobody = io::Error::other("nothing resolves link-layer addresses here");
        return Err(Failure::local(Peer::Address(endpoint.address), "ask for the neighbour", &nobody));
    };
    let target = crate::balancer::neighbour::Target { vlan: *vlan, address: endpoint.address };
    let peer = Peer::Neighbour(target);
    let answered = until.bound(asker.ask(target), peer, Phase::NeighbourAnswer).await?;
    answered.map_err(|error| Failure::local(peer, "ask for the neighbour", &error))
}

/// The innermost cause says what happened; the outer ones only that a request failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
