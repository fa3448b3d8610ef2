//! What is right and wrong about a server, from what was seen of it: pure.

use std::net::{IpAddr, SocketAddr};

use dataplane::balancer::{Segment, SegmentKind};
use dataplane::host::{Address, Carries, Host, Interface, Settings};
use serde::Serialize;

/// What is to be known.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Where clients send to.
    pub(super) vip: IpAddr,
    /// Where the balancer's frames arrive; found out if `None`.
    pub(super) interface: Option<String>,
    /// What the balancer's frames carry.
    pub(super) segment: Segment,
    /// Whom answers are for; anybody if `None`.
    pub(super) client: Option<IpAddr>,
    /// Where the service listens.
    pub(super) port: Option<u16>,
    /// The service is UDP's.
    pub(super) udp: bool,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Interfaces and settings.
    pub(super) host: Host,
    /// Index of the interface through which answers leave.
    pub(super) way_back: Option<u32>,
    /// Who listens.
    pub(super) listeners: Vec<SocketAddr>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    Warning,
    Error,
}

impl Status {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: &'static str,
    /// How bad it is.
    pub(super) status: Status,
    /// What was seen.
    pub(super) seen: String,
    /// Why it matters.
    pub(super) why: String,
    /// The command that mends it.
    pub(super) mend: Option<String>,
}

/// Everything there is to say.
pub(super) fn evaluate(question: &Question, facts: &Facts) -> Vec<Finding> {
    let mut evaluation = Evaluation { question, facts, findings: Vec::new() };
    let ingress = evaluation.ingress();
    evaluation.address();
    evaluation.elsewhere(ingress);
    evaluation.way_back();
    if let Some(ingress) = ingress {
        match question.vip {
            IpAddr::V4(_) => evaluation.arp(ingress),
            IpAddr::V6(_) => evaluation.neighbour_discovery(ingress),
        }
    }
    if let Some(port) = question.port {
        evaluation.listener(port);
    }
    evaluation.findings
}

struct Evaluation<'a> {
    question: &'a Question,
    facts: &'a Facts,
    findings: Vec<Finding>,
}

const WHY_INTERFACE: &str =
    "the balancer's frames arrive at a port of this server, and every other check is about it.";
const WHY_CONTROLLER: &str =
    "packets are seen on the bridge or bond that the port belongs to, and settings count there.";
const WHY_SEGMENT: &str = "the balancer's frames carry the segment's tag, or come in its tunnel; without a device for it \
                           the kernel drops them.";
const WHY_UP: &str = "an interface that is down takes no frames.";
const WHY_MTU: &str = "with another MTU than the link below, the server's answers are smaller than they could be, or \
                       larger than the link takes.";
const WHY_ADDRESS: &str = "the balancer leaves the destination address alone: the server drops packets to the VIP unless \
                           the VIP is its own address, on an interface on which nobody asks for it.";
const WHY_PREFIX: &str =
    "the whole prefix counts as this server's own, and other hosts in it cannot be reached.";
const WHY_DUPLICATE: &str =
    "duplicate address detection found another host with the VIP, and the kernel does not use it.";
const WHY_ELSEWHERE: &str =
    "the server tells the link that the VIP is its own: packets then come to it past the balancer.";
const WHY_WAY_BACK: &str = "the server answers clients directly.";
const WHY_ARP_IGNORE: &str =
    "servers that answer ARP requests for the VIP take its traffic away from the balancer.";
const WHY_ARP_RESERVED: &str =
    "the kernel takes values that it does not know for 0, and answers ARP requests for the VIP.";
const WHY_ARP_SILENT: &str = "the server does not even tell the link-layer address of its own addresses, so the balancer \
                              cannot find it.";
const WHY_ARP_SUBNET: &str = "the server answers only questions from its own subnet: the balancer must ask from an address \
                              in it.";
