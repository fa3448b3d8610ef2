//! The way to an RLOC, asked from the kernel's routes and neighbours.

use std::net::IpAddr;

use crate::error::DataplaneError;
use crate::netlink::{Link, Netlink};
use crate::table::Path;

/// The way to `rloc` from one of `own` RLOCs of its family; `None` without a route or without such an address. Its link-layer
/// addresses are looked up `with_macs`. What is in `known` is not asked for: the kernel answers questions about a link only
/// when nobody changes any link of the machine (rtnl_lock), which another program may do for tens of milliseconds.
///
/// # Errors
/// If the kernel refuses a request; the caller keeps what it knew.
pub async fn resolve(
    netlink: &Netlink,
    known: &[Link],
    rloc: IpAddr,
    own: &[IpAddr],
    with_macs: bool,
) -> Result<Option<Path>, DataplaneError> {
    let Some(route) = netlink.route_to(rloc).await? else { return Ok(None) };
    let link = match known.iter().find(|link| link.ifindex == route.ifindex) {
        Some(link) => Some(link.clone()),
        None => netlink.link_by_index(route.ifindex).await?,
    };
    let Some(link) = link else { return Ok(None) };
    let same_family = |a: &&IpAddr| a.is_ipv4() == rloc.is_ipv4();
    let preferred = own.iter().find(|a| Some(**a) == route.source);
    let Some(source) = preferred.or_else(|| own.iter().find(same_family)) else { return Ok(None) };
    let next_hop = route.gateway.unwrap_or(rloc);
    let mac = if with_macs { netlink.neighbour(route.ifindex, next_hop).await? } else { None };
    Ok(Some(Path {
        source: *source,
        next_hop,
        ifindex: route.ifindex,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        macs: mac.map(|mac| (mac, link.mac)),
    }))
}
