//! Messages that are not what they say change nothing.

use lisp::machine::Counter;
use lisp::map_server::Event;

use crate::lab::*;
use crate::world::{Datagram, World};

fn state(world: &World) -> String {
    let server = &world.servers[&SERVER];
    format!(
        "{:?} {:?} {:?} {:?}",
        world.gateways[&GATEWAY].table,
        server.registrations(),
        server.weights(),
        server.subscriptions().iter().map(|s| (s.eid, s.itr_rlocs.clone())).collect::<Vec<_>>()
    )
}

/// Map-Registers, Map-Notifies and acknowledgements of the past.
fn authenticated(world: &World) -> Vec<Datagram> {
    let types = [3, 4, 5];
    world.tap.iter().map(|(_, d)| d.clone()).filter(|d| types.contains(&(d.bytes[0] >> 4))).collect()
}

#[test]
fn flipped_bits_change_nothing() {
    let mut world = settled(20);
    world.control(SERVER, weights(&[(1, 1, 50), (2, 1, 30), (3, 1, 20)]));
    world.run(secs(70));
    let before = state(&world);
    let messages = authenticated(&world);
    for _ in 0..5000 {
        let index = usize::try_from(world.random()).unwrap() % messages.len();
        let mut forged = messages[index].clone();
        let bit = usize::try_from(world.random()).unwrap() % (forged.bytes.len() * 8 - 4) + 4;
        forged.bytes[bit / 8] ^= 1 << (7 - bit % 8);
        world.inject(forged);
    }
    assert_eq!(state(&world), before);
}

#[test]
fn replayed_messages_change_nothing() {
    let mut world = settled(21);
    world.control(SERVER, weights(&[(1, 1, 50), (2, 1, 30), (3, 1, 20)]));
    world.run(secs(1));
    world.control(SERVER, weights(&[(1, 1, 20), (2, 1, 30), (3, 1, 50)]));
    world.run(secs(70));
    let before = state(&world);
    let everything: Vec<Datagram> = world.tap.iter().map(|(_, d)| d.clone()).collect();
    let mut queue = everything.clone();
    for _ in 0..5000 {
        queue.push(everything[usize::try_from(world.random()).unwrap() % everything.len()].clone());
    }
    let publications = queue.iter().filter(|d| d.to.ip() == GATEWAY && d.bytes[0] >> 4 == 4).count() as u64;
    for mut replayed in queue {
        replayed.from.set_ip(ip(192, 0, 2, 66));
        world.inject(replayed);
    }
    assert_eq!(state(&world), before);
    assert!(world.count(SERVER, Counter::Replayed) > 100);
    let refused = world.count(GATEWAY, Counter::Replayed) + world.count(GATEWAY, Counter::Retransmission);
    assert_eq!(refused, publications);
}

#[test]
fn garbage_is_refused_and_counted() {
    let mut world = settled(22);
    let before = state(&world);
    for to in [SERVER, GATEWAY, EDGES[0]] {
        for _ in 0..2000 {
            let length = usize::try_from(world.random() % 80).unwrap();
            let bytes = (0..length).map(|_| world.random().to_be_bytes()[0]).collect();
            let from = std::net::SocketAddr::new(ip(192, 0, 2, 66), 4342);
            world.inject(Datagram { from, to: std::net::SocketAddr::new(to, 4342), bytes });
        }
        assert!(world.count(to, Counter::Malformed) > 0);
    }
    assert_eq!(state(&world), before);
}

/// D2: a forged copy of a valid Map-Register must not extend its life.
#[test]
fn d2_a_forged_refresh_extends_nothing() {
    let mut world = settled(23);
    let register = authenticated(&world).into_iter().rfind(|d| d.from.ip() == EDGES[0]).unwrap();
    world.unreachable.push(EDGES[0]);
    for _ in 0..20 {
        world.run(secs(10));
        let mut forged = register.clone();
        // The last octet of the last locator; xTR-ID and Site-ID follow.
        let locator = forged.bytes.len() - 24 - 1;
        forged.bytes[locator] ^= 1;
        world.inject(forged);
        world.inject(register.clone());
    }
    assert_eq!(world.servers[&SERVER].registrations().len(), 2);
    assert!(world.count(SERVER, Counter::BadAuthentication) >= 19);
}

/// D3: no authentication is not an algorithm.
#[test]
fn d3_algorithm_0_is_refused() {
    let mut world = settled(24);
    let before = state(&world);
    for mut message in authenticated(&world) {
        message.bytes[13] = 0;
        world.inject(message.clone());
        // And with an empty authentication field.
        message.bytes.drain(16..48);
        message.bytes[14..16].copy_from_slice(&[0, 0]);
        world.inject(message);
    }
    assert_eq!(state(&world), before);
}

/// D4: nonces are checked, also after a restart.
#[test]
fn d4_a_replayed_registration_does_not_bring_an_edge_back() {
    let mut world = settled(25);
    world.run(secs(30));
    let registers: Vec<Datagram> = authenticated(&world)
        .into_iter()
        .filter(|d| d.from.ip() == EDGES[2] && d.to.ip() == SERVER)
        .collect();
    world.command(EDGES[2], lisp::xtr::Command::Withdraw);
    world.run(secs(5));
    for restart in [false, true] {
        if restart {
            world.start_server(SERVER, server_config());
        }
        let replayed = world.count(SERVER, Counter::Replayed);
        registers.iter().for_each(|r| world.inject(r.clone()));
        assert_eq!(world.servers[&SERVER].registrations().len(), 2);
        assert_eq!(world.count(SERVER, Counter::Replayed) - replayed, registers.len() as u64);
    }
    let refused = |e: &Event| matches!(e, Event::RegisterRefused { reason: Counter::Replayed, .. });
    assert!(world.server_events.iter().any(|(_, e)| refused(e)));
}

