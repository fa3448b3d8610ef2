use super::*;

const LO: usize = 0;
const ETH0: usize = 1;
const VLAN: usize = 2;
const ETH1: usize = 3;

fn interface(ifindex: u32, name: &str) -> Interface {
    let settings = Settings {
        arp_ignore: Some(1),
        arp_announce: Some(2),
        rp_filter: Some(0),
        proxy_ndp: Some(0),
        disable_ipv6: Some(0),
    };
    Interface { name: name.to_owned(), ifindex, mtu: 1500, up: true, settings, ..Interface::default() }
}

fn address(text: &str) -> Address {
    let (address, length) = text.split_once('/').unwrap();
    Address {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
        host_scope: false,
        duplicate: false,
    }
}

/// A server that is set up for untagged frames on eth0 and for VLAN 100 on it, with another network on eth1.
fn right() -> Facts {
    let lo = Interface {
        loopback: true,
        addresses: vec![
            address("127.0.0.1/8"),
            Address { host_scope: true, ..address("192.0.2.10/32") },
            address("2001:db8::10/128"),
        ],
        ..interface(1, "lo")
    };
    let eth0 = Interface { addresses: vec![address("10.0.0.2/24")], ..interface(2, "eth0") };
    let vlan = Interface {
        parent: Some(2),
        kind: Some("vlan".to_owned()),
        carries: Some(Carries::Dot1q(100)),
        addresses: vec![address("10.0.1.2/24")],
        ..interface(3, "eth0.100")
    };
    let eth1 = Interface { addresses: vec![address("192.0.2.200/24")], ..interface(4, "eth1") };
    let all = Settings {
        arp_ignore: Some(0),
        arp_announce: Some(0),
        rp_filter: Some(0),
        proxy_ndp: Some(0),
        disable_ipv6: Some(0),
    };
    let listeners = vec!["0.0.0.0:80".parse().unwrap(), "10.0.0.2:81".parse().unwrap()];
    let host = Host { interfaces: vec![lo, eth0, vlan, eth1], all };
    Facts { host, way_back: Some(2), listeners }
}

fn ask(vip: &str, segment: &str) -> Question {
    Question {
        vip: vip.parse().unwrap(),
        interface: None,
        segment: segment.parse().unwrap(),
        client: None,
        port: None,
        udp: false,
    }
}

/// What is not right, with the cure.
fn wrong(question: &Question, facts: &Facts) -> Vec<(&'static str, Status, String, String)> {
    let findings = evaluate(question, facts).into_iter().filter(|f| f.status != Status::Ok);
    findings.map(|f| (f.check, f.status, f.seen, f.mend.unwrap_or_default())).collect()
}

#[test]
fn nothing_is_wrong_with_a_server_that_is_set_up() {
    let on = |name: &str, question: Question| Question { interface: Some(name.to_owned()), ..question };
    let questions = [
        ask("192.0.2.10", "none"),
        ask("192.0.2.10", "802.1q:100"),
        on("eth0", ask("192.0.2.10", "802.1q:100")),
        on("eth0.100", ask("192.0.2.10", "802.1q:100")),
        ask("2001:db8::10", "none"),
        ask("2001:db8::10", "802.1q:100"),
        Question { port: Some(80), ..ask("192.0.2.10", "none") },
    ];
    for question in questions {
        assert_eq!(wrong(&question, &right()), [], "{question:?}");
        assert!(evaluate(&question, &right()).iter().all(|f| f.mend.is_none() && !f.why.is_empty()));
    }
}