const WHY_ARP_SCOPE: &str =
    "with 3 the kernel answers for every address whose scope is not host, and the VIP's is not.";
const WHY_ARP_ANNOUNCE: &str = "when the server asks for its router's link-layer address on behalf of an answer, it does so \
                                in the VIP's name, and the router then sends to it what is for the balancer.";
const WHY_ARP_ANNOUNCE_1: &str = "with 1 the VIP is kept out of ARP requests only where it is in no subnet of the interface, \
                                  which a later address can change.";
const WHY_RP_FILTER: &str = "packets come in on one interface and answers leave through another: the strict reverse path \
                             filter drops them.";
const WHY_IPV6: &str = "without IPv6 on the interface packets to the VIP are dropped.";
const WHY_PROXY_NDP: &str =
    "with a proxy entry for the VIP the server would answer Neighbour Solicitations for it.";
const WHY_LISTENER: &str =
    "packets keep the VIP as destination: a server that listens on another address only refuses them.";

impl<'a> Evaluation<'a> {
    fn add(&mut self, check: &'static str, status: Status, seen: String, why: &str, mend: Option<String>) {
        let mend = mend.filter(|_| status != Status::Ok);
        self.findings.push(Finding { check, status, seen, why: why.to_owned(), mend });
    }

    /// The interface on which the kernel sees the balancer's packets, if it is there.
    fn ingress(&mut self) -> Option<&'a Interface> {
        let layers = layers(self.question.segment);
        let Some(port) = self.port(&layers) else {
            self.no_port();
            return None;
        };
        self.is_up("interface", port);
        self.is_free(port);
        let mut current = port;
        for layer in layers {
            current = self.layer(current, layer)?;
        }
        Some(current)
    }

    fn no_port(&mut self) {
        let segment = self.question.segment;
        let tell = "weir balancer check-backend --interface NAME …";
        let (seen, mend) = match &self.question.interface {
            Some(name) => (format!("there is no interface {name}"), "ip -brief link"),
            None if segment == Segment::NONE => ("not told, and there is no way back".to_owned(), tell),
            None => (format!("not told, and not exactly one device is for {segment}"), tell),
        };
        self.add("interface", Status::Error, seen, WHY_INTERFACE, Some(mend.to_owned()));
    }

    fn port(&self, layers: &[Carries]) -> Option<&'a Interface> {
        let host = &self.facts.host;
        let top = layers.last();
        let named = match &self.question.interface {
            Some(name) => Some(host.interface(name)?),
            None => None,
        };
        // The segment's own device names its port as well.
        let device = match named {
            Some(interface) if interface.carries.as_ref().is_some_and(|c| Some(c) == top) => interface,
            Some(interface) => return Some(interface),
            None if top.is_none() => return host.by_index(self.facts.way_back?),
            None => {
                let mut found = host.interfaces.iter().filter(|interface| interface.carries.as_ref() == top);
                found.next().filter(|_| found.next().is_none())?
            }
        };
        if is_tunnel(device) {
            return Some(device.parent.and_then(|parent| host.by_index(parent)).unwrap_or(device));
        }
        layers.iter().try_fold(device, |device, _| host.by_index(device.parent?))
    }

    fn is_up(&mut self, check: &'static str, interface: &Interface) {
        let (status, word) = if interface.up { (Status::Ok, "up") } else { (Status::Error, "down") };
        let seen = format!("{} is {word}", described(interface));
        self.add(check, status, seen, WHY_UP, Some(format!("ip link set {} up", interface.name)));
    }

    /// What a bridge or bond takes, the kernel sees on the bridge or bond. A VRF changes routes only.
    fn is_free(&mut self, port: &Interface) {
        let controller = port.controller.and_then(|ifindex| self.facts.host.by_index(ifindex));
        if let Some(controller) = controller.filter(|c| c.kind.as_deref() != Some("vrf")) {
            let seen = format!("{} belongs to {}", port.name, controller.name);
            let mend = format!("weir balancer check-backend --interface {} …", controller.name);
            self.add("interface", Status::Error, seen, WHY_CONTROLLER, Some(mend));
        }
    }

    /// The device of one tag or tunnel on top of `below`.
    fn layer(&mut self, below: &'a Interface, layer: Carries) -> Option<&'a Interface> {
        let interfaces = &self.facts.host.interfaces;
        let tunnel = matches!(layer, Carries::Vxlan(_) | Carries::Geneve(_));
        let on = |interface: &&Interface| tunnel || interface.parent == Some(below.ifindex);
        let found = interfaces.iter().filter(on).find(|interface| interface.carries == Some(layer));
        let Some(device) = found else {
            let near = interfaces.iter().find(|i| i.carries.is_some_and(|carries| is_near(carries, layer)));
            let seen = near.map_or_else(
                || format!("no device for {} on {}", words(layer), below.name),
                |near| self.near(near, below, layer),
            );
            self.add("segment", Status::Error, seen, WHY_SEGMENT, Some(creation(below, layer)));
            return None;
        };
        self.is_up("segment", device);
        if !tunnel {
            self.mtu(device, below);
        }
        Some(device)
    }

    fn near(&self, near: &Interface, below: &Interface, layer: Carries) -> String {
        let parent = near.parent.and_then(|parent| self.facts.host.by_index(parent));
        let on = parent.map_or("nothing of this machine", |parent| parent.name.as_str());
        let has = near.carries.map_or_else(String::new, words);
        format!("{} is for {has} on {on}; expected {} on {}", near.name, words(layer), below.name)
    }

    fn mtu(&mut self, device: &Interface, below: &Interface) {
        let status = match device.mtu.cmp(&below.mtu) {
            std::cmp::Ordering::Equal => Status::Ok,
            std::cmp::Ordering::Less => Status::Warning,
            std::cmp::Ordering::Greater => Status::Error,
        };
        let seen = format!("{} on {}, {} on {}", device.mtu, device.name, below.mtu, below.name);
        let mend = format!("ip link set {} mtu {}", device.name, below.mtu);
        self.add("mtu", status, seen, WHY_MTU, Some(mend));
    }

    /// Where the VIP is.
    fn places(&self) -> impl Iterator<Item = (&'a Interface, &'a Address)> + use<'a> {
        let vip = self.question.vip;
        let interfaces = self.facts.host.interfaces.iter();
        let all = interfaces.flat_map(|interface| interface.addresses.iter().map(move |a| (interface, a)));
        all.filter(move |(_, address)| address.address == vip)
    }

    /// The VIP is an address of this machine where it does no harm.
    fn address(&mut self) {
        let vip = self.question.vip;
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let scope = if vip.is_ipv4() { " scope host" } else { "" };
        let add = format!("ip address add {vip}/{length} dev lo{scope}");
        let Some((interface, address)) = self.places().find(|(interface, _)| is_quiet(interface)) else {
            let seen = format!("{vip} is on no loopback interface");
            return self.add("vip", Status::Error, seen, WHY_ADDRESS, Some(add));
        };
        let scope = if address.host_scope { ", scope host" } else { "" };
        let seen = format!("{vip}/{} on {}{scope}", address.length, interface.name);
        let remove = format!("ip address del {vip}/{} dev {}", address.length, interface.name);
        let again = Some(format!("{remove} && {add}"));
        if address.duplicate {
            self.add("vip", Status::Error, seen + ", duplicate", WHY_DUPLICATE, again);
        } else if address.length != length {
            self.add("vip", Status::Error, seen, WHY_PREFIX, again);
        } else if !interface.up {
            let mend = format!("ip link set {} up", interface.name);
            self.add("vip", Status::Error, seen + ", which is down", WHY_ADDRESS, Some(mend));
        } else {
            self.add("vip", Status::Ok, seen, WHY_ADDRESS, None);
        }
    }

    /// The VIP is nowhere else.
    fn elsewhere(&mut self, ingress: Option<&Interface>) {
        let vip = self.question.vip;
        let loud: Vec<_> = self.places().filter(|(interface, _)| !is_quiet(interface)).collect();
        for (interface, address) in &loud {
            let is_ingress = ingress.is_some_and(|ingress| ingress.ifindex == interface.ifindex);
            let status = if is_ingress { Status::Error } else { Status::Warning };
            let seen = format!("{vip}/{} on {}", address.length, interface.name);
            let mend = format!("ip address del {vip}/{} dev {}", address.length, interface.name);
            self.add("vip elsewhere", status, seen, WHY_ELSEWHERE, Some(mend));
        }
        if loud.is_empty() {
            self.add("vip elsewhere", Status::Ok, "nowhere".to_owned(), WHY_ELSEWHERE, None);
        }
    }

    fn way_back(&mut self) {
        let to = self.question.client.map_or_else(|| "clients".to_owned(), |client| client.to_string());
        let way = self.facts.way_back.and_then(|ifindex| self.facts.host.by_index(ifindex));
        match way {
            Some(interface) => {
                let seen = format!("to {to} through {}", interface.name);
                self.add("way back", Status::Ok, seen, WHY_WAY_BACK, None);
            }
            None => {
                let family = if self.question.vip.is_ipv4() { "" } else { "-6 " };
                let mend = format!("ip {family}route add default via ROUTER");
                self.add("way back", Status::Error, format!("no route to {to}"), WHY_WAY_BACK, Some(mend));
            }
        }
    }

    fn arp(&mut self, ingress: &Interface) {
        self.arp_ignore(ingress);
        self.arp_announce(ingress);
        let way_back = self.facts.way_back.and_then(|ifindex| self.facts.host.by_index(ifindex));
        // Questions on behalf of answers are asked where answers leave.
        if let Some(other) = way_back.filter(|other| other.ifindex != ingress.ifindex && !other.loopback) {
            self.arp_announce(other);
        }
        self.rp_filter(ingress);
    }

    fn arp_ignore(&mut self, ingress: &Interface) {
        let value = self.effective(ingress, |settings| settings.arp_ignore);
        let host_scope = self.places().filter(|(i, _)| is_quiet(i)).all(|(_, address)| address.host_scope);
        let (status, why) = match value {
            0 => (Status::Error, WHY_ARP_IGNORE),
            1 => (Status::Ok, WHY_ARP_IGNORE),
            2 => (Status::Warning, WHY_ARP_SUBNET),
            3 if host_scope => (Status::Ok, WHY_ARP_IGNORE),
            3 => (Status::Error, WHY_ARP_SCOPE),
            8 => (Status::Error, WHY_ARP_SILENT),
            _ => (Status::Error, WHY_ARP_RESERVED),
        };
        let seen = self.seen(ingress, value, |settings| settings.arp_ignore);
        let mend = self.lowering(ingress, "arp_ignore", 1, |settings| settings.arp_ignore);
        self.add("arp_ignore", status, seen, why, Some(mend));
    }

    fn arp_announce(&mut self, interface: &Interface) {
        let value = self.effective(interface, |settings| settings.arp_announce);
        let vip = self.question.vip;
        let within = interface.addresses.iter().any(|address| covers(address, vip));
        let (status, why) = match value {
            2 => (Status::Ok, WHY_ARP_ANNOUNCE),
            1 if !within => (Status::Warning, WHY_ARP_ANNOUNCE_1),
            _ => (Status::Error, WHY_ARP_ANNOUNCE),
        };
        let seen = self.seen(interface, value, |settings| settings.arp_announce);
        let mend = self.lowering(interface, "arp_announce", 2, |settings| settings.arp_announce);
        self.add("arp_announce", status, seen, why, Some(mend));
    }

    fn rp_filter(&mut self, ingress: &Interface) {
        let value = self.effective(ingress, |settings| settings.rp_filter);
        let strict = value == 1 && self.facts.way_back != Some(ingress.ifindex);
        let status = if strict { Status::Error } else { Status::Ok };
        let seen = self.seen(ingress, value, |settings| settings.rp_filter);
        let mend = sysctl("ipv4", &ingress.name, "rp_filter", 2);
        self.add("rp_filter", status, seen, WHY_RP_FILTER, Some(mend));
    }

    fn neighbour_discovery(&mut self, ingress: &Interface) {
        for name in ["lo", &ingress.name] {
            let Some(interface) = self.facts.host.interface(name) else { continue };
            // Setting `all` sets every interface's own, which then decides.
            let off = interface.settings.disable_ipv6 != Some(0);
            let (status, word) = if off { (Status::Error, "off") } else { (Status::Ok, "on") };
            let mend = sysctl("ipv6", name, "disable_ipv6", 0);
            self.add("ipv6", status, format!("{word} on {name}"), WHY_IPV6, Some(mend));
        }
        let value = self.effective(ingress, |settings| settings.proxy_ndp);
        let status = if value == 0 { Status::Ok } else { Status::Warning };
        let seen = self.seen(ingress, value, |settings| settings.proxy_ndp);
        let mend = self.lowering6(ingress);
        self.add("proxy_ndp", status, seen, WHY_PROXY_NDP, Some(mend));
    }

    fn listener(&mut self, port: u16) {
        let vip = self.question.vip;
        let on_port: Vec<&SocketAddr> = self.facts.listeners.iter().filter(|l| l.port() == port).collect();
        let answers = |address: IpAddr| {
            let address = address.to_canonical();
            // A socket of `::` takes IPv4 as well unless it says otherwise, which nobody can see.
            address == vip || (address.is_unspecified() && (address.is_ipv6() || vip.is_ipv4()))
        };
        let transport = if self.question.udp { "UDP" } else { "TCP" };
        let option = if self.question.udp { 'u' } else { 't' };
        let (status, seen) = match (on_port.iter().find(|l| answers(l.ip())), on_port.first()) {
            (Some(listener), _) => (Status::Ok, format!("{transport} on {listener}")),
            (None, Some(other)) => (Status::Error, format!("{transport} on {other} only")),
            (None, None) => (Status::Error, format!("nothing listens on {transport} port {port}")),
        };
        let mend = format!(
            "ss -l{option}np sport = :{port}   # then let the server listen on {}",
            SocketAddr::new(vip, port)
        );
        self.add("listener", status, seen, WHY_LISTENER, Some(mend));
    }

    /// Of `all` and the interface's own setting the higher one holds.
    fn effective(&self, interface: &Interface, of: fn(&Settings) -> Option<u32>) -> u32 {
        of(&self.facts.host.all).max(of(&interface.settings)).unwrap_or(0)
    }

    fn seen(&self, interface: &Interface, value: u32, of: fn(&Settings) -> Option<u32>) -> String {
        let (all, own) = (of(&self.facts.host.all).unwrap_or(0), of(&interface.settings).unwrap_or(0));
        let name = &interface.name;
        if all == own {
            format!("{value} on {name}")
        } else {
            format!("{value} on {name} (own {own}, all {all})")
        }
    }

    /// Sets the interface's own, and `all` too where that would beat it.
    fn lowering(
        &self,
        interface: &Interface,
        name: &str,
        to: u32,
        of: fn(&Settings) -> Option<u32>,
    ) -> String {
        let own = sysctl("ipv4", &interface.name, name, to);
        match of(&self.facts.host.all) {
            Some(all) if all > to => format!("{} && {own}", sysctl("ipv4", "all", name, to)),
            _ => own,
        }
    }

    fn lowering6(&self, interface: &Interface) -> String {
        let own = sysctl("ipv6", &interface.name, "proxy_ndp", 0);
        match self.facts.host.all.proxy_ndp {
            Some(1..) => format!("{} && {own}", sysctl("ipv6", "all", "proxy_ndp", 0)),
            _ => own,
        }
    }
}

