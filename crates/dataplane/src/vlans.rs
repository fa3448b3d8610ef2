//! VLAN devices on an interface. Asked without a task in between, so that a status can be made at any time.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::DataplaneError;

/// The tag that a VLAN device puts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tag {
    /// Ethertype 0x8100.
    Dot1q,
    /// Ethertype 0x88a8.
    Dot1ad,
}

/// Tags, with their VIDs, of the VLAN devices on an interface, in the calling thread's network namespace. By netlink:
/// `/proc/net/vlan/config` has the VIDs only, and 802.1Q and 802.1ad have one of each number.
///
/// # Errors
/// If the kernel refuses the request.
pub(crate) fn vlans_on(ifindex: u32) -> Result<BTreeSet<(Tag, u16)>, DataplaneError> {
    let links = links().map_err(|source| DataplaneError::system("list", "VLAN devices", source))?;
    Ok(links.iter().filter_map(|link| vlan_on(link, ifindex)).collect())
}

fn vlan_on(link: &LinkMessage, ifindex: u32) -> Option<(Tag, u16)> {
    let is_on = link.attributes.contains(&LinkAttribute::Link(ifindex));
    // Its index is then one of another namespace.
    let is_elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    if !is_on || is_elsewhere {
        return None;
    }
    let info = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    })?;
    let vlan = info.iter().find_map(|i| match i {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    })?;
    let tag = vlan.iter().find_map(|v| match v {
        InfoVlan::Protocol(VlanProtocol::Ieee8021Ad) => Some(Tag::Dot1ad),
        InfoVlan::Protocol(VlanProtocol::Ieee8021Q) => Some(Tag::Dot1q),
        _ => None,
    })?;
    let vid = vlan.iter().find_map(|v| if let InfoVlan::Id(vid) = v { Some(*vid) } else { None })?;
    Some((tag, vid))
}

fn links() -> io::Result<Vec<LinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut links = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if take_links(&answer, &mut links)? {
            return Ok(links);
        }
    }
}

fn request() -> Vec<u8> {
    let what = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(what));
    message.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// Takes the links out of a part of the answer. Returns whether it was the last one.
fn take_links(mut answer: &[u8], links: &mut Vec<LinkMessage>) -> io::Result<bool> {
    while !answer.is_empty() {
        let buffer = NetlinkBuffer::new_checked(&answer).map_err(io::Error::other)?;
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        // A link that cannot be read, of a kind yet to come say, does not hide the others.
        match NetlinkMessage::deserialize(answer).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => links.push(link),
            Ok(NetlinkPayload::Done(_)) => return Ok(true),
            Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    fn device(on: u32, protocol: VlanProtocol, vid: u16) -> LinkMessage {
        let data = InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(vid)]);
        let info = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)];
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::Link(on), LinkAttribute::LinkInfo(info)];
        link
    }

    #[test]
    fn a_device_is_known_by_its_interface_and_tag() {
        let mut service = device(7, VlanProtocol::Ieee8021Ad, 300);
        assert_eq!(vlan_on(&service, 7), Some((Tag::Dot1ad, 300)));
        assert_eq!(vlan_on(&service, 8), None);
        assert_eq!(vlan_on(&device(7, VlanProtocol::Ieee8021Q, 300), 7), Some((Tag::Dot1q, 300)));
        service.attributes.push(LinkAttribute::LinkNetNsId(1));
        assert_eq!(vlan_on(&service, 7), None, "it is on an interface of another namespace");
        let mut veth = LinkMessage::default();
        veth.attributes = vec![LinkAttribute::Link(7)];
        assert_eq!(vlan_on(&veth, 7), None);
    }

    #[test]
    fn the_kernel_lists_its_links() {
        let name = LinkAttribute::IfName("lo".to_owned());
        assert!(links().unwrap().iter().any(|link| link.attributes.contains(&name)));
    }

    #[test]
    fn a_link_that_cannot_be_read_hides_no_other() {
        let message = |link: LinkMessage| {
            let mut message = NetlinkMessage::new(
                NetlinkHeader::default(),
                NetlinkPayload::from(RouteNetlinkMessage::NewLink(link)),
            );
            message.finalize();
            let mut octets = vec![0; message.buffer_len()];
            message.serialize(&mut octets);
            octets
        };
        let mut odd = message(device(7, VlanProtocol::Ieee8021Q, 100));
        // The length of its first attribute, which says more than there is.
        odd[32..34].copy_from_slice(&[0xff, 0xff]);
        let readable = device(7, VlanProtocol::Ieee8021Ad, 300);
        let mut links = Vec::new();
        let answer = [odd, message(readable.clone())].concat();
        assert!(!take_links(&answer, &mut links).unwrap());
        assert_eq!(links, [readable]);
    }
}
