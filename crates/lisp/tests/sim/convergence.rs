//! Whatever the link does, gateways end up with the newest mappings, and never go back to older ones.

use lisp::machine::Counter;
use lisp::map_server::{Command, Event};
use lisp::mapping::TableDelta;
use lisp::xtr;

use crate::lab::*;
use crate::world::{BAD, CLEAN, World};

#[test]
fn a_gateway_has_the_service_with_all_edges_after_a_round_trip() {
    let world = settled(1);
    assert_eq!(split(&world, GATEWAY), [(1, 100, true); 3]);
    let server = &world.servers[&SERVER];
    assert_eq!(server.registrations().len(), 3);
    assert_eq!(server.subscriptions().len(), 1);
    assert_eq!(server.subscriptions()[0].rtt, Some(millis(20)));
    for edge in EDGES {
        assert!(world.xtrs[&edge].map_servers()[0].confirmed_at.is_some());
    }
}

#[test]
fn new_weights_arrive_after_one_way() {
    let mut world = settled(2);
    let changed_at = world.now;
    world.control(SERVER, weights(&[(1, 1, 50), (2, 1, 30), (3, 1, 20)]));
    world.run(millis(10));
    assert_eq!(weights_of(&world, GATEWAY), [50, 30, 20]);
    let (at, delta) = world.gateways[&GATEWAY].deltas.last().unwrap().clone();
    assert_eq!(at, changed_at + millis(10));
    world.run(millis(10));
    let TableDelta::Set { nonce: Some(nonce), .. } = delta else { panic!("{delta:?}") };
    let acknowledged = world.server_events.iter().any(|(_, e)| {
        matches!(e, Event::Acknowledged { nonce: n, published_at, .. } if *n == nonce && *published_at == changed_at)
    });
    assert!(acknowledged);
}

#[test]
fn each_gateway_gets_its_own_weights() {
    let mut world = settled(3);
    let other = ip(10, 0, 1, 12);
    world.start_xtr(other, gateway_config(12));
    world.run(secs(2));
    world.control(SERVER, weights(&[(1, 1, 10), (2, 1, 10), (3, 1, 10)]));
    world.control(SERVER, weights_for(Some(identity(12)), &[(1, 1, 1), (2, 1, 2)]));
    world.run(secs(1));
    assert_eq!(weights_of(&world, GATEWAY), [10, 10, 10]);
    assert_eq!(split(&world, other), [(1, 1, true), (1, 2, true), (254, 0, true)]);
    world.control(SERVER, Command::ClearWeights { eid: service(), gateway: Some(identity(12)) });
    world.run(secs(1));
    assert_eq!(weights_of(&world, other), [10, 10, 10]);
}

/// Weights that tell which decision they belong to.
fn decision(n: u16) -> Command {
    let [high, low] = n.to_be_bytes();
    weights(&[(1, 1, 1), (2, 1, high + 1), (3, 1, low)])
}

fn decision_of(delta: &TableDelta) -> Option<u16> {
    let TableDelta::Set { locators, .. } = delta else { return None };
    let [first, second, third] = &locators[..] else { return None };
    (first.weight == 1).then(|| u16::from_be_bytes([second.weight - 1, third.weight]))
}

fn decisions_seen(world: &World) -> Vec<u16> {
    world.gateways[&GATEWAY].deltas.iter().filter_map(|(_, d)| decision_of(d)).collect()
}

#[test]
fn a_bad_link_delays_decisions_and_never_reverses_them() {
    for seed in 0..20 {
        let mut world = settled(100 + seed);
        world.link = BAD;
        for n in 1..=300 {
            world.control(SERVER, decision(n));
            world.run(millis(100));
            let waiting = world.servers[&SERVER].subscriptions().iter().filter(|s| s.unacknowledged).count();
            assert!(waiting <= 1);
        }
        world.link = CLEAN;
        world.run(secs(30));
        let seen = decisions_seen(&world);
        assert_eq!(seen.last(), Some(&300), "seed {seed}");
        assert!(seen.is_sorted(), "seed {seed}: {seen:?}");
        assert!(seen.len() >= 75, "seed {seed}: only {} of 300 got through", seen.len());
    }
}

#[test]
fn changes_faster_than_the_round_trip_go_out_once_per_round_trip() {
    let mut world = settled(4);
    let sent_before = world.tap.len();
    for n in 1..=1000 {
        world.control(SERVER, decision(n));
        world.run(millis(1));
    }
    world.run(secs(1));
    assert_eq!(decisions_seen(&world).last(), Some(&1000));
    let from_server = world.tap[sent_before..].iter().filter(|(_, d)| d.from.ip() == SERVER).count();
    assert!(from_server <= 75, "{from_server} messages for 1 s of changes at a round trip of 20 ms");
}

