//! Colours, sizes and axes that the figures share.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedF64, RangedF64>>;
type RangedF64 = plotters::coord::types::RangedCoordf64;

pub(super) const WIDTH: u32 = 960;
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(super) const FAINT: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
pub(super) const GREY: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Distinguishable with any colour vision (Okabe and Ito).
const EDGES: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
];

pub(super) fn edge_colour(index: usize) -> RGBColor {
    EDGES[index % EDGES.len()]
}

/// The drawing as text.
pub(super) fn draw(
    height: u32,
    figure: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error + Send + Sync>>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| figure(&root));
        drawn.map_err(|error| anyhow::anyhow!("figure: {error}"))?;
        root.present()?;
    }
    Ok(svg)
}

/// Text style of the figures.
pub(super) fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// A chart over `0..right` and `0..top` with labelled axes.
pub(super) fn chart<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    (right, top): (f64, f64),
    (x_label, y_label): (&str, &str),
) -> Result<Chart<'a, 'b>, Box<dyn Error + Send + Sync>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(19))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .x_desc(x_label)
        .y_desc(y_label)
        .axis_desc_style(text(15))
        .label_style(text(13))
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .draw()?;
    Ok(chart)
}

/// The legend, once every series is drawn.
pub(super) fn legend<'a, 'b: 'a>(
    chart: &mut Chart<'a, 'b>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(text(14))
        .margin(8)
        .legend_area_size(30)
        .draw()?;
    Ok(())
}

/// A number without digits that say nothing.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature of a label formatter")]
pub(super) fn number(value: &f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// A round value at or above `value`, to end an axis with.
pub(super) fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let magnitude = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.iter().map(|step| step * magnitude).find(|&step| step >= value).unwrap_or(10.0 * magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_values() {
        assert_eq!(round_up(1799.0), 2000.0);
        assert_eq!(round_up(500.0), 500.0);
        assert_eq!(round_up(0.0), 1.0);
        assert_eq!((number(&1500.0), number(&0.2)), ("1500".to_owned(), "0.2".to_owned()));
    }
}
