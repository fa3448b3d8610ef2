//! Defects of other implementations, by the names under which they are known to us.

use lisp::machine::Counter;
use lisp::mapping::TableDelta;
use lisp::wire::{Action, Address, MapRequest, Message};
use lisp::xtr::{self, XtrConfig};

use crate::lab::*;
use crate::world::{Datagram, World};

fn is_reply(datagram: &Datagram) -> bool {
    matches!(datagram.bytes[0] >> 4, 2 | 4)
}

fn replies_to(world: &World, to: std::net::IpAddr) -> Vec<lisp::wire::MapReply> {
    let sent = world.tap.iter().filter(|(_, d)| d.to.ip() == to);
    let decoded = sent.map(|(_, d)| Message::decode(&d.bytes).unwrap());
    decoded.filter_map(|m| if let Message::MapReply(r) = m { Some(r) } else { None }).collect()
}

/// D7: an SMR whose request is never answered must not cost the mapping.
#[test]
fn d7_the_mapping_stays_while_nobody_answers() {
    let mut world = puller(30);
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(secs(5));
    world.filter = is_reply;
    world.control(SERVER, weights(&[(1, 1, 9), (2, 1, 9), (3, 1, 9)]));
    // Ten times the TTL, with packets all along.
    for _ in 0..60 {
        world.command(GATEWAY, xtr::Command::Used { eid: service() });
        world.run(secs(10));
        assert_eq!(weights_of(&world, GATEWAY), [100; 3]);
    }
    assert!(world.count(GATEWAY, Counter::StaleMapping) > 0);
    world.filter = |_| false;
    world.run(secs(62));
    assert_eq!(weights_of(&world, GATEWAY).first(), Some(&9), "and is replaced when answers come again");
    // Without packets it goes with its TTL.
    world.run(secs(400));
    assert!(world.gateways[&GATEWAY].table.is_empty());
}

/// A mapping in use is asked for again before it expires.
#[test]
fn a_mapping_in_use_never_expires() {
    let mut world = puller(31);
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    for _ in 0..60 {
        world.run(secs(10));
        world.command(GATEWAY, xtr::Command::Used { eid: service() });
    }
    let removed = world.gateways[&GATEWAY].deltas.iter().any(|(_, d)| matches!(d, TableDelta::Remove { .. }));
    assert!(!removed);
    assert_eq!(world.count(GATEWAY, Counter::StaleMapping), 0);
}

/// D13: the same prefix in two instances.
#[test]
fn d13_one_prefix_in_two_instances() {
    let mut world = puller(32);
    for (edge, instance) in [(0, 1), (1, 2)] {
        let prefix = eid_in(instance, "10.0.0.0/24");
        world.command(EDGES[edge], xtr::Command::SetLocalEid(local(prefix)));
    }
    world.run(secs(2));
    for instance in [1, 2] {
        world.command(GATEWAY, xtr::Command::Resolve { eid: eid_in(instance, "10.0.0.7/32") });
    }
    world.run(secs(2));
    for (edge, instance) in [(0, 1), (1, 2)] {
        let (locators, _) = &world.gateways[&GATEWAY].table[&eid_in(instance, "10.0.0.0/24")];
        assert_eq!(locators.iter().map(|l| l.rloc).collect::<Vec<_>>(), [EDGES[edge]]);
    }
    let entry = world.xtrs[&GATEWAY].map_cache();
    assert_eq!(entry.len(), 2);
}

