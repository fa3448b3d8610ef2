//! Figure 6: box plots of response times on a logarithmic axis, ours beside the paper's.

use std::error::Error;

use plotters::prelude::*;

use super::style::{Area, FAINT, GREY, INK, draw, edge_colour, text};
use crate::report::{LabResult, PAPER_WITH, PAPER_WITHOUT, PaperTimes, RunResult};

/// Minimum, quartiles and maximum, in milliseconds.
struct Box5 {
    name: [&'static str; 2],
    colour: RGBColor,
    values: [f64; 5],
}

/// One panel.
pub(super) fn svg(result: &LabResult) -> anyhow::Result<String> {
    let boxes = [
        Box5::of("Without balancing", "here", edge_colour(5), &result.runs.without),
        Box5::of("With balancing", "here", edge_colour(0), &result.runs.with),
        Box5::of_paper("Without balancing", &PAPER_WITHOUT),
        Box5::of_paper("With balancing", &PAPER_WITH),
    ];
    draw(560, |root| panel(root, &boxes))
}

impl Box5 {
    fn of(name: &'static str, whose: &'static str, colour: RGBColor, run: &RunResult) -> Self {
        let values = [run.min_ms, run.p25_ms, run.median_ms, run.p75_ms, run.max_ms];
        Self { name: [name, whose], colour, values }
    }

    fn of_paper(name: &'static str, paper: &PaperTimes) -> Self {
        let values = [paper.min_ms, paper.p25_ms, paper.median_ms, paper.p75_ms, paper.max_ms];
        Self { name: [name, "paper"], colour: GREY, values }
    }
}

fn panel(root: &Area<'_>, boxes: &[Box5]) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (low, high) = limits(boxes);
    let mut chart = ChartBuilder::on(root)
        .caption("Response time: minimum, quartiles, maximum", text(19))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..boxes.len() as f64, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(FAINT.mix(0.5))
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .y_desc("Response time, ms (logarithmic)")
        .axis_desc_style(text(15))
        .label_style(text(13))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    for (index, each) in boxes.iter().enumerate() {
        let middle = index as f64 + 0.5;
        // A logarithmic axis has no place for zero.
        let [min, p25, median, p75, max] = each.values.map(|value| value.max(low));
        let stroke = each.colour.stroke_width(2);
        let line = |from: (f64, f64), to: (f64, f64)| PathElement::new([from, to], stroke);
        chart.draw_series([
            line((middle, min), (middle, p25)),
            line((middle, p75), (middle, max)),
            line((middle - 0.09, min), (middle + 0.09, min)),
            line((middle - 0.09, max), (middle + 0.09, max)),
        ])?;
        let corners = [(middle - 0.2, p25), (middle + 0.2, p75)];
        chart.draw_series([Rectangle::new(corners, each.colour.mix(0.25).filled())])?;
        chart.draw_series([Rectangle::new(corners, stroke)])?;
        let bar = PathElement::new([(middle - 0.2, median), (middle + 0.2, median)], INK.stroke_width(3));
        chart.draw_series([bar])?;

        let (x, y) = chart.backend_coord(&(middle + 0.2, median));
        root.draw(&Text::new(format!("{:.1}", each.values[2]), (x + 6, y - 7), text(13)))?;
        let (x, y) = chart.backend_coord(&(middle, low));
        for (row, name) in (0..).zip(each.name) {
            let width = i32::try_from(root.estimate_text_size(name, &text(14))?.0)?;
            root.draw(&Text::new(name, (x - width / 2, y + 8 + row * 19), text(14)))?;
        }
    }
    Ok(())
}

/// From the decade of the smallest value to a little above the largest.
fn limits(boxes: &[Box5]) -> (f64, f64) {
    let values = || boxes.iter().flat_map(|each| each.values).filter(|&value| value > 0.0);
    let low = values().fold(10.0, f64::min).log10().floor();
    let high = values().fold(100.0, f64::max) * 1.4;
    (10_f64.powf(low), high)
}
