//! Figures 5 to 10 of the balancer's paper: what comes back, by size of the frames and by way.

use std::error::Error;

use plotters::prelude::*;

use super::style::{Area, FAINT, GREY, draw, edge_colour, round_up, text};
use crate::bench::rfc2544::{Cell, Figures, Protocol, Rfc2544Result, Size, Way};

const WAYS: [Way; 5] = [Way::Bounce, Way::Iptables, Way::Nftables, Way::OneVip, Way::ManyVips];

/// One figure of the paper.
pub(super) struct Figure {
    pub(super) name: &'static str,
    title: &'static str,
    shows: fn(&Cell) -> bool,
    value: fn(&Figures) -> f64,
    axis: &'static str,
    /// Bits per second grow with the size: on an even axis the short frames would not be seen.
    logarithmic: bool,
}

/// All six; those of the mix are the last.
pub(super) const FIGURES: [Figure; 6] = [
    bits("udp-bps-l2", "UDP, bits per second at L2", udp, l2, true),
    bits("udp-bps-l1", "UDP, bits per second at L1", udp, l1, true),
    bits("tcp-bps-l2", "TCP SYN, bits per second at L2", tcp, l2, true),
    frames("udp-pps", "UDP, frames per second", udp),
    bits("imix-bps-l2", "IMIX, bits per second at L2", imix, l2, false),
    frames("imix-pps", "IMIX, frames per second", imix),
];

const fn bits(
    name: &'static str,
    title: &'static str,
    shows: fn(&Cell) -> bool,
    value: fn(&Figures) -> f64,
    logarithmic: bool,
) -> Figure {
    let axis = if logarithmic { "Gbit/s (logarithmic)" } else { "Gbit/s" };
    Figure { name, title, shows, value, axis, logarithmic }
}

const fn frames(name: &'static str, title: &'static str, shows: fn(&Cell) -> bool) -> Figure {
    Figure { name, title, shows, value: mpps, axis: "Million frames/s", logarithmic: false }
}

fn udp(cell: &Cell) -> bool {
    cell.size != Size::Imix && cell.protocol == Protocol::Udp
}

fn tcp(cell: &Cell) -> bool {
    cell.size != Size::Imix && cell.protocol == Protocol::Tcp
}

fn imix(cell: &Cell) -> bool {
    cell.size == Size::Imix
}

fn l2(figures: &Figures) -> f64 {
    figures.bps_l2 / 1e9
}

fn l1(figures: &Figures) -> f64 {
    figures.bps_l1 / 1e9
}

fn mpps(figures: &Figures) -> f64 {
    figures.pps / 1e6
}

/// A figure; `None` if nothing of it was measured.
pub(super) fn svg(result: &Rfc2544Result, figure: &Figure) -> anyhow::Result<Option<String>> {
    let cells: Vec<&Cell> = result.cells.iter().filter(|cell| (figure.shows)(cell)).collect();
    if cells.is_empty() {
        return Ok(None);
    }
    draw(480, |root| panel(root, figure, &cells)).map(Some)
}

fn panel(root: &Area<'_>, figure: &Figure, cells: &[&Cell]) -> Result<(), Box<dyn Error + Send + Sync>> {
    let axis = Axis::of(figure, cells);
    let mut chart = ChartBuilder::on(root)
        .caption(figure.title, text(19))
        .margin(12)
        .margin_right(24)
        // Sizes, their label, and the names of the ways.
        .x_label_area_size(84)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..cells.len() as f64, axis.low..axis.high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .y_desc(figure.axis)
        .axis_desc_style(text(15))
        .label_style(text(13))
        .y_label_formatter(&|place| axis.label(*place))
        .draw()?;
    for (place, cell) in cells.iter().enumerate() {
        chart.draw_series(bars(figure, &axis, place as f64, cell))?;
        let (x, y) = chart.backend_coord(&(place as f64 + 0.5, axis.low));
        let name = cell.size.to_string();
        let across = i32::try_from(root.estimate_text_size(&name, &text(14))?.0)?;
        root.draw(&Text::new(name, (x - across / 2, y + 8), text(14)))?;
    }
    let (x, y) = chart.backend_coord(&(0.0, axis.low));
    names(root, (x, y + 52))
}

/// One bar for each way, beside each other.
fn bars<'a>(
    figure: &'a Figure,
    axis: &'a Axis,
    place: f64,
    cell: &'a Cell,
) -> impl Iterator<Item = Rectangle<(f64, f64)>> {
    let width = 0.8 / WAYS.len() as f64;
    WAYS.iter().enumerate().filter_map(move |(index, way)| {
        let value = (figure.value)(cell.ways.get(way)?);
        let left = place + 0.1 + index as f64 * width;
        let corners = [(left, axis.low), (left + width * 0.9, axis.place(value))];
        Some(Rectangle::new(corners, edge_colour(index).filled()))
    })
}

/// Where a value is on the vertical axis.
struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
}

impl Axis {
    fn of(figure: &Figure, cells: &[&Cell]) -> Self {
        let values = || {
            let figures = cells.iter().flat_map(|cell| WAYS.iter().filter_map(|way| cell.ways.get(way)));
            figures.map(figure.value).filter(|value| *value > 0.0)
        };
        let top = values().fold(0.0, f64::max);
        if !figure.logarithmic {
            return Self { logarithmic: false, low: 0.0, high: round_up(top * 1.05) };
        }
        let bottom = values().fold(top.max(0.1), f64::min);
        Self { logarithmic: true, low: bottom.log10().floor(), high: round_up(top.max(0.1) * 1.2).log10() }
    }

    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10().max(self.low) } else { value }
    }

    fn label(&self, place: f64) -> String {
        let value = if self.logarithmic { 10_f64.powf(place) } else { place };
        if value < 0.1 { format!("{value:.3}") } else { format!("{value:.2}") }
    }
}

/// The ways' names below the axis, where no bar is.
fn names(root: &Area<'_>, (left, top): (i32, i32)) -> Result<(), Box<dyn Error + Send + Sync>> {
    root.draw(&Text::new("Frame size, octets with check sequence", (left, top - 22), text(14)))?;
    let mut x = left;
    for (index, way) in WAYS.iter().enumerate() {
        root.draw(&Rectangle::new([(x, top + 2), (x + 14, top + 14)], edge_colour(index).filled()))?;
        root.draw(&Text::new(way.name(), (x + 20, top), text(14)))?;
        x += 44 + i32::try_from(root.estimate_text_size(way.name(), &text(14))?.0)?;
    }
    Ok(())
}
