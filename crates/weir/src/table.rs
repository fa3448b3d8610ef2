//! Answers as tables. What a table leaves out is in `-o json`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::cli::Resource;

impl Resource {
    /// Keys that are shown, in order.
    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Mappings => {
                &["eid", "instance_id", "action", "origin", "locators", "expires_in_s", "stale"]
            }
            Self::Flows => &["instance_id", "source", "destination", "protocol", "rloc", "idle_ms"],
            Self::Load => {
                &["eid", "instance_id", "flows_per_second", "flows_total", "packets_total", "bytes_total"]
            }
            Self::Applied => &["applied_at_unix_ns", "eid", "nonce"],
            Self::Status => &["key", "value"],
            Self::Registrations => {
                &["eid", "instance_id", "site", "xtr_id", "locators", "expires_in_seconds"]
            }
            Self::Weights => &["eid", "instance_id", "gateway", "locators"],
            Self::Subscriptions => {
                &["subscriber", "eid", "instance_id", "itr_rlocs", "nonce", "unacknowledged", "rtt_ms"]
            }
            Self::Publications => {
                &["published_at_unix_ns", "subscriber", "eid", "instance_id", "acked_at_unix_ns"]
            }
            Self::Services => {
                &["service", "eid", "gateway", "state", "state_since_unix_ns", "last_change_unix_ns"]
            }
            Self::Decisions => {
                &["at_unix_ns", "service", "repeats", "measurement", "outcome", "effect", "edges"]
            }
            Self::Vips => &[
                "name",
                "address",
                "port",
                "protocol",
                "segment",
                "hash",
                "flow_table",
                "drain",
                "backends",
                "generation",
            ],
            Self::Backends => &[
                "vip",
                "name",
                "address",
                "health",
                "weight",
                "usable",
                "slots",
                "mac",
                "why",
                "since_unix_ns",
                "not_sent",
            ],
        }
    }
}

/// The answer as a table.
pub(crate) fn render(resource: Resource, answer: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    match (resource, answer) {
        (Resource::Vips, answer) => {
            let vips = answer["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
            lay_out(&rows_of(resource.columns(), vips, now))
        }
        (Resource::Backends, answer) => lay_out(&rows_of(resource.columns(), &backends(answer), now)),
        (_, Value::Array(rows)) => lay_out(&rows_of(resource.columns(), rows, now)),
        (_, Value::Object(object)) => {
            let row = |(key, value): (&String, &Value)| vec![heading(key), cell(key, Some(value), now)];
            lay_out(&object.iter().map(row).collect::<Vec<_>>())
        }
        (_, other) => format!("{other}\n"),
    }
}

/// A row for each backend in a balancer's status.
fn backends(status: &Value) -> Vec<Value> {
    let vips = status["vips"].as_array().into_iter().flatten();
    let of_vip = |vip: &Value| {
        let name = vip["name"].clone();
        let backends = vip["backends"].as_array().cloned().unwrap_or_default();
        backends.into_iter().map(move |mut backend| {
            backend["vip"] = name.clone();
            backend
        })
    };
    vips.flat_map(of_vip).collect()
}

fn rows_of(columns: &[&str], rows: &[Value], now: u64) -> Vec<Vec<String>> {
    let header = columns.iter().map(|column| heading(column)).collect();
    let row = |row: &Value| columns.iter().map(|column| cell(column, row.get(column), now)).collect();
    std::iter::once(header).chain(rows.iter().map(row)).collect()
}

fn heading(key: &str) -> String {
    let key = key.trim_end_matches("_unix_ns").trim_end_matches("_seconds").trim_end_matches("_id");
    key.replace('_', " ").to_uppercase()
}

fn cell(key: &str, value: Option<&Value>, now: u64) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => if *flag { "yes" } else { "no" }.to_owned(),
        Some(Value::Number(number)) => number_cell(key, number, now),
        Some(Value::Array(items)) => {
            items.iter().map(|item| cell("", Some(item), now)).collect::<Vec<_>>().join(", ")
        }
        Some(Value::Object(object)) => object_cell(&Value::Object(object.clone())),
    }
}

fn number_cell(key: &str, number: &serde_json::Number, now: u64) -> String {
    if key.ends_with("_unix_ns") {
        return number.as_u64().map_or_else(|| number.to_string(), |at| age(now.saturating_sub(at)));
    }
    match number.as_f64() {
        Some(value) if !number.is_i64() && !number.is_u64() => format!("{value:.1}"),
        _ => number.to_string(),
    }
}

