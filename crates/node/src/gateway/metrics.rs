//! What a scrape of a gateway reads: the last measurement, never the kernel itself.

use std::fmt::Error;
use std::sync::Arc;

use dataplane::{Eid, Traffic, TrafficOf};
use lisp::machine::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::shared::{Shared, State};

/// Prefix and locator pairs that are exported; a map-cache may hold more than a scraper can take.
const PAIRS_MAX: usize = 2_000;

/// Registers the gateway's metrics.
pub(super) fn register(registry: &mut Registry, shared: Arc<Shared>) {
    registry.register_collector(Box::new(Gateway(shared)));
}

#[derive(Debug)]
struct Gateway(Arc<Shared>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EidLabels {
    instance_id: u32,
    eid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LocatorLabels {
    instance_id: u32,
    eid: String,
    locator: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Collector for Gateway {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let state = self.0.snapshot();
        traffic(&mut encoder, &state)?;
        load(&mut encoder, &state)?;
        reasons(&mut encoder, &state)?;
        held(&mut encoder, &state)
    }
}

/// One column of the traffic counters: name, help, what it shows.
type Column = (&'static str, &'static str, fn(&Traffic) -> u64);

fn traffic(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Result<(), Error> {
    const SENT: [Column; 3] = [
        ("weir_gateway_flows", "Flows placed on a locator, by `instance_id`, `eid` and `locator`", |t| {
            t.value.flows
        }),
        (
            "weir_gateway_packets",
            "Packets encapsulated to a locator, by `instance_id`, `eid` and `locator`",
            |t| t.value.packets,
        ),
        (
            "weir_gateway_bytes",
            "Octets of the packets encapsulated to a locator, by `instance_id`, `eid` and `locator`",
            |t| t.value.bytes,
        ),
    ];
    const RECEIVED: [Column; 2] = [
        (
            "weir_gateway_decapsulated_packets",
            "Packets decapsulated for a local EID-prefix, by `instance_id` and `eid`",
            |t| t.value.packets,
        ),
        (
            "weir_gateway_decapsulated_bytes",
            "Octets decapsulated for a local EID-prefix, by `instance_id` and `eid`",
            |t| t.value.bytes,
        ),
    ];
    for (name, help, value) in SENT {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        let pairs = state.traffic.iter().filter_map(|t| match t.of {
            TrafficOf::Locator(rloc) => Some((t, rloc)),
            TrafficOf::Offered | TrafficOf::Decapsulated => None,
        });
        for (entry, rloc) in pairs.take(PAIRS_MAX) {
            let EidLabels { instance_id, eid } = labels(&entry.eid);
            let labels = LocatorLabels { instance_id, eid, locator: rloc.to_string() };
            counter(&mut family, &labels, value(entry))?;
        }
    }
    for (name, help, value) in RECEIVED {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for entry in state.traffic.iter().filter(|t| t.of == TrafficOf::Decapsulated).take(PAIRS_MAX) {
            counter(&mut family, &labels(&entry.eid), value(entry))?;
        }
    }
    Ok(())
}

/// A prefix whose window is not full yet has no value: no data is not zero.
fn load(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Result<(), Error> {
    let name = "weir_gateway_offered_flows_per_second";
    let help = "New flows per second to an EID-prefix (`instance_id`, `eid`) in front of the split, over the last 500 ms";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (load, rate) in state.load.iter().filter_map(|l| Some((l, l.rate?))).take(PAIRS_MAX) {
        ConstGauge::new(rate).encode(family.encode_family(&labels(&load.eid))?)?;
    }
    let name = "weir_gateway_offered_flows";
    let help = "New flows to an EID-prefix (`instance_id`, `eid`) in front of the split";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for load in state.load.iter().take(PAIRS_MAX) {
        counter(&mut family, &labels(&load.eid), load.flows)?;
    }
    Ok(())
}

fn reasons(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Result<(), Error> {
    let name = "weir_gateway_datapath_packets";
    let help = "Packets that the data path saw, by what it did with them (`reason`)";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (reason, packets) in state.reasons.iter() {
        counter(&mut family, &ReasonLabels { reason: reason.label() }, *packets)?;
    }
    let name = "weir_gateway_control_events";
    let help = "Control messages and records refused, and what else the control plane counts, by `reason`";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for reason in Counter::ALL {
        let count = state.control.get(reason).copied().unwrap_or(0);
        counter(&mut family, &ReasonLabels { reason: reason.as_str() }, count)?;
    }
    Ok(())
}

fn held(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Result<(), Error> {
    let gauges = [
        ("weir_gateway_map_cache_entries", "Mappings in the map-cache", state.map_cache_entries),
        ("weir_gateway_held_packets", "Packets that wait for their EID to be resolved", state.held.waiting),
    ];
    for (name, help, value) in gauges {
        let value = f64::from(u32::try_from(value).unwrap_or(u32::MAX));
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    let counters = [
        ("weir_gateway_held_released", "Held packets sent on their way", state.held.released),
        ("weir_gateway_held_dropped", "Held packets given up", state.held.dropped),
        (
            "weir_gateway_refused_mappings",
            "Mappings that the data path could not take",
            state.refused_mappings,
        ),
    ];
    for (name, help, value) in counters {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> Result<(), Error> {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

fn labels(eid: &Eid) -> EidLabels {
    EidLabels { instance_id: eid.instance_id, eid: eid.prefix.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::shared::Load;
    use bpf_abi::TrafficValue;

    const EID: &str = "10.100.0.1/32";

    fn measured() -> Shared {
        let eid = Eid { instance_id: 3, prefix: EID.parse().unwrap() };
        let value = TrafficValue { flows: 5, packets: 60, bytes: 700 };
        let traffic = [TrafficOf::Locator("10.0.1.2".parse().unwrap()), TrafficOf::Decapsulated];
        let load = Load { eid, flows: 6, rate: Some(12.5), packets: 60, bytes: 700, measured_at_unix_ns: 1 };
        let shared = Shared::default();
        shared.lock().traffic = traffic.map(|of| Traffic { eid, of, value }).into();
        shared.lock().load = [load, Load { eid: Eid { instance_id: 4, ..eid }, rate: None, ..load }].into();
        shared
    }

    /// Fails where a scrape would hold the task up that the state is of.
    struct Unlocked(Arc<Shared>);

    impl std::fmt::Write for Unlocked {
        fn write_str(&mut self, _: &str) -> Result<(), Error> {
            if self.0.is_locked() { Err(Error) } else { Ok(()) }
        }
    }

    #[test]
    fn a_scrape_is_written_without_the_lock() {
        let shared = Arc::new(measured());
        let mut registry = Registry::default();
        register(&mut registry, Arc::clone(&shared));
        prometheus_client::encoding::text::encode(&mut Unlocked(shared), &registry).unwrap();
    }

    #[test]
    fn a_scrape_shows_the_last_measurement() {
        let shared = Arc::new(measured());
        let mut registry = Registry::default();
        register(&mut registry, shared);
        let text = crate::metrics::encode(&registry);
        let eid = format!("instance_id=\"3\",eid=\"{EID}\"");
        for line in [
            format!("weir_gateway_flows_total{{{eid},locator=\"10.0.1.2\"}} 5"),
            format!("weir_gateway_bytes_total{{{eid},locator=\"10.0.1.2\"}} 700"),
            format!("weir_gateway_decapsulated_packets_total{{{eid}}} 60"),
            format!("weir_gateway_offered_flows_per_second{{{eid}}} 12.5"),
            "weir_gateway_control_events_total{reason=\"malformed\"} 0".to_owned(),
            "weir_gateway_map_cache_entries 0.0".to_owned(),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
        assert!(!text.contains("weir_gateway_offered_flows_per_second{instance_id=\"4\""));
    }
}