type Change = fn(&mut Facts);
type Case = (&'static str, &'static str, Change, &'static str, Status, &'static str, &'static str);

/// One change to a right server, and what has to be said about it.
const CASES: &[Case] = &[
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[LO].addresses.truncate(1),
        "vip",
        Status::Error,
        "192.0.2.10 is on no loopback interface",
        "ip address add 192.0.2.10/32 dev lo scope host",
    ),
    (
        "2001:db8::10",
        "none",
        |f| f.host.interfaces[LO].addresses.truncate(2),
        "vip",
        Status::Error,
        "2001:db8::10 is on no loopback interface",
        "ip address add 2001:db8::10/128 dev lo",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[LO].addresses[1].length = 24,
        "vip",
        Status::Error,
        "192.0.2.10/24 on lo, scope host",
        "ip address del 192.0.2.10/24 dev lo && ip address add 192.0.2.10/32 dev lo scope host",
    ),
    (
        "2001:db8::10",
        "none",
        |f| f.host.interfaces[LO].addresses[2].duplicate = true,
        "vip",
        Status::Error,
        "2001:db8::10/128 on lo, duplicate",
        "ip address del 2001:db8::10/128 dev lo && ip address add 2001:db8::10/128 dev lo",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[LO].up = false,
        "vip",
        Status::Error,
        "192.0.2.10/32 on lo, scope host, which is down",
        "ip link set lo up",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].addresses.push(address("192.0.2.10/24")),
        "vip elsewhere",
        Status::Error,
        "192.0.2.10/24 on eth0",
        "ip address del 192.0.2.10/24 dev eth0",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH1].addresses.push(address("192.0.2.10/32")),
        "vip elsewhere",
        Status::Warning,
        "192.0.2.10/32 on eth1",
        "ip address del 192.0.2.10/32 dev eth1",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].settings.arp_ignore = Some(0),
        "arp_ignore",
        Status::Error,
        "0 on eth0",
        "sysctl -w net.ipv4.conf.eth0.arp_ignore=1",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].settings.arp_ignore = Some(2),
        "arp_ignore",
        Status::Warning,
        "2 on eth0 (own 2, all 0)",
        "sysctl -w net.ipv4.conf.eth0.arp_ignore=1",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.all.arp_ignore = Some(8),
        "arp_ignore",
        Status::Error,
        "8 on eth0 (own 1, all 8)",
        "sysctl -w net.ipv4.conf.all.arp_ignore=1 && sysctl -w net.ipv4.conf.eth0.arp_ignore=1",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].settings.arp_ignore = Some(5),
        "arp_ignore",
        Status::Error,
        "5 on eth0 (own 5, all 0)",
        "sysctl -w net.ipv4.conf.eth0.arp_ignore=1",
    ),
    (
        "192.0.2.10",
        "none",
        |f| {
            f.host.interfaces[ETH0].settings.arp_ignore = Some(3);
            f.host.interfaces[LO].addresses[1].host_scope = false;
        },
        "arp_ignore",
        Status::Error,
        "3 on eth0 (own 3, all 0)",
        "sysctl -w net.ipv4.conf.eth0.arp_ignore=1",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[VLAN].settings.arp_announce = Some(0),
        "arp_announce",
        Status::Error,
        "0 on eth0.100",
        "sysctl -w net/ipv4/conf/eth0.100/arp_announce=2",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].settings.arp_announce = Some(1),
        "arp_announce",
        Status::Warning,
        "1 on eth0 (own 1, all 0)",
        "sysctl -w net.ipv4.conf.eth0.arp_announce=2",
    ),
    (
        "192.0.2.10",
        "none",
        |f| {
            f.way_back = Some(4);
            f.host.interfaces[ETH1].settings.arp_announce = Some(1);
        },
        "arp_announce",
        Status::Error,
        "1 on eth1 (own 1, all 0)",
        "sysctl -w net.ipv4.conf.eth1.arp_announce=2",
    ),
    (
        "192.0.2.10",
        "none",
        |f| {
            f.way_back = Some(4);
            f.host.all.rp_filter = Some(1);
        },
        "rp_filter",
        Status::Error,
        "1 on eth0 (own 0, all 1)",
        "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.way_back = None,
        "way back",
        Status::Error,
        "no route to clients",
        "ip route add default via ROUTER",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].up = false,
        "interface",
        Status::Error,
        "eth0 is down",
        "ip link set eth0 up",
    ),
    (
        "192.0.2.10",
        "none",
        |f| f.host.interfaces[ETH0].controller = Some(4),
        "interface",
        Status::Error,
        "eth0 belongs to eth1",
        "weir balancer check-backend --interface eth1 …",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[VLAN].up = false,
        "segment",
        Status::Error,
        "eth0.100 (802.1q:100) is down",
        "ip link set eth0.100 up",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[VLAN].carries = Some(Carries::Dot1ad(100)),
        "segment",
        Status::Error,
        "eth0.100 is for 802.1ad:100 on eth0; expected 802.1q:100 on eth0",
        "ip link add link eth0 name eth0.100 type vlan id 100 && ip link set eth0.100 up",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[VLAN].parent = Some(4),
        "segment",
        Status::Error,
        "eth0.100 is for 802.1q:100 on eth1; expected 802.1q:100 on eth0",
        "ip link add link eth0 name eth0.100 type vlan id 100 && ip link set eth0.100 up",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[VLAN].mtu = 1496,
        "mtu",
        Status::Warning,
        "1496 on eth0.100, 1500 on eth0",
        "ip link set eth0.100 mtu 1500",
    ),
    (
        "192.0.2.10",
        "802.1q:100",
        |f| f.host.interfaces[ETH0].mtu = 1400,
        "mtu",
        Status::Error,
        "1500 on eth0.100, 1400 on eth0",
        "ip link set eth0.100 mtu 1400",
    ),
    (
        "192.0.2.10",
        "802.1ad:200.7",
        |_| {},
        "segment",
        Status::Error,
        "no device for 802.1ad:200 on eth0",
        "ip link add link eth0 name eth0.200 type vlan protocol 802.1ad id 200 && ip link set eth0.200 up",
    ),
    (
        "192.0.2.10",
        "vxlan:5000",
        |_| {},
        "segment",
        Status::Error,
        "no device for vxlan:5000 on eth0",
        "ip link add vxlan5000 type vxlan id 5000 dev eth0 dstport 4789 && ip link set vxlan5000 up",
    ),
    (
        "2001:db8::10",
        "none",
        |f| f.host.all.proxy_ndp = Some(1),
        "proxy_ndp",
        Status::Warning,
        "1 on eth0 (own 0, all 1)",
        "sysctl -w net.ipv6.conf.all.proxy_ndp=0 && sysctl -w net.ipv6.conf.eth0.proxy_ndp=0",
    ),
    (
        "2001:db8::10",
        "none",
        |f| f.host.interfaces[ETH0].settings.disable_ipv6 = Some(1),
        "ipv6",
        Status::Error,
        "off on eth0",
        "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
    ),
];

