//! The registry that every role adds to, and what it says about the process.
//!
//! Counters are registered without `_total`: the encoder appends it. Labels must be bounded by the configuration.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// Media type of what [`encode`] writes; the two belong together.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry that knows the process and the build.
#[must_use]
pub fn registry(node: &str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", node.to_owned())]);
    registry.register("weir_build", "Version and name of the node", build);
    registry.register_collector(Box::new(Process { started: crate::clock::unix_seconds() }));
    registry
}

/// Registers and returns a metric; it is shared by cloning. Families are described even while they are empty, so that
/// who reads `/metrics` sees what there is to come.
pub fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, Described(metric.clone()));
    metric
}

/// The encoder leaves out what is empty.
#[derive(Debug)]
struct Described<M>(M);

impl<M: Metric> EncodeMetric for Described<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// A registry with the metrics of every role and no values, for the reference.
#[must_use]
pub fn reference() -> Registry {
    let mut registry = registry("reference");
    crate::priority::describe(&mut registry);
    crate::http::describe(&mut registry);
    crate::mapserver::describe(&mut registry);
    crate::controller::describe(&mut registry);
    crate::gateway::describe(&mut registry);
    crate::balancer::describe(&mut registry);
    registry
}

/// The registry as text.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("a String takes every write");
    text
}

/// What `/proc/self` says at the moment of the scrape. What cannot be read is left out: no data is not zero.
#[derive(Debug)]
struct Process {
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_start_time_seconds", "Start of the process since the Unix epoch", self.started)?;
        if let Some(octets) = resident_octets() {
            gauge("process_resident_memory_bytes", "Resident memory", octets)?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            // Less the descriptor that reads the directory.
            let count = u32::try_from(files.count().saturating_sub(1)).unwrap_or(u32::MAX);
            gauge("process_open_fds", "Open file descriptors", f64::from(count))?;
        }
        let counter = ConstCounter::new(crate::clock::process_cpu_time().as_secs_f64());
        let help = "User and system time";
        counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)
    }
}

fn resident_octets() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibioctets: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kibioctets) * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_described() {
        let text = encode(&registry("a"));
        for name in ["process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(text.contains(&format!("\n{name} ")), "{text}");
        }
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        assert!(text.contains("weir_build_info{version=\"0.1.0\",node=\"a\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