#[test]
fn machines_restart_on_a_bad_link_and_converge() {
    for seed in 0..10 {
        let mut world = settled(200 + seed);
        world.link = BAD;
        for n in 1..=60 {
            world.control(SERVER, decision(n));
            world.run(millis(500));
            match n {
                15 => world.start_server(SERVER, server_config()),
                30 => world.start_xtr(GATEWAY, gateway_config(11)),
                45 => world.start_xtr(EDGES[1], edge_config(2)),
                _ => {}
            }
        }
        world.link = CLEAN;
        world.run(secs(90));
        assert_eq!(decisions_seen(&world).last(), Some(&60), "seed {seed}");
    }
}

#[test]
fn a_restarted_map_server_withdraws_nothing_and_keeps_the_weights() {
    let mut world = settled(5);
    world.control(SERVER, decision(7));
    world.run(secs(1));
    let deltas_before = world.gateways[&GATEWAY].deltas.len();
    world.run(secs(40));
    world.start_server(SERVER, server_config());
    world.run(secs(120));
    for (_, delta) in &world.gateways[&GATEWAY].deltas[deltas_before..] {
        assert_eq!(decision_of(delta), Some(7), "{delta:?}");
    }
    world.control(SERVER, decision(8));
    world.run(millis(20));
    assert_eq!(decisions_seen(&world).last(), Some(&8));
}

#[test]
fn a_gateway_that_lost_its_disk_subscribes_again() {
    let mut world = settled(6);
    world.run(secs(100));
    world.disks.remove(&GATEWAY);
    let later = xtr::XtrConfig { unix_seconds: 1_800_000_100, ..gateway_config(11) };
    world.start_xtr(GATEWAY, later);
    world.run(secs(1));
    world.control(SERVER, decision(9));
    world.run(secs(1));
    assert_eq!(decisions_seen(&world).last(), Some(&9));
}

#[test]
fn a_map_server_that_lost_its_disk_is_found_again() {
    let mut world = settled(7);
    world.disks.remove(&SERVER);
    world.start_server(SERVER, server_config());
    world.run(secs(120));
    world.control(SERVER, decision(3));
    world.run(secs(1));
    assert_eq!(decisions_seen(&world).last(), Some(&3));
    assert_eq!(split(&world, GATEWAY).len(), 3);
}

#[test]
fn a_partition_ends_the_subscription_and_its_end_brings_the_newest_state() {
    let mut world = settled(8);
    world.unreachable.push(GATEWAY);
    world.control(SERVER, decision(1));
    world.run(secs(60));
    let lost = |w: &World| w.server_events.iter().any(|(_, e)| matches!(e, Event::SubscriptionLost { .. }));
    assert!(lost(&world));
    assert!(world.servers[&SERVER].subscriptions().is_empty());
    world.control(SERVER, decision(2));
    assert_eq!(weights_of(&world, GATEWAY), [100; 3], "the last mapping stands");
    world.unreachable.clear();
    world.run(secs(62));
    assert_eq!(decisions_seen(&world), [2]);
}

#[test]
fn an_edge_that_stops_refreshing_leaves_and_the_others_keep_their_proportion() {
    let mut world = settled(9);
    world.control(SERVER, weights(&[(1, 1, 50), (2, 1, 30), (3, 1, 20)]));
    world.run(secs(1));
    world.unreachable.push(EDGES[0]);
    world.run(secs(170));
    assert_eq!(weights_of(&world, GATEWAY).len(), 3);
    world.run(secs(30));
    assert_eq!(weights_of(&world, GATEWAY), [30, 20]);
    world.unreachable.extend([EDGES[1], EDGES[2]]);
    world.run(secs(200));
    let gateway = &world.gateways[&GATEWAY];
    assert!(!gateway.table.contains_key(&service()), "the last expiry is a publication with TTL 0");
    world.unreachable.clear();
    world.run(secs(61));
    assert_eq!(weights_of(&world, GATEWAY), [50, 30, 20], "the weights outlive the registrations");
}

#[test]
fn a_clean_stop_withdraws_at_once() {
    let mut world = settled(10);
    world.link = BAD;
    world.command(EDGES[2], xtr::Command::Withdraw);
    world.run(secs(20));
    world.link = CLEAN;
    assert_eq!(world.gateways[&EDGES[2]].events.last().map(|(_, e)| e.clone()), Some(xtr::Event::Withdrawn));
    world.run(secs(5));
    assert_eq!(split(&world, GATEWAY).len(), 2);
    world.run(secs(100));
    assert_eq!(split(&world, GATEWAY).len(), 2, "no registration follows a withdrawal");
}

#[test]
fn a_requester_that_did_not_subscribe_is_told_to_ask() {
    let mut world = backbone(11);
    world.start_xtr(GATEWAY, puller_config());
    world.run(secs(2));
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(millis(20));
    assert_eq!(split(&world, GATEWAY), [(1, 100, true); 3]);
    world.run(secs(5));
    world.control(SERVER, decision(4));
    world.run(millis(30));
    assert_eq!(decisions_seen(&world).last(), Some(&4), "SMR, request, reply");
    world.link = BAD;
    world.control(SERVER, decision(5));
    world.control(SERVER, decision(6));
    world.run(secs(30));
    assert_eq!(decisions_seen(&world).last(), Some(&6));
}