/// Nobody asks for addresses there.
fn is_quiet(interface: &Interface) -> bool {
    interface.loopback || interface.kind.as_deref() == Some("dummy")
}

fn is_tunnel(interface: &Interface) -> bool {
    matches!(interface.carries, Some(Carries::Vxlan(_) | Carries::Geneve(_)))
}

/// What the frames of a segment carry, the outermost first.
fn layers(segment: Segment) -> Vec<Carries> {
    let id = segment.id();
    let vid = |id: u32| u16::try_from(id & 0xfff).unwrap_or(0);
    match segment.kind() {
        SegmentKind::None => vec![],
        SegmentKind::Dot1q => vec![Carries::Dot1q(vid(id))],
        SegmentKind::Dot1ad => vec![Carries::Dot1ad(vid(id))],
        SegmentKind::DoubleTagged => vec![Carries::Dot1ad(vid(id >> 12)), Carries::Dot1q(vid(id))],
        SegmentKind::Vxlan => vec![Carries::Vxlan(id)],
        SegmentKind::Geneve => vec![Carries::Geneve(id)],
    }
}

/// Easily taken for the other: same number, other protocol or other place.
fn is_near(a: Carries, b: Carries) -> bool {
    let number = |carries| match carries {
        Carries::Dot1q(id) | Carries::Dot1ad(id) => (0, u32::from(id)),
        Carries::Vxlan(id) | Carries::Geneve(id) => (1, id),
    };
    number(a) == number(b)
}

