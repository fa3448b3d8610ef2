//! Two gateways' data paths between a client and a server, each in its own network namespace, with real traffic.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics when its set-up fails")]

mod topology;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use bpf_abi::Reason;
use dataplane::table::{Locator, Mapping};
use dataplane::{Eid, Hook, OnStop, TrafficOf};
use topology::{CLIENT, Gateway, SERVER, Topology};

const PATIENCE: Duration = Duration::from_secs(5);

fn eid(prefix: &str) -> Eid {
    Eid { instance_id: 0, prefix: prefix.parse().unwrap() }
}

fn to(rlocs: &[(&str, u8)]) -> Mapping {
    let locator = |(rloc, weight): &(&str, u8)| Locator {
        rloc: rloc.parse().unwrap(),
        priority: 1,
        weight: *weight,
        usable: true,
        gpe: false,
    };
    Mapping::Encapsulate(rlocs.iter().map(locator).collect())
}

/// Both gateways, each knowing where the other's EIDs are.
fn connected(topology: &Topology) -> (Gateway, Gateway) {
    let mut itr = topology.client_gateway();
    let mut etr = topology.edge_gateway();
    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 100)]));
    etr.set(eid("10.200.0.0/24"), to(&[("10.0.1.1", 100)]));
    (itr, etr)
}

fn detach(gateways: impl IntoIterator<Item = Gateway>) {
    gateways.into_iter().for_each(|gateway| gateway.stop(OnStop::Detach));
}

/// Accepts one connection and sends back what it reads, until the end.
fn echo(topology: &Topology, port: u16) -> std::thread::JoinHandle<u64> {
    let listener = topology.within("s", || TcpListener::bind((SERVER, port)).unwrap());
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        std::io::copy(&mut &stream, &mut writer).unwrap()
    })
}