/// A locator, an edge or a measurement in a few words.
fn object_cell(object: &Value) -> String {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let Some(rloc) = text("rloc") else {
        // A backend by its name, with its weight.
        let weight = object.get("weight").and_then(Value::as_u64);
        let backend = text("name").zip(weight).map(|(name, weight)| format!("{name} w{weight}"));
        let words = text("words").map(str::to_owned).or(backend);
        return words.unwrap_or_else(|| object.to_string());
    };
    let mut words = text("name").unwrap_or(rloc).to_owned();
    for (key, letter) in [("priority", 'p'), ("weight", 'w')] {
        if let Some(number) = object.get(key).and_then(Value::as_u64) {
            let _ = write!(words, " {letter}{number}");
        }
    }
    if let Some(share) = object.get("share").and_then(Value::as_f64) {
        let _ = write!(words, " {:.1} %", share * 100.0);
    }
    if object.get("usable") == Some(&Value::Bool(false)) {
        words.push_str(" down");
    }
    words
}

fn age(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    match seconds {
        0 => format!("{} ms ago", nanos / 1_000_000),
        1..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

/// Columns as wide as their widest cell, two spaces between them.
pub(crate) fn lay_out(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn weights_are_one_line_each() {
        let answer = json!([
            {"eid": "10.100.0.1/32", "instance_id": 0, "gateway": null,
             "locators": [{"rloc": "10.0.2.1", "priority": 1, "weight": 70}, {"rloc": "10.0.3.1", "priority": 1, "weight": 30}]},
            {"eid": "10.100.0.0/16", "instance_id": 7, "gateway": "client-gateway", "locators": []},
        ]);
        let expected = "\
EID            INSTANCE  GATEWAY         LOCATORS
10.100.0.1/32  0         -               10.0.2.1 p1 w70, 10.0.3.1 p1 w30
10.100.0.0/16  7         client-gateway
";
        assert_eq!(render(Resource::Weights, &answer), expected);
    }

    #[test]
    fn mappings_show_shares_and_what_is_down() {
        let answer = json!([{"eid": "10.100.0.1/32", "instance_id": 0, "action": "encapsulate", "origin": "subscription",
            "stale": false, "locators": [
                {"rloc": "10.0.2.1", "priority": 1, "weight": 70, "usable": true, "share": 1.0},
                {"rloc": "10.0.3.1", "usable": false, "share": 0.0}]}]);
        let expected = "\
EID            INSTANCE  ACTION       ORIGIN        LOCATORS                                      EXPIRES IN S  STALE
10.100.0.1/32  0         encapsulate  subscription  10.0.2.1 p1 w70 100.0 %, 10.0.3.1 0.0 % down  -             no
";
        assert_eq!(render(Resource::Mappings, &answer), expected);
    }

    #[test]
    fn vips_and_backends_are_one_line_each() {
        let answer = json!({"generation": 3, "vips": [
            {"name": "web", "address": "192.0.2.10", "port": 80, "protocol": "tcp", "segment": "none",
             "hash": "5-tuple", "flow_table": false, "drain": "60s", "generation": 2,
             "backends": [{"name": "web1", "weight": 100}, {"name": "web2", "weight": 0}]}]});
        let expected = "\
NAME  ADDRESS     PORT  PROTOCOL  SEGMENT  HASH     FLOW TABLE  DRAIN  BACKENDS            GENERATION
web   192.0.2.10  80    tcp       none     5-tuple  no          60s    web1 w100, web2 w0  2
";
        assert_eq!(render(Resource::Vips, &answer), expected);
        let answer = json!({"in_step": true, "vips": [{"name": "web", "backends": [
            {"name": "web1", "address": "10.0.0.11", "health": "up", "weight": 100, "usable": true, "slots": 511,
             "mac": "02:00:00:00:00:0b", "why": "check-not-sent", "not_sent": "10.0.0.11:80: no route"},
            {"name": "web2", "address": "10.0.0.12", "health": "down", "weight": 100, "usable": false, "slots": 0,
             "mac": null, "why": "failed"}]}]});
        let expected = "\
VIP  NAME  ADDRESS    HEALTH  WEIGHT  USABLE  SLOTS  MAC                WHY             SINCE  NOT SENT
web  web1  10.0.0.11  up      100     yes     511    02:00:00:00:00:0b  check-not-sent  -      10.0.0.11:80: no route
web  web2  10.0.0.12  down    100     no      0      -                  failed          -      -
";
        assert_eq!(render(Resource::Backends, &answer), expected);
    }

    #[test]
    fn times_are_ages() {
        for (nanos, text) in [
            (5_000_000, "5 ms ago"),
            (61_000_000_000, "61 s ago"),
            (600_000_000_000, "10 min ago"),
            (7_200_000_000_000, "2 h ago"),
        ] {
            assert_eq!(age(nanos), text);
        }
    }
}
