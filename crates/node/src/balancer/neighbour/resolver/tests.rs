use codec::neighbour::{Advertisement, Arp, ArpOperation, BROADCAST, Message, VlanId};
use proptest::prelude::*;

use super::*;

const PORT: Mac = [2, 0, 0, 0, 0, 1];
const A: Mac = [2, 0, 0, 0, 0, 0x0a];
const B: Mac = [2, 0, 0, 0, 0, 0x0b];

fn v4(last: u8) -> Target {
    Target { vlan: Vlan::Dot1q(VlanId::new(100).unwrap()), address: IpAddr::from([10, 0, 0, last]) }
}

fn v6(last: u16) -> Target {
    Target { vlan: Vlan::None, address: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]) }
}

fn reply(target: Target, mac: Mac) -> Frame {
    let IpAddr::V4(sender) = target.address else { panic!("ARP is for IPv4") };
    let operation = ArpOperation::Reply;
    let arp = Arp { operation, sender_mac: mac, sender, target_mac: PORT, target: Ipv4Addr::UNSPECIFIED };
    Frame { destination: PORT, source: mac, vlan: target.vlan, message: Message::Arp(arp) }
}

fn advertisement(target: Target, mac: Option<Mac>, overrides: bool) -> Frame {
    let IpAddr::V6(address) = target.address else { panic!("Neighbour Discovery is for IPv6") };
    let message = Advertisement {
        source: address,
        destination: link_local(PORT),
        target: address,
        router: false,
        solicited: true,
        overrides,
        target_mac: mac,
    };
    let source = mac.unwrap_or(A);
    Frame { destination: PORT, source, vlan: target.vlan, message: Message::Advertisement(message) }
}

/// A resolver with a clock, on a link that a test is the other end of.
struct Link {
    now: Instant,
    resolver: Resolver,
    changes: Vec<(Target, Change)>,
}

impl Link {
    fn of(targets: &[Target]) -> Self {
        let mut resolver = Resolver::new(PORT, Vec::new(), 7);
        resolver.set_targets(Instant::ZERO, targets.iter().copied());
        Self { now: Instant::ZERO, resolver, changes: Vec::new() }
    }

    /// The next questions, when they are due.
    fn questions(&mut self) -> Vec<Frame> {
        loop {
            self.now = self.resolver.poll_timeout().unwrap();
            self.resolver.handle_timeout(self.now);
            let questions = self.outputs();
            if !questions.is_empty() {
                return questions;
            }
        }
    }

    fn outputs(&mut self) -> Vec<Frame> {
        let mut questions = Vec::new();
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Send(_, frame) => questions.push(frame),
                Output::Changed(target, change) => self.changes.push((target, change)),
                Output::Heard(_) => {}
            }
        }
        questions
    }

    fn hear(&mut self, frame: &Frame) {
        self.resolver.handle_frame(self.now, frame);
        assert_eq!(self.outputs(), []);
    }

    fn changes(&mut self) -> Vec<(Target, Change)> {
        std::mem::take(&mut self.changes)
    }

    fn state(&self, target: Target) -> (State, Option<Mac>) {
        let neighbour = self.resolver.get(&target).unwrap();
        (neighbour.state, neighbour.mac)
    }
}

#[test]
fn a_neighbour_is_asked_until_it_answers_and_again_before_it_is_old() {
    let target = v4(1);
    let mut link = Link::of(&[target]);
    let question = link.questions();
    let IpAddr::V4(address) = target.address else { unreachable!() };
    let probe = |to| Frame::request(target.vlan, PORT, Ipv4Addr::UNSPECIFIED, address, to);
    assert_eq!(question, [probe(None)]);
    assert_eq!((link.now, link.state(target)), (Instant::ZERO, (State::Resolving, None)));
    assert_eq!(link.questions(), [probe(None)], "the first one was lost");
    assert_eq!(link.now, Instant::from_secs(1));
    link.hear(&reply(target, A));
    assert_eq!(link.changes(), [(target, Change::Resolved { mac: A })]);
    let heard = link.now;
    assert_eq!(link.questions(), [probe(Some(A))], "only the neighbour is asked");
    assert!(link.now - heard <= FRESH && link.now - heard >= FRESH * 7 / 8);
    link.hear(&reply(target, A));
    assert_eq!(link.changes(), []);
}