/// D14: only an ETR sets the A bit; L is 0 in what a Map-Server answers.
#[test]
fn d14_answers_of_the_map_server_are_not_authoritative() {
    let mut world = puller(33);
    for asked in ["10.100.0.1/32", "10.100.7.7/32"] {
        world.command(GATEWAY, xtr::Command::Resolve { eid: eid(asked) });
    }
    world.run(secs(2));
    let replies = replies_to(&world, GATEWAY);
    assert_eq!(replies.len(), 2);
    for record in replies.iter().flat_map(|r| &r.records) {
        assert!(!record.authoritative);
        assert!(record.locators.iter().all(|l| !l.local && !l.probed));
    }
    let negative = replies.iter().flat_map(|r| &r.records).find(|r| r.locators.is_empty()).unwrap();
    assert_eq!((negative.ttl, negative.action), (1, Action::NativelyForward));
    // The widest prefix inside 10.100.0.0/16 around 10.100.7.7 that holds no registration.
    assert_eq!(negative.eid, eid("10.100.4.0/22"));
}

/// D15: TTL 0 removes at once; a negative mapping expires like any other.
#[test]
fn d15_negative_mappings_expire_and_give_way() {
    let mut world = puller(34);
    let asked = eid("10.100.0.9/32");
    world.command(GATEWAY, xtr::Command::Resolve { eid: asked });
    world.run(secs(1));
    let (negative, (locators, action)) = world.gateways[&GATEWAY].table.first_key_value().unwrap();
    assert_eq!((negative.prefix.to_string(), locators.len()), ("10.100.0.8/29".into(), 0));
    assert_eq!(*action, Action::NativelyForward);
    world.run(secs(61));
    assert!(world.gateways[&GATEWAY].table.is_empty());
    // Somebody registers what was denied: whoever was told so is told to ask again.
    world.command(GATEWAY, xtr::Command::Resolve { eid: asked });
    world.run(secs(1));
    world.command(EDGES[0], xtr::Command::SetLocalEid(local(asked)));
    world.run(secs(5));
    assert_eq!(world.gateways[&GATEWAY].table[&asked].0.len(), 1);
}

/// Multi-record Map-Notify, withdrawal by TTL 0, and registering again what was deleted.
#[test]
fn a_subscription_to_a_prefix_brings_every_mapping_inside() {
    let mut world = backbone(35);
    world.start_xtr(GATEWAY, XtrConfig { subscribe: vec![eid("10.100.0.0/16")], ..gateway_config(11) });
    let extra: Vec<_> = (2..=40).map(|n| eid(&format!("10.100.0.{n}/32"))).collect();
    for prefix in &extra {
        world.command(EDGES[1], xtr::Command::SetLocalEid(local(*prefix)));
    }
    world.run(secs(5));
    assert_eq!(world.gateways[&GATEWAY].table.len(), 40);
    for _ in 0..3 {
        world.command(EDGES[1], xtr::Command::RemoveLocalEid { eid: extra[3] });
        world.run(secs(1));
        assert!(!world.gateways[&GATEWAY].table.contains_key(&extra[3]));
        assert_eq!(world.gateways[&GATEWAY].table.len(), 39);
        world.command(EDGES[1], xtr::Command::SetLocalEid(local(extra[3])));
        world.run(secs(1));
        assert_eq!(world.gateways[&GATEWAY].table.len(), 40);
    }
}

/// What was withdrawn while a subscriber was away is gone when it is back.
#[test]
fn nothing_is_left_of_mappings_that_ended_during_a_partition() {
    let mut world = backbone(36);
    world.start_xtr(GATEWAY, XtrConfig { subscribe: vec![eid("10.100.0.0/16")], ..gateway_config(11) });
    let extra = eid("10.100.0.2/32");
    world.command(EDGES[1], xtr::Command::SetLocalEid(local(extra)));
    world.run(secs(70));
    assert_eq!(world.gateways[&GATEWAY].table.len(), 2);
    world.unreachable.push(GATEWAY);
    world.command(EDGES[1], xtr::Command::RemoveLocalEid { eid: extra });
    world.run(secs(70));
    assert_eq!(world.gateways[&GATEWAY].table.len(), 2);
    world.unreachable.clear();
    world.run(secs(130));
    assert_eq!(world.gateways[&GATEWAY].table.keys().copied().collect::<Vec<_>>(), [service()]);
}

