//! What the controller did: offered load above, weights below, over the same time.

use std::error::Error;

use plotters::prelude::*;

use super::style::{Area, GREY, INK, chart, draw, edge_colour, legend, round_up, text};
use crate::report::LabResult;

/// Both panels.
pub(super) fn svg(result: &LabResult) -> anyhow::Result<String> {
    let right = result.offered.iter().map(|point| point[0]).fold(1.0, f64::max);
    draw(760, |root| {
        let (above, below) = root.split_vertically(380);
        offered(&above, result, right)?;
        weights(&below, result, right)
    })
}

fn offered(area: &Area<'_>, result: &LabResult, right: f64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let peak = result.offered.iter().map(|point| point[1]).fold(1.0, f64::max);
    let top = round_up(peak * 1.05);
    let mut chart = chart(area, "Offered load", (right, top), ("Time, s", "Requests per second"))?;
    let mut room = 0.0;
    let mut sum = String::new();
    for (index, (edge, capacity)) in result.capacities.iter().enumerate() {
        room += capacity;
        sum.push_str(if index == 0 { "C of " } else { " + " });
        sum.push_str(edge);
        if room > top {
            break;
        }
        chart.draw_series(DashedLineSeries::new([(0.0, room), (right, room)], 3, 4, GREY.stroke_width(1)))?;
        let label = Text::new(sum.clone(), (right * 0.008, room + top * 0.055), text(13));
        chart.draw_series([label])?;
    }
    chart
        .draw_series(LineSeries::new(result.offered.iter().map(|&[t, rps]| (t, rps)), INK.stroke_width(2)))?;
    Ok(())
}

fn weights(area: &Area<'_>, result: &LabResult, right: f64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let title = "Weights: share of new flows per edge";
    let mut chart = chart(area, title, (right, 105.0), ("Time, s", "Weight, %"))?;
    for (index, edge) in result.capacities.keys().enumerate() {
        let colour = edge_colour(index);
        chart
            .draw_series(LineSeries::new(steps(result, edge, right), colour.stroke_width(2)))?
            .label(edge)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::MiddleRight)
}

/// A weight holds until the next one: two corners per change.
fn steps(result: &LabResult, edge: &str, right: f64) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for sample in &result.weights {
        let percent = sample.weights.get(edge).copied().unwrap_or(0.0) * 100.0;
        let at = sample.t_s.clamp(0.0, right);
        if let Some(&(_, before)) = corners.last() {
            corners.push((at, before));
        }
        corners.push((at, percent));
    }
    if let Some(&(_, last)) = corners.last() {
        corners.push((right, last));
    }
    corners
}
