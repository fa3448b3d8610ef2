//! Offered load: new flows per second to an EID-prefix in front of the split, over a sliding window.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use codec::Instant;
use dataplane::{Eid, Traffic, TrafficOf};

use super::shared::Load;

/// Time between two samples.
pub(super) const SAMPLE: Duration = Duration::from_millis(50);

/// Totals of new flows at points in time.
#[derive(Debug)]
pub(super) struct LoadWindow {
    length: Duration,
    samples: BTreeMap<Eid, VecDeque<(Instant, u64)>>,
}

impl LoadWindow {
    /// A window of `length` that has seen nothing.
    pub(super) const fn new(length: Duration) -> Self {
        Self { length, samples: BTreeMap::new() }
    }

    /// Notes the totals at `now`. A prefix that is missing is forgotten, a total that went back starts anew.
    fn record(&mut self, now: Instant, totals: &BTreeMap<Eid, u64>) {
        self.samples.retain(|eid, _| totals.contains_key(eid));
        for (eid, total) in totals {
            let samples = self.samples.entry(*eid).or_default();
            if samples.back().is_some_and(|(_, last)| last > total) {
                samples.clear();
            }
            samples.push_back((now, *total));
            // The oldest sample kept is the youngest one that is a whole window old.
            while samples.get(1).is_some_and(|(at, _)| now.saturating_since(*at) >= self.length) {
                samples.pop_front();
            }
        }
    }

    /// Notes the kernel's counters and the flows `dropped` before the kernel could count them; the load of every
    /// prefix that is encapsulated.
    pub(super) fn measure(
        &mut self,
        now: Instant,
        measured_at_unix_ns: u64,
        traffic: &[Traffic],
        dropped: &BTreeMap<Eid, u64>,
    ) -> Vec<Load> {
        let mut loads = BTreeMap::new();
        let empty = |eid| Load { eid, flows: 0, rate: None, packets: 0, bytes: 0, measured_at_unix_ns };
        for entry in traffic.iter().filter(|entry| entry.of != TrafficOf::Decapsulated) {
            let load: &mut Load = loads.entry(entry.eid).or_insert_with(|| empty(entry.eid));
            // What is placed on locators leaves out flows that none could take, and has those twice that moved.
            if entry.of == TrafficOf::Offered {
                load.flows += entry.value.flows;
            }
            load.packets += entry.value.packets;
            load.bytes += entry.value.bytes;
        }
        for (eid, flows) in dropped {
            loads.entry(*eid).or_insert_with(|| empty(*eid)).flows += flows;
        }
        let totals = loads.iter().map(|(eid, load)| (*eid, load.flows)).collect();
        self.record(now, &totals);
        loads.into_values().map(|load| Load { rate: self.rate(&load.eid), ..load }).collect()
    }

    /// New flows per second; `None` until a whole window was seen, because no data is not zero.
    fn rate(&self, eid: &Eid) -> Option<f64> {
        let samples = self.samples.get(eid)?;
        let ((from, before), (to, after)) = (samples.front()?, samples.back()?);
        let span = to.saturating_since(*from);
        let flows = u32::try_from(after - before).unwrap_or(u32::MAX);
        (span >= self.length).then(|| f64::from(flows) / span.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eid() -> Eid {
        Eid { instance_id: 0, prefix: "10.100.0.1/32".parse().unwrap() }
    }

    fn record(window: &mut LoadWindow, ms: u64, total: u64) -> Option<f64> {
        window.record(Instant::from_millis(ms), &BTreeMap::from([(eid(), total)]));
        window.rate(&eid())
    }

    #[test]
    fn a_constant_rate_is_found_after_one_window() {
        let mut window = LoadWindow::new(Duration::from_millis(500));
        for ms in (0..500).step_by(50) {
            assert_eq!(record(&mut window, ms, ms * 2), None);
        }
        for ms in (500..3000).step_by(50) {
            assert_eq!(record(&mut window, ms, ms * 2), Some(2000.0));
        }
        assert!(window.samples[&eid()].len() <= 11);
    }

    #[test]
    fn late_samples_are_divided_by_their_own_time() {
        let mut window = LoadWindow::new(Duration::from_millis(500));
        record(&mut window, 0, 1_000_000);
        assert_eq!(record(&mut window, 800, 1_000_400), Some(500.0));
        assert_eq!(record(&mut window, 1600, 1_000_400), Some(0.0));
    }

    #[test]
    fn a_reset_counter_is_no_data() {
        let mut window = LoadWindow::new(Duration::from_millis(500));
        record(&mut window, 0, 100);
        record(&mut window, 500, 200);
        assert_eq!(record(&mut window, 550, 10), None);
        window.record(Instant::from_millis(600), &BTreeMap::new());
        assert_eq!(window.rate(&eid()), None);
    }

    #[test]
    fn the_load_is_what_is_offered_and_not_what_is_placed() {
        let traffic = [(TrafficOf::Offered, 100, 0), (TrafficOf::Locator([10, 0, 2, 1].into()), 30, 400)]
            .map(|(of, flows, packets)| {
                let value = bpf_abi::TrafficValue { flows, packets, bytes: 0 };
                Traffic { eid: eid(), of, value }
            });
        let dropped = BTreeMap::from([(eid(), 7)]);
        let loads = LoadWindow::new(Duration::from_millis(500)).measure(
            Instant::from_millis(0),
            0,
            &traffic,
            &dropped,
        );
        assert_eq!((loads[0].flows, loads[0].packets), (107, 400));
    }
}
