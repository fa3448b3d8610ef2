//! A balancer in the kernel: brought up, changed, restarted in place, refused a hook; on a veth in a namespace.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics when its set-up fails")]

#[path = "balancer_port/mod.rs"]
mod port;

use std::time::Duration;

use codec::Instant;
use dataplane::DataplaneError;
use dataplane::balancer::{
    Backend, Balancer, BalancerConfig, FlowQuery, Followed, HashBy, HookError, PacketKind, Protocol, Segment,
    Verdict, Vip, XdpHook,
};
use dataplane::test_run::{XDP_DROP, XDP_PASS, XDP_TX};

use crate::port::Port;

fn backend(name: &str, weight: u32) -> Backend {
    let mac = [2, 0, 0, 0, 1, u8::try_from(name.len()).unwrap()];
    Backend { name: name.to_owned(), weight, usable: true, mac, segment: Segment::NONE, tunnel: None }
}

fn vip(id: &str, backends: Vec<Backend>) -> Vip {
    Vip {
        id: id.parse().unwrap(),
        hash: HashBy::FiveTuple,
        flow_table: false,
        table_size: None,
        drain: Duration::from_secs(10),
        echo: true,
        backends,
    }
}

fn query(source_port: u16) -> FlowQuery {
    FlowQuery {
        segment: Segment::NONE,
        source: [198, 51, 100, 1].into(),
        source_port,
        destination: [192, 0, 2, 10].into(),
        destination_port: 80,
        protocol: Protocol::Tcp,
        first: true,
    }
}

#[test]
fn a_restart_finds_everything_in_place() {
    let port = Port::new("r1");
    let desired = [vip("192.0.2.10:80/tcp", vec![backend("a", 1), backend("bb", 2), backend("ccc", 0)])];
    let mut balancer = port.start(port.config());
    let applied = balancer.apply(Instant::ZERO, &desired).unwrap();
    assert_eq!(applied.tables, 1);
    assert_eq!(balancer.apply(Instant::ZERO, &desired).unwrap().writes, 0);
    let choices = |balancer: &Balancer| -> Vec<_> {
        (1..1000).map(|source| balancer.explain(&query(source)).unwrap().current).collect()
    };
    let before = choices(&balancer);
    let tables = port.tables();
    let program = port.xdp_program();
    drop(balancer);
    assert_eq!(port.xdp_program(), program, "frames are balanced with nobody at home");

    let mut balancer = port.start(port.config());
    assert_ne!(port.xdp_program(), program, "the program is the new one's");
    let found = balancer.in_place(&desired[0].id, "bb").unwrap();
    assert_eq!((found.usable, found.slots, found.mac), (true, 680, [2, 0, 0, 0, 1, 2]));
    assert_eq!(balancer.in_place(&desired[0].id, "ccc").unwrap().slots, 0);
    assert_eq!(balancer.in_place(&desired[0].id, "d"), None);
    assert_eq!(balancer.apply(Instant::ZERO, &desired).unwrap().writes, 0);
    assert_eq!(port.tables(), tables);
    assert_eq!(choices(&balancer), before);
    assert_eq!(balancer.poll_timeout(), None);
    port.stop(balancer);
    assert_eq!(port.xdp_program(), None);
    assert!(!port.pins().exists());
}

#[test]
fn a_drain_from_before_a_restart_is_still_one() {
    let port = Port::new("r10");
    let of = |weights: &[u32]| {
        let names = ["a", "bb", "ccc"];
        let backends = names.iter().zip(weights).map(|(name, weight)| backend(name, *weight)).collect();
        [vip("192.0.2.10:80/tcp", backends)]
    };
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &of(&[1, 1, 1])).unwrap();
    assert_eq!(balancer.draining(), []);
    let desired = of(&[1, 1, 0]);
    balancer.apply(Instant::ZERO, &desired).unwrap();
    assert_eq!(balancer.draining(), [desired[0].id]);
    drop(balancer);

    let mut balancer = port.start(port.config());
    assert_eq!(balancer.draining(), [desired[0].id], "before anything is applied");
    balancer.apply(Instant::ZERO, &desired).unwrap();
    assert_eq!(balancer.draining(), [desired[0].id]);
    balancer.handle_timeout(balancer.poll_timeout().unwrap()).unwrap();
    assert_eq!(balancer.draining(), []);
    port.stop(balancer);
}