#[test]
fn overlapping_subscriptions_are_refused_and_an_ended_one_lives_by_its_ttl() {
    let mut world = settled(37);
    world.command(GATEWAY, xtr::Command::Subscribe { eid: eid("10.100.0.0/24") });
    let refused = |e: &xtr::Event| matches!(e, xtr::Event::SubscriptionRefused { .. });
    assert!(world.gateways[&GATEWAY].events.iter().any(|(_, e)| refused(e)));
    world.command(GATEWAY, xtr::Command::Unsubscribe { eid: service() });
    world.run(secs(1));
    assert!(world.servers[&SERVER].subscriptions().is_empty());
    assert!(world.xtrs[&GATEWAY].subscriptions().is_empty());
    assert_eq!(split(&world, GATEWAY).len(), 3);
    world.run(secs(70));
    assert!(world.gateways[&GATEWAY].table.is_empty());
    world.command(GATEWAY, xtr::Command::Subscribe { eid: service() });
    world.run(secs(1));
    assert_eq!(split(&world, GATEWAY).len(), 3, "the nonce is remembered on both sides");
}

/// Without proxy replies the Map-Server passes the request on, and the ETR answers with the A bit.
#[test]
fn an_etr_answers_for_itself() {
    let mut world = World::new(38);
    world.start_server(SERVER, server_config());
    let mut config = edge_config(1);
    config.map_servers[0].proxy_reply = false;
    world.start_xtr(EDGES[0], config);
    world.start_xtr(GATEWAY, puller_config());
    world.run(secs(2));
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(millis(30));
    assert_eq!(split(&world, GATEWAY), [(1, 100, true)]);
    assert!(replies_to(&world, GATEWAY)[0].records[0].authoritative);
}

/// Registrations without the merge bit replace each other.
#[test]
fn the_last_registration_wins_without_the_merge_bit() {
    let mut world = World::new(39);
    world.start_server(SERVER, server_config());
    for n in [1, 2] {
        let mut config = edge_config(n);
        config.local_eids[0].merge = false;
        world.start_xtr(EDGES[usize::from(n) - 1], config);
        world.run(secs(1));
    }
    let registrations = world.servers[&SERVER].registrations();
    assert_eq!(registrations.len(), 1);
    assert_eq!(registrations[0].locators[0].rloc.ip(), Some(EDGES[1]));
}

/// A site cannot register what is not its own, and a message is taken whole or not at all.
#[test]
fn a_foreign_prefix_refuses_the_whole_registration() {
    let mut world = World::new(40);
    world.start_server(SERVER, server_config());
    let mut config = edge_config(1);
    config.local_eids.push(local(eid("10.200.0.0/16")));
    world.start_xtr(EDGES[0], config);
    world.run(secs(10));
    assert!(world.servers[&SERVER].registrations().is_empty());
    assert!(world.count(SERVER, Counter::EidNotAllowed) > 0);
}

/// A mapping wider than the EID space would hide behind the space's own entry: the data path would ask for ever.
#[test]
fn answers_and_publications_are_narrowed_to_the_eid_space() {
    let mut world = World::new(41);
    world.start_server(SERVER, server_config());
    let wide = eid("10.100.0.0/16");
    world.start_xtr(EDGES[0], XtrConfig { local_eids: vec![local(wide)], ..edge_config(1) });
    let space = eid("10.100.0.0/24");
    for (gateway, config) in [(GATEWAY, gateway_config(11)), (ip(10, 0, 1, 12), gateway_config(12))] {
        world.start_xtr(gateway, XtrConfig { eid_space: vec![space], ..config });
    }
    let puller = ip(10, 0, 1, 13);
    let config = XtrConfig { eid_space: vec![space], rlocs: vec![puller], ..puller_config() };
    world.start_xtr(puller, config);
    world.run(secs(2));
    world.command(puller, xtr::Command::Resolve { eid: service() });
    world.run(secs(1));
    for gateway in [GATEWAY, puller] {
        assert_eq!(world.gateways[&gateway].table.keys().copied().collect::<Vec<_>>(), [space]);
    }
    world.command(EDGES[0], xtr::Command::RemoveLocalEid { eid: wide });
    world.run(secs(1));
    assert!(world.gateways[&GATEWAY].table.is_empty());
}

