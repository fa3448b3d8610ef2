//! Links, routes and neighbours of the network namespace in which the connection was made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use codec::IpPrefix;

use crate::error::DataplaneError;

/// `rtm_protocol` of the routes that weir installs.
pub const ROUTE_PROTOCOL: u8 = 0xe9;
/// Bit of `RTAX_MTU` in `RTAX_LOCK`: path MTU discovery must not change it.
const LOCK_MTU: u32 = 1 << 2;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Largest packet.
    pub mtu: u32,
    /// Hardware address; zero if it has none.
    pub mac: [u8; 6],
    /// Kind of a virtual link (`veth`, `tun`, …), `None` for hardware.
    pub kind: Option<String>,
    /// The XDP program on it.
    pub xdp: Option<AttachedXdp>,
}

/// An XDP program on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// Its id; 0 if there are several, on the driver, the stack and the hardware.
    pub program: u32,
    /// It runs in the driver, not in the stack.
    pub native: bool,
}

/// What the kernel's routes say about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Interface.
    pub ifindex: u32,
    /// `None` when the destination is on-link.
    pub gateway: Option<IpAddr>,
    /// Address that the kernel would send from.
    pub source: Option<IpAddr>,
    /// The route's own MTU.
    pub mtu: Option<u32>,
}

/// A route to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRoute {
    /// Where to.
    pub prefix: IpPrefix,
    /// Interface.
    pub ifindex: u32,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// MTU, locked.
    pub mtu: Option<u32>,
}

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    changes: watch::Receiver<u64>,
    tasks: [JoinHandle<()>; 3],
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Netlink {
    /// Connects in the calling thread's network namespace; needs a tokio runtime. Changes of `neighbours` are frequent
    /// and announced only to who asks for them.
    ///
    /// # Errors
    /// If the kernel refuses a netlink socket.
    pub fn connect(neighbours: bool) -> Result<Self, DataplaneError> {
        let refused = |source| DataplaneError::system("open", "netlink socket", source);
        let (requests, handle, _) = rtnetlink::new_connection().map_err(refused)?;
        let mut groups = vec![
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        groups.extend(neighbours.then_some(MulticastGroup::Neigh));
        let (events, _, mut messages) = rtnetlink::new_multicast_connection(&groups).map_err(refused)?;
        let (changed, changes) = watch::channel(0_u64);
        let watcher = async move {
            while messages.next().await.is_some() {
                changed.send_modify(|count| *count += 1);
            }
        };
        let tasks = [tokio::spawn(requests), tokio::spawn(events), tokio::spawn(watcher)];
        Ok(Self { handle, changes, tasks })
    }

    /// Changes whenever a link, an address, a route or a neighbour changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The link of that name; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, DataplaneError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        found(links.try_next().await, "link", name).map(|message| message.as_ref().map(link))
    }

    /// The link of that index; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn link_by_index(&self, ifindex: u32) -> Result<Option<Link>, DataplaneError> {
        let mut links = self.handle.link().get().match_index(ifindex).execute();
        found(links.try_next().await, "link", &ifindex.to_string()).map(|message| message.as_ref().map(link))
    }

    /// The link of that name.
    ///
    /// # Errors
    /// [`DataplaneError::NoInterface`] if there is none.
    pub async fn require(&self, name: &str) -> Result<Link, DataplaneError> {
        self.link(name).await?.ok_or_else(|| DataplaneError::NoInterface { name: name.to_owned() })
    }

    /// A veth pair, down; one that is already there is taken as it is.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn ensure_veth(&self, name: &str, peer: &str) -> Result<(), DataplaneError> {
        if self.link(name).await?.is_some() {
            return Ok(());
        }
        let add = self.handle.link().add(LinkVeth::new(name, peer).build());
        add.execute().await.map_err(|source| netlink("add veth", name, source))
    }

    /// MTU, hardware address, ARP and the up flag in one request.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn set_up(
        &self,
        name: &str,
        mtu: Option<u32>,
        mac: Option<[u8; 6]>,
        arp: bool,
    ) -> Result<(), DataplaneError> {
        let mut message = LinkUnspec::new_with_name(name).arp(arp).up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        if let Some(mac) = mac {
            message = message.address(mac.to_vec());
        }
        let set = self.handle.link().set(message.build());
        set.execute().await.map_err(|source| netlink("set up", name, source))
    }

    /// Removes a link; nothing happens if there is none.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn remove_link(&self, name: &str) -> Result<(), DataplaneError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let removed = self.handle.link().del(link.ifindex).execute().await;
        removed.map_err(|source| netlink("remove link", name, source))
    }

    /// The way to `destination`; `None` if there is no route.
    ///
    /// # Errors
    /// If the kernel refuses the request for another reason.
    pub async fn route_to(&self, destination: IpAddr) -> Result<Option<Route>, DataplaneError> {
        let prefix = IpPrefix::host(destination);
        let message = destined(&prefix).build();
        let mut routes = Box::pin(self.handle.route().get(message).execute());
        let message = found(routes.try_next().await, "route to", &destination.to_string())?;
        Ok(message.as_ref().and_then(route))
    }

    /// Hardware address of a neighbour, if the kernel has resolved it.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn neighbour(&self, ifindex: u32, address: IpAddr) -> Result<Option<[u8; 6]>, DataplaneError> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mut neighbours = Box::pin(self.handle.neighbours().get().set_address_family(family).execute());
        loop {
            let next = neighbours.try_next().await;
            match next.map_err(|source| netlink("list neighbours", &address.to_string(), source))? {
                Some(n) if n.header.ifindex == ifindex && is_about(&n, address) => return Ok(mac_of(&n)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Installs a route, replacing one of the same prefix.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn replace_route(&self, new: &NewRoute) -> Result<(), DataplaneError> {
        self.replace(self.route_message(new), &new.prefix).await
    }

    /// Installs a route as it is, replacing one of the same prefix.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn replace(&self, message: RouteMessage, prefix: &IpPrefix) -> Result<(), DataplaneError> {
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(|source| netlink("replace route", &prefix.to_string(), source))
    }

    /// The route that forwards packets to `prefix` as if there were none of ours: as the most specific route of somebody
    /// else does, or with an answer that there is none.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn native_route(&self, prefix: IpPrefix) -> Result<RouteMessage, DataplaneError> {
        let routes = self.main_routes(prefix.address().is_ipv4()).await?;
        let others = routes.into_iter().filter(|message| !is_ours(message));
        let covering = others.filter(|message| destination(message).is_some_and(|d| d.covers(&prefix)));
        let best =
            covering.max_by_key(|m| (m.header.destination_prefix_length, std::cmp::Reverse(metric(m))));
        let mut message = destined(&prefix).protocol(RouteProtocol::Other(ROUTE_PROTOCOL)).build();
        match best {
            Some(best) => {
                message.header.scope = best.header.scope;
                message.header.flags = best.header.flags;
                let way = best.attributes.into_iter().filter(is_way);
                message.attributes.extend(way);
            }
            None => message.header.kind = RouteType::Unreachable,
        }
        Ok(message)
    }

    /// Removes the route of ours for a prefix; nothing happens if there is none.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub async fn remove_route(&self, prefix: IpPrefix) -> Result<(), DataplaneError> {
        for message in self.main_routes(prefix.address().is_ipv4()).await? {
            if is_ours(&message) && destination(&message) == Some(prefix) {
                self.remove(message).await?;
            }
        }
        Ok(())
    }

    /// Removes every route of ours.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn remove_own_routes(&self) -> Result<(), DataplaneError> {
        for v4 in [true, false] {
            for message in self.main_routes(v4).await?.into_iter().filter(is_ours) {
                self.remove(message).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, message: RouteMessage) -> Result<(), DataplaneError> {
        let removed = self.handle.route().del(message).execute().await;
        found(removed.map(Some), "remove route", "").map(drop)
    }

    async fn main_routes(&self, v4: bool) -> Result<Vec<RouteMessage>, DataplaneError> {
        let mut message = RouteMessage::default();
        message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let listed: Result<Vec<RouteMessage>, _> =
            self.handle.route().get(message).execute().try_collect().await;
        let mut routes = listed.map_err(|source| netlink("list routes", "", source))?;
        routes.retain(|m| m.header.table == RouteHeader::RT_TABLE_MAIN);
        Ok(routes)
    }

    fn route_message(&self, new: &NewRoute) -> RouteMessage {
        let mut builder = destined(&new.prefix)
            .output_interface(new.ifindex)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        if let Some(gateway) = new.gateway {
            builder.get_mut().attributes.push(RouteAttribute::Gateway(gateway.into()));
            builder = builder.onlink();
        } else if new.prefix.address().is_ipv4() {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(mtu) = new.mtu {
            let metrics = vec![RouteMetric::Lock(LOCK_MTU), RouteMetric::Mtu(mtu)];
            builder.get_mut().attributes.push(RouteAttribute::Metrics(metrics));
        }
        builder.build()
    }
}

fn destined(prefix: &IpPrefix) -> RouteMessageBuilder<IpAddr> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new();
    let message = builder.get_mut();
    let v4 = prefix.address().is_ipv4();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = prefix.length();
    message.attributes.push(RouteAttribute::Destination(prefix.address().into()));
    builder
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// Where a route leads to.
fn destination(message: &RouteMessage) -> Option<IpPrefix> {
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let named = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(destination) => address(destination),
        _ => None,
    });
    IpPrefix::new(named.unwrap_or(any), message.header.destination_prefix_length).ok()
}

