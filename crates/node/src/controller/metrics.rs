//! Metrics of the controller. Label values come from the configuration or a fixed set.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::core::ServiceCore;
use super::history::{Effect, Record, State};
use crate::metrics::register;

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EdgeLabels {
    service: String,
    edge: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    service: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    service: String,
    state: &'static str,
}

/// Everything the controller counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    offered: Family<ServiceLabel, FloatGauge>,
    age: Family<ServiceLabel, FloatGauge>,
    weight: Family<EdgeLabels, FloatGauge>,
    decisions: Family<OutcomeLabels, Counter>,
    measurements: Family<OutcomeLabels, Counter>,
    writes: Family<OutcomeLabels, Counter>,
    state: Family<StateLabels, Gauge>,
    changed_at: Family<ServiceLabel, FloatGauge>,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut gauge = |name, help, family: &Family<ServiceLabel, FloatGauge>| {
            register(registry, name, help, family.clone());
        };
        gauge(
            "weir_controller_offered_requests_per_second",
            "Offered load that the last decision about the `service` rests on; absent without a fresh measurement",
            &self.offered,
        );
        gauge(
            "weir_controller_measurement_age_seconds",
            "Age of that load when the decision about the `service` was taken; absent without a fresh measurement",
            &self.age,
        );
        gauge(
            "weir_controller_last_change_timestamp_seconds",
            "Unix time of the last change of weights of the `service` that the map server took",
            &self.changed_at,
        );
        register(
            registry,
            "weir_controller_weight_ratio",
            "Share of the new flows of the `service` that the `edge` is to get",
            self.weight.clone(),
        );
        register(
            registry,
            "weir_controller_state",
            "1 for the `state` the `service` is in",
            self.state.clone(),
        );
        let mut counter = |name, help, family: &Family<OutcomeLabels, Counter>| {
            register(registry, name, help, family.clone());
        };
        counter(
            "weir_controller_decisions",
            "Decisions by `service` and the rule that decided (`outcome`)",
            &self.decisions,
        );
        counter(
            "weir_controller_measurements",
            "Answers of the load source by `service` and kind (`outcome`)",
            &self.measurements,
        );
        counter(
            "weir_controller_writes",
            "Attempts to change weights by `service` and what became of them (`outcome`)",
            &self.writes,
        );
    }

    /// A service that nothing was decided about yet.
    pub(super) fn start(&self, core: &ServiceCore) {
        self.show_state(core);
    }

    /// The newest record of a service.
    pub(super) fn count(&self, core: &ServiceCore) {
        let Some(record) = core.history().newest() else { return };
        let outcome = |outcome| OutcomeLabels { service: core.name().to_owned(), outcome };
        self.decisions.get_or_create(&outcome(record.decision.outcome.as_str())).inc();
        self.measurements.get_or_create(&outcome(record.decision.measurement.kind().as_str())).inc();
        if record.effect != Effect::NothingToWrite {
            self.writes.get_or_create(&outcome(record.effect.as_str())).inc();
        }
        self.show_state(core);
        self.show_load(core, record);
        self.show_weights(core, record);
    }

    fn show_state(&self, core: &ServiceCore) {
        for state in State::ALL {
            let labels = StateLabels { service: core.name().to_owned(), state: state.as_str() };
            self.state.get_or_create(&labels).set(i64::from(state == core.state()));
        }
        if let Some(at) = core.changed_at() {
            self.changed_at.get_or_create(&service(core)).set(at.as_secs_f64());
        }
    }

    /// A load that is not known is not shown, least of all as zero.
    fn show_load(&self, core: &ServiceCore, record: &Record) {
        if let balance::Measurement::Fresh { load, age } = &record.decision.measurement {
            self.offered.get_or_create(&service(core)).set(load.rps());
            self.age.get_or_create(&service(core)).set(age.as_secs_f64());
        } else {
            self.offered.remove(&service(core));
            self.age.remove(&service(core));
        }
    }

    /// The shares in force after the decision: the new ones only if the map server took them.
    fn show_weights(&self, core: &ServiceCore, record: &Record) {
        for edge in &record.decision.edges {
            let labels = EdgeLabels { service: core.name().to_owned(), edge: edge.name.clone() };
            let in_force = if record.effect.error().is_none() { edge.share } else { edge.in_force };
            match in_force {
                Some(share) => {
                    self.weight.get_or_create(&labels).set(share);
                }
                None => {
                    self.weight.remove(&labels);
                }
            }
        }
    }
}

fn service(core: &ServiceCore) -> ServiceLabel {
    ServiceLabel { service: core.name().to_owned() }
}
