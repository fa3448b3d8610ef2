//! A Map-Server under any sequence of operations: what must always hold, and what it answers against a plain model.
#![expect(clippy::unwrap_used, reason = "literals that are right")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use codec::Instant;
use lisp::auth::{Algorithm, Key, VerifiedMessage, sign, verify};
use lisp::map_server::{
    AllowedPrefix, Command, Limits, LocatorWeight, MapServer, MapServerConfig, NonceCheck, Output, Site,
    Subscriber,
};
use lisp::wire::{
    Action, Address, Authentication, EidPrefix, EidRecord, InstanceId, LocatorRecord, MapNotify, MapRegister,
    MapReply, MapRequest, Message, SiteId, XtrId, XtrIdentity,
};
use proptest::prelude::*;

const PREFIXES: [&str; 4] = ["10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.1.2.0/24"];
const LIFETIME: Duration = Duration::from_secs(180);

#[derive(Clone, Debug)]
enum Op {
    Register { xtr: u8, prefix: usize, merge: bool },
    Withdraw { xtr: u8, prefix: usize },
    SetWeights { prefix: usize, gateway: bool, weights: [u8; 3] },
    ClearWeights { prefix: usize, gateway: bool },
    Subscribe { prefix: usize },
    Acknowledge,
    Pass(u64),
    Restart,
}