/// An xTR that may not subscribe still gets mappings by asking.
#[test]
fn a_refused_subscription_drops_no_packets() {
    let mut world = backbone(42);
    let stranger = lisp::wire::XtrIdentity { site_id: lisp::wire::SiteId(99), ..identity(11) };
    world.start_xtr(GATEWAY, XtrConfig { identity: stranger, ..gateway_config(11) });
    world.run(secs(2));
    assert!(
        world.gateways[&GATEWAY].events.iter().any(|(_, e)| matches!(e, xtr::Event::NotSubscribed { .. }))
    );
    assert!(world.gateways[&GATEWAY].table.is_empty());
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(secs(1));
    assert_eq!(split(&world, GATEWAY), [(1, 100, true); 3]);
}

/// IPv6 EIDs over IPv4 locators: the inner header of the request has one family, the EID another.
#[test]
fn ipv6_eids_over_ipv4_locators() {
    let mut world = World::new(43);
    let mut config = server_config();
    let space = eid("2001:db8:1::/48");
    for site in &mut config.sites {
        site.eid_prefixes.push(lisp::map_server::AllowedPrefix { eid: space, more_specifics: true });
    }
    world.start_server(SERVER, config);
    let service = eid("2001:db8:1::80/128");
    world.start_xtr(EDGES[0], XtrConfig { local_eids: vec![local(service)], ..edge_config(1) });
    let config = gateway_config(11);
    world.start_xtr(GATEWAY, XtrConfig { eid_space: vec![space], subscribe: vec![service], ..config });
    world.run(secs(2));
    assert_eq!(world.gateways[&GATEWAY].table[&service].0[0].rloc, EDGES[0]);
    world.command(GATEWAY, xtr::Command::Resolve { eid: eid("2001:db8:1::81/128") });
    world.run(secs(1));
    assert_eq!(world.gateways[&GATEWAY].table.len(), 2);
}

/// Anybody can ask in more names than the server tracks the rate of; that neither stops it nor costs anybody the SMR.
#[test]
fn more_requesters_than_tracked_peers_are_all_told() {
    let mut world = World::new(44);
    let mut config = server_config();
    config.limits.max_peers = 4;
    world.start_server(SERVER, config);
    for n in 0..10 {
        let from = std::net::SocketAddr::new(ip(10, 7, 0, n), 4342);
        let request = MapRequest::new(7, vec![Address::Ip(from.ip())], service());
        let bytes = Message::MapRequest(request).encode().unwrap();
        world.inject(Datagram { from, to: std::net::SocketAddr::new(SERVER, 4342), bytes });
        world.run(secs(1));
    }
    world.start_xtr(EDGES[0], edge_config(1));
    world.run(secs(20));
    let smrs = world.tap.iter().filter(|(_, d)| d.from.ip() == SERVER && d.bytes[0] >> 4 == 1);
    let told: std::collections::BTreeSet<_> = smrs.map(|(_, d)| d.to.ip()).collect();
    assert_eq!(told.len(), 10);
}

/// The subscribers are configured: made-up peers do not take their places, nor does their number.
#[test]
fn more_subscribers_than_tracked_peers_are_all_published_to() {
    let mut world = World::new(45);
    let mut config = server_config();
    config.limits.max_peers = 1;
    world.start_server(SERVER, config);
    world.start_xtr(EDGES[0], edge_config(1));
    for n in [11, 12] {
        world.start_xtr(gateway_config(n).rlocs[0], gateway_config(n));
        world.run(secs(5));
    }
    world.control(SERVER, weights(&[(1, 1, 5)]));
    world.run(millis(20));
    for n in [11, 12] {
        assert_eq!(weights_of(&world, gateway_config(n).rlocs[0]), [5]);
    }
}