/// The same bytes again, while nothing newer came, are acknowledged again and change nothing.
#[test]
fn a_retransmitted_registration_is_acknowledged_again() {
    let mut world = settled(26);
    let register = authenticated(&world).into_iter().rfind(|d| d.from.ip() == EDGES[0]).unwrap();
    let before = (state(&world), world.tap.len());
    world.inject(register.clone());
    assert_eq!(state(&world), before.0);
    let (_, acknowledgement) = &world.tap[before.1];
    assert_eq!((acknowledgement.to, acknowledgement.bytes[0] >> 4), (register.from, 4));
    assert_eq!(world.count(SERVER, Counter::Retransmission), 1);
}

/// A subscription of the gateway's that somebody else sends, with a nonce that the Map-Server will take.
fn forged_subscription(world: &World, itr_rloc: lisp::wire::Address) -> Datagram {
    let nonce = world.servers[&SERVER].subscriptions()[0].nonce + 1000;
    let mut request = lisp::wire::MapRequest::new(nonce, vec![itr_rloc], service());
    request.records[0].subscribe = true;
    request.xtr = Some(identity(11));
    let from = std::net::SocketAddr::new(THIEF, 4342);
    let bytes = lisp::wire::Message::MapRequest(request).encode().unwrap();
    Datagram { from, to: std::net::SocketAddr::new(SERVER, 4342), bytes }
}

const THIEF: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 66));

/// A Map-Request with the N bit is not authenticated: what it redirects, the subscriber's acknowledgement undoes.
#[test]
fn a_forged_subscription_does_not_capture_publications() {
    let mut world = settled(27);
    let forged = forged_subscription(&world, lisp::wire::Address::Ip(THIEF));
    world.inject(forged);
    world.control(SERVER, weights(&[(1, 1, 5), (2, 1, 6), (3, 1, 7)]));
    world.run(secs(2));
    assert_eq!(weights_of(&world, GATEWAY), [5, 6, 7]);
    assert_eq!(world.servers[&SERVER].subscriptions()[0].itr_rlocs, [GATEWAY]);
}

/// RFC 9437 §5: who is told (ACT 5) that it is no subscriber any more and did not ask for that subscribes again, and
/// keeps the mapping meanwhile.
#[test]
fn a_forged_end_of_a_subscription_is_undone() {
    let mut world = settled(29);
    let before = weights_of(&world, GATEWAY);
    for round in 0..5 {
        let forged = forged_subscription(&world, lisp::wire::Address::NoAddress);
        world.inject(forged);
        assert_eq!(weights_of(&world, GATEWAY), before, "round {round}");
        world.run(secs(4));
        assert_eq!(weights_of(&world, GATEWAY), before, "round {round}");
        assert_eq!(world.servers[&SERVER].subscriptions()[0].itr_rlocs, [GATEWAY], "round {round}");
    }
    let ended = |event: &Event| matches!(event, Event::Unsubscribed { .. });
    assert_eq!(world.server_events.iter().filter(|(_, e)| ended(e)).count(), 5, "each was taken for true");
    world.control(SERVER, weights(&[(1, 1, 5), (2, 1, 6), (3, 1, 7)]));
    world.run(secs(1));
    assert_eq!(weights_of(&world, GATEWAY), [5, 6, 7]);
}

/// RFC 9301 §6.1: an SMR is not authenticated; all it can cause is one request in 3 s, and none for what is not used.
#[test]
fn a_flood_of_smrs_causes_one_request_in_three_seconds() {
    let mut world = puller(28);
    world.command(GATEWAY, lisp::xtr::Command::Resolve { eid: service() });
    world.run(secs(2));
    let before = (state(&world), world.tap.len());
    for n in 0..1000u64 {
        let about = if n % 2 == 0 { ip(10, 100, 0, 1) } else { ip(10, 100, 9, 9) };
        let smr = lisp::wire::MapRequest {
            smr: true,
            no_map_reply: true,
            source_eid: lisp::wire::Address::Ip(about),
            ..lisp::wire::MapRequest::new(n, vec![lisp::wire::Address::Ip(THIEF)], service())
        };
        let bytes = lisp::wire::Message::MapRequest(smr).encode().unwrap();
        let from = std::net::SocketAddr::new(THIEF, 4342);
        world.inject(Datagram { from, to: std::net::SocketAddr::new(GATEWAY, 4342), bytes });
        world.run(millis(10));
    }
    assert_eq!(state(&world).split_once('}'), before.0.split_once('}'));
    let requests: Vec<_> = world.tap[before.1..].iter().filter(|(_, d)| d.from.ip() == GATEWAY).collect();
    assert!((3..=4).contains(&requests.len()), "{} requests in 10 s", requests.len());
    assert!(requests.iter().all(|(_, d)| d.to.ip() == SERVER), "never to the sender of the SMR");
    assert_eq!(world.count(GATEWAY, Counter::SmrUnknownEid), 500);
}