#[test]
fn the_kernel_sends_a_flow_where_it_is_explained() {
    let port = Port::new("r2");
    let mut balancer = port.start(port.config());
    let names: Vec<String> = (1..=20).map(|length| "n".repeat(length)).collect();
    let backends = names.iter().map(|name| backend(name, 1)).collect();
    let desired = [vip("192.0.2.10:80/tcp", backends)];
    balancer.apply(Instant::ZERO, &desired).unwrap();
    for source in 1..200 {
        let explained = balancer.explain(&query(source)).unwrap();
        assert_eq!(explained.verdict, Verdict::Forwarded, "{explained:?}");
        let frame = port.run(source);
        let name = explained.backend.unwrap();
        assert_eq!(usize::from(frame[5]), name.len(), "{name}");
    }
    let counters = balancer.counters().unwrap();
    assert_eq!(counters[0].sent.packets, 199);
    assert_eq!(counters[0].backends.iter().map(|backend| backend.sent.packets).sum::<u64>(), 199);
    let other = FlowQuery { destination_port: 81, ..query(1) };
    let explained = balancer.explain(&other).unwrap();
    assert_eq!(explained.verdict, Verdict::PassNoVip);
    assert!(explained.because.contains("192.0.2.10:80/tcp"), "{}", explained.because);

    let fewer = [vip("192.0.2.10:80/tcp", vec![backend("n", 1)])];
    balancer.apply(Instant::ZERO, &fewer).unwrap();
    let moved = balancer.explain(&query(7)).unwrap();
    assert_eq!(moved.verdict, Verdict::Forwarded);
    assert_eq!(moved.current.unwrap().name.as_deref(), Some("n"));
    assert!(moved.previous.is_some());
    let middle = FlowQuery { first: false, ..query(7) };
    assert_eq!(balancer.explain(&middle).unwrap().verdict, Verdict::Forwarded, "its old backend is gone");
    port.stop(balancer);
}

/// An IPv4 packet from 198.51.100.1, unless told otherwise, to 192.0.2.10.
fn packet(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
    [&header[..], &[198, 51, 100, 1, 192, 0, 2, 10], payload].concat()
}

#[test]
fn the_kernel_sends_what_has_no_ports_where_it_is_explained() {
    let port = Port::new("r15");
    let mut balancer = port.start(port.config());
    let backends: Vec<Backend> = (1..=20).map(|length| backend(&"n".repeat(length), 1)).collect();
    let web = vip("192.0.2.10:80/tcp", backends.clone());
    let by_addresses = Vip { hash: HashBy::Addresses, ..vip("192.0.2.10:53/udp", backends) };
    let quiet = Vip { echo: false, ..vip("192.0.2.11:80/tcp", vec![backend("a", 1)]) };
    balancer.apply(Instant::ZERO, &[web, by_addresses, quiet]).unwrap();
    let explain = |query: &FlowQuery, kind| balancer.explain_packet(query, kind).unwrap();
    let to = |query: &FlowQuery, kind, verdict, packet: &[u8]| {
        let explained = explain(query, kind);
        assert_eq!(explained.verdict, verdict, "{explained:?}");
        let (action, frame) = port.run_packet(packet);
        assert_eq!((action, usize::from(frame[5])), (XDP_TX, explained.backend.unwrap().len()));
    };
    let udp = FlowQuery { protocol: Protocol::Udp, destination_port: 9, ..query(7) };
    to(&udp, PacketKind::Fragment, Verdict::Forwarded, &packet(17, [0, 185], &[0; 64]));
    for source in 1..50 {
        let mut quoted = packet(6, [0, 0], &[0, 80, 0, source, 0, 0, 0, 0]);
        quoted[12..20].copy_from_slice(&[192, 0, 2, 10, 198, 51, 100, 1]);
        let error = packet(1, [0, 0], &[&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted].concat());
        to(&query(source.into()), PacketKind::IcmpError, Verdict::IcmpRelayed, &error);
    }
    let not_sent = |query: &FlowQuery, kind, verdict, packet: &[u8], action| {
        assert_eq!(explain(query, kind).verdict, verdict);
        assert_eq!(port.run_packet(packet).0, action);
    };
    let tcp = packet(6, [0, 185], &[0; 64]);
    not_sent(&query(7), PacketKind::Fragment, Verdict::DropFragment, &tcp, XDP_DROP);
    let mut echo = packet(1, [0, 0], &[8, 0, 0, 0, 0, 0, 0, 0]);
    not_sent(&query(7), PacketKind::EchoRequest, Verdict::EchoAnswered, &echo, XDP_TX);
    echo[19] = 11;
    let quiet = FlowQuery { destination: [192, 0, 2, 11].into(), ..query(7) };
    not_sent(&quiet, PacketKind::EchoRequest, Verdict::PassIcmp, &echo, XDP_PASS);
    port.stop(balancer);
}

