//! The devices that the data path needs beside the operator's: a TAP for unresolved EIDs, a way back from the stack
//! for packets that were too big, and a pair that segments UDP GSO packets.

use bpf_abi::{INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED, InterfaceValue};
use codec::IpPrefix;
use netlink_packet_route::route::RouteMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::error::DataplaneError;
use crate::ethtool::set_feature;
use crate::netlink::{Link, Netlink, NewRoute};
use crate::sysctl::Sysctls;
use crate::tap::Tap;

/// TAP that takes packets to unresolved EIDs.
pub const RESOLVE: &str = "weir-r0";
/// The stack's way to the EID space.
pub const STACK: &str = "weir-s0";
/// Where packets from the stack arrive; runs the ITR.
pub const STACK_PEER: &str = "weir-s1";
/// UDP GSO packets are sent here.
pub const SEGMENT: &str = "weir-g0";
/// They arrive here as single packets; runs the ETR.
pub const SEGMENT_PEER: &str = "weir-g1";

/// Largest MTU of a veth or TAP; the routes through [`STACK`] carry the MTU that counts.
const MTU_MAX: u32 = 65_521;

/// The devices, with the indices that the maps need.
#[derive(Debug)]
pub struct Devices {
    /// The TAP; shared with whoever reads it.
    pub tap: Arc<Tap>,
    /// Hardware address of the TAP: frames written back must be addressed to it.
    pub tap_mac: [u8; 6],
    /// Interface entries of the devices.
    pub interfaces: BTreeMap<u32, InterfaceValue>,
    /// Index of the TAP.
    pub resolve_ifindex: u32,
    /// Index of [`SEGMENT`].
    pub segment_ifindex: u32,
    stack_ifindex: u32,
    routes: Vec<NewRoute>,
    native: BTreeMap<IpPrefix, RouteMessage>,
}

impl Devices {
    /// Creates what is missing. `instance_id` is the instance of packets from the stack, `underlay` the interface
    /// whose packets may be UDP GSO.
    ///
    /// # Errors
    /// If the kernel refuses a device or a setting.
    pub async fn create(
        netlink: &Netlink,
        sysctls: &mut Sysctls,
        instance_id: u32,
        underlay: Option<&Link>,
    ) -> Result<Self, DataplaneError> {
        let tap = Arc::new(Tap::create(RESOLVE)?);
        quiet(sysctls, RESOLVE)?;
        netlink.set_up(RESOLVE, Some(MTU_MAX), None, false).await?;
        let resolve = netlink.require(RESOLVE).await?;
        let (stack, stack_peer) = create_pair(netlink, sysctls, STACK, STACK_PEER, None).await?;
        // The pair's ends have one address: without ARP the stack sends to the address of the device it sends from,
        // and the programs take only what is addressed to the device it arrives on. For the same reason the segmenting
        // pair has the address of the underlay interface, which its packets carry.
        let underlay_mac = underlay.map(|link| link.mac);
        let (segment, segment_peer) =
            create_pair(netlink, sysctls, SEGMENT, SEGMENT_PEER, underlay_mac).await?;
        set_feature(SEGMENT, "tx-udp-segmentation", false)?;
        let interfaces = BTreeMap::from([
            (resolve.ifindex, InterfaceValue { instance_id, flags: INTERFACE_INSTANCE_IN_MAC }),
            (stack_peer.ifindex, InterfaceValue { instance_id, flags: INTERFACE_FROM_STACK }),
            (segment_peer.ifindex, InterfaceValue { instance_id, flags: INTERFACE_SEGMENTED }),
        ]);
        Ok(Self {
            tap,
            tap_mac: resolve.mac,
            interfaces,
            resolve_ifindex: resolve.ifindex,
            segment_ifindex: segment.ifindex,
            stack_ifindex: stack.ifindex,
            routes: Vec::new(),
            native: BTreeMap::new(),
        })
    }