fn connect(topology: &Topology, port: u16) -> TcpStream {
    let address = SocketAddr::new(SERVER.parse().unwrap(), port);
    let stream = topology.within("c", || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, octets: &[u8]) {
    stream.write_all(octets).unwrap();
    let mut back = vec![0; octets.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, octets);
}

fn count(gateway: &Gateway, reason: Reason) -> u64 {
    gateway.dataplane().reasons().unwrap().into_iter().find(|(r, _)| *r == reason).unwrap().1
}

#[test]
fn ping_tcp_and_udp_go_through_and_nothing_is_left_behind() {
    let topology = Topology::new("t1");
    let (itr, etr) = connected(&topology);
    assert!(topology.ping(&["-c", "2"]).contains("2 received"));

    let server = echo(&topology, 8080);
    let mut stream = connect(&topology, 8080);
    let pattern: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut reader = stream.try_clone().unwrap();
    let expected = pattern.clone();
    let reading = std::thread::spawn(move || {
        for _ in 0..16 {
            let mut back = vec![0; expected.len()];
            reader.read_exact(&mut back).unwrap();
            assert!(back == expected);
        }
    });
    for _ in 0..16 {
        stream.write_all(&pattern).unwrap();
    }
    reading.join().unwrap();
    drop(stream);
    assert_eq!(server.join().unwrap(), 16_000_000);

    let traffic = itr.dataplane().traffic().unwrap();
    let sent = traffic.iter().find(|t| t.of == TrafficOf::Locator("10.0.1.2".parse().unwrap())).unwrap();
    assert_eq!(sent.eid, eid("10.100.0.0/24"));
    assert_eq!(sent.value.flows, 2, "one of ICMP, one of TCP");
    assert!(sent.value.bytes > 16_000_000);
    assert!(count(&itr, Reason::Encapsulated) < sent.value.packets, "GSO packets stay whole");

    let pins = itr.pins();
    detach([itr, etr]);
    assert!(!Path::new(&pins).exists());
    for namespace in ["i", "e"] {
        let links = topology.ip(namespace, &["-o", "link"]);
        assert!(!links.contains("weir-"), "{links}");
        assert_eq!(topology.ip(namespace, &["route", "show", "proto", "233"]), "");
        assert_eq!(topology.attached(namespace, "u0"), 0);
    }
}

#[test]
fn too_large_packets_are_fragmented_or_answered() {
    let topology = Topology::new("t2");
    let (itr, etr) = connected(&topology);
    let answer = topology.ping(&["-c", "1", "-W", "2", "-M", "do", "-s", "1472"]);
    assert!(answer.contains("mtu = 1464") || answer.contains("mtu=1464"), "{answer}");
    let whole = topology.ping(&["-c", "2", "-W", "2", "-M", "dont", "-s", "4000"]);
    assert!(whole.contains("2 received"), "{whole}");
    assert!(count(&itr, Reason::PassTooBig) > 0);
    assert_eq!(count(&itr, Reason::DropTooBig), 0);
    detach([itr, etr]);
}

#[test]
fn udp_gso_arrives() {
    const SEGMENTS: usize = 40;
    let topology = Topology::new("t3");
    let (itr, etr) = connected(&topology);
    let receiver = topology.within("s", || UdpSocket::bind((SERVER, 9000)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = topology.within("c", || UdpSocket::bind((CLIENT, 0)).unwrap());
    let size: libc::c_int = 1000;
    // SAFETY: the option's value is an int that outlives the call.
    let set = unsafe {
        libc::setsockopt(sender.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4)
    };
    assert_eq!(set, 0);
    for _ in 0..10 {
        sender.send_to(&vec![7; 1000 * SEGMENTS], (SERVER, 9000)).unwrap();
        let mut buffer = [0; 2000];
        for _ in 0..SEGMENTS {
            assert_eq!(receiver.recv(&mut buffer).unwrap(), 1000);
        }
    }
    assert_eq!(count(&etr, Reason::Segment), 10);
    detach([itr, etr]);
}

#[test]
fn a_miss_is_held_and_released() {
    let topology = Topology::new("t4");
    let mut itr = topology.client_gateway();
    let mut etr = topology.edge_gateway();
    etr.set(eid("10.200.0.0/24"), to(&[("10.0.1.1", 100)]));
    let receiver = topology.within("s", || UdpSocket::bind((SERVER, 9000)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = topology.within("c", || UdpSocket::bind((CLIENT, 0)).unwrap());
    sender.send_to(b"held", (SERVER, 9000)).unwrap();
    let mut frame = itr.receive(PATIENCE);
    assert_eq!(frame[30..34], [10, 100, 0, 1]);
    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 100)]));
    frame[..6].copy_from_slice(&itr.dataplane().tap_mac());
    itr.dataplane().tap().send(&frame).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"held");
    detach([itr, etr]);
}

#[test]
fn a_restart_loses_no_flow_and_takes_over_what_is_pinned() {
    let topology = Topology::new("t5");
    let (mut itr, etr) = connected(&topology);
    // Ten connections at the first locator; the second one does not exist, so a flow that moved there would stall.
    let mut streams: Vec<_> = (0..10_u16)
        .map(|n| {
            let server = echo(&topology, 8000 + n);
            (connect(&topology, 8000 + n), server)
        })
        .collect();
    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 0), ("10.0.1.9", 100)]));
    streams.iter_mut().for_each(|(stream, _)| round_trip(stream, b"after the weights moved"));

    itr.crash();
    streams.iter_mut().for_each(|(stream, _)| round_trip(stream, b"with nobody at home"));
    let before = topology.attached("i", "i0");
    let mut itr = topology.client_gateway();
    assert_eq!(topology.attached("i", "i0"), before);
    assert_eq!(itr.dataplane().unconfirmed(), [eid("10.100.0.0/24")]);
    streams.iter_mut().for_each(|(stream, _)| round_trip(stream, b"after the restart"));

    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 0), ("10.0.1.9", 100)]));
    assert_eq!(itr.dataplane().unconfirmed(), []);
    streams.iter_mut().for_each(|(stream, _)| round_trip(stream, b"after confirmation"));
    let flows = itr.dataplane().flow_reader().unwrap().flows(100);
    assert_eq!(flows.len(), 10);
    let first: IpAddr = "10.0.1.2".parse().unwrap();
    assert!(flows.iter().all(|flow| flow.rloc == Some(first)));

    itr.stop(OnStop::Keep);
    streams.iter_mut().for_each(|(stream, _)| round_trip(stream, b"kept on stop"));
    drop(streams);
    topology.client_gateway().stop(OnStop::Detach);
    etr.stop(OnStop::Detach);
    assert!(!topology.ip("i", &["-o", "link"]).contains("weir-"));
}

