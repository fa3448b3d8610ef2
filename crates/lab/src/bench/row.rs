//! `bench.json` and the table that says the same.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::report::Machine;
use crate::stats::median;

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
    /// The reference's figure of each round; empty for a publication.
    pub reference_runs: Vec<f64>,
}

impl Row {
    /// A row beside what was measured in the same rounds; both figures are medians.
    #[must_use]
    pub fn beside(
        name: &str,
        unit: &str,
        runs: Vec<f64>,
        reference_name: &str,
        reference_runs: Vec<f64>,
    ) -> Self {
        let middle = |runs: &[f64]| median(runs).unwrap_or_default();
        let (value, reference) = (middle(&runs), middle(&reference_runs));
        Self { reference_runs, ..Self::published(name, unit, (value, runs), reference_name, reference) }
    }

    /// A row beside a figure from elsewhere.
    #[must_use]
    pub fn published(
        name: &str,
        unit: &str,
        (value, runs): (f64, Vec<f64>),
        reference_name: &str,
        reference: f64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            value,
            reference_name: reference_name.to_owned(),
            reference,
            ratio: if reference == 0.0 { 0.0 } else { value / reference },
            runs,
            reference_runs: Vec::new(),
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
        let row = Row::beside("itr", "ns/packet", vec![119.0, 121.0], "empty program", vec![60.0]);
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
