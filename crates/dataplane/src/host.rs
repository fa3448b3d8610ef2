//! What is set up on this machine: interfaces, their addresses and settings, sockets that listen, ways out. Nothing is
//! changed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVlan, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    VlanProtocol,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use crate::error::DataplaneError;

/// What a server has set up, as far as direct server return depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Every interface.
    pub interfaces: Vec<Interface>,
    /// Settings of `all`: of those that are combined with an interface's own, the higher one holds.
    pub all: Settings,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Index of the interface that it lies on.
    pub parent: Option<u32>,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub controller: Option<u32>,
    /// Link-layer address; zero if it has none.
    pub mac: [u8; 6],
    /// Largest packet.
    pub mtu: u32,
    /// It is set up, by whoever administrates it.
    pub up: bool,
    /// It is a loopback interface.
    pub loopback: bool,
    /// Kind of a virtual link (`vlan`, `dummy`, …), `None` for hardware.
    pub kind: Option<String>,
    /// What it puts around frames.
    pub carries: Option<Carries>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its own settings.
    pub settings: Settings,
}

/// What an interface puts around frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// An 802.1Q tag with this VLAN id.
    Dot1q(u16),
    /// An 802.1ad tag with this VLAN id.
    Dot1ad(u16),
    /// VXLAN with this VNI.
    Vxlan(u32),
    /// Geneve with this VNI.
    Geneve(u32),
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub length: u8,
    /// Scope `host`: never told to others.
    pub host_scope: bool,
    /// IPv6: another host has it as well, so it is not used.
    pub duplicate: bool,
}

/// Settings under `/proc/sys/net`; `None` where the kernel has no such setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which ARP requests are answered.
    pub arp_ignore: Option<u32>,
    /// Which address asks.
    pub arp_announce: Option<u32>,
    /// Whether packets must come in where their answers go out.
    pub rp_filter: Option<u32>,
    /// Whether Neighbour Solicitations for others are answered.
    pub proxy_ndp: Option<u32>,
    /// Whether there is no IPv6.
    pub disable_ipv6: Option<u32>,
}

/// The interface that frames of neighbours go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub ifindex: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its addresses that may be used; IPv6 ones after duplicate address detection.
    pub addresses: Vec<IpAddr>,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Host {
    /// Looks at the calling thread's network namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses a netlink request.
    pub async fn observe() -> Result<Self, DataplaneError> {
        let kernel = Kernel::connect()?;
        let mut interfaces = kernel.interfaces().await?;
        for message in kernel.addresses().await? {
            let of = interfaces.iter_mut().find(|interface| interface.ifindex == message.header.index);
            if let Some((interface, address)) = of.zip(address(&message)) {
                interface.addresses.push(address);
            }
        }
        for interface in &mut interfaces {
            interface.settings = Settings::read(&interface.name);
        }
        Ok(Self { interfaces, all: Settings::read("all") })
    }

    /// The interface of that name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface of that index.
    #[must_use]
    pub fn by_index(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.ifindex == ifindex)
    }
}

impl Port {
    /// Looks at the calling thread's network namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// [`DataplaneError::NoInterface`] if there is no such interface.
    pub async fn observe(name: &str) -> Result<Self, DataplaneError> {
        let kernel = Kernel::connect()?;
        let interfaces = kernel.interfaces().await?;
        let interface = interfaces.into_iter().find(|interface| interface.name == name);
        let missing = || DataplaneError::NoInterface { name: name.to_owned() };
        let Interface { ifindex, mac, .. } = interface.ok_or_else(missing)?;
        let addresses = kernel.addresses().await?;
        let own = addresses.iter().filter(|message| message.header.index == ifindex);
        let usable = own.filter(|message| !flagged(message, AddressFlags::Tentative));
        let addresses = usable.filter_map(address).filter(|a| !a.duplicate).map(|a| a.address).collect();
        Ok(Self { ifindex, mac, addresses })
    }
}