fn metric(message: &RouteMessage) -> u32 {
    let priority = |a: &RouteAttribute| if let RouteAttribute::Priority(p) = a { Some(*p) } else { None };
    message.attributes.iter().find_map(priority).unwrap_or(0)
}

/// The part of a route that says which way it goes.
const fn is_way(attribute: &RouteAttribute) -> bool {
    matches!(
        attribute,
        RouteAttribute::Oif(_)
            | RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Metrics(_)
            | RouteAttribute::NhId(_)
    )
}

fn netlink(operation: &'static str, subject: &str, source: rtnetlink::Error) -> DataplaneError {
    DataplaneError::Netlink { operation, subject: subject.to_owned(), source }
}

/// "There is none" is an answer, in each of the ways the kernel has to say it.
fn found<T>(
    result: Result<Option<T>, rtnetlink::Error>,
    operation: &'static str,
    subject: &str,
) -> Result<Option<T>, DataplaneError> {
    const NONE: [i32; 5] = [libc::ENODEV, libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ESRCH, libc::ENXIO];
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if NONE.contains(&-e.raw_code()) => Ok(None),
        other => other.map_err(|source| netlink(operation, subject, source)),
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        ifindex: message.header.index,
        mtu: 0,
        mac: [0; 6],
        kind: None,
        xdp: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(info) => {
                link.kind =
                    info.iter().find_map(|i| if let LinkInfo::Kind(k) = i { Some(kind(k)) } else { None });
            }
            LinkAttribute::Xdp(xdp) => link.xdp = attached_xdp(xdp),
            _ => {}
        }
    }
    link
}

