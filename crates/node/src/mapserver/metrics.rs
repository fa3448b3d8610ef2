//! What the map server counts. The counters of the hot path are reached by index, never by label.

use lisp::machine;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::register;

/// Message types by number (RFC 9301 §12.3); what has no name is "other".
const TYPES: [&str; 16] = [
    "other",
    "map_request",
    "map_reply",
    "map_register",
    "map_notify",
    "map_notify_ack",
    "other",
    "other",
    "encapsulated",
    "other",
    "other",
    "other",
    "other",
    "other",
    "other",
    "other",
];
/// Upper bounds in seconds; the goal is 10 ms.
const ACK_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Message {
    direction: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Handles of the role's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    received: Vec<Counter>,
    sent: Vec<Counter>,
    reasons: Vec<Counter>,
    /// Datagrams that the system did not take.
    pub(super) send_errors: Counter,
    /// Registered (EID-prefix, xTR) pairs.
    pub(super) registrations: Gauge,
    /// (EID-prefix, subscriber) pairs.
    pub(super) subscriptions: Gauge,
    /// Mappings published.
    pub(super) publications: Counter,
    /// From publication to acknowledgement.
    pub(super) acknowledged: Histogram,
}

impl Metrics {
    /// Registers everything, zeros included.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let messages = Family::<Message, Counter>::default();
        let by_type = |direction| {
            let counter =
                |name: &&'static str| messages.get_or_create_owned(&Message { direction, r#type: name });
            TYPES.iter().map(counter).collect()
        };
        let (received, sent) = (by_type("received"), by_type("sent"));
        let refusals = Family::<Reason, Counter>::default();
        let counter = |c: &machine::Counter| refusals.get_or_create_owned(&Reason { reason: c.as_str() });
        let reasons = machine::Counter::ALL.iter().map(counter).collect();
        register(registry, "messages", "Control messages by `direction` and `type`", messages);
        register(registry, "reasons", "Refusals and other things worth counting, by `reason`", refusals);
        let histogram = Histogram::new(ACK_BUCKETS);
        Self {
            received,
            sent,
            reasons,
            send_errors: register(
                registry,
                "send_errors",
                "Datagrams the system refused",
                Counter::default(),
            ),
            registrations: register(registry, "registrations", "EID-prefixes by xTR", Gauge::default()),
            subscriptions: register(
                registry,
                "subscriptions",
                "EID-prefixes by subscriber",
                Gauge::default(),
            ),
            publications: register(registry, "publications", "Mappings published", Counter::default()),
            acknowledged: register(
                registry,
                "publication_acknowledged_seconds",
                "From publication to acknowledgement",
                histogram,
            ),
        }
    }

    /// Counts a datagram that came in.
    pub(super) fn received(&self, datagram: &[u8]) {
        count(&self.received, type_of(datagram));
    }

    /// Counts a datagram that went out.
    pub(super) fn sent(&self, datagram: &[u8]) {
        count(&self.sent, type_of(datagram));
    }

    /// Counts what the machine says.
    pub(super) fn reason(&self, counter: machine::Counter) {
        count(&self.reasons, counter as usize);
    }
}

fn type_of(datagram: &[u8]) -> usize {
    datagram.first().map_or(0, |octet| usize::from(octet >> 4))
}

fn count(counters: &[Counter], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_reached_by_their_place() {
        for (place, counter) in machine::Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, place);
        }
    }

    #[test]
    fn zeros_are_exported_and_types_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.received(&[0x30, 0]);
        metrics.received(&[]);
        metrics.reason(machine::Counter::Replayed);
        let text = crate::metrics::encode(&registry);
        assert!(text.contains("messages_total{direction=\"received\",type=\"map_register\"} 1"), "{text}");
        assert!(text.contains("messages_total{direction=\"received\",type=\"other\"} 1"), "{text}");
        assert!(text.contains("reasons_total{reason=\"replayed\"} 1"), "{text}");
        assert!(text.contains("reasons_total{reason=\"malformed\"} 0"), "{text}");
    }
}
