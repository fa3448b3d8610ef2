//! One end of a flow that somebody asks about.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// `ADDRESS:PORT`, or `ADDRESS` where ports do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// With a port.
    Port(SocketAddr),
    /// Without.
    Address(IpAddr),
}

/// Why a text is not the end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Neither form.
    #[error(
        "`{0}` is not ADDRESS:PORT, e.g. 192.0.2.10:80 or [2001:db8::1]:80, nor ADDRESS, e.g. 192.0.2.10, which will do \
         where ports do not count"
    )]
    Form(String),
    /// An address where ports count.
    #[error("`{0}` has no port: expected ADDRESS:PORT, e.g. 192.0.2.10:80 or [2001:db8::1]:80")]
    NoPort(IpAddr),
}

impl Endpoint {
    /// Address and port; port 0 for an address alone, if ports do not count.
    ///
    /// # Errors
    /// [`EndpointError::NoPort`] if they do.
    pub const fn socket(self, ports_count: bool) -> Result<SocketAddr, EndpointError> {
        match self {
            Self::Port(socket) => Ok(socket),
            Self::Address(address) if ports_count => Err(EndpointError::NoPort(address)),
            Self::Address(address) => Ok(SocketAddr::new(address, 0)),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = |_| text.parse().map(Self::Address);
        let parsed = text.parse().map(Self::Port).or_else(address);
        parsed.map_err(|_| EndpointError::Form(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for text in ["192.0.2.10:80", "[2001:db8::1]:80", "192.0.2.10", "2001:db8::1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_neither_is_told_the_forms_and_what_was_written() {
        for text in ["192.0.2.1:70000", "192.0.2", "[2001:db8::1]", "host:80", ""] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not ADDRESS:PORT")), "{error}");
            assert!(error.contains("nor ADDRESS"), "{error}");
        }
    }

    #[test]
    fn an_address_will_do_where_ports_do_not_count() {
        let address: Endpoint = "192.0.2.10".parse().unwrap();
        assert_eq!(address.socket(false), Ok("192.0.2.10:0".parse().unwrap()));
        assert_eq!(address.socket(true), Err(EndpointError::NoPort("192.0.2.10".parse().unwrap())));
    }
}