#[test]
fn a_port_that_is_taken_says_by_whom() {
    let port = Port::new("r3");
    let other = port.attach_other();
    let error = port.try_start(port.config()).err().unwrap();
    let DataplaneError::XdpHook(HookError::Taken { program, ref name, mode, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!((Some(program), name.as_str(), mode), (port.xdp_program(), "empty_xdp", XdpHook::Native));
    assert!(error.to_string().contains("bpftool net detach"), "{error}");
    assert!(!port.pins().exists(), "a start that fails leaves nothing");
    drop(other);
    port.wait_until_free();
    port.stop(port.start(port.config()));
}

#[test]
fn a_change_of_hooks_is_made_and_only_when_asked() {
    let port = Port::new("r4");
    drop(port.start(port.config()));
    assert_eq!(port.xdp_mode(), Some(XdpHook::Native));
    let generic = BalancerConfig { mode: XdpHook::Generic, ..port.config() };
    let balancer = port.start(generic);
    assert_eq!(port.xdp_mode(), Some(XdpHook::Generic));
    port.stop(balancer);
}

#[test]
fn an_interface_without_xdp_of_its_own_is_told_so() {
    let port = Port::new("r5");
    port.ip(&["link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789", "dev", "p0"]);
    let config = BalancerConfig { interface: "vx0".to_owned(), ..port.config() };
    let error = port.try_start(config).err().unwrap();
    assert!(matches!(error, DataplaneError::XdpHook(HookError::NotNative { .. })), "{error}");
    let config = BalancerConfig { interface: "nowhere".to_owned(), ..port.config() };
    assert!(matches!(port.try_start(config).err().unwrap(), DataplaneError::NoInterface { .. }));
    assert!(!port.pins().exists());
}

#[test]
fn tags_stay_in_the_frames() {
    let port = Port::new("r6");
    let on = |feature| port.within(|| dataplane::ethtool::feature("p0", feature)).unwrap().unwrap().on;
    let features = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse", "tx-vlan-hw-insert"];
    let before = features.map(on);
    let mut balancer = port.start(port.config());
    assert_eq!(features.map(on), [false; 3]);
    port.stop(balancer);
    assert_eq!(features.map(on), before);
    // One that takes over knows what the one before turned off; a veth filters nothing.
    drop(port.start(port.config()));
    balancer = port.start(port.config());
    let tagged = [vip("192.0.2.10:80/tcp@802.1q:100", Vec::new())];
    port.within(|| balancer.apply(Instant::ZERO, &tagged)).unwrap();
    assert_eq!(features.map(on), [false; 3]);
    assert_eq!(balancer.filtered(), []);
    port.stop(balancer);
    assert_eq!(features.map(on), before);
}

#[test]
fn four_thousand_backends_are_one_change() {
    let port = Port::new("r7");
    let mut balancer = port.start(port.config());
    let backends = (0..4000).map(|n| backend(&format!("server-{n}"), 1 + n % 3)).collect();
    let desired = [vip("192.0.2.10:80/tcp", backends)];
    let applied = balancer.apply(Instant::ZERO, &desired).unwrap();
    assert_eq!((applied.tables, applied.moved_slots), (1, 524_287));
    let octets: u64 = balancer.memory().iter().map(|(_, octets)| octets).sum();
    assert_eq!(octets, 1 << 20);
    assert_eq!(balancer.explain(&query(1)).unwrap().verdict, Verdict::Forwarded);
    port.stop(balancer);
}

/// A gateway of the same name has its pins in the same directory.
#[test]
fn pins_of_another_role_stay() {
    let port = Port::new("r8");
    let balancer = port.start(port.config());
    let foreign = port.pins().join("REASONS");
    port.pin_a_map(&foreign);
    port.stop(balancer);
    assert!(foreign.exists());
    assert_eq!(std::fs::read_dir(port.pins()).unwrap().count(), 1);
}

#[test]
fn the_program_of_another_version_works_until_the_new_maps_are_filled() {
    let port = Port::new("r9");
    let desired = [vip("192.0.2.10:80/tcp", vec![backend("a", 1)])];
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &desired).unwrap();
    drop(balancer);
    std::fs::rename(port.pins(), port.pins().with_file_name("v0")).unwrap();
    let old = port.xdp_program();
    let mut balancer = port.start(port.config());
    assert_eq!(port.xdp_program(), old);
    balancer.apply(Instant::ZERO, &desired).unwrap();
    assert_ne!(port.xdp_program(), old);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    port.stop(balancer);
}

#[test]
fn another_link_layer_address_is_followed() {
    let port = Port::new("r11");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    port.run(1);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);
    port.ip(&["link", "set", "p0", "address", "02:00:00:00:00:77"]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Readdressed);
    // It takes the frames to the new address, also for a flow that it has just seen, and sends from it.
    assert_eq!(port.run(1)[..12], [2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 0x77]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);
    port.stop(balancer);
}