#[test]
fn packets_left_to_the_stack_take_others_routes() {
    let topology = Topology::new("t7");
    let (mut itr, etr) = connected(&topology);
    let unregistered = eid("10.100.128.0/17");
    itr.set(unregistered, Mapping::Native);
    let show = || topology.ip("i", &["route", "show", "10.100.128.0/17"]);
    assert!(show().starts_with("unreachable"), "there is no other route yet: {}", show());
    topology.ip("i", &["route", "add", "default", "via", "10.0.1.2"]);
    itr.follow();
    assert!(show().contains("via 10.0.1.2 dev u0"), "{}", show());
    itr.set(unregistered, Mapping::Drop);
    assert_eq!(show(), "");
    detach([itr, etr]);
    assert!(topology.ip("i", &["route"]).contains("default via 10.0.1.2"));
}

#[test]
fn settings_are_put_back_by_a_later_process() {
    let topology = Topology::new("t8");
    let forwarding =
        || topology.within("i", || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    topology.within("i", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    topology.client_gateway().stop(OnStop::Keep);
    assert_eq!(forwarding(), "1\n");
    topology.client_gateway().stop(OnStop::Detach);
    assert_eq!(forwarding(), "0\n");
}

#[test]
fn xdp_carries_packets_and_survives_a_restart() {
    let topology = Topology::new("t9");
    // A veth passes redirected frames on when its peer's NAPI runs, and XDP knows no unfinished checksums.
    for (namespace, name) in [("c", "c0"), ("i", "i0"), ("i", "u0"), ("e", "u0"), ("e", "e0"), ("s", "s0")] {
        let set = |feature, on| dataplane::ethtool::set_feature(name, feature, on).unwrap();
        topology.within(namespace, || {
            set("rx-gro", true);
            ["tx-checksum-ip-generic", "tx-tcp-segmentation"].iter().for_each(|feature| set(feature, false));
        });
    }
    let mut itr = topology.client_gateway_with(Hook::Xdp);
    let mut etr = topology.edge_gateway_with(Hook::Xdp);
    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 100)]));
    etr.set(eid("10.200.0.0/24"), to(&[("10.0.1.1", 100)]));
    // The first packets teach the stacks their neighbours.
    topology.ping(&["-c", "3"]);
    [&mut itr, &mut etr].into_iter().for_each(Gateway::follow);
    let through = count(&itr, Reason::Encapsulated);
    assert!(topology.ping(&["-c", "3"]).contains("3 received"));
    assert_eq!(count(&itr, Reason::Encapsulated), through + 3);
    assert_eq!(topology.attached("i", "i0"), 0, "nothing on TC");
    let server = echo(&topology, 8080);
    let mut stream = connect(&topology, 8080);
    round_trip(&mut stream, b"over XDP");
    itr.crash();
    round_trip(&mut stream, b"with nobody at home");
    let itr = topology.client_gateway_with(Hook::Xdp);
    round_trip(&mut stream, b"after the restart");
    drop(stream);
    server.join().unwrap();
    detach([itr, etr]);
    for (namespace, name) in [("i", "i0"), ("e", "u0")] {
        assert!(!topology.ip(namespace, &["link", "show", name]).contains("xdp"));
    }
}

#[test]
fn interfaces_made_anew_are_taken_up() {
    let topology = Topology::new("t10");
    let (mut itr, mut etr) = connected(&topology);
    assert!(topology.ping(&["-c", "1"]).contains("1 received"));
    topology.remake_client_link();
    topology.remake_underlay();
    [&mut itr, &mut etr].into_iter().for_each(Gateway::follow);
    assert!(topology.ping(&["-c", "2"]).contains("2 received"));
    assert_eq!((topology.attached("i", "i0"), topology.attached("e", "u0")), (1, 1));
    detach([itr, etr]);
}