#[test]
fn what_does_not_answer_any_more_stays_in_use() {
    let target = v4(1);
    let mut link = Link::of(&[target]);
    link.questions();
    link.hear(&reply(target, A));
    link.changes();
    let destinations: Vec<Mac> = (0..3).map(|_| link.questions()[0].destination).collect();
    assert_eq!(destinations, [A, BROADCAST, BROADCAST]);
    assert_eq!(link.state(target), (State::Resolved, Some(A)));
    let asked = link.now;
    link.questions();
    assert_eq!(link.now - asked, TRY + RETRY);
    assert_eq!(link.changes(), [(target, Change::Stale { mac: A })]);
    assert_eq!(link.state(target), (State::Stale, Some(A)));
    (0..5).for_each(|_| drop(link.questions()));
    assert_eq!(link.changes(), [], "it is told once");
    assert_eq!(link.resolver.counters().stale, 2, "and counted every time");
    link.hear(&reply(target, B));
    assert_eq!(link.changes(), [(target, Change::Moved { from: A, to: B })]);
}

#[test]
fn what_never_answers_has_failed_until_it_does() {
    let target = v6(1);
    let mut link = Link::of(&[target]);
    (0..4).for_each(|_| drop(link.questions()));
    assert_eq!(link.changes(), [(target, Change::Failed)]);
    assert_eq!((link.state(target), link.resolver.counters().failed), ((State::Failed, None), 1));
    link.hear(&advertisement(target, None, false));
    assert_eq!(link.changes(), [], "it confirms what we do not have");
    link.hear(&advertisement(target, Some(A), false));
    assert_eq!(link.changes(), [(target, Change::Resolved { mac: A })], "late is not never");
}

#[test]
fn a_second_host_with_the_address_does_not_make_it_flap() {
    let target = v4(1);
    let mut link = Link::of(&[target]);
    for _ in 0..10 {
        link.questions();
        link.hear(&reply(target, A));
        link.now = link.now + Duration::from_millis(3);
        link.hear(&reply(target, B));
    }
    assert_eq!(link.changes(), [(target, Change::Resolved { mac: A })]);
    assert_eq!(link.resolver.counters().conflicts, 10);
}

#[test]
fn a_backend_that_moves_is_followed_at_once() {
    let target = v4(1);
    let mut link = Link::of(&[target]);
    link.questions();
    link.hear(&reply(target, A));
    link.now = link.now + LOCK;
    let gratuitous = match target.address {
        IpAddr::V4(address) => Frame::request(target.vlan, B, address, address, None),
        IpAddr::V6(_) => unreachable!(),
    };
    link.hear(&gratuitous);
    assert_eq!(link.changes()[1..], [(target, Change::Moved { from: A, to: B })]);
    assert_eq!(link.resolver.counters().moved, 1);
}

#[test]
fn advertisements_that_do_not_override_replace_nothing() {
    let target = v6(1);
    let mut link = Link::of(&[target]);
    link.questions();
    link.hear(&advertisement(target, Some(A), false));
    link.now = link.now + LOCK;
    link.hear(&advertisement(target, Some(B), false));
    link.hear(&advertisement(target, None, false));
    assert_eq!(link.changes(), [(target, Change::Resolved { mac: A })]);
    link.now = link.now + LOCK;
    link.hear(&advertisement(target, Some(B), true));
    assert_eq!(link.changes(), [(target, Change::Moved { from: A, to: B })]);
}

