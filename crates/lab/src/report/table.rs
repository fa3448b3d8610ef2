//! The table at the end of a run: Table IV, both runs beside the paper's figures.

use std::fmt::Write;

use super::paper::{PAPER_WITH, PAPER_WITHOUT, PaperTimes};
use super::result::{LabResult, RunResult};

type Of<T> = fn(&T) -> f64;
type Row = (&'static str, Of<RunResult>, Option<Of<PaperTimes>>);
type Count = (&'static str, fn(&RunResult) -> usize);

const ROWS: [Row; 8] = [
    ("Mean", |run| run.mean_ms, Some(|paper| paper.mean_ms)),
    ("Deviation", |run| run.deviation_ms, Some(|paper| paper.deviation_ms)),
    ("Minimum", |run| run.min_ms, Some(|paper| paper.min_ms)),
    ("25th percentile", |run| run.p25_ms, Some(|paper| paper.p25_ms)),
    ("Median", |run| run.median_ms, Some(|paper| paper.median_ms)),
    ("75th percentile", |run| run.p75_ms, Some(|paper| paper.p75_ms)),
    ("99th percentile", |run| run.p99_ms, None),
    ("Maximum", |run| run.max_ms, Some(|paper| paper.max_ms)),
];

/// Lines for a terminal of 80 columns.
#[must_use]
pub fn table(result: &LabResult) -> String {
    let mut out = String::new();
    let (with, without) = (&result.runs.with, &result.runs.without);
    line(&mut out, "Response time, ms", ["With balancing", "", "Without balancing", "", "Reduction", ""]);
    line(&mut out, "", ["here", "paper", "here", "paper", "here", "paper"]);
    let _ = writeln!(out, "{}", "-".repeat(WIDTH));
    for (name, ours, paper) in ROWS {
        let theirs = paper.map(|of| (of(&PAPER_WITH), of(&PAPER_WITHOUT)));
        let cells = [
            ms(ours(with)),
            theirs.map_or_else(dash, |(with, _)| ms(with)),
            ms(ours(without)),
            theirs.map_or_else(dash, |(_, without)| ms(without)),
            reduction(ours(with), ours(without)),
            theirs.map_or_else(dash, |(with, without)| reduction(with, without)),
        ];
        line(&mut out, name, cells.each_ref().map(String::as_str));
    }
    let _ = writeln!(out, "{}", "-".repeat(WIDTH));
    counts(&mut out, result);
    out
}

const WIDTH: usize = 79;

fn line(out: &mut String, name: &str, cells: [&str; 6]) {
    let [a, b, c, d, e, f] = cells;
    // A heading spans its two columns.
    let text = if b.is_empty() && d.is_empty() && f.is_empty() {
        format!("{name:<19}{a:>20}{c:>20}{e:>20}")
    } else {
        format!("{name:<19}{a:>11}{b:>9}{c:>11}{d:>9}{e:>11}{f:>9}")
    };
    let _ = writeln!(out, "{}", text.trim_end());
}

fn counts(out: &mut String, result: &LabResult) {
    let (with, without) = (&result.runs.with, &result.runs.without);
    let counts: [Count; 3] = [
        ("Requests", |run| run.requests),
        ("Errors", |run| run.errors),
        ("of these time-outs", |run| run.timeouts),
    ];
    for (name, count) in counts {
        line(out, name, [&count(with).to_string(), " ", &count(without).to_string(), " ", " ", " "]);
    }
    for edge in with.edges.keys() {
        let answered = |run: &RunResult| run.edges.get(edge).map_or(0, |edge| edge.requests).to_string();
        line(out, &format!("Answered by {edge}"), [&answered(with), " ", &answered(without), " ", " ", " "]);
    }
    let control = &result.control;
    if let Some(applied) = control.publish_to_applied_ms {
        let _ = writeln!(
            out,
            "Publish to applied: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms over {} publications ({} decisions)",
            applied.p50, applied.p99, applied.max, control.publications, control.decisions
        );
    }
    if let Some(reaction) = control.reaction_ms {
        let _ = writeln!(
            out,
            "Reaction (load crosses C_1 to first new flow at the second edge): {reaction:.0} ms"
        );
    }
}

fn ms(value: f64) -> String {
    format!("{value:.1}")
}

fn dash() -> String {
    "-".to_owned()
}

fn reduction(with: f64, without: f64) -> String {
    if without > 0.0 { format!("{:.1} %", (1.0 - with / without) * 100.0) } else { dash() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::result::tests::result;

    #[test]
    fn paper_columns_and_reduction_stand_beside_ours() {
        let run = |median_ms, p75_ms| RunResult { requests: 9, median_ms, p75_ms, ..RunResult::default() };
        let text = table(&result(run(500.0, 1000.0), run(50.0, 60.0)));
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row("Median"), "50.0 66.1 500.0 329.2 90.0 % 79.9 %");
        assert_eq!(row("75th percentile"), "60.0 67.2 1000.0 962.0 94.0 % 93.0 %");
        assert_eq!(row("Requests"), "9 9");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