#[test]
fn a_port_that_is_made_again_is_taken_again() {
    let port = Port::new("r12");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    port.ip(&["link", "del", "p0"]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Away);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same, "it is told once");
    // The state is kept up while nothing can be sent.
    let desired = [vip("192.0.2.10:80/tcp", vec![backend("bb", 1)])];
    assert_eq!(balancer.apply(Instant::ZERO, &desired).unwrap().tables, 1);
    port.make_again();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 2]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);
    // Nobody may have looked in between.
    port.ip(&["link", "del", "p0"]);
    port.make_again();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 2]);
    drop(balancer);
    // The next process finds the link that this one pinned.
    let balancer = port.start(port.config());
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 2]);
    port.stop(balancer);
    assert_eq!(port.xdp_program(), None);
}

#[test]
fn a_new_port_that_is_taken_is_left_alone_until_it_is_free() {
    let port = Port::new("r13");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    port.ip(&["link", "del", "p0"]);
    port.make_again();
    let other = port.attach_other();
    for _ in 0..2 {
        let error = port.follow(&mut balancer).unwrap_err();
        assert!(matches!(error, DataplaneError::XdpHook(HookError::Taken { .. })), "{error}");
    }
    drop(other);
    port.wait_until_free();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    // One that stops while its port is away leaves nothing.
    port.ip(&["link", "del", "p0"]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Away);
    port.stop(balancer);
    assert!(!port.pins().exists());
}

#[test]
fn a_port_that_gave_its_name_away_is_let_go_of() {
    let port = Port::new("r14");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    port.ip(&["link", "set", "p0", "down"]);
    port.ip(&["link", "set", "p0", "name", "old0"]);
    port.ip(&["link", "set", "p1", "name", "old1"]);
    port.make_again();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    port.stop(balancer);
}

#[test]
fn a_program_that_is_taken_off_is_put_back() {
    let port = Port::new("r17");
    let before = port.find_link("p0");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    let program = port.xdp_program();
    assert_eq!(port.within(|| balancer.follow(before.as_ref())).unwrap(), Followed::Same);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);
    assert_eq!(port.within(|| balancer.follow(before.as_ref())).unwrap(), Followed::Same);
    assert_eq!(port.xdp_program(), program, "what was looked at before is no reason to do anything");

    let take_off = || {
        std::fs::remove_file(port.pins().join("link-weir_balancer-p0")).unwrap();
        port.wait_until_free();
    };
    take_off();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);

    take_off();
    let other = port.attach_other();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same);
    let error = port.follow(&mut balancer).unwrap_err().to_string();
    assert!(error.contains("has the XDP program"), "{error}");
    drop(other);
    port.wait_until_free();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    port.stop(balancer);
}

