//! The paper's Table 2, from this machine.

use std::fmt::Write;

use super::paper::{PaperRates, paper_rates};
use super::result::{Cell, Figures, Rfc2544Result, Way};
use crate::bench::row::Bench;

const WAYS: [Way; 5] = [Way::Bounce, Way::Iptables, Way::Nftables, Way::OneVip, Way::ManyVips];

/// One way's rate as a share of another's, and the same in the paper.
type Ratio = (&'static str, Way, Way, fn(PaperRates) -> f64);

const RATIOS: [Ratio; 3] = [
    ("of bounce", Way::OneVip, Way::Bounce, |paper| paper.one_vip / paper.loopback),
    ("x iptables", Way::OneVip, Way::Iptables, |paper| paper.one_vip / paper.iptables),
    ("128 / 1 VIP", Way::ManyVips, Way::OneVip, |paper| paper.many_vips / paper.one_vip),
];

/// Lines for a terminal.
#[must_use]
pub fn table(result: &Rfc2544Result) -> String {
    let mut out = String::new();
    head(&mut out);
    for cell in &result.cells {
        rates(&mut out, cell);
    }
    out.push_str(
        "Ratios are of 1x255 unless they say otherwise; the paper's in brackets (its bounce is a cable).\n\n",
    );
    device(&mut out, result);
    out.push('\n');
    let rows = result.targets.iter().chain(&result.programs).cloned().collect();
    let bench = Bench { machine: result.machine.clone(), rows, skipped: result.skipped.clone() };
    out.push_str(&bench.table());
    out.push('\n');
    for sentence in &result.method {
        let _ = writeln!(out, "- {sentence}");
    }
    out
}

fn head(out: &mut String) {
    let mut names = format!("{:<5}{:<7}{:<7}", "Size", "Proto.", "Metric");
    let mut layers = " ".repeat(names.len());
    for way in WAYS {
        let _ = write!(names, "  {:>14}", way.name());
        let _ = write!(layers, "  {:>7}{:>7}", "L2", "L1");
    }
    for (name, ..) in RATIOS {
        let _ = write!(names, "  {name:>13}");
    }
    let _ = writeln!(out, "{names}\n{layers}\n{}", "-".repeat(names.len()));
}

fn rates(out: &mut String, cell: &Cell) {
    let mut bits = format!("{:<5}{:<7}{:<7}", cell.size.to_string(), cell.protocol.name(), "Gbit/s");
    let mut packets = format!("{:12}{:<7}", "", "Mpps");
    for way in WAYS {
        let figures = cell.ways.get(&way);
        let number = |of: fn(&Figures) -> f64, unit: f64| {
            figures.map_or_else(|| "-".to_owned(), |figures| format!("{:.3}", of(figures) / unit))
        };
        let (l2, l1) = (number(|f| f.bps_l2, 1e9), number(|f| f.bps_l1, 1e9));
        let _ = write!(bits, "  {l2:>7}{l1:>7}");
        let _ = write!(packets, "  {:>14}", number(|f| f.pps, 1e6));
    }
    let paper = paper_rates(cell.size, cell.protocol);
    for (_, way, of, published) in RATIOS {
        let ours = cell.ratio(way, of).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let theirs = paper.map_or_else(String::new, |paper| format!(" ({:.2})", published(paper)));
        let _ = write!(packets, "  {:>13}", ours + &theirs);
    }
    let _ = writeln!(out, "{bits}\n{packets}");
}

/// What the device under test costs without the generator, which in the paper is another machine.
fn device(out: &mut String, result: &Rfc2544Result) {
    let mut names = format!("{:<5}{:<7}{:>16}", "Size", "Proto.", Way::Generator.name());
    for way in WAYS {
        let _ = write!(names, "  {:>14}", way.name());
    }
    let _ = writeln!(
        out,
        "Nanoseconds per frame: the generator, and what the device under test adds\n{names}  iptables/1x255"
    );
    for cell in &result.cells {
        let generator = cell.ways.get(&Way::Generator).map_or(0.0, |figures| figures.chain_ns);
        let mut line = format!("{:<5}{:<7}{generator:>16.0}", cell.size.to_string(), cell.protocol.name());
        for way in WAYS {
            let cost = cell.device_ns(way).map_or_else(|| "-".to_owned(), |ns| format!("{ns:.0}"));
            let _ = write!(line, "  {cost:>14}");
        }
        let ratio = cell.device_ns(Way::Iptables).zip(cell.device_ns(Way::OneVip)).map(|(a, b)| a / b);
        let _ = writeln!(
            out,
            "{line}  {:>14}",
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rfc2544::result::tests::result;

    #[test]
    fn rates_stand_beside_each_other_and_the_papers_ratios() {
        let text = table(&result());
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        assert!(
            lines.contains(
                &"64 UDP Gbit/s 0.512 0.672 0.154 0.202 0.205 0.269 0.410 0.538 0.401 0.527".into()
            ),
            "{text}"
        );
        assert!(
            lines.contains(&"Mpps 1.000 0.300 0.400 0.800 0.784 0.80 (0.79) 2.67 (16.15) 0.98 (0.96)".into()),
            "{text}"
        );
        assert!(lines.contains(&"64 TCP 500 500 2833 2000 750 776 3.8".into()), "{text}");
        assert!(lines.iter().any(|line| line.starts_with("IMIX UDP Gbit/s")), "{text}");
        assert!(
            lines.contains(&"not measured: nothing: really".into()) && lines.contains(&"- Two.".into()),
            "{text}"
        );
    }

    #[test]
    fn a_way_that_is_missing_is_a_dash() {
        let mut result = result();
        for cell in &mut result.cells {
            cell.ways.remove(&Way::OneVip);
        }
        let text = table(&result);
        assert!(text.contains("- (0.79)"), "{text}");
    }
}
