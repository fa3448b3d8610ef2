//! Map-Requests as an ITR sends them.

use core::net::{IpAddr, SocketAddr};

use super::config::XtrConfig;
use super::output::Outputs;
use crate::machine::Counter;
use crate::wire::{Address, CONTROL_PORT, EidPrefix, EncapsulatedControlMessage, MapRequest, Message};

/// A Map-Request for one prefix without any flag.
pub(super) fn map_request(config: &XtrConfig, eid: EidPrefix, nonce: u64) -> MapRequest {
    let itr_rlocs = config.rlocs.iter().copied().map(Address::Ip).collect();
    // The identity tells the Map-Server whose weights to answer with; it is not a proof of anything.
    MapRequest { xtr: Some(config.identity), ..MapRequest::new(nonce, itr_rlocs, eid) }
}

/// Sends a Map-Request to a Map-Resolver (RFC 9301 §5.8); `attempt` walks through the configured ones.
pub(super) fn send_to_resolver(
    config: &XtrConfig,
    mut request: MapRequest,
    eid: EidPrefix,
    attempt: usize,
    out: &mut Outputs,
) {
    let index = attempt.checked_rem(config.map_resolvers.len()).unwrap_or(0);
    let Some(&resolver) = config.map_resolvers.get(index) else { return };
    // The answer goes to the first ITR-RLOC of a family that the resolver can send to.
    request.itr_rlocs.sort_by_key(|a| a.ip().is_some_and(|ip| ip.is_ipv4() != resolver.is_ipv4()));
    let asked = eid.prefix.address();
    let own = |family_of: IpAddr| config.rlocs.iter().copied().find(|r| r.is_ipv4() == family_of.is_ipv4());
    // The inner header has one family: without an RLOC in that of the EID, the resolver stands in for the EID.
    let Some((source, destination)) =
        own(asked).map(|r| (r, asked)).or_else(|| own(resolver).map(|r| (r, resolver)))
    else {
        return out.count(Counter::NotEncodable);
    };
    let Ok(message) = Message::MapRequest(request).encode() else {
        return out.count(Counter::NotEncodable);
    };
    let encapsulated = EncapsulatedControlMessage {
        security: false,
        ddt: false,
        inner_source: SocketAddr::new(source, CONTROL_PORT),
        inner_destination: SocketAddr::new(destination, CONTROL_PORT),
        message,
    };
    out.send(SocketAddr::new(resolver, CONTROL_PORT), &Message::Encapsulated(encapsulated));
}
