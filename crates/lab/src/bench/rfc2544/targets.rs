//! What is aimed at, as rows of the benchmarks.

use super::frames::{Protocol, Size};
use super::result::{Cell, Way};
use crate::bench::row::Row;

/// A way, what it is compared with, and what is aimed at.
struct Target {
    way: Way,
    of: Way,
    words: fn(Size) -> &'static str,
}

const TARGETS: [Target; 4] = [
    Target {
        way: Way::OneVip,
        of: Way::Bounce,
        words: |size| match size {
            Size::Octets(64) => "at least 0.75; paper 0.79",
            Size::Imix => "at least 0.90; paper 0.99",
            Size::Octets(_) => "at least 0.90; paper 0.97",
        },
    },
    Target {
        way: Way::OneVip,
        of: Way::Iptables,
        words: |size| match size {
            Size::Octets(64) => "at least 10; paper 16",
            Size::Imix => "paper 15",
            Size::Octets(_) => "paper 11",
        },
    },
    Target {
        way: Way::Generator,
        of: Way::Iptables,
        words: |_| "as far as a balancer that takes no time would come",
    },
    Target {
        way: Way::ManyVips,
        of: Way::OneVip,
        words: |size| match size {
            Size::Octets(64) => "at least 0.95; paper 0.96",
            Size::Octets(_) | Size::Imix => "at least 0.95; paper 1.00",
        },
    },
];

/// Rows of the sizes that targets are set for.
pub(super) fn rows(cells: &[Cell]) -> Vec<Row> {
    let wanted = |cell: &&Cell| matches!(cell.size, Size::Octets(64 | 128) | Size::Imix);
    let mut rows = Vec::new();
    for cell in cells.iter().filter(wanted) {
        rows.extend(TARGETS.iter().filter_map(|target| rate(cell, target)));
        rows.extend(device(cell));
    }
    rows
}

fn rate(cell: &Cell, target: &Target) -> Option<Row> {
    let runs = |way: Way| -> Option<Vec<f64>> {
        Some(cell.ways.get(&way)?.trials.iter().map(|trial| trial.pps()).collect())
    };
    let name = format!("{}, {}", label(cell), target.way.name());
    let reference = format!("{}, same rounds ({})", target.of.name(), (target.words)(cell.size));
    let mut row = Row::beside(&name, "frames/s", runs(target.way)?, &reference, runs(target.of)?);
    // Both took turns, so each turn has a ratio of its own.
    row.ratio = cell.ratio(target.way, target.of).unwrap_or(row.ratio);
    Some(row)
}

/// Without the generator, which in the paper is another machine.
fn device(cell: &Cell) -> Option<Row> {
    let name = format!("{}, iptables DNAT without the generator", label(cell));
    let target = if cell.size == Size::Octets(64) { " (at least 10; paper 16)" } else { "" };
    let reference = format!("weir 1x255, without the generator{target}");
    let (iptables, weir) = (cell.device_turns(Way::Iptables)?, cell.device_turns(Way::OneVip)?);
    Some(Row::beside(&name, "ns/frame", iptables, &reference, weir))
}

fn label(cell: &Cell) -> String {
    match (cell.size, cell.protocol) {
        (Size::Imix, _) => "IMIX".to_owned(),
        (size, Protocol::Udp) => format!("{size}-octet datagrams"),
        (size, Protocol::Tcp) => format!("{size}-octet SYNs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rfc2544::result::tests::result;

    #[test]
    fn every_target_has_its_row() {
        let rows = rows(&result().cells);
        assert_eq!(rows.len(), 20);
        let row =
            rows.iter().find(|row| row.reference_name.contains("rounds (at least 10; paper 16")).unwrap();
        assert_eq!((row.value, row.reference), (800_000.0, 300_000.0));
        let row = rows.iter().find(|row| row.name.contains("without the generator")).unwrap();
        assert!((row.ratio - 2833.3 / 750.0).abs() < 0.01, "{row:?}");
    }
}
