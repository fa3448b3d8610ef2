use super::*;
use crate::config::services::parse;

const SERVICES: &str = r#"
[[vips]]
name = "web"
address = "192.0.2.10"
port = 80
[vips.health]
[[vips.backends]]
name = "a"
address = "10.0.0.1"
mac = "02:00:00:00:00:01"
[[vips.backends]]
name = "b"
address = "10.0.0.2"
"#;

fn vips(text: &str) -> Vec<Arc<Vip>> {
    parse(text, None).unwrap().into_iter().map(Arc::new).collect()
}

/// One whose start is over.
fn fresh(text: &str) -> Core {
    let mut core = Core::new(at(0), vips(text), |_, _| None);
    core.handle_timeout(at(5000));
    core
}

fn found(usable: bool, slots: u32) -> Option<InPlace> {
    Some(InPlace { usable, slots, mac: [2, 0, 0, 0, 0, 9] })
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn backend(name: &str) -> BackendKey {
    BackendKey { vip: "web".into(), backend: name.into() }
}

fn target_b() -> Target {
    Target { segment: Segment::NONE, address: "10.0.0.2".parse().unwrap(), routed: false }
}

/// Name, weight, usable of every backend of the first VIP, if something is to be applied; the kernel takes it.
fn applied(core: &mut Core, now: Instant) -> Option<Vec<(String, u32, bool)>> {
    let Output::Apply(wanted) = core.poll_output(now)?;
    core.handle_applied(now, Ok(()));
    Some(wanted[0].backends.iter().map(|b| (b.name.clone(), b.weight, b.usable)).collect())
}

fn shares_of(shares: &[(&str, u32, bool)]) -> Option<Vec<(String, u32, bool)>> {
    Some(shares.iter().map(|(name, weight, usable)| ((*name).to_owned(), *weight, *usable)).collect())
}

fn all_up(core: &mut Core) {
    core.handle_neighbour(target_b(), [2, 0, 0, 0, 0, 2]);
    for name in ["a", "b"] {
        core.handle_health(at(10), &backend(name), Health::Up, "connected");
    }
}

fn why(core: &Core) -> Vec<&'static str> {
    core.vips().flat_map(|vip| vip.backends.into_iter().map(|b| b.why.as_str()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_start_waits_for_first_answers() {
    let mut core = Core::new(at(0), vips(SERVICES), |_, _| None);
    assert_eq!(core.poll_output(at(0)), None);
    assert_eq!(core.poll_timeout(), Some(at(5000)));
    all_up(&mut core);
    assert_eq!(applied(&mut core, at(10)), shares_of(&[("a", 100, true), ("b", 100, true)]));
    let mut empty = Core::new(at(0), Vec::new(), |_, _| None);
    assert_eq!(empty.poll_output(at(0)), Some(Output::Apply(Vec::new())));
    let mut changed = Core::new(at(0), vips(SERVICES), |_, _| None);
    changed.handle_desired(at(1), vips(SERVICES));
    assert!(changed.poll_output(at(1)).is_some());
}

#[test]
fn backends_come_as_they_answer() {
    let mut core = fresh(SERVICES);
    assert_eq!(applied(&mut core, at(0)), shares_of(&[("a", 100, false), ("b", 100, false)]));
    assert_eq!(why(&core), ["not-checked-yet", "not-checked-yet"]);
    core.handle_health(at(5), &backend("a"), Health::Up, "connected");
    core.handle_health(at(5), &backend("b"), Health::Up, "connected");
    assert_eq!(applied(&mut core, at(5)), shares_of(&[("a", 100, true), ("b", 100, false)]));
    assert_eq!(why(&core), ["working", "no-link-layer-address"]);
    core.handle_neighbour(target_b(), [2, 0, 0, 0, 0, 2]);
    assert_eq!(applied(&mut core, at(6)), shares_of(&[("a", 100, true), ("b", 100, true)]));
    assert_eq!(core.targets().into_iter().collect::<Vec<_>>(), [target_b()]);
}

#[test]
fn steady_is_no_work() {
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    assert!(applied(&mut core, at(10)).is_some());
    all_up(&mut core);
    core.handle_desired(at(20), vips(SERVICES));
    assert_eq!(core.poll_output(at(20)), None);
    assert!(core.in_step());
    assert_eq!(core.poll_timeout(), None);
}

#[test]
fn a_change_that_takes_long_is_followed_by_a_rest() {
    let mut core = fresh(SERVICES);
    assert!(core.poll_output(at(0)).is_some());
    core.handle_applied(at(200), Ok(()));
    all_up(&mut core);
    assert_eq!(core.poll_output(at(999)), None);
    assert_eq!(core.poll_timeout(), Some(at(1000)));
    assert_eq!(applied(&mut core, at(1000)), shares_of(&[("a", 100, true), ("b", 100, true)]));
    core.handle_health(at(1001), &backend("a"), Health::Down, "refused");
    assert!(core.poll_output(at(1001)).is_some(), "this one took no time");
    core.handle_applied(at(2001), Ok(()));
    core.handle_desired(at(2002), vips(&SERVICES.replace("10.0.0.2", "10.0.0.3")));
    assert!(core.poll_output(at(2002)).is_some(), "what an operator asks for does not wait");
}

#[test]
fn a_failed_backend_leaves_and_comes_back() {
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    applied(&mut core, at(10));
    core.handle_health(at(20), &backend("b"), Health::Down, "refused");
    assert_eq!(applied(&mut core, at(20)), shares_of(&[("a", 100, true), ("b", 100, false)]));
    assert_eq!(core.vips().next().unwrap().backends[1].said, "refused");
    assert_eq!(core.vips().next().unwrap().backends[1].since, at(20));
    core.handle_health(at(30), &backend("b"), Health::Up, "connected");
    assert_eq!(applied(&mut core, at(30)), shares_of(&[("a", 100, true), ("b", 100, true)]));
}

#[test]
fn a_drained_backend_takes_no_new_flows_and_keeps_its_own() {
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    applied(&mut core, at(10));
    let drained = SERVICES.replace("address = \"10.0.0.2\"", "address = \"10.0.0.2\"\nweight = 0");
    core.handle_desired(at(1000), vips(&drained));
    assert_eq!(applied(&mut core, at(1000)), shares_of(&[("a", 100, true), ("b", 0, true)]));
    assert_eq!(why(&core), ["working", "drained"]);
    core.handle_health(at(62_000), &backend("b"), Health::Down, "refused");
    assert_eq!(applied(&mut core, at(62_000)), shares_of(&[("a", 100, true), ("b", 0, false)]));
    assert!(!core.vips().next().unwrap().all_fail);
}

#[test]
fn a_restart_leaves_what_is_in_place_until_everybody_has_answered() {
    let mut core = Core::new(at(0), vips(SERVICES), |_, _| found(true, 500));
    assert_eq!(core.poll_output(at(0)), None, "nothing is known yet");
    assert_eq!(core.poll_timeout(), Some(at(5000)));
    core.handle_health(at(100), &backend("a"), Health::Up, "connected");
    assert_eq!(core.poll_output(at(100)), None);
    core.handle_health(at(200), &backend("b"), Health::Down, "refused");
    core.handle_neighbour(target_b(), [2, 0, 0, 0, 0, 2]);
    assert_eq!(applied(&mut core, at(200)), shares_of(&[("a", 100, true), ("b", 100, false)]));
}

#[test]
fn who_does_not_answer_after_a_restart_is_as_it_was() {
    let of = |_: &VipId, name: &str| if name == "a" { found(true, 500) } else { found(true, 0) };
    let mut core = Core::new(at(0), vips(SERVICES), of);
    core.handle_timeout(at(5000));
    let Some(Output::Apply(wanted)) = core.poll_output(at(5000)) else { panic!("nothing is applied") };
    let of_wanted: Vec<_> = wanted[0].backends.iter().map(|b| (b.weight, b.usable, b.mac)).collect();
    // The configured address goes before the one that was found, and that before none.
    assert_eq!(of_wanted, [(100, true, [2, 0, 0, 0, 0, 1]), (0, true, [2, 0, 0, 0, 0, 9])]);
    assert_eq!(why(&core), ["as-found", "as-found"]);
    let mut core = Core::new(at(0), vips(SERVICES), |_, _| found(false, 0));
    core.handle_timeout(at(5000));
    assert_eq!(applied(&mut core, at(5000)), shares_of(&[("a", 100, false), ("b", 100, false)]));
}

#[test]
fn what_cannot_be_checked_stays_as_it_is_and_says_so() {
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    core.handle_health(at(10), &backend("b"), Health::Down, "refused");
    applied(&mut core, at(10));
    for name in ["a", "b"] {
        let reason = || Some("no route".to_owned());
        assert!(core.handle_not_sent(&backend(name), reason()));
        assert!(!core.handle_not_sent(&backend(name), reason()), "it is told once");
    }
    assert_eq!(applied(&mut core, at(20)), None);
    assert_eq!(why(&core), ["check-not-sent", "failed"]);
    assert_eq!(core.vips().next().unwrap().backends[1].not_sent, Some("no route"));
    assert!(core.handle_not_sent(&backend("a"), None));
    assert_eq!(why(&core), ["working", "failed"]);
    core.handle_desired(at(30), vips(&SERVICES.replace("[vips.health]", "")));
    assert_eq!(core.vips().next().unwrap().backends[1].not_sent, None, "nothing is to be sent any more");
}

#[test]
fn without_a_verdict_what_cannot_be_checked_is_as_it_was_found() {
    for (in_place, shares) in
        [(found(true, 500), (100, true)), (found(false, 0), (100, false)), (None, (100, false))]
    {
        let mut core = Core::new(at(0), vips(SERVICES), |_, _| in_place);
        core.handle_not_sent(&backend("a"), Some("no route".into()));
        core.handle_timeout(at(5000));
        let view = core.vips().next().unwrap();
        assert_eq!((view.backends[0].wanted.weight, view.backends[0].wanted.usable), shares);
        assert_eq!(view.backends[0].why, Why::CheckNotSent);
    }
}

#[test]
fn when_all_fail_all_go_on_or_none() {
    for (text, usable) in [("keep", true), ("drop", false)] {
        let text = SERVICES.replace("port = 80", &format!("port = 80\nwhen_all_fail = \"{text}\""));
        let mut core = fresh(&text);
        all_up(&mut core);
        applied(&mut core, at(10));
        core.handle_health(at(20), &backend("a"), Health::Down, "refused");
        applied(&mut core, at(20));
        core.handle_health(at(30), &backend("b"), Health::Down, "refused");
        assert_eq!(applied(&mut core, at(30)), shares_of(&[("a", 100, usable), ("b", 100, usable)]));
        assert!(core.vips().all(|vip| vip.all_fail));
        assert_eq!(core.all_failed("web"), 1);
        core.handle_health(at(40), &backend("b"), Health::Up, "connected");
        assert_eq!(applied(&mut core, at(40)), shares_of(&[("a", 100, false), ("b", 100, true)]));
        assert_eq!(core.all_failed("web"), 1);
    }
}

#[test]
fn what_the_kernel_refuses_is_tried_again_more_and_more_seldom() {
    let mut core = fresh(SERVICES);
    let mut now = at(0);
    for wait in [500, 1000, 2000] {
        assert!(core.poll_output(now).is_some());
        core.handle_applied(now, Err("no memory".into()));
        assert_eq!((core.refused(), core.in_step()), (Some("no memory"), false));
        assert_eq!(core.poll_output(now), None);
        assert_eq!(core.poll_timeout(), Some(now + Duration::from_millis(wait)));
        now = now + Duration::from_millis(wait);
        core.handle_timeout(now);
    }
    // Something else is wanted: that is tried at once.
    core.handle_health(now, &backend("a"), Health::Up, "connected");
    assert!(applied(&mut core, now).is_some());
    assert_eq!((core.refused(), core.in_step()), (None, true));
}

#[test]
fn verdicts_are_about_an_address() {
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    applied(&mut core, at(10));
    // Other checks, same server: the verdict stands.
    core.handle_desired(at(20), vips(&SERVICES.replace("[vips.health]", "[vips.health]\ninterval = \"5s\"")));
    assert_eq!(applied(&mut core, at(20)), None);
    // Another server by the same name.
    core.handle_desired(at(30), vips(&SERVICES.replace("10.0.0.1", "10.0.0.3")));
    assert_eq!(applied(&mut core, at(30)), shares_of(&[("a", 100, false), ("b", 100, true)]));
}

#[test]
fn checks_that_begin_take_nobody_out() {
    let unchecked = SERVICES.replace("[vips.health]", "");
    let mut core = fresh(&unchecked);
    core.handle_neighbour(target_b(), [2, 0, 0, 0, 0, 2]);
    assert_eq!(applied(&mut core, at(0)), shares_of(&[("a", 100, true), ("b", 100, true)]));
    assert_eq!(why(&core), ["not-checked", "not-checked"]);
    core.handle_desired(at(10), vips(SERVICES));
    assert_eq!(applied(&mut core, at(10)), None);
}

#[test]
fn behind_a_tunnel_the_way_to_its_end_is_resolved() {
    let text = SERVICES
        .replace("port = 80", "port = 80\nsegment = \"vxlan:7\"")
        .replace("mac = \"02:00:00:00:00:01\"", "mac = \"02:00:00:00:00:01\"\nvtep = \"10.9.0.1\"")
        .replace(
            "address = \"10.0.0.2\"",
            "address = \"10.0.0.2\"\nmac = \"02:00:00:00:00:02\"\nvtep = \"10.9.0.1\"",
        );
    let mut core = fresh(&text);
    let vtep = Target { segment: Segment::NONE, address: "10.9.0.1".parse().unwrap(), routed: true };
    assert_eq!(core.targets().into_iter().collect::<Vec<_>>(), [vtep]);
    core.handle_health(at(1), &backend("a"), Health::Up, "");
    applied(&mut core, at(1));
    assert_eq!(why(&core), ["no-link-layer-address", "not-checked-yet"]);
    core.handle_neighbour(vtep, [2, 0, 0, 0, 0, 7]);
    let Some(Output::Apply(wanted)) = core.poll_output(at(2)) else { panic!("nothing is applied") };
    assert_eq!(wanted[0].backends[0].tunnel.unwrap().mac, [2, 0, 0, 0, 0, 7]);
    assert_eq!(wanted[0].backends[0].mac, [2, 0, 0, 0, 0, 1]);
}

/// The monitor and this machine together: what flaps faster than `rise` and `fall` changes nothing.
#[test]
fn a_flap_below_the_thresholds_is_no_change() {
    use crate::balancer::health::{Failure, Monitor, Output as Wanted, Pace, State};
    let mut core = fresh(SERVICES);
    all_up(&mut core);
    applied(&mut core, at(10));
    let pace = Pace { interval: Duration::from_secs(2), rise: 2, fall: 3 };
    let mut monitor = Monitor::new(1);
    monitor.set_targets(at(0), [(backend("a"), pace)]);
    let mut fails = |core: &mut Core, results: &[bool]| {
        let mut applies = 0;
        let mut left = results.iter();
        while let Some(at) = monitor.poll_timeout() {
            monitor.handle_timeout(at);
            while let Some(output) = monitor.poll_output() {
                match output {
                    Wanted::Probe { id, run } => {
                        let Some(failed) = left.next() else { return applies };
                        let failure = Failure::Overdue { after: Duration::from_secs(1) };
                        monitor.handle_result(at, &id, run, if *failed { Err(failure) } else { Ok(()) });
                    }
                    Wanted::Changed(changed) => {
                        let up = changed.state == State::Healthy;
                        let health = if up { Health::Up } else { Health::Down };
                        core.handle_health(at, &changed.id, health, "");
                        applies += u32::from(applied(core, at).is_some());
                    }
                    Wanted::NotSent(not_sent) => panic!("{not_sent:?}"),
                }
            }
        }
        applies
    };
    let (ok, no) = (false, true);
    assert_eq!(fails(&mut core, &[ok, ok, no, no, ok, no, ok, no, no, ok]), 0);
    assert_eq!(
        fails(&mut core, &[no, no, no, ok, no, ok, no]),
        1,
        "down once, and one success is not enough"
    );
    assert_eq!(fails(&mut core, &[ok, ok, no, no, ok]), 1, "up once");
}