#[test]
fn a_route_change_reaches_the_locators() {
    let topology = Topology::new("t6");
    let (mut itr, etr) = connected(&topology);
    let way = |gateway: &Gateway| {
        let observed = gateway.dataplane().observed();
        observed.locators.values().next().map(|l| (dataplane::unmapped(&l.next_hop), l.mtu)).unwrap()
    };
    assert_eq!(way(&itr), ("10.0.1.2".parse().unwrap(), 1500));
    let changes = itr.dataplane().route_changes();
    topology
        .ip("i", &["route", "add", "10.0.1.2/32", "via", "10.0.1.77", "dev", "u0", "onlink", "mtu", "1400"]);
    let deadline = Instant::now() + PATIENCE;
    while !changes.has_changed().unwrap() {
        assert!(Instant::now() < deadline, "no route change was announced");
        itr.idle(Duration::from_millis(10));
    }
    itr.follow();
    assert_eq!(way(&itr), ("10.0.1.77".parse().unwrap(), 1400));
    assert!(topology.ip("i", &["route", "show", "10.100.0.0/16"]).contains("mtu lock 1364"));
    detach([itr, etr]);
}

#[test]
fn a_mapping_set_during_a_survey_keeps_its_ways() {
    let topology = Topology::new("t13");
    let (mut itr, etr) = connected(&topology);
    let way = |gateway: &Gateway, rloc: &str| {
        let rloc = rloc.parse::<IpAddr>().unwrap();
        let observed = gateway.dataplane().observed();
        let locator = observed.locators.values().find(|l| dataplane::unmapped(&l.destination) == rloc)?;
        Some(dataplane::unmapped(&locator.next_hop))
    };
    topology.ip("i", &["route", "add", "10.0.9.9/32", "via", "10.0.1.8", "dev", "u0", "onlink"]);
    topology.ip("i", &["route", "add", "10.0.1.2/32", "via", "10.0.1.7", "dev", "u0", "onlink"]);
    let surveyed = itr.survey();
    itr.set(eid("10.100.0.0/24"), to(&[("10.0.1.2", 50), ("10.0.9.9", 50)]));
    let before = (way(&itr, "10.0.1.2"), way(&itr, "10.0.9.9"));
    itr.apply(surveyed);
    let next_hop = |address: &str| Some(address.parse::<IpAddr>().unwrap());
    assert_eq!(before, (next_hop("10.0.1.2"), next_hop("10.0.1.8")));
    assert_eq!((way(&itr, "10.0.1.2"), way(&itr, "10.0.9.9")), (next_hop("10.0.1.7"), next_hop("10.0.1.8")));
    detach([itr, etr]);
}

#[test]
fn a_start_that_fails_leaves_nothing_new_and_takes_nothing_old() {
    let topology = Topology::new("t11");
    let names = || {
        let links = topology.ip("i", &["-o", "link", "show"]);
        links.lines().filter_map(|line| Some(line.split(':').nth(1)?.trim().to_owned())).collect::<Vec<_>>()
    };
    let forwarding =
        || topology.within("i", || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    let (before, forwards) = (names(), forwarding());
    let error = topology.failing_client_gateway();
    assert!(error.contains("nowhere"), "{error}");
    assert_eq!((names(), forwarding()), (before, forwards));
    assert!(!Path::new(&topology.pins("i")).exists());

    let (itr, etr) = connected(&topology);
    assert!(topology.ping(&["-c", "1"]).contains("1 received"));
    itr.crash();
    topology.failing_client_gateway();
    assert!(topology.ping(&["-c", "2"]).contains("2 received"), "the pinned data path goes on");
    detach([topology.client_gateway(), etr]);
}

/// Two programs on an interface would be two gateways.
#[test]
fn programs_of_another_version_are_replaced() {
    let topology = Topology::new("t12");
    topology.client_gateway().crash();
    let pins = topology.pins("i");
    let here = std::fs::read_dir(&pins).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(here, format!("{pins}/v0")).unwrap();
    let itr = topology.client_gateway();
    assert_eq!(topology.attached("i", "i0"), 1);
    assert!(!Path::new(&format!("{pins}/v0")).exists());
    detach([itr]);
}
