//! How flows are shared among locators.

use anyhow::Result;
use bpf_abi::{BUCKETS, NO_MEMBER};
use dataplane::buckets::{Share, assign};

use crate::frames::{Flow, tcp};
use crate::kernel::{Kernel, monotonic_coarse};
use crate::model::Hook;
use crate::setup::{SYN, itr, kernel, traffic};
use crate::tables::{locator, slot, tables};

/// Over 10 000 flows the share of each locator is its weight to a percentage point, and after a change of weights the
/// flows of before are where they were.
#[test]
fn shares_follow_the_weights() -> Result<()> {
    let share = |weight| Share { priority: 1, weight, usable: true };
    let weights = [share(10), share(25), share(65)];
    let mut tables = tables();
    tables.locators.insert(3, locator(3, false));
    let mut three = slot(&[(1, true), (2, true), (3, true)]);
    three.buckets = assign(&[NO_MEMBER; BUCKETS], &weights);
    tables.slots.insert(3, three);
    let mut kernel = kernel(tables)?;
    let flows = |kernel: &mut Kernel, from: u16| -> Result<Vec<u32>> {
        (0..10_000)
            .map(|at| {
                let flow =
                    Flow { source: (at / 100) as u8, source_port: from + at % 100 * 7, ..Flow::default() };
                place_only(kernel, tcp(flow, SYN, 0))
            })
            .collect()
    };
    let before = flows(&mut kernel, 10_000)?;
    assert_shares(&before, &[10, 25, 65]);
    let mut tables = kernel.tables.clone();
    let mut changed = three;
    changed.buckets = assign(&three.buckets, &[share(50), share(25), share(25)]);
    let moved = three.buckets.iter().zip(&changed.buckets).filter(|(a, b)| a != b).count();
    assert!((409..=411).contains(&moved), "{moved} buckets moved for 40 % of the weight");
    tables.slots.insert(3, changed);
    kernel.install(tables, &traffic())?;
    assert_eq!(flows(&mut kernel, 10_000)?, before, "flows moved");
    assert_shares(&flows(&mut kernel, 20_000)?, &[50, 25, 25]);
    kernel.check_flows()
}

/// As [`place`](crate::setup::place), but without reading all counters for each of thousands of flows.
fn place_only(kernel: &mut Kernel, frame: Vec<u8>) -> Result<u32> {
    let input = itr(Hook::Tc, frame);
    let outcome = kernel.run(&input)?;
    let expected = kernel.tables.itr(input.hook, &input.frame, 0, monotonic_coarse());
    assert_eq!(outcome.packet, expected.packet);
    Ok(expected.traffic.expect("encapsulated").0.locator)
}

fn assert_shares(placed: &[u32], percent: &[u32]) {
    for (locator, percent) in (1..).zip(percent) {
        let count = placed.iter().filter(|placed| **placed == locator).count();
        let share = 100.0 * count as f64 / placed.len() as f64;
        assert!((share - f64::from(*percent)).abs() < 1.0, "locator {locator}: {share} %, not {percent} %");
    }
}
