//! Figure 5: throughput per edge over time, without and with balancing, below the offered load.

use std::error::Error;

use plotters::prelude::*;

use super::style::{Area, INK, chart, draw, edge_colour, legend, round_up};
use crate::report::{EdgeResult, LabResult, RunResult};

/// Both panels, on the same axes.
pub(super) fn svg(result: &LabResult) -> anyhow::Result<String> {
    let runs = [
        ("(a) Without load balancing", &result.runs.without),
        ("(b) With load balancing", &result.runs.with),
    ];
    let points = || runs.iter().flat_map(|(_, run)| run.edges.values()).flat_map(|edge| &edge.series);
    let right = points().chain(&result.offered).map(|point| point[0]).fold(1.0, f64::max);
    let top = points().chain(&result.offered).map(|point| point[1]).fold(1.0, f64::max);
    draw(820, |root| {
        for (area, (title, run)) in root.split_evenly((2, 1)).iter().zip(runs) {
            panel(area, title, run, &result.offered, (right, round_up(top * 1.05)))?;
        }
        Ok(())
    })
}

fn panel(
    area: &Area<'_>,
    title: &str,
    run: &RunResult,
    offered: &[[f64; 2]],
    size: (f64, f64),
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut chart = chart(area, title, size, ("Time, s", "Requests per second"))?;
    let line = offered.iter().map(|&[t, rps]| (t, rps));
    chart
        .draw_series(DashedLineSeries::new(line, 6, 4, INK.stroke_width(2)))?
        .label("offered load")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 9, y)], INK.stroke_width(2)));
    let answered = |(_, (_, edge)): &(usize, (&String, &EdgeResult))| edge.requests > 0;
    for (index, (name, edge)) in run.edges.iter().enumerate().filter(answered) {
        let colour = edge_colour(index);
        // A rate holds for the second that begins at its time: drawn in the middle of it.
        let line = edge.series.iter().map(|&[t, rps]| (t + 0.5, rps));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}
