use std::net::IpAddr;

use proptest::prelude::*;

use super::super::failure::{Peer, Phase};
use super::*;

const PACE: Pace = Pace { interval: Duration::from_secs(2), rise: 2, fall: 3 };

fn failure() -> Failure {
    let peer = Peer::Address(IpAddr::from([192, 0, 2, 1]));
    Failure::Timeout { peer, phase: Phase::EchoReply, after: Duration::from_millis(500) }
}

fn local() -> Failure {
    let peer = Peer::Address(IpAddr::from([192, 0, 2, 1]));
    Failure::Local { peer, operation: "bind", reason: "no such device".to_owned() }
}

fn watching<const N: usize>(ids: [u32; N]) -> Monitor<u32> {
    let mut monitor = Monitor::new(7);
    monitor.set_targets(Instant::ZERO, ids.map(|id| (id, PACE)));
    monitor
}

/// Goes to the next probes and gives each its result at once; what changed.
fn round(
    monitor: &mut Monitor<u32>,
    mut result: impl FnMut(u32) -> Option<Result<(), Failure>>,
) -> Vec<Changed<u32>> {
    let now = monitor.poll_timeout().unwrap();
    monitor.handle_timeout(now);
    let mut changes = Vec::new();
    while let Some(output) = monitor.poll_output() {
        match output {
            Output::Probe { id, run } => {
                if let Some(result) = result(id) {
                    monitor.handle_result(now, &id, run, result);
                }
            }
            Output::Changed(changed) => changes.push(changed),
            Output::NotSent(_) => {}
        }
    }
    changes
}

fn changed(state: State, reason: Option<Failure>) -> Vec<Changed<u32>> {
    vec![Changed { id: 1, state, reason }]
}

#[test]
fn states_need_results_in_a_row() {
    let mut monitor = watching([1]);
    let (ok, bad) = (|_| Some(Ok(())), |_| Some(Err(failure())));
    assert_eq!(monitor.state(&1), Some(State::Unknown));
    assert_eq!(round(&mut monitor, ok), []);
    assert_eq!(round(&mut monitor, ok), changed(State::Healthy, None));
    assert_eq!(round(&mut monitor, bad), []);
    assert_eq!(round(&mut monitor, bad), []);
    assert_eq!(round(&mut monitor, ok), []);
    assert_eq!(round(&mut monitor, bad), [], "the row was broken");
    assert_eq!(round(&mut monitor, bad), []);
    assert_eq!(round(&mut monitor, bad), changed(State::Unhealthy, Some(failure())));
    assert_eq!(round(&mut monitor, ok), []);
    assert_eq!(round(&mut monitor, bad), []);
    assert_eq!(round(&mut monitor, ok), []);
    assert_eq!(round(&mut monitor, ok), changed(State::Healthy, None));
}

#[test]
fn what_flaps_faster_than_the_hysteresis_stays() {
    let mut monitor = watching([1]);
    for step in 0..100 {
        let changes = round(&mut monitor, |_| Some(if step % 2 == 0 { Ok(()) } else { Err(failure()) }));
        assert_eq!(changes, []);
    }
    assert_eq!(monitor.state(&1), Some(State::Unknown));
}

/// What is told of probes that cannot be sent when the next one has this result.
fn told(monitor: &mut Monitor<u32>, result: Result<(), Failure>) -> Vec<Option<Failure>> {
    let now = monitor.poll_timeout().unwrap();
    monitor.handle_timeout(now);
    let mut told = Vec::new();
    while let Some(output) = monitor.poll_output() {
        match output {
            Output::Probe { id, run } => monitor.handle_result(now, &id, run, result.clone()),
            Output::NotSent(NotSent { reason, .. }) => told.push(reason),
            Output::Changed(_) => {}
        }
    }
    told
}

#[test]
fn what_cannot_be_asked_is_told_once() {
    let mut monitor = watching([1]);
    assert_eq!(told(&mut monitor, Ok(())), []);
    assert_eq!(told(&mut monitor, Err(local())), [Some(local())]);
    assert_eq!(told(&mut monitor, Err(local())), []);
    assert_eq!(monitor.not_sent(&1), Some(&local()));
    let peer = Peer::Address(IpAddr::from([192, 0, 2, 1]));
    let other = Failure::Local { peer, operation: "find a route", reason: "unreachable".to_owned() };
    assert_eq!(told(&mut monitor, Err(other.clone())), [Some(other)]);
    assert_eq!(told(&mut monitor, Err(failure())), [None], "it was sent, whatever came of it");
    assert_eq!(monitor.not_sent(&1), None);
}

#[test]
fn what_cannot_be_asked_is_not_down() {
    let mut monitor = watching([1]);
    for _ in 0..10 {
        assert_eq!(round(&mut monitor, |_| Some(Err(local()))), []);
    }
    assert_eq!(monitor.state(&1), Some(State::Unknown));
    round(&mut monitor, |_| Some(Err(failure())));
    round(&mut monitor, |_| Some(Err(failure())));
    round(&mut monitor, |_| Some(Err(local())));
    let changes = round(&mut monitor, |_| Some(Err(failure())));
    assert_eq!(changes, changed(State::Unhealthy, Some(failure())), "it does not break a row either");
}

