//! Metrics of the balancer. Label values are names of the document or from a fixed set, and there is a bound on how many.

use std::fmt::Error;
use std::sync::Arc;
use std::time::Duration;

use bpf_abi::balancer::BalancedValue;
use dataplane::balancer::Applied;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::shared::{BackendSample, Sample, Shared, VipSample};
use crate::metrics::register;

/// Backends that are exported, in the order of the names of their VIPs; a scraper cannot take as many as a table can.
const BACKENDS_MAX: usize = 10_000;
/// A change of one small VIP takes less than the first, of thousands more than the last.
const APPLY_BUCKETS: [f64; 10] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What is counted when it happens; the rest is read from [`Shared`].
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    apply_seconds: Histogram,
    applies: Family<OutcomeLabels, Counter>,
    tables: Counter,
    moved_slots: Counter,
    health_changes: Family<ChangeLabels, Counter>,
    port_changes: Family<ChangeLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    to: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VipLabels {
    vip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    vip: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// Registers everything; `shared` is what a scrape reads.
    pub(super) fn register(registry: &mut Registry, shared: Arc<Shared>) -> Self {
        registry.register_collector(Box::new(Balancer(shared)));
        let mut counter = |name: &str, help: &str| register(registry, name, help, Counter::default());
        let tables = counter("weir_balancer_table_changes", "Tables of VIPs that were replaced");
        let moved_slots = counter(
            "weir_balancer_moved_slots",
            "Slots that name another backend than before, of tables replaced",
        );
        Self {
            apply_seconds: register(
                registry,
                "weir_balancer_apply_seconds",
                "Time that a change of the data path takes",
                Histogram::new(APPLY_BUCKETS),
            ),
            applies: register(
                registry,
                "weir_balancer_applies",
                "Attempts to change the data path, by `outcome`: `done` or `refused`",
                Family::default(),
            ),
            tables,
            moved_slots,
            health_changes: register(
                registry,
                "weir_balancer_health_changes",
                "Verdicts about backends that changed, by what they changed `to`: `up` or `down`",
                Family::default(),
            ),
            port_changes: register(
                registry,
                "weir_balancer_port_changes",
                "Changes of the port that were followed, by what it changed `to`: `address` (another link-layer address), \
                 `away`, `refused` or `taken`",
                Family::default(),
            ),
        }
    }

    /// The data path was changed, or refused it.
    pub(super) fn applied(&self, took: Duration, result: Option<&Applied>) {
        self.apply_seconds.observe(took.as_secs_f64());
        let outcome = if result.is_some() { "done" } else { "refused" };
        self.applies.get_or_create(&OutcomeLabels { outcome }).inc();
        if let Some(applied) = result {
            self.tables.inc_by(u64::try_from(applied.tables).unwrap_or(u64::MAX));
            self.moved_slots.inc_by(applied.moved_slots);
        }
    }

    /// Checks came to another verdict.
    pub(super) fn health_changed(&self, up: bool) {
        let to = if up { "up" } else { "down" };
        self.health_changes.get_or_create(&ChangeLabels { to }).inc();
    }

    /// The port is another one.
    pub(super) fn port_changed(&self, to: &'static str) {
        self.port_changes.get_or_create(&ChangeLabels { to }).inc();
    }
}

#[derive(Debug)]
struct Balancer(Arc<Shared>);

impl Collector for Balancer {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let sample = self.0.lock();
        reasons(&mut encoder, &sample)?;
        port(&mut encoder, &sample)?;
        vips(&mut encoder, &sample)?;
        backends(&mut encoder, &sample)
    }
}

fn reasons(encoder: &mut DescriptorEncoder<'_>, sample: &Sample) -> Result<(), Error> {
    let help = "Frames that arrived at the port, by what became of them (`reason`)";
    let mut family = encoder.encode_descriptor("weir_balancer_packets", help, None, MetricType::Counter)?;
    for (reason, packets) in &sample.reasons {
        counter(&mut family, &ReasonLabels { reason: reason.label() }, *packets)?;
    }
    let drains = sample.vips.iter().filter(|vip| vip.draining).count();
    let help =
        "VIPs with a change younger than their drain, whose flows from before may go to other backends";
    let gauge = ConstGauge::new(i64::try_from(drains).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor("weir_balancer_drains", help, None, MetricType::Gauge)?)
}

