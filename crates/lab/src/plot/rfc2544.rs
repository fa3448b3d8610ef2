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
}

/// All six; those of the mix are the last.
pub(super) const FIGURES: [Figure; 6] = [
    Figure { name: "udp-bps-l2", title: "UDP, bits per second at L2", shows: udp, value: l2, axis: "Gbit/s" },
    Figure { name: "udp-bps-l1", title: "UDP, bits per second at L1", shows: udp, value: l1, axis: "Gbit/s" },
    Figure {
        name: "tcp-bps-l2",
        title: "TCP SYN, bits per second at L2",
        shows: tcp,
        value: l2,
        axis: "Gbit/s",
    },
    Figure {
        name: "udp-pps",
        title: "UDP, frames per second",
        shows: udp,
        value: mpps,
        axis: "million frames/s",
    },
    Figure {
        name: "imix-bps-l2",
        title: "IMIX, bits per second at L2",
        shows: imix,
        value: l2,
        axis: "Gbit/s",
    },
    Figure {
        name: "imix-pps",
        title: "IMIX, frames per second",
        shows: imix,
        value: mpps,
        axis: "million frames/s",
    },
];

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
    let value = |cell: &Cell, way: Way| cell.ways.get(&way).map(figure.value);
    let top =
        cells.iter().flat_map(|cell| WAYS.iter().filter_map(|way| value(cell, *way))).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(root)
        .caption(figure.title, text(19))
        .margin(12)
        .margin_right(24)
        // Sizes, their label, and the names of the ways.
        .x_label_area_size(84)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..cells.len() as f64, 0.0..round_up(top * 1.05))?;
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
        .y_label_formatter(&|value| format!("{value:.2}"))
        .draw()?;
    let width = 0.8 / WAYS.len() as f64;
    for (place, cell) in cells.iter().enumerate() {
        for (index, way) in WAYS.iter().enumerate() {
            let left = place as f64 + 0.1 + index as f64 * width;
            let height = value(cell, *way).unwrap_or(0.0);
            let corners = [(left, 0.0), (left + width * 0.9, height)];
            chart.draw_series([Rectangle::new(corners, edge_colour(index).filled())])?;
        }
        let (x, y) = chart.backend_coord(&(place as f64 + 0.5, 0.0));
        let name = cell.size.to_string();
        let across = i32::try_from(root.estimate_text_size(&name, &text(14))?.0)?;
        root.draw(&Text::new(name, (x - across / 2, y + 8), text(14)))?;
    }
    let (x, y) = chart.backend_coord(&(0.0, 0.0));
    names(root, (x, y + 52))
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
