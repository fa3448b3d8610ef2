//! Why a probe failed, in words that name who was asked for what.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

use super::probe::StatusRange;
use crate::balancer::neighbour;

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// Backend: nothing within the time given.
    #[error("{peer}: no {phase} within {} ms", after.as_millis())]
    Timeout {
        /// Who was asked.
        peer: Peer,
        /// What did not come.
        phase: Phase,
        /// The time given.
        after: Duration,
    },
    /// Backend: it, or something before it, said no.
    #[error("{peer}: expected a {phase}, got: {reason}")]
    Refused {
        /// Who was asked.
        peer: Peer,
        /// What did not come.
        phase: Phase,
        /// What the kernel said.
        reason: String,
    },
    /// Backend: an HTTP status that is not among the expected ones.
    #[error("{peer}: GET {path} answered {seen}, expected {}", Ranges(expected))]
    Status {
        /// Who was asked.
        peer: Peer,
        /// What was asked for.
        path: String,
        /// Statuses that would have been right.
        expected: Vec<StatusRange>,
        /// The status that came.
        seen: u16,
    },
    /// Backend: its answer is not HTTP, or broke off.
    #[error("{peer}: GET {path} answered no HTTP: {reason}")]
    NotHttp {
        /// Who was asked.
        peer: Peer,
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Backend: the probe was still running when the next one was due.
    #[error("no result within {} ms, when the next probe was due", after.as_millis())]
    Overdue {
        /// How long it had been running.
        after: Duration,
    },
    /// Here: the probe could not be made, which says nothing about the backend.
    #[error("{peer}: could not be asked: {operation}: {reason}")]
    Local {
        /// Who was to be asked.
        peer: Peer,
        /// What failed here.
        operation: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

impl Failure {
    /// Whether it tells nothing about the backend: we could not ask.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Local { .. })
    }

    /// What an error of the kernel means that came when something was sent. `route` says whether there is a way to the
    /// peer: the kernel has the same errors for a route of ours that leads nowhere and for an ICMP error of the far side.
    pub(super) fn sending(
        peer: Peer,
        phase: Phase,
        error: &io::Error,
        route: impl FnOnce() -> io::Result<()>,
    ) -> Self {
        const HERE: [i32; 9] = [
            libc::EADDRINUSE,
            libc::EADDRNOTAVAIL,
            libc::EAFNOSUPPORT,
            libc::EMFILE,
            libc::ENETDOWN,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENODEV,
            libc::EPERM,
        ];
        // A prohibit, a blackhole, an unreachable route and none. ICMPv6 has the first and the last as well, and a host
        // that does not answer ARP the third.
        const HERE_OR_THERE: [i32; 4] = [libc::EACCES, libc::EINVAL, libc::EHOSTUNREACH, libc::ENETUNREACH];
        match error.raw_os_error() {
            Some(code) if HERE.contains(&code) => Self::local(peer, "send", error),
            Some(code) if HERE_OR_THERE.contains(&code) => match route() {
                Err(error) => Self::local(peer, "find a route", &error),
                Ok(()) => Self::refused(peer, phase, error),
            },
            _ => Self::refused(peer, phase, error),
        }
    }

    pub(super) fn refused(peer: Peer, phase: Phase, error: &io::Error) -> Self {
        Self::Refused { peer, phase, reason: error.to_string() }
    }

    pub(super) fn local(peer: Peer, operation: &'static str, error: &io::Error) -> Self {
        Self::Local { peer, operation, reason: error.to_string() }
    }
}

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A port.
    Port(SocketAddr),
    /// An address.
    Address(IpAddr),
    /// An address in a VLAN.
    Neighbour(neighbour::Target),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Neighbour(target) => target.fmt(f),
        }
    }
}

/// What a probe waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The TCP handshake.
    Connection,
    /// Status line and headers.
    HttpAnswer,
    /// ICMP or ICMPv6 echo reply.
    EchoReply,
    /// ARP reply or Neighbour Advertisement.
    NeighbourAnswer,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "TCP connection",
            Self::HttpAnswer => "HTTP answer",
            Self::EchoReply => "echo reply",
            Self::NeighbourAnswer => "answer with its link-layer address",
        })
    }
}

struct Ranges<'a>(&'a [StatusRange]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            f.write_str(if position == 0 { "" } else { ", " })?;
            range.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_here_is_not_the_backends_fault() {
        let failure = |code, route: io::Result<()>| {
            let peer = Peer::Address(IpAddr::from([192, 0, 2, 1]));
            Failure::sending(peer, Phase::Connection, &io::Error::from_raw_os_error(code), || route)
        };
        let none = || Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        for code in [libc::EMFILE, libc::EADDRNOTAVAIL, libc::EPERM] {
            assert!(failure(code, Ok(())).is_local() && failure(code, none()).is_local(), "{code}");
        }
        for code in [libc::ECONNREFUSED, libc::ECONNRESET, libc::ETIMEDOUT] {
            assert!(!failure(code, Ok(())).is_local() && !failure(code, none()).is_local(), "{code}");
        }
        for code in [libc::EACCES, libc::EINVAL, libc::EHOSTUNREACH, libc::ENETUNREACH] {
            assert!(!failure(code, Ok(())).is_local() && failure(code, none()).is_local(), "{code}");
        }
    }

    #[test]
    fn statuses_are_told_apart() {
        let failure = Failure::Status {
            peer: Peer::Port("[2001:db8::1]:80".parse().unwrap()),
            path: "/ready".to_owned(),
            expected: vec!["200".parse().unwrap(), "300-399".parse().unwrap()],
            seen: 503,
        };
        assert_eq!(failure.to_string(), "[2001:db8::1]:80: GET /ready answered 503, expected 200, 300-399");
    }
}