fn ops() -> impl Strategy<Value = Op> {
    let (xtr, prefix) = (1u8..=3, 0usize..4);
    let target = (prefix.clone(), any::<bool>());
    prop_oneof![
        6 => (xtr.clone(), prefix.clone(), prop::bool::weighted(0.8))
            .prop_map(|(xtr, prefix, merge)| Op::Register { xtr, prefix, merge }),
        2 => (xtr, prefix.clone()).prop_map(|(xtr, prefix)| Op::Withdraw { xtr, prefix }),
        3 => (target.clone(), any::<[u8; 3]>())
            .prop_map(|((prefix, gateway), weights)| Op::SetWeights { prefix, gateway, weights }),
        1 => target.prop_map(|(prefix, gateway)| Op::ClearWeights { prefix, gateway }),
        2 => prefix.prop_map(|prefix| Op::Subscribe { prefix }),
        4 => Just(Op::Acknowledge),
        4 => (1u64..60_000).prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

fn eid(index: usize) -> EidPrefix {
    EidPrefix { instance_id: InstanceId(0), prefix: PREFIXES[index].parse().unwrap() }
}

fn rloc(xtr: u8) -> IpAddr {
    [10, 0, 9, xtr].into()
}

fn identity(n: u8) -> XtrIdentity {
    XtrIdentity { xtr_id: XtrId([n; 16]), site_id: SiteId(1) }
}

fn key(secret: &str) -> Key {
    Key::new(1, Algorithm::HmacSha256, secret.as_bytes().to_vec().into()).unwrap()
}

fn config() -> MapServerConfig {
    let allowed = AllowedPrefix { eid: eid(0), more_specifics: true };
    let site = Site {
        name: "site".into(),
        site_id: Some(SiteId(1)),
        keys: vec![key("register")],
        nonce_check: NonceCheck::Strict,
        eid_prefixes: vec![allowed],
    };
    let subscriber = Subscriber { name: "gateway".into(), identity: identity(9), key: key("publish") };
    MapServerConfig {
        listen: vec![[10, 0, 0, 1].into()],
        sites: vec![site],
        subscribers: vec![subscriber],
        limits: Limits::default(),
    }
}

fn record(eid: EidPrefix, xtr: u8, ttl: u32) -> EidRecord {
    let locator = LocatorRecord { local: true, ..LocatorRecord::new(Address::Ip(rloc(xtr)), 1, 100) };
    EidRecord {
        ttl,
        action: Action::NoAction,
        authoritative: true,
        map_version: 0,
        eid,
        locators: vec![locator],
    }
}

fn request(eid: EidPrefix, nonce: u64, subscribe: bool) -> Message {
    let mut request = MapRequest::new(nonce, vec![Address::Ip(rloc(9))], eid);
    request.records[0].subscribe = subscribe;
    request.xtr = subscribe.then(|| identity(9));
    Message::MapRequest(request)
}

struct Run {
    server: MapServer,
    now: Instant,
    nonce: u64,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// (prefix, xTR) to end of life and merge bit.
    registered: BTreeMap<(EidPrefix, u8), (Instant, bool)>,
    weights: BTreeMap<(EidPrefix, bool), [u8; 3]>,
    /// Publications to the subscriber, by nonce.
    notifies: BTreeMap<u64, Vec<u8>>,
    unacknowledged: Vec<MapNotify>,
    replies: Vec<MapReply>,
}

impl Run {
    fn new() -> Self {
        Self {
            server: MapServer::new(Instant::ZERO, config(), [1; 32], vec![]),
            now: Instant::from_secs(1),
            nonce: 0,
            disk: BTreeMap::new(),
            registered: BTreeMap::new(),
            weights: BTreeMap::new(),
            notifies: BTreeMap::new(),
            unacknowledged: Vec::new(),
            replies: Vec::new(),
        }
    }

    fn receive(&mut self, from: u8, bytes: &[u8]) {
        self.server.handle_datagram(self.now, SocketAddr::new(rloc(from), 4342), bytes).unwrap();
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Transmit(t) if t.destination.ip() == rloc(9) => self.sent(&t.payload),
                Output::Persist(p) => drop(match p.value {
                    Some(value) => self.disk.insert(p.key, value),
                    None => self.disk.remove(&p.key),
                }),
                _ => {}
            }
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let publish = key("publish");
        match Message::decode(bytes).unwrap() {
            Message::MapReply(reply) => self.replies.push(reply),
            Message::MapNotify(_) => {
                let (_, VerifiedMessage::MapNotify(notify)) = verify(bytes, [((), &publish)]).unwrap() else {
                    panic!("a Map-Notify is verified as one");
                };
                let notify = notify.into_inner();
                self.check_records(&notify.records);
                self.check_nonce(&notify, bytes);
                self.unacknowledged.push(notify);
            }
            // SMRs to an address that also asked without subscribing.
            Message::MapRequest(smr) => assert!(smr.smr),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// One nonce is one message. Only the end of a subscription has the nonce of what was not acknowledged.
    fn check_nonce(&mut self, notify: &MapNotify, bytes: &[u8]) {
        let end = notify.records.iter().all(|r| r.action == Action::DropAuthFailure);
        let first = self.notifies.entry(notify.nonce).or_insert_with(|| bytes.to_vec());
        assert!(end || first == bytes, "nonce {} of two messages", notify.nonce);
    }

    /// Proxied: A = 0, L = 0; only what is registered; only weights that somebody set or registered.
    fn check_records(&self, records: &[EidRecord]) {
        for record in records {
            assert!(!record.authoritative);
            for locator in &record.locators {
                assert!(!locator.local && !locator.probed);
                let xtr = (1..=3).find(|x| locator.rloc.ip() == Some(rloc(*x))).unwrap();
                assert!(
                    self.registered.contains_key(&(record.eid, xtr)),
                    "{xtr} did not register {record:?}"
                );
            }
        }
    }

    fn apply(&mut self, op: Op) {
        self.nonce += 1;
        match op {
            Op::Register { xtr, prefix, merge } => {
                let others = |(e, x): &(EidPrefix, u8), m: &(Instant, bool)| {
                    *e == eid(prefix) && *x != xtr && !(merge && m.1)
                };
                self.registered.retain(|k, v| !others(k, v));
                self.registered.insert((eid(prefix), xtr), (self.now + LIFETIME, merge));
                self.register(xtr, eid(prefix), 5, merge);
            }
            Op::Withdraw { xtr, prefix } => {
                self.registered.remove(&(eid(prefix), xtr));
                self.register(xtr, eid(prefix), 0, true);
            }
            Op::SetWeights { prefix, gateway, weights } => {
                self.weights.insert((eid(prefix), gateway), weights);
                let locator =
                    |x: u8| LocatorWeight { rloc: rloc(x), priority: 1, weight: weights[usize::from(x) - 1] };
                let locators = (1..=3).map(locator).collect();
                self.command(Command::SetWeights {
                    eid: eid(prefix),
                    gateway: gateway.then(|| identity(9)),
                    locators,
                });
            }
            Op::ClearWeights { prefix, gateway } => {
                self.weights.remove(&(eid(prefix), gateway));
                self.command(Command::ClearWeights {
                    eid: eid(prefix),
                    gateway: gateway.then(|| identity(9)),
                });
            }
            Op::Subscribe { prefix } => {
                let nonce = 1_000_000 * self.nonce;
                self.receive(9, &request(eid(prefix), nonce, true).encode().unwrap());
            }
            Op::Acknowledge => self.acknowledge(),
            Op::Pass(millis) => self.pass(Duration::from_millis(millis)),
            Op::Restart => self.restart(),
        }
    }

    fn command(&mut self, command: Command) {
        self.server.handle_command(self.now, command);
        self.drain();
    }

    fn register(&mut self, xtr: u8, eid: EidPrefix, ttl: u32, merge: bool) {
        let register = MapRegister {
            proxy_reply: true,
            security_capable: false,
            eid_notify: false,
            use_ttl_for_timeout: false,
            merge,
            want_map_notify: false,
            nonce: self.nonce,
            authentication: Authentication::default(),
            records: vec![record(eid, xtr, ttl)],
            xtr: Some(identity(xtr)),
        };
        let bytes = sign(Message::MapRegister(register), &key("register")).unwrap();
        self.receive(xtr, &bytes);
    }

    fn acknowledge(&mut self) {
        for notify in std::mem::take(&mut self.unacknowledged) {
            let bytes = sign(Message::MapNotifyAck(notify), &key("publish")).unwrap();
            self.receive(9, &bytes);
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.server.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let now = self.now;
            self.registered.retain(|_, (expires, _)| *expires > now);
            self.server.handle_timeout(now);
            assert!(self.server.poll_timeout().is_none_or(|at| at > now), "a timer stays due");
            self.drain();
        }
        self.now = end;
        self.registered.retain(|_, (expires, _)| *expires > end);
    }

    /// A restart from storage changes nothing but the time that registrations have left.
    fn restart(&mut self) {
        let saved = self.disk.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let restarted = MapServer::new(self.now, config(), [2; 32], saved);
        let registered = |s: &MapServer| {
            let all = s.registrations().into_iter();
            all.map(|r| (r.eid, r.registrant, r.locators, r.merge)).collect::<Vec<_>>()
        };
        assert_eq!(registered(&restarted), registered(&self.server));
        assert_eq!(restarted.weights(), self.server.weights());
        let subscribed =
            |s: &MapServer| s.subscriptions().into_iter().map(|s| (s.eid, s.itr_rlocs)).collect::<Vec<_>>();
        assert_eq!(subscribed(&restarted), subscribed(&self.server));
        for (old, new) in self.server.subscriptions().iter().zip(restarted.subscriptions()) {
            assert!(new.nonce > old.nonce, "nonces go on above all that were used");
        }
        let now = self.now;
        self.registered.values_mut().for_each(|(expires, _)| *expires = now + LIFETIME);
        self.server = restarted;
        self.drain();
    }

    fn check(&mut self) {
        let listed: Vec<EidPrefix> = self.server.registrations().into_iter().map(|r| r.eid).collect();
        assert_eq!(listed.len(), self.registered.len());
        for (prefix, eid) in (0..4).map(|i| (i, eid(i))) {
            let expected = self.expected(eid);
            self.receive(9, &request(eid, 7, false).encode().unwrap());
            let reply = self.replies.pop().unwrap_or_else(|| panic!("no reply for {}", PREFIXES[prefix]));
            self.check_records(&reply.records);
            let Some(record) = reply.records.iter().find(|r| r.eid == eid) else {
                assert!(expected.is_empty(), "{eid:?} is registered and not answered: {reply:?}");
                continue;
            };
            let got: Vec<_> =
                record.locators.iter().map(|l| (l.rloc.ip().unwrap(), l.priority, l.weight)).collect();
            assert_eq!(got, expected);
        }
    }

    /// What somebody who is no subscriber must be told.
    fn expected(&self, eid: EidPrefix) -> Vec<(IpAddr, u8, u8)> {
        let xtrs = self.registered.keys().filter(|(e, _)| *e == eid).map(|(_, x)| *x);
        let weights = self.weights.get(&(eid, false));
        xtrs.map(|x| (rloc(x), 1, weights.map_or(100, |w| w[usize::from(x) - 1]))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn answers_and_publications_say_what_is_registered(ops in prop::collection::vec(ops(), 1..60)) {
        let mut run = Run::new();
        for op in ops {
            run.apply(op);
            run.check();
        }
        // Once everything is acknowledged, nothing is under way.
        for _ in 0..20 {
            run.acknowledge();
            run.pass(Duration::from_millis(100));
        }
        // A registration that ends during the last pass is published after the last acknowledgement.
        for _ in 0..20 {
            run.acknowledge();
        }
        prop_assert!(run.server.subscriptions().iter().all(|s| !s.unacknowledged));
    }
}

/// RFC 9301 §5.5, the example of the text.
#[test]
fn overlapping_prefixes_come_with_the_longest_match() {
    let v6 = |p: &str| EidPrefix { instance_id: InstanceId(0), prefix: p.parse().unwrap() };
    let mut config = config();
    config.sites[0].eid_prefixes = vec![AllowedPrefix { eid: v6("2001:db8::/32"), more_specifics: true }];
    let mut run = Run { server: MapServer::new(Instant::ZERO, config, [1; 32], vec![]), ..Run::new() };
    for prefix in ["2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:1::/64", "2001:db8:1:2::/64"] {
        run.nonce += 1;
        run.registered.insert((v6(prefix), 1), (Instant::from_secs(999), true));
        run.register(1, v6(prefix), 5, true);
    }
    let mut ask = |asked: &str| {
        run.receive(9, &request(v6(asked), 7, false).encode().unwrap());
        let records = run.replies.pop().unwrap().records;
        records.into_iter().map(|r| r.eid.prefix.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ask("2001:db8:1:1::1/128"), ["2001:db8:1:1::/64"]);
    assert_eq!(ask("2001:db8:1:5::5/128"), ["2001:db8:1::/48", "2001:db8:1:1::/64", "2001:db8:1:2::/64"]);
}

#[test]
fn compat_takes_nonces_in_any_order_but_none_twice() {
    let mut config = config();
    config.sites[0].nonce_check = NonceCheck::Compat;
    let mut run = Run { server: MapServer::new(Instant::ZERO, config, [1; 32], vec![]), ..Run::new() };
    let registrations = |run: &Run| run.server.registrations().len();
    for (nonce, prefix, count) in [(50, 0, 1), (20, 1, 2), (50, 2, 2), (20, 3, 2), (30, 3, 3)] {
        run.nonce = nonce;
        run.register(1, eid(prefix), 5, true);
        assert_eq!(registrations(&run), count, "nonce {nonce}");
    }
}
