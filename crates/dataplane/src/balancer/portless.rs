//! Which backend gets a packet that has no ports, or is about a flow: fragments and ICMP, by rules 4 and 6 of
//! `docs/balancer.md`.

use std::fmt;
use std::str::FromStr;

use bpf_abi::balancer::{VIP_ECHO, VipValue};

use crate::balancer::desired::VipId;
use crate::balancer::explain::{Explanation, FlowQuery, LookUp, Verdict, by_rule_8, explain, nobody};

/// Which packet is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacketKind {
    /// One of the flow, with its ports.
    #[default]
    Transport,
    /// A fragment from the flow's source; ports do not count.
    Fragment,
    /// An ICMP error to the VIP that quotes a packet from the VIP to the flow's source, whoever sends it.
    IcmpError,
    /// An ICMP echo request to the VIP's address; ports and protocol do not count.
    EchoRequest,
}

/// A word that names no kind of packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not transport, fragment, icmp-error or echo-request")]
pub struct PacketKindError(String);

impl PacketKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Transport, Self::Fragment, Self::IcmpError, Self::EchoRequest];

    /// Whether ports of the flow count.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Transport | Self::IcmpError)
    }

    /// Whether one may begin a connection.
    #[must_use]
    pub const fn may_be_first(self) -> bool {
        matches!(self, Self::Transport)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::Fragment => "fragment",
            Self::IcmpError => "icmp-error",
            Self::EchoRequest => "echo-request",
        }
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PacketKind {
    type Err = PacketKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|kind| kind.name() == text);
        named.ok_or_else(|| PacketKindError(text.to_owned()))
    }
}

/// What the program would do with a packet of this kind.
///
/// # Errors
/// If something cannot be looked up.
pub(crate) fn explain_packet<L: LookUp>(
    maps: &L,
    query: &FlowQuery,
    packet: PacketKind,
) -> Result<Explanation, L::Error> {
    match packet {
        PacketKind::Transport => explain(maps, query),
        PacketKind::Fragment => fragment(maps, query),
        PacketKind::IcmpError => icmp_error(maps, query),
        PacketKind::EchoRequest => echo_request(maps, query),
    }
}

/// Rule 4.
fn fragment<L: LookUp>(maps: &L, query: &FlowQuery) -> Result<Explanation, L::Error> {
    let id = VipId { port: 0, ..query.vip() };
    if let Some(entry) = maps.vip(&id)? {
        let vip = taker(maps, &id, &entry)?.unwrap_or(id);
        let later = FlowQuery { first: false, ..*query };
        let explained = by_rule_8(maps, &vip, &entry, &later)?;
        let because = format!(
            "fragments have no ports and go to the VIP of their address and protocol that hashes by addresses (rule 4): \
             {}",
            explained.because
        );
        return Ok(Explanation { because, ..explained });
    }
    if maps.address(&id)?.is_none() {
        return Ok(nobody(Verdict::PassNoVip, no_address(&id, 4)));
    }
    let because = format!(
        "no VIP of {} and {} hashes by addresses, so none takes its fragments (rule 4)",
        id.address, id.protocol
    );
    Ok(nobody(Verdict::DropFragment, because))
}