#[test]
fn every_mistake_is_found_with_its_cure_and_nothing_else() {
    for (vip, segment, change, check, status, seen, mend) in CASES {
        let mut facts = right();
        change(&mut facts);
        let mut question = ask(vip, segment);
        question.interface = Some("eth0".to_owned());
        let expected = (*check, *status, (*seen).to_owned(), (*mend).to_owned());
        assert_eq!(wrong(&question, &facts), [expected]);
    }
}

#[test]
fn the_other_protocol_of_a_vlan_is_another_vlan() {
    let mut facts = right();
    facts.host.interfaces[VLAN].carries = Some(Carries::Dot1ad(100));
    assert_eq!(wrong(&ask("192.0.2.10", "802.1ad:100"), &facts), []);
}

#[test]
fn both_tags_of_a_double_tagged_segment_have_a_device() {
    let mut facts = right();
    facts.host.interfaces[VLAN].carries = Some(Carries::Dot1ad(100));
    let inner = Interface { parent: Some(3), carries: Some(Carries::Dot1q(7)), ..interface(5, "eth0.100.7") };
    facts.host.interfaces.push(inner);
    let question = ask("192.0.2.10", "802.1ad:100.7");
    assert_eq!(wrong(&question, &facts), []);
    facts.host.interfaces[4].settings.arp_ignore = Some(0);
    assert_eq!(wrong(&question, &facts)[0].3, "sysctl -w net/ipv4/conf/eth0.100.7/arp_ignore=1");
}

#[test]
fn a_tunnel_needs_its_device_whatever_it_lies_on() {
    let mut facts = right();
    let tunnel = Interface { carries: Some(Carries::Vxlan(5000)), mtu: 1450, ..interface(5, "vx0") };
    facts.host.interfaces.push(tunnel);
    assert_eq!(wrong(&ask("192.0.2.10", "vxlan:5000"), &facts), []);
}

#[test]
fn what_cannot_be_found_is_asked_for() {
    let mut facts = right();
    facts.way_back = None;
    let checks = |question: &Question, facts: &Facts| -> Vec<_> {
        wrong(question, facts).into_iter().map(|(check, _, seen, _)| (check, seen)).collect()
    };
    let unclear = |why: &str| ("interface", format!("not told, and {why}"));
    assert_eq!(checks(&ask("192.0.2.10", "none"), &facts)[0], unclear("there is no way back"));
    let segment = ask("192.0.2.10", "802.1q:5");
    assert_eq!(checks(&segment, &facts)[0], unclear("not exactly one device is for 802.1q:5"));
    let question = Question { interface: Some("eth9".to_owned()), ..ask("192.0.2.10", "none") };
    assert_eq!(checks(&question, &right()), [("interface", "there is no interface eth9".to_owned())]);
}

#[test]
fn a_service_listens_where_packets_to_the_vip_arrive() {
    let listener = |vip: &str, port, listener: &str| {
        let mut facts = right();
        facts.listeners = vec![listener.parse().unwrap()];
        let question = Question { port: Some(port), ..ask(vip, "none") };
        let wrong = wrong(&question, &facts);
        wrong.into_iter().next().map(|(check, _, seen, _)| (check, seen))
    };
    for right in ["0.0.0.0:80", "192.0.2.10:80", "[::]:80", "[::ffff:192.0.2.10]:80"] {
        assert_eq!(listener("192.0.2.10", 80, right), None, "{right}");
    }
    assert_eq!(listener("2001:db8::10", 80, "[::]:80"), None);
    let wrong = |seen: &str| Some(("listener", seen.to_owned()));
    assert_eq!(listener("2001:db8::10", 80, "0.0.0.0:80"), wrong("TCP on 0.0.0.0:80 only"));
    assert_eq!(listener("192.0.2.10", 80, "10.0.0.2:80"), wrong("TCP on 10.0.0.2:80 only"));
    assert_eq!(listener("192.0.2.10", 443, "0.0.0.0:80"), wrong("nothing listens on TCP port 443"));
}