#[test]
fn a_server_that_may_not_publish_still_answers() {
    let mut world = World::new(46);
    let mut config = server_config();
    config.limits.map_notify.burst = 0;
    world.start_server(SERVER, config);
    world.start_xtr(EDGES[0], edge_config(1));
    world.start_xtr(GATEWAY, gateway_config(11));
    world.run(secs(5));
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(secs(60));
    assert_eq!(weights_of(&world, GATEWAY), [100]);
}

/// A Map-Server that does not know the xTR answers its unsubscriptions with refusals, never with their end.
#[test]
fn a_refused_unsubscription_ends() {
    let mut world = backbone(47);
    world.start_xtr(GATEWAY, XtrConfig { identity: identity(99), ..gateway_config(11) });
    world.run(secs(10));
    let asked = world.tap.len();
    world.command(GATEWAY, xtr::Command::Unsubscribe { eid: service() });
    world.run(secs(60));
    assert!(world.xtrs[&GATEWAY].subscriptions().is_empty());
    world.run(secs(3600));
    let sent = world.tap[asked..].iter().filter(|(_, d)| d.from.ip() == GATEWAY && d.to.ip() == SERVER);
    assert_eq!(sent.count(), 5);
}

/// Seconds at which the gateway asks about the service that it uses, while nobody can answer and SMRs come at some of
/// them.
fn asked_without_answer(seed: u64, until: u64, smrs: impl Fn(u64) -> bool) -> (World, Vec<u64>) {
    let mut world = puller(seed);
    world.command(GATEWAY, xtr::Command::Resolve { eid: service() });
    world.run(secs(2));
    world.unreachable.push(GATEWAY);
    let start = world.now;
    for second in 0..until {
        world.command(GATEWAY, xtr::Command::Used { eid: service() });
        if smrs(second) {
            world.inject(smr(SERVER));
            world.step();
        }
        world.run(secs(1));
    }
    let asked = world.tap.iter().filter(|(at, d)| d.from.ip() == GATEWAY && *at >= start);
    let at = asked.map(|(at, _)| at.saturating_since(start).as_secs()).collect();
    (world, at)
}

/// An SMR in the pause after ten requests is asked about like any other, not once with another pause behind it.
#[test]
fn an_smr_in_the_pause_begins_a_new_round() {
    // The first of ten requests within 29 s is the refresh before the TTL of a minute ends.
    let (mut world, asked) = asked_without_answer(48, 100, |second| second == 90);
    assert!(asked.iter().all(|at| !(74..90).contains(at)), "a pause: {asked:?}");
    let round: Vec<u64> = asked.into_iter().filter(|at| *at >= 90).collect();
    assert_eq!(round, [90, 91, 92, 93, 95, 97, 99]);
    world.unreachable.clear();
    world.control(SERVER, weights(&[(1, 1, 9), (2, 1, 9), (3, 1, 9)]));
    world.run(secs(10));
    assert_eq!(weights_of(&world, GATEWAY), [9; 3]);
}

/// RFC 9301 §5.3: one request in a second at most, and pauses. SMRs can cut short every other one.
#[test]
fn a_flood_of_smrs_does_not_take_the_pauses_away() {
    let (_, asked) = asked_without_answer(49, 900, |_| true);
    let gaps: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap >= 1));
    let rounds = gaps.split(|gap| *gap >= 30);
    let sizes: Vec<usize> = rounds.map(|gaps| gaps.len() + 1).collect();
    assert!(sizes.len() >= 8 && sizes.iter().all(|size| *size <= 20), "{sizes:?} requests between pauses");
}
