//! Rule 7: many VIPs at one address, in one segment and in many. Nobody's packets reach another's backends.

use bpf_abi::BalancerReason::{Forwarded, ForwardedFlow, IcmpRelayed, PassNoVip};
use bpf_abi::balancer::VIP_FLOW_TABLE;
use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, GENEVE, NONE, VXLAN};

use super::{Case, refused, sent};
use crate::PROTOCOLS;
use crate::frames::{ACK, Flow, Tag, flow, frame, icmp, service_tag, tag, vip};
use crate::model::{SCTP, State, TCP};
use crate::site::{OTHER, Vip, flow_key};

/// Segments in which tenants use the same address.
const SEGMENTS: [u32; 8] = [
    NONE,
    DOT1Q | 100,
    DOT1Q | 101,
    DOT1AD | 100 << 12,
    DOT1AD | 100 << 12 | 100,
    DOT1AD | 101 << 12 | 100,
    VXLAN | 100,
    GENEVE | 100,
];
const PORTS: [u16; 3] = [80, 443, 20_480];

pub(crate) fn cases() -> Vec<Case> {
    let site = tenants();
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for (tenant, segment) in SEGMENTS.iter().enumerate() {
            let Some(tags) = tags(*segment) else { continue };
            for protocol in PROTOCOLS {
                for (at, port) in PORTS.iter().enumerate() {
                    let index = index(tenant, protocol, at, v6);
                    let flow = Flow { destination_port: *port, ..flow(v6) };
                    let name = format!("tenant {tenant}, port {port}, protocol {protocol}, v6 {v6}");
                    cases.extend(of_one(&site, name, &tags, &flow, protocol, index));
                }
                let nobody = Flow { destination_port: 8080, ..flow(v6) };
                let name = format!("tenant {tenant}, a port of nobody, protocol {protocol}, v6 {v6}");
                cases.push(refused(name, &site, frame(&tags, &packet(&nobody, protocol)), PassNoVip));
            }
        }
    }
    cases.extend(same_flow());
    cases
}

/// Its packet, and an error about its packet.
fn of_one(site: &State, name: String, tags: &[Tag], flow: &Flow, protocol: u8, index: u32) -> Vec<Case> {
    let whole = frame(tags, &packet(flow, protocol));
    let error = frame(tags, &icmp::too_big(&packet(&flow.reply(), protocol)));
    let sent = |name: String, frame, reason| sent(name, site, frame, reason, index).of_vip(index);
    vec![sent(name.clone(), whole, Forwarded), sent(name + ", error", error, IcmpRelayed)]
}

fn packet(flow: &Flow, protocol: u8) -> Vec<u8> {
    match protocol {
        TCP => flow.tcp(ACK),
        SCTP => flow.sctp(1),
        _ => flow.udp(),
    }
}

fn tags(segment: u32) -> Option<Vec<Tag>> {
    let (service, customer) = ((segment >> 12 & 0xfff) as u16, (segment & 0xfff) as u16);
    match segment & bpf_abi::balancer::segment::KIND {
        NONE => Some(Vec::new()),
        DOT1Q => Some(vec![tag(customer)]),
        DOT1AD if customer == 0 => Some(vec![service_tag(service)]),
        DOT1AD => Some(vec![service_tag(service), tag(customer)]),
        _ => None,
    }
}

/// VIP and backend have one number.
fn index(tenant: usize, protocol: u8, port: usize, v6: bool) -> u32 {
    let protocol = PROTOCOLS.iter().position(|p| *p == protocol).unwrap();
    (1 + ((tenant * 3 + protocol) * 3 + port) * 2 + usize::from(v6)) as u32
}

fn tenants() -> State {
    let mut state = State::node();
    for (tenant, segment) in SEGMENTS.iter().enumerate() {
        for protocol in PROTOCOLS {
            for (at, port) in PORTS.iter().enumerate() {
                for v6 in [false, true] {
                    let index = index(tenant, protocol, at, v6);
                    state.add_backend(index, *segment, false);
                    state.add_vip(Vip {
                        id: index,
                        address: vip(v6),
                        port: *port,
                        protocol,
                        segment: *segment,
                        slots: &[index as u16; 3],
                        ..Vip::default()
                    });
                }
            }
        }
    }
    state
}

/// One client's flow, the same addresses and ports in two VLANs: remembered in one, unknown in the other.
fn same_flow() -> Vec<Case> {
    let mut state = State::node();
    for (index, segment) in [(1, DOT1Q | 100), (2, DOT1Q | 101), (OTHER, DOT1Q | 100)] {
        state.add_backend(index, segment, false);
    }
    for (id, segment) in [(1, DOT1Q | 100), (2, DOT1Q | 101)] {
        let slots = &[id as u16; 8];
        state.add_vip(Vip { id, segment, flags: VIP_FLOW_TABLE, slots, ..Vip::default() });
    }
    let flow = flow(false);
    let state = state.remembers(flow_key(&flow, TCP, DOT1Q | 100), OTHER);
    let packet = |vid: u16| frame(&[tag(vid)], &flow.tcp(ACK));
    vec![
        sent("flow known in this VLAN", &state, packet(100), ForwardedFlow, OTHER).of_vip(1),
        sent("flow known in another VLAN", &state, packet(101), Forwarded, 2)
            .of_vip(2)
            .remembers(flow_key(&flow, TCP, DOT1Q | 101), 2),
    ]
}
