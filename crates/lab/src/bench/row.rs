//! `bench.json` and the table that says the same.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::report::Machine;

/// `bench.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// Where it was measured.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
    /// Rows that could not be measured here, and why.
    pub skipped: Vec<String>,
}

/// One figure beside its reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Unit of `value`, `reference` and `runs`.
    pub unit: String,
    /// The figure: the median of `runs` unless the name says otherwise.
    pub value: f64,
    /// What it is compared with.
    pub reference_name: String,
    /// The reference's figure; measured in the same rounds unless `reference_name` is a publication.
    pub reference: f64,
    /// value / reference.
    pub ratio: f64,
    /// One figure per round.
    pub runs: Vec<f64>,
}

impl Row {
    /// A row with its ratio.
    #[must_use]
    pub fn new(name: &str, unit: &str, value: f64, reference: (&str, f64), runs: Vec<f64>) -> Self {
        let (reference_name, reference) = reference;
        let ratio = if reference == 0.0 { 0.0 } else { value / reference };
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            value,
            reference_name: reference_name.to_owned(),
            reference,
            ratio,
            runs,
        }
    }
}

impl Bench {
    /// Lines for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let width =
            |of: fn(&Row) -> &str| self.rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let (name, unit) = (width(|row| &row.name), width(|row| &row.unit));
        let mut out = String::new();
        let head = format!(
            "{:<name$}  {:>12} {:<unit$}  {:>12}  {:>6}  of",
            "what", "value", "unit", "reference", "ratio"
        );
        let _ = writeln!(out, "{head}\n{}", "-".repeat(head.len() + 16));
        for row in &self.rows {
            let (value, reference) = (figure(row.value), figure(row.reference));
            let _ = writeln!(
                out,
                "{:<name$}  {value:>12} {:<unit$}  {reference:>12}  {:>6.2}  {}",
                row.name, row.unit, row.ratio, row.reference_name
            );
        }
        for reason in &self.skipped {
            let _ = writeln!(out, "not measured: {reason}");
        }
        out
    }
}

/// Four digits that count.
fn figure(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_keys_that_are_promised() {
        let row = Row::new("itr", "ns/packet", 120.0, ("empty program", 60.0), vec![119.0, 120.0]);
        let json = serde_json::to_value(&row).unwrap();
        let keys = ["name", "unit", "value", "reference_name", "reference", "ratio", "runs"];
        assert!(keys.iter().all(|key| json.get(key).is_some()));
        assert_eq!(json["ratio"], 2.0);
        let bench =
            Bench { machine: Machine::default(), rows: vec![row], skipped: vec!["tcp: no iperf3".into()] };
        let table = bench.table();
        assert!(table.contains("120.00 ns/packet") && table.contains("2.00  empty program"), "{table}");
        assert!(table.contains("not measured: tcp: no iperf3"), "{table}");
    }
}