#[test]
fn a_dead_locator_is_taken_out_by_probes_alone_and_comes_back() {
    let mut world = settled(12);
    world.run(secs(10));
    world.unreachable.push(EDGES[1]);
    world.run(secs(5));
    let usable: Vec<bool> = split(&world, GATEWAY).iter().map(|l| l.2).collect();
    assert_eq!(usable, [true, false, true]);
    assert_eq!(world.servers[&SERVER].registrations().len(), 3, "nobody else knows yet");
    world.unreachable.clear();
    world.run(secs(5));
    assert_eq!(split(&world, GATEWAY), [(1, 100, true); 3]);
    // Every locator down at once is more likely our own link: nothing is taken out.
    world.unreachable.push(GATEWAY);
    world.run(secs(10));
    assert!(split(&world, GATEWAY).iter().all(|l| l.2));
}

#[test]
fn each_locator_is_probed_once_however_many_mappings_name_it() {
    let mut world = settled(13);
    for n in 2..=9 {
        let prefix = eid(&format!("10.100.0.{n}/32"));
        world.command(EDGES[0], xtr::Command::SetLocalEid(local(prefix)));
        world.run(secs(1));
        world.command(GATEWAY, xtr::Command::Resolve { eid: prefix });
        world.run(secs(1));
    }
    assert_eq!(world.gateways[&GATEWAY].table.len(), 9);
    let before = world.tap.len();
    world.run(secs(10));
    let probes = world.tap[before..].iter().filter(|(_, d)| d.to.ip() == EDGES[0] && d.from.ip() == GATEWAY);
    assert!((9..=12).contains(&probes.count()));
}

#[test]
fn another_map_resolver_is_tried() {
    let mut world = backbone(14);
    let mut config = puller_config();
    config.map_resolvers.insert(0, ip(10, 0, 0, 99));
    world.start_xtr(GATEWAY, config);
    world.run(secs(2));
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(millis(1100));
    assert_eq!(split(&world, GATEWAY).len(), 3);
}

#[test]
fn a_miss_is_asked_about_ten_times_and_then_left_alone() {
    let mut world = backbone(15);
    world.start_xtr(GATEWAY, puller_config());
    world.unreachable.push(SERVER);
    for _ in 0..60 {
        world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
        world.run(secs(1));
    }
    let asked = world.tap.iter().filter(|(_, d)| d.from.ip() == GATEWAY).count();
    assert!((10..=20).contains(&asked), "{asked}");
    assert_eq!(world.count(GATEWAY, Counter::Unanswered), 1);
    assert!(world.gateways[&GATEWAY].events.iter().any(|(_, e)| matches!(e, xtr::Event::Unresolved { .. })));
}

fn probing_every_100_ms(seed: u64) -> World {
    let mut config = gateway_config(11);
    config.probing.interval = Some(millis(100));
    settled_with(seed, config)
}

#[test]
fn probes_every_100_ms_find_a_dead_locator_in_half_a_second() {
    let mut world = probing_every_100_ms(16);
    for _ in 0..4 {
        world.unreachable.push(EDGES[2]);
        world.run(millis(500));
        assert!(!split(&world, GATEWAY)[2].2);
        world.unreachable.clear();
        // The hold-down of a locator that went down again soon is bounded.
        world.run(secs(125));
        assert!(split(&world, GATEWAY)[2].2);
    }
}

/// A locator that comes and goes is not believed at once any more.
#[test]
fn a_flapping_locator_stays_down_longer_each_time() {
    let mut world = probing_every_100_ms(17);
    let mut downtimes = Vec::new();
    for _ in 0..5 {
        world.unreachable.push(EDGES[2]);
        world.run(secs(1));
        world.unreachable.clear();
        let healed_at = world.now;
        while !split(&world, GATEWAY)[2].2 {
            world.run(millis(100));
            assert!(world.now < healed_at + secs(130));
        }
        downtimes.push((world.now - healed_at).as_secs());
    }
    assert_eq!(downtimes[0], 0, "the first failure is taken at its word");
    assert!(downtimes[1..].is_sorted() && downtimes[4] >= 30, "{downtimes:?}");
}

#[test]
fn a_lossy_path_is_not_a_dead_locator() {
    let mut world = settled(18);
    world.link = crate::world::Link { loss: 50, ..CLEAN };
    world.run(secs(600));
    let down = |e: &xtr::Event| matches!(e, xtr::Event::LocatorDown { .. });
    let downs = world.gateways[&GATEWAY].events.iter().filter(|(_, e)| down(e)).count();
    assert!(downs <= 6, "{downs} of 1800 probes in a row of three lost at 10 % round-trip loss");
    assert!(split(&world, GATEWAY).iter().all(|l| l.0 == 1));
}