/// The VIP that an entry of fragments is of.
fn taker<L: LookUp>(maps: &L, id: &VipId, entry: &VipValue) -> Result<Option<VipId>, L::Error> {
    let alike = |other: &VipId| other.segment == id.segment && other.protocol == id.protocol;
    for other in maps.others(id).into_iter().filter(alike) {
        if maps.vip(&other)?.is_some_and(|value| value.id == entry.id) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Rule 6, errors.
fn icmp_error<L: LookUp>(maps: &L, query: &FlowQuery) -> Result<Explanation, L::Error> {
    let explained = explain(maps, &FlowQuery { first: false, ..*query })?;
    let (verdict, how) = match explained.verdict {
        Verdict::PassNoVip if maps.address(&query.vip())?.is_some() => {
            (Verdict::PassIcmp, "the packet that it quotes is of no VIP, so the stack gets it (rule 6)")
        }
        Verdict::Forwarded | Verdict::ForwardedFlow | Verdict::ForwardedPrevious => (
            Verdict::IcmpRelayed,
            "it goes where packets of the flow that it quotes go, like one that begins no connection (rule 6)",
        ),
        verdict => (verdict, "it would go where packets of the flow that it quotes go (rule 6)"),
    };
    let because = format!("{how}: {}", explained.because);
    Ok(Explanation { verdict, because, ..explained })
}

/// Rule 6, echo requests.
fn echo_request<L: LookUp>(maps: &L, query: &FlowQuery) -> Result<Explanation, L::Error> {
    let id = query.vip();
    let Some(entry) = maps.address(&id)? else {
        return Ok(nobody(Verdict::PassNoVip, no_address(&id, 6)));
    };
    let (verdict, because) = if id.segment.kind().is_tunnel() {
        (Verdict::PassIcmp, "echo requests inside tunnels are left to the stack (rule 6)")
    } else if entry.flags & VIP_ECHO == 0 {
        (Verdict::PassIcmp, "no VIP of the address has `echo`, so the stack gets it (rule 6)")
    } else {
        (Verdict::EchoAnswered, "the balancer answers itself, and no backend sees it (rule 6)")
    };
    Ok(nobody(verdict, because.to_owned()))
}

fn no_address(id: &VipId, rule: u8) -> String {
    format!("no VIP has the address {} in segment {} (rule {rule})", id.address, id.segment)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::IpAddr;

    use bpf_abi::FlowKey;
    use bpf_abi::balancer::{BACKEND_USABLE, BackendValue, BalancedFlowValue, VIP_BY_ADDRESSES};

    use super::*;
    use crate::balancer::desired::{Protocol, Segment};
    use crate::balancer::table::Table;

    /// VIPs of one address in one segment: port, flags. All slots name the backend of the VIP's port.
    struct Maps {
        vips: Vec<(u16, u32)>,
        segment: Segment,
        usable: bool,
    }

    impl Maps {
        fn value(&self, port: u16) -> Option<VipValue> {
            let (port, flags) = self.vips.iter().find(|(of, _)| *of == port)?;
            let port = u32::from(*port);
            Some(VipValue { id: port, flags: *flags, size: 251, table: port, ..VipValue::default() })
        }
    }

    impl LookUp for Maps {
        type Error = Infallible;

        fn vip(&self, id: &VipId) -> Result<Option<VipValue>, Infallible> {
            if id.segment != self.segment || id.protocol != Protocol::Udp {
                return Ok(None);
            }
            let by_addresses = self.vips.iter().find(|(_, flags)| flags & VIP_BY_ADDRESSES != 0);
            let port = if id.port == 0 { by_addresses.map(|(port, _)| *port) } else { Some(id.port) };
            Ok(port.and_then(|port| self.value(port)))
        }

        fn address(&self, id: &VipId) -> Result<Option<VipValue>, Infallible> {
            let flags = self.vips.iter().fold(0, |all, (_, flags)| all | flags);
            let there = id.segment == self.segment && !self.vips.is_empty();
            Ok(there.then_some(VipValue { flags, ..VipValue::default() }))
        }

        fn seed(&self) -> Result<u32, Infallible> {
            Ok(7)
        }

        fn slot(&self, table: Table, _: u32) -> Option<u16> {
            u16::try_from(table.first()).ok()
        }

        fn backend(&self, _: u16) -> Result<BackendValue, Infallible> {
            let flags = if self.usable { BACKEND_USABLE } else { 0 };
            Ok(BackendValue { flags, ..BackendValue::default() })
        }

        fn vtep(&self, _: u16) -> Result<Option<IpAddr>, Infallible> {
            Ok(None)
        }

        fn vteps(&self) -> Result<Vec<IpAddr>, Infallible> {
            Ok(Vec::new())
        }

        fn flow(&self, _: &FlowKey) -> Result<Option<BalancedFlowValue>, Infallible> {
            Ok(None)
        }

        fn name(&self, vip: &VipId, _: u16) -> Option<String> {
            Some(format!("of port {}", vip.port))
        }

        fn others(&self, id: &VipId) -> Vec<VipId> {
            self.vips.iter().map(|(port, _)| VipId { port: *port, segment: self.segment, ..*id }).collect()
        }
    }

    const QUERY: FlowQuery = FlowQuery {
        segment: Segment::NONE,
        source: IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
        source_port: 1000,
        destination: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10)),
        destination_port: 53,
        protocol: Protocol::Udp,
        first: true,
    };

    fn site(vips: &[(u16, u32)]) -> Maps {
        Maps { vips: vips.to_vec(), segment: Segment::NONE, usable: true }
    }

    fn verdict(maps: &Maps, query: FlowQuery, packet: PacketKind) -> (Verdict, Option<String>) {
        let Ok(explained) = explain_packet(maps, &query, packet);
        assert!(explained.because.contains("(rule "), "{}", explained.because);
        (explained.verdict, explained.backend)
    }

    #[test]
    fn fragments_go_to_the_vip_that_hashes_by_addresses_whatever_their_ports() {
        let maps = site(&[(53, 0), (80, VIP_BY_ADDRESSES)]);
        let of_80 = Some("of port 80".to_owned());
        assert_eq!(verdict(&maps, QUERY, PacketKind::Fragment), (Verdict::Forwarded, of_80));
        let none = site(&[(53, 0)]);
        assert_eq!(verdict(&none, QUERY, PacketKind::Fragment), (Verdict::DropFragment, None));
        let tcp = FlowQuery { protocol: Protocol::Tcp, ..QUERY };
        assert_eq!(verdict(&maps, tcp, PacketKind::Fragment), (Verdict::DropFragment, None));
        let elsewhere = FlowQuery { segment: "802.1q:7".parse().unwrap(), ..QUERY };
        assert_eq!(verdict(&maps, elsewhere, PacketKind::Fragment), (Verdict::PassNoVip, None));
        let lost = Maps { usable: false, ..maps };
        assert_eq!(verdict(&lost, QUERY, PacketKind::Fragment), (Verdict::DropNoBackend, None));
    }

    #[test]
    fn errors_go_where_the_flow_goes_that_they_quote() {
        let maps = site(&[(53, 0)]);
        let relayed = (Verdict::IcmpRelayed, Some("of port 53".to_owned()));
        assert_eq!(verdict(&maps, QUERY, PacketKind::IcmpError), relayed);
        let other = FlowQuery { destination_port: 54, ..QUERY };
        assert_eq!(verdict(&maps, other, PacketKind::IcmpError), (Verdict::PassIcmp, None));
        assert_eq!(verdict(&site(&[]), QUERY, PacketKind::IcmpError), (Verdict::PassNoVip, None));
        let lost = Maps { usable: false, ..maps };
        assert_eq!(verdict(&lost, QUERY, PacketKind::IcmpError), (Verdict::DropNoBackend, None));
    }

    #[test]
    fn echo_requests_are_answered_where_that_is_wanted() {
        let echo = |maps: &Maps, query| verdict(maps, query, PacketKind::EchoRequest);
        assert_eq!(echo(&site(&[(53, 0), (80, VIP_ECHO)]), QUERY), (Verdict::EchoAnswered, None));
        assert_eq!(echo(&site(&[(53, 0)]), QUERY), (Verdict::PassIcmp, None));
        assert_eq!(echo(&site(&[]), QUERY), (Verdict::PassNoVip, None));
        let segment = "vxlan:7".parse().unwrap();
        let tunnelled = Maps { segment, ..site(&[(53, VIP_ECHO)]) };
        assert_eq!(echo(&tunnelled, FlowQuery { segment, ..QUERY }), (Verdict::PassIcmp, None));
    }

    #[test]
    fn kinds_are_named() {
        for kind in PacketKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "ping".parse::<PacketKind>().unwrap_err();
        assert!(error.to_string().contains("`ping` is not transport"), "{error}");
    }
}