#[test]
fn a_probe_that_never_ends_has_failed_when_the_next_is_due() {
    let mut monitor = watching([1]);
    let changes: Vec<_> = (0..4).flat_map(|_| round(&mut monitor, |_| None)).collect();
    let [Changed { state: State::Unhealthy, reason: Some(Failure::Overdue { after }), .. }] = &changes[..]
    else {
        panic!("{changes:?}")
    };
    assert!(*after >= PACE.interval && *after <= PACE.interval * 11 / 10);
}

#[test]
fn an_answer_that_comes_late_counts_for_nothing() {
    let mut monitor = watching([1]);
    let mut runs = Vec::new();
    let mut now = Instant::ZERO;
    for _ in 0..4 {
        now = monitor.poll_timeout().unwrap();
        monitor.handle_timeout(now);
        while let Some(output) = monitor.poll_output() {
            if let Output::Probe { run, .. } = output {
                runs.push(run);
            }
        }
    }
    assert_eq!(monitor.state(&1), Some(State::Unhealthy));
    for run in runs.iter().take(3).cycle().take(10) {
        monitor.handle_result(now, &1, *run, Ok(()));
    }
    monitor.handle_result(now, &1, runs[3], Ok(()));
    monitor.handle_result(now, &1, runs[3], Ok(()));
    assert_eq!(monitor.poll_output(), None, "only one of these was an answer to the running probe");
}

#[test]
fn targets_that_stay_keep_what_is_known() {
    let mut monitor = watching([1, 2]);
    for _ in 0..8 {
        round(&mut monitor, |_| Some(Ok(())));
    }
    let due = monitor.poll_timeout().unwrap();
    monitor.set_targets(due, [(2, Pace { rise: 1, ..PACE }), (3, PACE)]);
    assert_eq!([1, 2, 3].map(|id| monitor.state(&id)), [None, Some(State::Healthy), Some(State::Unknown)]);
    monitor.handle_result(due, &1, 1, Err(failure()));
    assert!(monitor.poll_timeout().unwrap() <= due + PACE.interval * 11 / 10);
    monitor.set_targets(due, [(2, Pace { interval: Duration::from_millis(100), ..PACE })]);
    assert!(monitor.poll_timeout().unwrap() <= due + Duration::from_millis(100));
}

#[test]
fn what_was_to_be_told_of_targets_that_went_is_not() {
    let mut monitor = watching([1, 2]);
    monitor.handle_timeout(Instant::from_secs(1));
    monitor.set_targets(Instant::from_secs(1), [(2, PACE)]);
    assert!(matches!(monitor.poll_output(), Some(Output::Probe { id: 2, .. })));
    assert_eq!(monitor.poll_output(), None);
}

#[test]
fn first_probes_are_spread() {
    let mut monitor = Monitor::new(1);
    monitor.set_targets(Instant::ZERO, (0..1000_u32).map(|id| (id, PACE)));
    let mut started = [0; 5];
    for (quarter, started) in started.iter_mut().enumerate() {
        monitor.handle_timeout(Instant::from_millis(quarter as u64 * 125));
        *started = std::iter::from_fn(|| monitor.poll_output()).count();
    }
    assert_eq!(started.iter().sum::<usize>(), 1000);
    assert!(started[1..].iter().all(|count| (200..300).contains(count)), "{started:?}");
}

proptest! {
    /// Whatever results come, and when: probes keep their pace, and the state is what the last row says.
    #[test]
    fn rows_and_paces_hold(
        results in proptest::collection::vec(0_u8..4, 1..200), random: u64, rise in 1_usize..4, fall in 1_usize..4,
    ) {
        let row = |length| u32::try_from(length).unwrap();
        let mut monitor = Monitor::new(random);
        monitor.set_targets(Instant::ZERO, [(1, Pace { rise: row(rise), fall: row(fall), ..PACE })]);
        let (mut last, mut expected, mut overdue) = (None, State::Unknown, false);
        let mut successes = Vec::new();
        for kind in results {
            let now = monitor.poll_timeout().unwrap();
            if let Some(last) = last.replace(now) {
                prop_assert!(now - last >= PACE.interval && now - last <= PACE.interval * 11 / 10);
            }
            round(&mut monitor, |_| match kind {
                0 => Some(Ok(())),
                1 => Some(Err(failure())),
                2 => Some(Err(local())),
                _ => None,
            });
            let seen = overdue.then_some(false).into_iter().chain((kind < 2).then_some(kind == 0));
            for success in seen {
                successes.push(success);
                if successes.iter().rev().take_while(|s| **s).count() >= rise {
                    expected = State::Healthy;
                }
                if successes.iter().rev().take_while(|s| !**s).count() >= fall {
                    expected = State::Unhealthy;
                }
            }
            overdue = kind == 3;
            prop_assert_eq!(monitor.state(&1), Some(expected));
        }
    }
}