#[test]
fn who_asks_depends_on_the_vlan_and_the_family() {
    let sender = |vlan, address: &str| Sender { vlan, address: address.parse().unwrap() };
    let vlan = v4(1).vlan;
    let senders = vec![
        sender(Vlan::None, "192.0.2.9"),
        sender(vlan, "fd00::9"),
        sender(vlan, "10.0.0.9"),
        sender(vlan, "10.0.0.8"),
    ];
    let mut resolver = Resolver::new(PORT, senders, 7);
    let mut asks = |target| {
        resolver.set_targets(Instant::ZERO, [target]);
        assert!(resolver.ask(&target) && !resolver.ask(&v4(99)));
        match resolver.poll_output() {
            Some(Output::Send(_, Frame { message: Message::Arp(arp), .. })) => IpAddr::V4(arp.sender),
            Some(Output::Send(_, Frame { message: Message::Solicitation(nd), .. })) => IpAddr::V6(nd.source),
            other => panic!("{other:?}"),
        }
    };
    let untagged = |target| Target { vlan: Vlan::None, ..target };
    assert_eq!(asks(v4(1)).to_string(), "10.0.0.9");
    assert_eq!(asks(untagged(v4(1))).to_string(), "192.0.2.9");
    assert_eq!(asks(Target { vlan, ..v6(1) }).to_string(), "fd00::9");
    assert_eq!(asks(v6(1)), IpAddr::V6(link_local(PORT)));
}

#[test]
fn targets_that_stay_keep_what_is_known() {
    let mut link = Link::of(&[v4(1), v4(2)]);
    link.questions();
    link.hear(&reply(v4(1), A));
    link.hear(&reply(v4(2), B));
    let other = Target { vlan: Vlan::None, ..v4(1) };
    link.resolver.set_targets(link.now, [v4(2), other, v4(2), other]);
    assert_eq!(link.resolver.get(&v4(1)), None);
    assert_eq!(link.state(v4(2)), (State::Resolved, Some(B)));
    assert_eq!(link.state(other), (State::Resolving, None), "another VLAN is another host");
    link.resolver.assume(&other, A);
    link.resolver.assume(&v4(2), A);
    assert_eq!((link.state(other), link.state(v4(2)).1), ((State::Stale, Some(A)), Some(B)));
    link.hear(&reply(v4(1), A));
    assert_eq!(link.state(other).0, State::Stale);
}

#[test]
fn our_own_frames_tell_nothing() {
    let mut link = Link::of(&[v4(1)]);
    link.hear(&reply(v4(1), PORT));
    assert_eq!(link.state(v4(1)), (State::Resolving, None));
}

#[test]
fn many_targets_are_not_asked_all_at_once() {
    let targets: Vec<Target> = (0..=255).map(v4).collect();
    let mut link = Link::of(&targets);
    let asked: Vec<usize> = (0..4).map(|_| link.questions().len()).collect();
    assert_eq!(asked, [64; 4]);
    assert_eq!(link.now, Instant::from_millis(30));
    // Nobody was asked for so long that it is the turn of all.
    link.now = Instant::from_secs(20);
    link.resolver.handle_timeout(link.now);
    assert_eq!(link.outputs().len(), 64);
    assert_eq!(link.resolver.poll_timeout(), Some(link.now + BURST_GAP));
}

proptest! {
    /// However frames are lost: as long as one in four tries gets through, no address that was known is given up, and a
    /// neighbour that falls silent is asked for ever.
    #[test]
    fn loss_does_not_lose_addresses(answered in proptest::collection::vec(any::<bool>(), 1..200), random: u64) {
        let target = v4(1);
        let mut link = Link::of(&[target]);
        link.resolver.jitter = Jitter::new(random);
        let mut known = None;
        for answered in answered {
            let before = link.now;
            prop_assert_eq!(link.questions().len(), 1);
            prop_assert!(link.now - before <= FRESH);
            if answered {
                link.hear(&reply(target, A));
                known = Some(A);
            }
            let (state, mac) = link.state(target);
            prop_assert_eq!(mac, known);
            prop_assert_eq!(mac.is_some(), matches!(state, State::Resolved | State::Stale));
        }
        let changes = link.changes();
        prop_assert!(changes.windows(2).all(|pair| pair[0].1 != pair[1].1), "{:?}", changes);
    }
}
