//! `weir explain`: the last decision about a service, or where a flow goes, in words.

use std::fmt::Write as _;

use anyhow::Context as _;
use node::balancer::body::{FlowExplanation, SlotBody};
use node::controller::{DecisionView, EdgeView};

use crate::cli::{ClientArgs, ExplainArgs, ExplainFlowArgs, Explained, Form};
use crate::get::{ask, pretty};
use crate::output::print;
use crate::table::lay_out;

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    match (&args.what, &args.service) {
        (Some(Explained::Flow(flow)), _) => explain_flow(flow),
        (None, Some(service)) => explain_service(&args.client, service),
        (None, None) => anyhow::bail!("name a service, or a flow"),
    }
}

fn explain_service(client: &ClientArgs, service: &str) -> anyhow::Result<()> {
    let query = [("service", service.to_owned()), ("limit", "1".to_owned())];
    let answer = ask(client, "/v1/decisions", &query)?;
    if client.output == Form::Json {
        return Ok(print(&pretty(&answer)?)?);
    }
    let decisions: Vec<DecisionView> =
        serde_json::from_value(answer).context("the answer is not a list of decisions")?;
    let text =
        decisions.first().map_or_else(|| format!("Nothing has been decided about {service} yet.\n"), words);
    Ok(print(&text)?)
}

fn explain_flow(args: &ExplainFlowArgs) -> anyhow::Result<()> {
    let query = [
        ("source", args.source.to_string()),
        ("destination", args.destination.to_string()),
        ("protocol", args.protocol.to_string()),
        ("segment", args.segment.to_string()),
        ("first", args.first.to_string()),
        ("packet", args.packet.to_string()),
    ];
    let answer = ask(&args.client, "/v1/explain", &query)?;
    if args.client.output == Form::Json {
        return Ok(print(&pretty(&answer)?)?);
    }
    let flow: FlowExplanation = serde_json::from_value(answer).context("the answer explains no flow")?;
    Ok(print(&flow_words(&flow))?)
}

fn flow_words(flow: &FlowExplanation) -> String {
    let slot = |slot: &SlotBody| {
        let backend = slot.backend.as_deref().unwrap_or("nobody");
        let usable = if slot.usable || slot.backend.is_none() { "" } else { ", which is not usable" };
        format!("slot {} of {}: {backend}{usable}", slot.slot, slot.size)
    };
    let remembered = flow.remembered.as_ref().map(|found| {
        let backend = found.backend.as_deref().unwrap_or("a backend that is gone");
        if found.valid { backend.to_owned() } else { format!("{backend}, to which it may not go any more") }
    });
    let rows = [
        ("VIP", flow.vip.clone()),
        ("Backend", flow.backend.clone()),
        ("Verdict", Some(flow.verdict.clone())),
        ("Because", Some(flow.because.clone())),
        ("Hash", flow.hash.map(|hash| format!("{hash:#010x}"))),
        ("Table", flow.current.as_ref().map(slot)),
        ("Table before the last change", flow.previous.as_ref().map(slot)),
        ("Remembered on", remembered),
    ];
    let row = |(name, value): &(&str, Option<String>)| Some(vec![format!("{name}:"), value.clone()?]);
    lay_out(&rows.iter().filter_map(row).collect::<Vec<_>>())
}

fn words(decision: &DecisionView) -> String {
    let gateway = decision.gateway.as_deref().unwrap_or("all gateways");
    let mut text = format!("{} ({}) at {gateway}: {}\n", decision.service, decision.eid, decision.reason);
    let _ = writeln!(text, "Load: {}", decision.measurement.words);
    let _ = write!(text, "Written: {}", decision.effect.replace('-', " "));
    if let Some(error) = &decision.error {
        let _ = write!(text, ", {error}");
    }
    text.push('\n');
    if decision.repeats > 1 {
        let _ = writeln!(text, "The same {} times in a row.", decision.repeats);
    }
    text.push('\n');
    text + &lay_out(&edges(&decision.edges))
}

fn edges(edges: &[EdgeView]) -> Vec<Vec<String>> {
    let header = ["EDGE", "RLOC", "CAPACITY", "SHARE BEFORE", "WANTED", "NOW", "LOAD", "WHY"];
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{:.1} %", s * 100.0));
    let row = |edge: &EdgeView| {
        vec![
            edge.name.clone(),
            edge.rloc.to_string(),
            format!("{:.0}/s", edge.capacity),
            percent(edge.in_force),
            percent(edge.target),
            percent(edge.share),
            edge.rps.map_or_else(|| "-".to_owned(), |rps| format!("{rps:.0}/s")),
            edge.reason.clone(),
        ]
    };
    let header = header.iter().map(ToString::to_string).collect();
    std::iter::once(header).chain(edges.iter().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::controller::MeasurementView;

    #[test]
    fn a_decision_is_told() {
        let edge = |name: &str, rloc: &str, share, why: &str| EdgeView {
            name: name.into(),
            rloc: rloc.parse().unwrap(),
            capacity: 400.0,
            in_force: None,
            target: Some(share),
            weight: Some(204),
            share: Some(share),
            rps: Some(500.0 * share),
            reason: why.into(),
        };
        let decision = DecisionView {
            service: "web".into(),
            eid: "10.100.0.1/32".into(),
            instance_id: 0,
            gateway: Some("client-gateway".into()),
            at_unix_ns: 1,
            repeats: 3,
            first_at_unix_ns: 1,
            changed: true,
            outcome: "changed-edge-over-capacity".into(),
            reason: "changed: edge1 would get 500.0 requests/s".into(),
            effect: "write-failed".into(),
            written_at_unix_ns: None,
            error: Some("no answer".into()),
            measurement: MeasurementView {
                kind: "fresh".into(),
                rps: Some(500.0),
                age_seconds: None,
                words: "500 requests/s".into(),
            },
            dead_band: 0.01,
            edges: vec![
                edge("edge1", "10.0.2.1", 0.8, "filled"),
                edge("edge2", "10.0.3.1", 0.2, "takes the rest"),
            ],
        };
        let expected = "\
web (10.100.0.1/32) at client-gateway: changed: edge1 would get 500.0 requests/s
Load: 500 requests/s
Written: write failed, no answer
The same 3 times in a row.

EDGE   RLOC      CAPACITY  SHARE BEFORE  WANTED  NOW     LOAD   WHY
edge1  10.0.2.1  400/s     -             80.0 %  80.0 %  400/s  filled
edge2  10.0.3.1  400/s     -             20.0 %  20.0 %  100/s  takes the rest
";
        assert_eq!(words(&decision), expected);
    }

    #[test]
    fn a_flow_is_told() {
        let slot = |slot, backend: &str, usable| SlotBody {
            size: 1021,
            slot,
            backend: Some(backend.into()),
            usable,
        };
        let flow = FlowExplanation {
            vip: Some("web".into()),
            hash: Some(0xbeef),
            current: Some(slot(7, "web1", true)),
            previous: Some(slot(7, "web2", false)),
            remembered: None,
            verdict: "forwarded".into(),
            backend: Some("web1".into()),
            because: "the current table names it".into(),
        };
        let expected = "\
VIP:                           web
Backend:                       web1
Verdict:                       forwarded
Because:                       the current table names it
Hash:                          0x0000beef
Table:                         slot 7 of 1021: web1
Table before the last change:  slot 7 of 1021: web2, which is not usable
";
        assert_eq!(flow_words(&flow), expected);
    }
}
