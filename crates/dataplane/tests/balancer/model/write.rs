//! Rule 9 and the answer to an echo request: what is written.

use std::net::Ipv6Addr;

use bpf_abi::BalancerReason;
use bpf_abi::balancer::{BackendValue, TunnelValue};

use super::packet::Packet;
use super::segment::{Place, Tunnel};
use super::{State, be16};

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), over all words that change.
pub(crate) fn adjusted(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let words =
        |bytes: &[u8]| -> Vec<u16> { (0..bytes.len()).step_by(2).map(|at| be16(bytes, at)).collect() };
    let mut sum = u64::from(!checksum);
    sum += words(old).iter().map(|word| u64::from(!word)).sum::<u64>();
    sum += words(new).iter().map(|word| u64::from(*word)).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Where 0 is wrong: in UDP it says that there is no checksum (RFC 768), and over an ICMP message of zeros nobody takes
/// it. All ones are right wherever 0 is.
fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(super) fn echo_reply(frame: &[u8], network: usize, packet: &Packet<'_>) -> Vec<u8> {
    let mut reply = frame.to_vec();
    put(&mut reply, 0, &frame[6..12]);
    put(&mut reply, 6, &frame[..6]);
    let (source, octets) = if packet.v6 { (network + 8, 16) } else { (network + 12, 4) };
    put(&mut reply, source, &frame[source + octets..source + 2 * octets]);
    put(&mut reply, source + octets, &frame[source..source + octets]);
    reply[network + if packet.v6 { 7 } else { 8 }] = 64;
    if !packet.v6 {
        // The swap of addresses leaves the sum as it was.
        let ttl = network + 8..network + 10;
        let checksum = adjusted(be16(frame, network + 10), &frame[ttl.clone()], &reply[ttl]);
        put(&mut reply, network + 10, &checksum.to_be_bytes());
    }
    let icmp = network + packet.header;
    reply[icmp] = if packet.v6 { 129 } else { 0 };
    let checksum = adjusted(be16(frame, icmp + 2), &frame[icmp..icmp + 2], &reply[icmp..icmp + 2]);
    put(&mut reply, icmp + 2, &not_zero(checksum).to_be_bytes());
    reply
}

impl State {
    pub(super) fn backend(&self, index: u32) -> BackendValue {
        self.backends.get(&index).copied().unwrap_or_default()
    }

    pub(super) fn forwarded(
        &self,
        frame: &[u8],
        place: &Place,
        index: u32,
    ) -> Result<Vec<u8>, BalancerReason> {
        let backend = self.backend(index);
        let mut out = frame.to_vec();
        put(&mut out, 6, &self.node.mac);
        if let Some(tunnel) = &place.tunnel {
            let end = self.tunnels.get(&index).copied().unwrap_or_default();
            self.to_tunnel(&mut out, tunnel, &backend, &end)?;
            return Ok(out);
        }
        put(&mut out, 0, &backend.mac);
        let vids: &[u32] = match place.tags {
            0 => &[],
            1 if be16(frame, 12) == 0x8100 => &[backend.segment & 0xfff],
            _ => &[backend.segment >> 12 & 0xfff, backend.segment & 0xfff][..place.tags],
        };
        for (tag, vid) in vids.iter().enumerate() {
            let at = 14 + 4 * tag;
            let tci = be16(frame, at) & 0xf000 | u16::try_from(*vid).unwrap();
            put(&mut out, at, &tci.to_be_bytes());
        }
        Ok(out)
    }

    fn to_tunnel(
        &self,
        out: &mut [u8],
        tunnel: &Tunnel,
        backend: &BackendValue,
        end: &TunnelValue,
    ) -> Result<(), BalancerReason> {
        let old = out.to_vec();
        let ttl = tunnel.network + if tunnel.v6 { 7 } else { 8 };
        if old[ttl] <= 1 {
            return Err(BalancerReason::DropTtl);
        }
        // Not written, where that is no address of the family.
        if Ipv6Addr::from(end.vtep).to_canonical().is_ipv6() != tunnel.v6 {
            return Err(BalancerReason::DropNotReady);
        }
        let (addresses, octets) = addresses(tunnel);
        put(out, 0, &end.mac);
        out[ttl] -= 1;
        put(out, addresses, &old[addresses + octets..addresses + 2 * octets]);
        put(out, addresses + octets, &end.vtep[16 - octets..]);
        put(out, tunnel.inner(), &backend.mac);
        put(out, tunnel.inner() + 6, &self.node.mac);
        put(out, tunnel.header() + 4, &backend.segment.to_be_bytes()[1..]);
        if !tunnel.v6 {
            let at = tunnel.network + 10;
            let checksum = adjusted(be16(&old, at), &under_ipv4(&old, tunnel), &under_ipv4(out, tunnel));
            put(out, at, &checksum.to_be_bytes());
        }
        let at = tunnel.udp + 6;
        if be16(&old, at) != 0 {
            let checksum = adjusted(be16(&old, at), &under_udp(&old, tunnel), &under_udp(out, tunnel));
            put(out, at, &not_zero(checksum).to_be_bytes());
        }
        Ok(())
    }
}

/// Offset of the outer addresses, and octets of one.
const fn addresses(tunnel: &Tunnel) -> (usize, usize) {
    if tunnel.v6 { (tunnel.network + 8, 16) } else { (tunnel.network + 12, 4) }
}

/// What changes under the outer IPv4 checksum: TTL and addresses.
fn under_ipv4(frame: &[u8], tunnel: &Tunnel) -> Vec<u8> {
    let header = &frame[tunnel.network..];
    [&header[8..10], &header[12..20]].concat()
}

/// What changes under the outer UDP checksum: addresses, VNI, inner link-layer addresses.
fn under_udp(frame: &[u8], tunnel: &Tunnel) -> Vec<u8> {
    let (at, octets) = addresses(tunnel);
    let vni = tunnel.header() + 4;
    [&frame[at..at + 2 * octets], &frame[vni..vni + 4], &frame[tunnel.inner()..tunnel.inner() + 12]].concat()
}