fn rename(port: &Port, from: &str, to: &str) {
    port.ip(&["link", "set", from, "down"]);
    port.ip(&["link", "set", from, "name", to, "up"]);
}

/// Which of the features that have to do with tags are on.
fn tag_features(port: &Port, interface: &str) -> [bool; 3] {
    ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse", "tx-vlan-hw-insert"]
        .map(|feature| port.within(|| dataplane::ethtool::feature(interface, feature)).unwrap().unwrap().on)
}

#[test]
fn a_port_that_is_renamed_is_left_as_it_was() {
    let port = Port::new("r16");
    let on = |name: &str| tag_features(&port, name);
    let before = on("p0");
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &[vip("192.0.2.10:80/tcp", vec![backend("a", 1)])]).unwrap();
    let rename = |from: &str, to: &str| rename(&port, from, to);
    rename("p0", "x0");
    assert_eq!((port.xdp_program_of("x0").is_some(), on("x0")), (true, [false; 3]));
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Away);
    port.wait_until_free_of("x0");
    assert_eq!(on("x0"), before);
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Same, "it is told once");

    // It is the port again by its name alone.
    rename("x0", "p0");
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);
    assert_eq!(port.run(1)[..6], [2, 0, 0, 0, 1, 1]);
    assert_eq!(on("p0"), [false; 3]);

    // Another one has the name, and is taken.
    rename("p0", "x0");
    port.ip(&["link", "set", "p1", "name", "x1"]);
    port.make_again();
    let other = port.attach_other();
    port.follow(&mut balancer).unwrap_err();
    port.wait_until_free_of("x0");
    assert_eq!(on("x0"), before);
    drop(other);
    port.wait_until_free();
    assert_eq!(port.follow(&mut balancer).unwrap(), Followed::Attached);

    // Renamed, and nobody has looked before the end.
    rename("p0", "y0");
    port.stop(balancer);
    port.wait_until_free_of("y0");
    assert_eq!(on("y0"), before);
    assert!(!port.pins().exists());
}

#[test]
fn a_port_renamed_while_nobody_looked_is_taken_over_by_its_new_name() {
    let port = Port::new("r18");
    let before = tag_features(&port, "p0");
    let desired = [vip("192.0.2.10:80/tcp", vec![backend("a", 1), backend("bb", 1)])];
    let mut balancer = port.start(port.config());
    balancer.apply(Instant::ZERO, &desired).unwrap();
    let tables = port.tables();
    drop(balancer);
    rename(&port, "p0", "x0");
    let program = port.xdp_program_of("x0");
    let config = BalancerConfig { interface: "x0".to_owned(), ..port.config() };
    let mut balancer = port.start(config);
    assert!(port.xdp_program_of("x0").is_some_and(|now| Some(now) != program), "the new one's is there");
    assert_eq!(balancer.apply(Instant::ZERO, &desired).unwrap().writes, 0);
    assert_eq!(port.tables(), tables);
    port.stop(balancer);
    assert_eq!((port.xdp_program_of("x0"), tag_features(&port, "x0")), (None, before));
    assert!(!port.pins().exists());
}

#[test]
fn what_was_the_port_before_is_left_as_it_was() {
    let port = Port::new("r19");
    let before = ["p0", "p1"].map(|name| tag_features(&port, name));
    let mut balancer = port.start(port.config());
    let desired = [vip("192.0.2.10:80/tcp", vec![backend("a", 1)])];
    balancer.apply(Instant::ZERO, &desired).unwrap();
    drop(balancer);
    assert_eq!(tag_features(&port, "p0"), [false; 3]);
    let config = BalancerConfig { interface: "p1".to_owned(), ..port.config() };
    let mut balancer = port.start(config);
    assert_eq!(balancer.apply(Instant::ZERO, &desired).unwrap().writes, 0);
    port.wait_until_free();
    assert!(port.xdp_program_of("p1").is_some());
    assert_eq!(["p0", "p1"].map(|name| tag_features(&port, name)), [before[0], [false; 3]]);
    port.stop(balancer);
    assert_eq!(["p0", "p1"].map(|name| tag_features(&port, name)), before);
    assert!(!port.pins().exists());
}