    /// Gives the segmenting pair the address of an underlay interface that was made anew.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub async fn follow_underlay(&self, netlink: &Netlink, underlay: &Link) -> Result<(), DataplaneError> {
        for end in [SEGMENT, SEGMENT_PEER] {
            netlink.set_up(end, None, Some(underlay.mac), false).await?;
        }
        Ok(())
    }

    /// Routes the EID space through [`STACK`], with the largest packet that still fits when encapsulated: this is
    /// what makes the stack fragment, or answer Packet Too Big (RFC 9300 §7.1).
    ///
    /// # Errors
    /// If the kernel refuses a route.
    pub async fn route_eid_space(
        &mut self,
        netlink: &Netlink,
        eid_space: &[IpPrefix],
        mtu: u32,
    ) -> Result<(), DataplaneError> {
        for prefix in eid_space {
            let route =
                NewRoute { prefix: *prefix, ifindex: self.stack_ifindex, gateway: None, mtu: Some(mtu) };
            if !self.routes.contains(&route) {
                netlink.replace_route(&route).await?;
                self.routes.retain(|r| r.prefix != route.prefix);
                self.routes.push(route);
            }
        }
        Ok(())
    }

    /// Routes a local EID-prefix to its hosts, inside the EID space.
    ///
    /// # Errors
    /// If the kernel refuses the route.
    pub async fn route_local(
        &mut self,
        netlink: &Netlink,
        prefix: IpPrefix,
        ifindex: u32,
        gateway: Option<IpAddr>,
    ) -> Result<(), DataplaneError> {
        let route = NewRoute { prefix, ifindex, gateway, mtu: None };
        if !self.routes.contains(&route) {
            netlink.replace_route(&route).await?;
            self.routes.retain(|r| r.prefix != route.prefix);
            self.routes.push(route);
        }
        Ok(())
    }

    /// Forwards what is left to the stack by other routes than ours. Inside the EID space it would come back to us
    /// through [`STACK`] otherwise, until its TTL is used up. What is not in `found` stays, or is looked up if it is new.
    ///
    /// # Errors
    /// If the kernel refuses a route.
    pub async fn route_native(
        &mut self,
        netlink: &Netlink,
        prefixes: BTreeSet<IpPrefix>,
        mut found: BTreeMap<IpPrefix, RouteMessage>,
    ) -> Result<(), DataplaneError> {
        let gone: Vec<IpPrefix> = self.native.keys().filter(|p| !prefixes.contains(p)).copied().collect();
        for prefix in gone {
            netlink.remove_route(prefix).await?;
            self.native.remove(&prefix);
        }
        for prefix in prefixes {
            let route = match found.remove(&prefix) {
                Some(route) => route,
                None if self.native.contains_key(&prefix) => continue,
                None => netlink.native_route(prefix).await?,
            };
            // Replacing a route announces a change, also when it is the same route.
            if self.native.get(&prefix) != Some(&route) {
                netlink.replace(route.clone(), &prefix).await?;
                self.native.insert(prefix, route);
            }
        }
        Ok(())
    }

    /// Removes every device and route.
    ///
    /// # Errors
    /// If the kernel refuses a removal.
    pub async fn remove(self, netlink: &Netlink) -> Result<(), DataplaneError> {
        netlink.remove_own_routes().await?;
        netlink.remove_link(RESOLVE).await?;
        netlink.remove_link(STACK).await?;
        netlink.remove_link(SEGMENT).await
    }
}

async fn create_pair(
    netlink: &Netlink,
    sysctls: &mut Sysctls,
    name: &str,
    peer: &str,
    mac: Option<[u8; 6]>,
) -> Result<(Link, Link), DataplaneError> {
    netlink.ensure_veth(name, peer).await?;
    let mac = match mac {
        Some(mac) => mac,
        None => netlink.require(name).await?.mac,
    };
    for end in [name, peer] {
        quiet(sysctls, end)?;
        netlink.set_up(end, Some(MTU_MAX), Some(mac), false).await?;
    }
    Ok((netlink.require(name).await?, netlink.require(peer).await?))
}

/// No router solicitations or duplicate address detection on our own devices, and no reverse path check, which would
/// ask whether hosts are reachable through them.
fn quiet(sysctls: &mut Sysctls, device: &str) -> Result<(), DataplaneError> {
    const LOOSE: &str = "2";
    const NO_ADDRESS: &str = "1";
    sysctls.set(&format!("ipv4/conf/{device}/rp_filter"), LOOSE)?;
    match sysctls.set(&format!("ipv6/conf/{device}/addr_gen_mode"), NO_ADDRESS) {
        Err(DataplaneError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