fn port(encoder: &mut DescriptorEncoder<'_>, sample: &Sample) -> Result<(), Error> {
    let help = "1 while the program is on the port, 0 while the port is away or refuses it: nothing is balanced then";
    let gauge = ConstGauge::new(i64::from(!sample.port_away));
    gauge.encode(encoder.encode_descriptor("weir_balancer_port_taken", help, None, MetricType::Gauge)?)?;
    let help = "VLANs of VIPs and backends whose frames the port's own filter may drop; `warnings` of the status say why";
    let gauge = ConstGauge::new(i64::try_from(sample.filtered_vlans).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor("weir_balancer_filtered_vlans", help, None, MetricType::Gauge)?)
}

/// A counter that is shown of what has one: no data is not zero.
type Counted<T> = (&'static str, &'static str, fn(&T) -> Option<u64>);
/// A gauge likewise.
type Shown<T> = (&'static str, &'static str, fn(&T) -> Option<u32>);

fn vips(encoder: &mut DescriptorEncoder<'_>, sample: &Sample) -> Result<(), Error> {
    const COUNTERS: [Counted<VipSample>; 3] = [
        ("weir_balancer_vip_packets", "Frames sent to backends of the `vip`", |v| packets(v.sent)),
        ("weir_balancer_vip_bytes", "Octets of these frames, from the Ethernet header on", |v| bytes(v.sent)),
        ("weir_balancer_vip_all_failed", "How often all backends of the `vip` began to fail at once", |v| {
            Some(v.all_failed)
        }),
    ];
    const GAUGES: [Shown<VipSample>; 2] = [
        (
            "weir_balancer_vip_all_fail",
            "1 while all backends of the `vip` fail; `when_all_fail` says what becomes of its packets",
            |v| Some(u32::from(v.all_fail)),
        ),
        ("weir_balancer_vip_table_bytes", "Octets of the tables of the `vip`", |v| {
            Some(u32::try_from(v.table_bytes).unwrap_or(u32::MAX))
        }),
    ];
    let labels = |vip: &VipSample| VipLabels { vip: vip.name.clone() };
    for (name, help, value) in COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (vip, value) in sample.vips.iter().filter_map(|vip| Some((vip, value(vip)?))) {
            counter(&mut family, &labels(vip), value)?;
        }
    }
    for (name, help, value) in GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (vip, value) in sample.vips.iter().filter_map(|vip| Some((vip, value(vip)?))) {
            gauge(&mut family, &labels(vip), value)?;
        }
    }
    Ok(())
}

fn backends(encoder: &mut DescriptorEncoder<'_>, sample: &Sample) -> Result<(), Error> {
    const COUNTERS: [Counted<BackendSample>; 2] = [
        ("weir_balancer_backend_packets", "Frames sent to the `backend` of the `vip`", |b| packets(b.sent)),
        ("weir_balancer_backend_bytes", "Octets of these frames, from the Ethernet header on", |b| {
            bytes(b.sent)
        }),
    ];
    const GAUGES: [Shown<BackendSample>; 4] = [
        (
            "weir_balancer_backend_healthy",
            "1 if the checks of the `backend` succeed, 0 if they fail; absent without a verdict",
            |b| b.healthy.map(u32::from),
        ),
        (
            "weir_balancer_backend_check_not_sent",
            "1 while checks of the `backend` cannot be sent from here and its last verdict stands; absent without checks",
            |b| b.not_sent.map(u32::from),
        ),
        ("weir_balancer_backend_slots", "Slots of the table of the `vip` that name the `backend`", |b| {
            Some(b.slots)
        }),
        ("weir_balancer_backend_weight", "Weight of the `backend` in force; 0 while it is not usable", |b| {
            Some(b.weight)
        }),
    ];
    let all =
        || sample.vips.iter().flat_map(|vip| vip.backends.iter().map(move |b| (vip, b))).take(BACKENDS_MAX);
    let labels = |vip: &VipSample, backend: &BackendSample| BackendLabels {
        vip: vip.name.clone(),
        backend: backend.name.clone(),
    };
    for (name, help, value) in COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (vip, backend, value) in all().filter_map(|(vip, b)| Some((vip, b, value(b)?))) {
            counter(&mut family, &labels(vip, backend), value)?;
        }
    }
    for (name, help, value) in GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (vip, backend, value) in all().filter_map(|(vip, b)| Some((vip, b, value(b)?))) {
            gauge(&mut family, &labels(vip, backend), value)?;
        }
    }
    Ok(())
}