fn words(carries: Carries) -> String {
    match carries {
        Carries::Dot1q(id) => format!("802.1q:{id}"),
        Carries::Dot1ad(id) => format!("802.1ad:{id}"),
        Carries::Vxlan(id) => format!("vxlan:{id}"),
        Carries::Geneve(id) => format!("geneve:{id}"),
    }
}

fn described(interface: &Interface) -> String {
    match interface.carries {
        Some(carries) => format!("{} ({})", interface.name, words(carries)),
        None => interface.name.clone(),
    }
}

/// The command that makes the device of a layer; ADDRESS is the balancer's tunnel endpoint.
fn creation(below: &Interface, layer: Carries) -> String {
    let on = &below.name;
    let vlan = |id: u16, protocol: &str| {
        // Names have 15 characters at most.
        let name = Some(format!("{on}.{id}")).filter(|name| name.len() <= 15);
        let name = name.unwrap_or_else(|| format!("vlan{id}"));
        format!("ip link add link {on} name {name} type vlan {protocol}id {id} && ip link set {name} up")
    };
    match layer {
        Carries::Dot1q(id) => vlan(id, ""),
        Carries::Dot1ad(id) => vlan(id, "protocol 802.1ad "),
        Carries::Vxlan(id) => format!(
            "ip link add vxlan{id} type vxlan id {id} dev {on} dstport 4789 && ip link set vxlan{id} up"
        ),
        Carries::Geneve(id) => {
            format!("ip link add geneve{id} type geneve id {id} remote ADDRESS && ip link set geneve{id} up")
        }
    }
}

/// The dots of an interface's name would be taken for separators.
fn sysctl(family: &str, interface: &str, name: &str, value: u32) -> String {
    let separator = if interface.contains('.') { "/" } else { "." };
    let path = ["net", family, "conf", interface, name].join(separator);
    format!("sysctl -w {path}={value}")
}

fn covers(address: &Address, vip: IpAddr) -> bool {
    let shift = 32 - u32::from(address.length.min(32));
    match (address.address, vip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (u64::from(a.to_bits()) >> shift) == (u64::from(b.to_bits()) >> shift)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