/// Index of the interface through which packets from `source` leave for `destination`; `None` if there is no route. The
/// source counts only if it is an address of this machine.
///
/// # Errors
/// If the kernel refuses the request for another reason.
pub async fn way_out(source: IpAddr, destination: IpAddr) -> Result<Option<u32>, DataplaneError> {
    let kernel = Kernel::connect()?;
    match kernel.way_out(Some(source), destination).await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EINVAL => {}
        asked => return no_route(asked, destination),
    }
    no_route(kernel.way_out(None, destination).await, destination)
}

/// Sockets that listen for TCP connections, or receive UDP datagrams from anybody.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn listeners(transport: Transport) -> Result<Vec<SocketAddr>, DataplaneError> {
    let (name, state) = match transport {
        Transport::Tcp => ("tcp", "0A"),
        Transport::Udp => ("udp", "07"),
    };
    let mut found = Vec::new();
    for (file, optional) in [(name.to_owned(), false), (format!("{name}6"), true)] {
        // Not /proc/net: that is the namespace of the process's first thread.
        let path = format!("/proc/thread-self/net/{file}");
        match fs::read_to_string(&path) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(|line| listener(line, state))),
            // Without IPv6 there is no such file.
            Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(DataplaneError::system("read", path, error)),
        }
    }
    Ok(found)
}

impl Settings {
    fn read(interface: &str) -> Self {
        let read = |family: &str, name: &str| {
            let path = format!("/proc/sys/net/{family}/conf/{interface}/{name}");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Self {
            arp_ignore: read("ipv4", "arp_ignore"),
            arp_announce: read("ipv4", "arp_announce"),
            rp_filter: read("ipv4", "rp_filter"),
            proxy_ndp: read("ipv6", "proxy_ndp"),
            disable_ipv6: read("ipv6", "disable_ipv6"),
        }
    }
}

struct Kernel {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kernel {
    fn connect() -> Result<Self, DataplaneError> {
        let refused = |source| DataplaneError::system("open", "netlink socket", source);
        let (requests, handle, _) = rtnetlink::new_connection().map_err(refused)?;
        Ok(Self { handle, task: tokio::spawn(requests) })
    }

    async fn interfaces(&self) -> Result<Vec<Interface>, DataplaneError> {
        let listed: Result<Vec<LinkMessage>, _> = self.handle.link().get().execute().try_collect().await;
        let listed = listed.map_err(|source| netlink("list links", source))?;
        Ok(listed.iter().map(interface).collect())
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, DataplaneError> {
        let listed = self.handle.address().get().execute().try_collect().await;
        listed.map_err(|source| netlink("list addresses", source))
    }

    async fn way_out(
        &self,
        source: Option<IpAddr>,
        destination: IpAddr,
    ) -> Result<Option<u32>, rtnetlink::Error> {
        let (family, length) = match destination {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        if let Some(source) = source {
            message.header.source_prefix_length = length;
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        let mut routes = Box::pin(self.handle.route().get(message).execute());
        let oif = |a: &RouteAttribute| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None };
        Ok(routes.try_next().await?.and_then(|route| route.attributes.iter().find_map(oif)))
    }
}

fn no_route(
    asked: Result<Option<u32>, rtnetlink::Error>,
    destination: IpAddr,
) -> Result<Option<u32>, DataplaneError> {
    const NONE: [i32; 3] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES];
    match asked {
        Err(rtnetlink::Error::NetlinkError(e)) if NONE.contains(&-e.raw_code()) => Ok(None),
        other => other.map_err(|source| DataplaneError::Netlink {
            operation: "route to",
            subject: destination.to_string(),
            source,
        }),
    }
}

fn netlink(operation: &'static str, source: rtnetlink::Error) -> DataplaneError {
    DataplaneError::Netlink { operation, subject: String::new(), source }
}

fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Link(parent) => interface.parent = Some(*parent).filter(|index| *index != 0),
            LinkAttribute::Controller(controller) => {
                interface.controller = Some(*controller).filter(|index| *index != 0);
            }
            LinkAttribute::LinkInfo(info) => {
                let kind = |i: &LinkInfo| if let LinkInfo::Kind(k) = i { Some(kind(k)) } else { None };
                interface.kind = info.iter().find_map(kind);
                let data = |i: &LinkInfo| if let LinkInfo::Data(d) = i { carries(d) } else { None };
                interface.carries = info.iter().find_map(data);
            }
            _ => {}
        }
    }
    interface
}

