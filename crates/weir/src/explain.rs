//! `weir explain`: the last decision in words.

use std::fmt::Write as _;

use anyhow::Context as _;
use node::controller::{DecisionView, EdgeView};

use crate::cli::{ExplainArgs, Form};
use crate::get::{ask, pretty};
use crate::output::print;
use crate::table::lay_out;

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let query = [("service", args.service.clone()), ("limit", "1".to_owned())];
    let answer = ask(&args.client, "/v1/decisions", &query)?;
    if args.client.output == Form::Json {
        return Ok(print(&pretty(&answer)?)?);
    }
    let decisions: Vec<DecisionView> =
        serde_json::from_value(answer).context("the answer is not a list of decisions")?;
    let text = decisions
        .first()
        .map_or_else(|| format!("Nothing has been decided about {} yet.\n", args.service), words);
    Ok(print(&text)?)
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
}
