//! No timer that was dealt with stays due, however small the limits: the shell would spin, or never come back.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp::auth::sign;
use lisp::map_cache::MapCacheConfig;
use lisp::map_server::{Limits, MapServerConfig};
use lisp::rate::RateLimit;
use lisp::wire::{
    Action, Address, Authentication, EidPrefix, EidRecord, MapNotify, MapRequest, Message, XtrIdentity,
};
use lisp::xtr::{self, ProbingConfig, XtrConfig};
use proptest::prelude::*;

use crate::lab::*;
use crate::world::{BAD, Datagram, World};

#[derive(Clone, Debug)]
enum Op {
    /// A Map-Request of somebody at an address of its own; with the identity of a gateway it subscribes.
    Ask {
        asker: u8,
        subscriber: Option<u8>,
        nonce: u64,
    },
    Smr,
    /// An end of the subscription, as anybody can cause one.
    End {
        nonce: u64,
    },
    Weights(u8),
    Command(usize, usize),
    Register {
        edge: usize,
        present: bool,
    },
    Cut(bool),
    Pass(Duration),
}

fn eids() -> [EidPrefix; 3] {
    [service(), eid("10.100.0.0/24"), eid("10.100.9.9/32")]
}

fn op() -> impl Strategy<Value = Op> {
    let nonce = prop_oneof![1u64..1000, Just(1 << 62), any::<u64>()];
    let subscriber = prop::option::of(prop_oneof![Just(11u8), Just(12), Just(99)]);
    prop_oneof![
        6 => (0u8..12, subscriber, nonce.clone())
            .prop_map(|(asker, subscriber, nonce)| Op::Ask { asker, subscriber, nonce }),
        2 => Just(Op::Smr),
        1 => nonce.prop_map(|nonce| Op::End { nonce }),
        4 => any::<u8>().prop_map(Op::Weights),
        6 => (0usize..4, 0usize..3).prop_map(|(command, eid)| Op::Command(command, eid)),
        2 => (0usize..3, any::<bool>()).prop_map(|(edge, present)| Op::Register { edge, present }),
        1 => any::<bool>().prop_map(Op::Cut),
        6 => (0u64..100).prop_map(|n| Op::Pass(millis(n * n))),
    ]
}

fn time() -> impl Strategy<Value = Duration> {
    prop::sample::select(vec![Duration::ZERO, Duration::from_nanos(1), millis(2), secs(3), Duration::MAX])
}

/// One odd value seldom hides what another one does.
fn rate() -> impl Strategy<Value = RateLimit> {
    let odd = (0u32..3, time()).prop_map(|(burst, interval)| RateLimit { burst, interval });
    prop_oneof![2 => Just(RateLimit { burst: 200, interval: millis(1) }), 1 => odd]
}

fn few() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(4096), 1 => prop::sample::select(vec![0, 1, 2, 5])]
}

fn limits() -> impl Strategy<Value = Limits> {
    let rates = (rate(), rate(), rate(), rate());
    let few = (few(), few(), few(), few());
    let ttl = prop::sample::select(vec![0, 1, u32::MAX]);
    (rates, few, time(), time(), ttl).prop_map(|(rates, few, registration, requester, max_ttl)| Limits {
        map_request: rates.0,
        map_reply: rates.1,
        map_notify: rates.2,
        smr: rates.3,
        max_peers: few.0,
        max_registrations: few.1,
        max_subscriptions: few.2,
        max_requesters: few.3,
        registration_timeout: registration,
        requester_timeout: requester,
        max_ttl,
    })
}

fn gateway() -> impl Strategy<Value = XtrConfig> {
    let map_cache = (few(), few(), (time(), time(), time()));
    let probing = (prop::option::of(time()), 0u32..3, 0u32..3, (time(), time()));
    let identity = prop_oneof![3 => Just(identity(11)), 1 => Just(identity(99))];
    let config = move |(identity, pending, map_cache, probing, subscribes): (XtrIdentity, _, _, _, bool)| {
        let (max_entries, max_negative, (max_ttl, default_ttl, idle)) = map_cache;
        let (interval, down_after, up_after, (hold_down, max_hold_down)) = probing;
        let pubsub_key = gateway_config(11).pubsub_key.filter(|_| subscribes);
        XtrConfig {
            identity,
            max_pending: pending,
            pubsub_key,
            map_cache: MapCacheConfig { max_entries, max_negative, max_ttl, default_ttl, idle },
            probing: ProbingConfig { interval, down_after, up_after, hold_down, max_hold_down },
            ..gateway_config(11)
        }
    };
    (identity, few(), map_cache, probing, any::<bool>()).prop_map(config)
}

fn apply(world: &mut World, op: Op) {
    let to = |ip| SocketAddr::new(ip, 4342);
    match op {
        Op::Ask { asker, subscriber, nonce } => {
            let from = ip(10, 7, 0, asker);
            let mut request = MapRequest::new(nonce, vec![Address::Ip(from)], service());
            request.records[0].subscribe = subscriber.is_some();
            request.xtr = subscriber.map(identity);
            let bytes = Message::MapRequest(request).encode().unwrap();
            world.inject(Datagram { from: to(from), to: to(SERVER), bytes });
        }
        Op::Smr => world.inject(smr(SERVER)),
        Op::End { nonce } => {
            let end = EidRecord {
                ttl: 1,
                action: Action::DropAuthFailure,
                authoritative: false,
                map_version: 0,
                eid: service(),
                locators: vec![],
            };
            let authentication = Authentication::default();
            let notify = MapNotify { nonce, authentication, records: vec![end], trailer: vec![] };
            let bytes = sign(Message::MapNotify(notify), &key(7, "gateway-secret-11")).unwrap();
            world.inject(Datagram { from: to(SERVER), to: to(GATEWAY), bytes });
        }
        Op::Weights(weight) => world.control(SERVER, weights(&[(1, 1, weight), (2, 1, 9), (3, 1, 9)])),
        Op::Command(command, index) => {
            let eid = eids()[index];
            world.command(
                GATEWAY,
                match command {
                    0 => xtr::Command::Resolve { eid },
                    1 => xtr::Command::Used { eid },
                    2 => xtr::Command::Subscribe { eid },
                    _ => xtr::Command::Unsubscribe { eid },
                },
            );
        }
        Op::Register { edge, present: true } => {
            world.command(EDGES[edge], xtr::Command::SetLocalEid(local(service())));
        }
        Op::Register { edge, present: false } => world.command(EDGES[edge], xtr::Command::Withdraw),
        Op::Cut(cut) => world.unreachable = cut.then_some(GATEWAY).into_iter().collect::<Vec<IpAddr>>(),
        // The world asserts after every call that no timer is due.
        Op::Pass(time) => world.run(time),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_dealt_with_is_not_due(
        seed in any::<u64>(),
        limits in limits(),
        config in gateway(),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(seed);
        world.link = BAD;
        world.start_server(SERVER, MapServerConfig { limits, ..server_config() });
        for n in 1..=3 {
            world.start_xtr(EDGES[usize::from(n) - 1], edge_config(n));
        }
        world.start_xtr(GATEWAY, config);
        for op in ops {
            apply(&mut world, op);
            world.step();
        }
        world.run(secs(60));
    }
}