fn packets(sent: Option<BalancedValue>) -> Option<u64> {
    sent.map(|sent| sent.packets)
}

fn bytes(sent: Option<BalancedValue>) -> Option<u64> {
    sent.map(|sent| sent.bytes)
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> Result<(), Error> {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u32) -> Result<(), Error> {
    ConstGauge::new(i64::from(value)).encode(family.encode_family(labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bpf_abi::BalancerReason;

    #[test]
    fn a_scrape_shows_the_last_measurement() {
        let shared = Arc::new(Shared::default());
        let backend = |name: &str, sent, healthy| BackendSample {
            name: name.into(),
            sent,
            healthy,
            not_sent: healthy.map(|_| true),
            slots: 500,
            weight: 100,
        };
        let sent = Some(BalancedValue { packets: 7, bytes: 900 });
        *shared.lock() = Sample {
            reasons: vec![(BalancerReason::ALL[0], 3)],
            port_away: true,
            filtered_vlans: 2,
            vips: vec![VipSample {
                name: "web".into(),
                sent,
                table_bytes: 2048,
                all_failed: 2,
                draining: true,
                backends: vec![backend("a", sent, Some(true)), backend("b", None, None)],
                ..VipSample::default()
            }],
        };
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, shared);
        metrics.applied(Duration::from_millis(2), Some(&Applied { writes: 3, tables: 1, moved_slots: 9 }));
        metrics.applied(Duration::from_millis(2), None);
        metrics.health_changed(false);
        metrics.port_changed("away");
        let text = crate::metrics::encode(&registry);
        for line in [
            "weir_balancer_vip_packets_total{vip=\"web\"} 7",
            "weir_balancer_vip_all_fail{vip=\"web\"} 0",
            "weir_balancer_vip_all_failed_total{vip=\"web\"} 2",
            "weir_balancer_vip_table_bytes{vip=\"web\"} 2048",
            "weir_balancer_backend_bytes_total{vip=\"web\",backend=\"a\"} 900",
            "weir_balancer_backend_healthy{vip=\"web\",backend=\"a\"} 1",
            "weir_balancer_backend_check_not_sent{vip=\"web\",backend=\"a\"} 1",
            "weir_balancer_backend_slots{vip=\"web\",backend=\"b\"} 500",
            "weir_balancer_drains 1",
            "weir_balancer_port_taken 0",
            "weir_balancer_filtered_vlans 2",
            "weir_balancer_port_changes_total{to=\"away\"} 1",
            "weir_balancer_applies_total{outcome=\"refused\"} 1",
            "weir_balancer_moved_slots_total 9",
            "weir_balancer_apply_seconds_count 2",
            "weir_balancer_health_changes_total{to=\"down\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in\n{text}");
        }
        assert!(!text.contains("healthy{vip=\"web\",backend=\"b\"}"), "{text}");
        assert!(!text.contains("not_sent{vip=\"web\",backend=\"b\"}"), "{text}");
        assert!(!text.contains("packets_total{vip=\"web\",backend=\"b\"}"), "{text}");
    }
}
