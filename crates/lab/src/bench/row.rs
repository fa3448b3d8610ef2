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
    /// How the two compare, as [`ratio_is`](Self::ratio_is) says.
    pub ratio: f64,
    /// Which ratio that is.
    pub ratio_is: RatioIs,
    /// One figure per round.
    pub runs: Vec<f64>,
    /// The reference's figure of each round; empty for a publication.
    pub reference_runs: Vec<f64>,
}

/// What a row's ratio is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RatioIs {
    /// The median of each round's own ratio: what slows a whole round down does not count.
    MedianOfRounds,
    /// value / reference.
    ValueByReference,
}

impl Row {
    /// A row beside what was measured in the same rounds; figures and ratio are medians.
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
        let ratios = ratios(&runs, &reference_runs);
        let row = Self::published(name, unit, (value, runs), reference_name, reference);
        match median(&ratios) {
            Some(ratio) => Self { ratio, ratio_is: RatioIs::MedianOfRounds, reference_runs, ..row },
            None => Self { reference_runs, ..row },
        }
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
            ratio_is: RatioIs::ValueByReference,
            runs,
            reference_runs: Vec::new(),
        }
    }
}

/// Of each round; none if the rounds were not the same ones.
fn ratios(runs: &[f64], reference_runs: &[f64]) -> Vec<f64> {
    if runs.len() != reference_runs.len() || reference_runs.contains(&0.0) {
        return Vec::new();
    }
    runs.iter().zip(reference_runs).map(|(run, reference)| run / reference).collect()
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
    fn a_slow_round_is_slow_for_both() {
        let row = Row::beside("a", "packets/s", vec![80.0, 30.0, 90.0], "b", vec![100.0, 40.0, 100.0]);
        assert_eq!((row.value, row.reference, row.ratio), (80.0, 100.0, 0.8));
        let row = Row::beside("a", "packets/s", vec![70.0, 30.0, 90.0], "b", vec![100.0, 30.0, 90.0]);
        assert_eq!((row.value, row.reference, row.ratio), (70.0, 90.0, 1.0));
        let row = Row::beside("a", "packets/s", vec![70.0, 90.0], "b", vec![100.0]);
        assert_eq!((row.ratio, row.ratio_is), (0.8, RatioIs::ValueByReference));
    }

    #[test]
    fn the_file_has_the_keys_that_are_promised() {
        let row = Row::beside("itr", "ns/packet", vec![119.0, 121.0], "empty program", vec![60.0, 60.0]);
        let json = serde_json::to_value(&row).unwrap();
        let keys = ["name", "unit", "value", "reference_name", "reference", "ratio", "runs"];
        assert!(keys.iter().all(|key| json.get(key).is_some()));
        assert_eq!((&json["ratio"], &json["ratio_is"]), (&2.0.into(), &"median-of-rounds".into()));
        let bench =
            Bench { machine: Machine::default(), rows: vec![row], skipped: vec!["tcp: no iperf3".into()] };
        let table = bench.table();
        assert!(table.contains("120.00 ns/packet") && table.contains("2.00  empty program"), "{table}");
        assert!(table.contains("not measured: tcp: no iperf3"), "{table}");
    }
}
