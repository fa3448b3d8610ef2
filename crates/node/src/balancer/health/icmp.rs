//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 §4).

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::failure::{Failure, Peer, Phase};
use super::probe::{Endpoint, route};

/// Random octets that tell our reply from others'.
const TOKEN: usize = 16;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Longest packet that is looked at: ours, behind an IPv4 header with options.
const PACKET: usize = 128;

/// Sends an echo request and returns with its reply; waits for ever.
pub(super) async fn echo(endpoint: &Endpoint) -> Result<(), Failure> {
    let peer = Peer::Address(endpoint.address);
    let socket = open(endpoint).map_err(|(operation, error)| Failure::local(peer, operation, &error))?;
    let mut token = [0; TOKEN];
    getrandom::fill(&mut token)
        .map_err(|error| Failure::local(peer, "choose a token", &io::Error::other(error)))?;
    let v4 = endpoint.address.is_ipv4();
    let request = request(v4, token);
    // What the far side said to another probe's request may be told here before ours is sent.
    let unsent = |error| Failure::sending(peer, Phase::EchoReply, &error, || route(endpoint));
    socket.send(&request).await.map_err(unsent)?;
    let failed = |error| Failure::refused(peer, Phase::EchoReply, &error);
    let mut packet = [0; PACKET];
    loop {
        let length = socket.recv(&mut packet).await.map_err(failed)?;
        if is_reply(v4, &packet[..length], token) {
            return Ok(());
        }
    }
}

/// A raw socket; where that is not allowed, a ping socket (`net.ipv4.ping_group_range`).
fn open(endpoint: &Endpoint) -> Result<UdpSocket, (&'static str, io::Error)> {
    let (domain, protocol) = match endpoint.address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::DGRAM, Some(protocol)))
        .map_err(|error| ("open an ICMP socket (CAP_NET_RAW)", error))?;
    if let Some(device) = &endpoint.device {
        let bound = socket.bind_device(Some(device.as_bytes()));
        bound.map_err(|error| ("bind to the device", error))?;
    }
    if let Some(source) = endpoint.source {
        let bound = socket.bind(&SocketAddr::new(source, 0).into());
        bound.map_err(|error| ("bind to the source address", error))?;
    }
    socket.set_nonblocking(true).map_err(|error| ("set the socket up", error))?;
    // Connected, a socket gets only what its peer sends, and errors about what it sent.
    let connected = socket.connect(&SocketAddr::new(endpoint.address, 0).into());
    connected.map_err(|error| ("find a route", error))?;
    // The type stands for any datagram socket here: what it does is send and receive.
    UdpSocket::from_std(socket.into()).map_err(|error| ("poll the socket", error))
}

/// A ping socket replaces the identifier, and the kernel writes the checksum of ICMPv6.
fn request(v4: bool, token: [u8; TOKEN]) -> [u8; HEADER + TOKEN] {
    let mut message = [0; HEADER + TOKEN];
    message[0] = if v4 { 8 } else { 128 };
    message[4..6].copy_from_slice(&token[..2]);
    message[7] = 1;
    message[HEADER..].copy_from_slice(&token);
    if v4 {
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// Whether a packet that the socket got is the reply with our token. Raw IPv4 sockets get the IPv4 header too, which
/// begins with 0x45 to 0x4f: no type of message that a ping socket gets.
fn is_reply(v4: bool, packet: &[u8], token: [u8; TOKEN]) -> bool {
    let header = match packet.first() {
        Some(first) if v4 && first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let Some(message) = packet.get(header..) else { return false };
    let kind = if v4 { 0 } else { 129 };
    message.first() == Some(&kind) && message.get(HEADER..) == Some(&token)
}

fn checksum(message: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = message.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_told_from_everything_else() {
        let token = [7; TOKEN];
        let mut reply = request(true, token);
        assert_eq!(checksum(&reply), 0);
        assert!(!is_reply(true, &reply, token), "a request, as one hears from oneself");
        reply[0] = 0;
        let raw =
            |options: u8| [vec![0x45 + options], vec![0; 19 + 4 * usize::from(options)], reply.to_vec()];
        assert!(is_reply(true, &reply, token));
        assert!(is_reply(true, &raw(0).concat(), token));
        assert!(is_reply(true, &raw(10).concat(), token));
        assert!(!is_reply(true, &raw(0).concat(), [8; TOKEN]));
        let mut reply = request(false, token);
        reply[0] = 129;
        assert!(is_reply(false, &reply, token));
        for end in 0..reply.len() {
            assert!(!is_reply(false, &reply[..end], token));
        }
    }
}