fn kind(kind: &InfoKind) -> String {
    kind.to_string()
}

fn carries(data: &InfoData) -> Option<Carries> {
    match data {
        InfoData::Vlan(info) => {
            let id = info.iter().find_map(|i| if let InfoVlan::Id(id) = i { Some(*id) } else { None })?;
            let is_ad = |i: &InfoVlan| matches!(i, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
            Some(if info.iter().any(is_ad) { Carries::Dot1ad(id) } else { Carries::Dot1q(id) })
        }
        InfoData::Vxlan(info) => {
            let id = |i: &InfoVxlan| if let InfoVxlan::Id(id) = i { Some(*id) } else { None };
            info.iter().find_map(id).map(Carries::Vxlan)
        }
        InfoData::Geneve(info) => {
            let id = |i: &InfoGeneve| if let InfoGeneve::Id(id) = i { Some(*id) } else { None };
            info.iter().find_map(id).map(Carries::Geneve)
        }
        _ => None,
    }
}

/// `IFA_ADDRESS` is the peer's on a point-to-point link, and `IFA_LOCAL` is then the own one.
fn address(message: &AddressMessage) -> Option<Address> {
    let local = |a: &AddressAttribute| if let AddressAttribute::Local(a) = a { Some(*a) } else { None };
    let other = |a: &AddressAttribute| if let AddressAttribute::Address(a) = a { Some(*a) } else { None };
    let attributes = &message.attributes;
    let address = attributes.iter().find_map(local).or_else(|| attributes.iter().find_map(other))?;
    Some(Address {
        address,
        length: message.header.prefix_len,
        host_scope: message.header.scope == AddressScope::Host,
        duplicate: flagged(message, AddressFlags::Dadfailed),
    })
}

/// The header has the low eight flags, the attribute all of them.
fn flagged(message: &AddressMessage, flag: AddressFlags) -> bool {
    let low = u8::try_from(flag.bits()).map(AddressHeaderFlags::from_bits_retain);
    let in_attribute =
        |a: &AddressAttribute| matches!(a, AddressAttribute::Flags(flags) if flags.contains(flag));
    low.is_ok_and(|low| message.header.flags.contains(low)) || message.attributes.iter().any(in_attribute)
}

/// One line of `/proc/net/tcp` and its like.
fn listener(line: &str, state: &str) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let is = fields.nth(1)? == state;
    let port = u16::from_str_radix(port, 16).ok()?;
    is.then_some(SocketAddr::new(hexadecimal(address)?, port))
}

/// The kernel prints the words of an address, which is in network order, as native numbers.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (octets, at) in octets.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                octets.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn listeners_are_read() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        let v6 = "   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0";
        assert_eq!(listener(v4, "0A"), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(listener(v6, "0A"), Some("[2001:db8::1]:80".parse().unwrap()));
        assert_eq!(listener(&v4.replace(" 0A ", " 01 "), "0A"), None);
        for line in ["", "0: 01:1F90 0 0A", "0: 0100007F 0 0A", "0: zz00007F:1F90 0:0 0A", "0: 0100007F:1F90"]
        {
            assert_eq!(listener(line, "0A"), None, "{line}");
        }
    }

    #[tokio::test]
    async fn a_machine_has_a_loopback() {
        let host = Host::observe().await.unwrap();
        let lo = host.interface("lo").unwrap();
        assert!(lo.loopback && lo.mtu > 0 && lo.settings.arp_ignore.is_some());
        assert_eq!(host.by_index(lo.ifindex), Some(lo));
    }
}