fn attached_xdp(attributes: &[LinkXdp]) -> Option<AttachedXdp> {
    let mode = attributes.iter().find_map(|a| if let LinkXdp::Attached(m) = a { Some(*m) } else { None })?;
    let program = attributes.iter().find_map(|a| if let LinkXdp::ProgId(id) = a { Some(*id) } else { None });
    let native = mode == XdpAttached::Driver;
    (mode != XdpAttached::None).then_some(AttachedXdp { program: program.unwrap_or(0), native })
}

fn kind(kind: &InfoKind) -> String {
    kind.to_string()
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut route = Route { ifindex: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Gateway(gateway) => route.gateway = address(gateway),
            RouteAttribute::PrefSource(source) => route.source = address(source),
            RouteAttribute::Metrics(metrics) => {
                let mtu = |m: &RouteMetric| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None };
                route.mtu = metrics.iter().find_map(mtu).filter(|mtu| *mtu > 0);
            }
            _ => {}
        }
    }
    (route.ifindex != 0).then_some(route)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn is_about(neighbour: &NeighbourMessage, address: IpAddr) -> bool {
    neighbour.attributes.iter().any(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == address,
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == address,
        _ => false,
    })
}

fn mac_of(neighbour: &NeighbourMessage) -> Option<[u8; 6]> {
    if matches!(neighbour.header.state, NeighbourState::Failed | NeighbourState::Incomplete) {
        return None;
    }
    neighbour.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}
