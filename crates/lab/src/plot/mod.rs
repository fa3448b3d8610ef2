//! The paper's figures drawn from a run: SVG, and the same as PNG.

mod raster;
mod responses;
mod rfc2544;
mod style;
mod throughput;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub use raster::{RasterError, png};

use crate::bench::rfc2544::Rfc2544Result;
use crate::report::LabResult;

/// Draws every figure of `result` into `directory`; returns the files written.
///
/// # Errors
/// Unwritable directory, or no font for the PNG.
pub fn write_all(result: &LabResult, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let figures = [
        ("throughput", throughput::svg(result)?),
        ("response-times", responses::svg(result)?),
        ("weights", weights::svg(result)?),
    ];
    let mut written = Vec::new();
    for (name, svg) in figures {
        written.extend(write_both(directory, name, &svg)?);
    }
    Ok(written)
}

/// Draws what the benchmark of the balancer found out, likewise.
///
/// # Errors
/// As [`write_all`].
pub fn write_rfc2544(result: &Rfc2544Result, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for figure in &rfc2544::FIGURES {
        if let Some(svg) = rfc2544::svg(result, figure)? {
            written.extend(write_both(directory, figure.name, &svg)?);
        }
    }
    Ok(written)
}

fn write_both(directory: &Path, name: &str, svg: &str) -> anyhow::Result<[PathBuf; 2]> {
    let write = |extension: &str, octets: Vec<u8>| {
        let path = directory.join(name).with_extension(extension);
        fs::write(&path, octets).with_context(|| format!("cannot write {}", path.display()))?;
        anyhow::Ok(path)
    };
    Ok([write("svg", svg.as_bytes().to_vec())?, write("png", png(svg)?)?])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::{Control, EdgeResult, LinkDelay, Machine, Reduction, RunResult, Runs, WeightSample};

    /// A load triangle over three edges, cut off at their capacities.
    fn result() -> LabResult {
        let capacities: [(&str, f64); 3] = [("edge1", 400.0), ("edge2", 800.0), ("edge3", 1600.0)];
        let offered = |t: f64| if t < 40.0 { 100.0 + t * 40.0 } else { 1700.0 - (t - 40.0) * 40.0 };
        let share = |t: f64| {
            let mut left = offered(t);
            capacities.map(|(edge, capacity)| {
                let taken = left.min(capacity);
                left -= taken;
                (edge.to_owned(), taken)
            })
        };
        let series = |of: &dyn Fn(f64) -> f64| (0..80).map(|t| [f64::from(t), of(f64::from(t))]).collect();
        let with = (0..3).map(|i| {
            let edge = EdgeResult { requests: 1, series: series(&|t| share(t)[i].1) };
            (capacities[i].0.to_owned(), edge)
        });
        let with = RunResult {
            edges: with.collect(),
            min_ms: 32.0,
            p25_ms: 41.0,
            median_ms: 45.0,
            p75_ms: 52.0,
            max_ms: 180.0,
            ..RunResult::default()
        };
        let all = EdgeResult { requests: 1, series: series(&|t| offered(t).min(500.0)) };
        let without = RunResult {
            edges: BTreeMap::from([("edge1".to_owned(), all)]),
            min_ms: 41.0,
            p25_ms: 900.0,
            median_ms: 4000.0,
            p75_ms: 7000.0,
            max_ms: 9990.0,
            ..RunResult::default()
        };
        let weights = (0..80).map(|t| {
            let t = f64::from(t);
            let weights = share(t).map(|(edge, taken)| (edge, taken / offered(t)));
            WeightSample { t_s: t, weights: weights.into() }
        });
        LabResult {
            scenario: "paper".into(),
            quick: true,
            machine: Machine::default(),
            link_delay: LinkDelay::DelayLine,
            service: "nginx".into(),
            keepalive: false,
            capacities: capacities.map(|(edge, capacity)| (edge.to_owned(), capacity)).into(),
            calibration: serde_json::Value::Null,
            versions: BTreeMap::new(),
            offered: vec![[0.0, 100.0], [40.0, 1700.0], [80.0, 100.0]],
            reduction: Reduction::between(&without, &with),
            weights: weights.collect(),
            runs: Runs { without, with },
            control: Control::default(),
        }
    }

    #[test]
    fn the_balancers_figures_are_drawn_in_both_forms() {
        let directory = tempfile::tempdir().unwrap();
        let result = crate::bench::rfc2544::result::tests::result();
        let written = write_rfc2544(&result, directory.path()).unwrap();
        assert_eq!(written.len(), 12);
        for path in written.iter().filter(|path| path.extension().unwrap() == "svg") {
            assert!(fs::read_to_string(path).unwrap().contains("weir 128x4000"), "{}", path.display());
        }
        if let Some(keep) = std::env::var_os("WEIR_KEEP_FIGURES") {
            write_rfc2544(&result, Path::new(&keep)).unwrap();
        }
    }

    #[test]
    fn every_figure_is_drawn_in_both_forms() {
        let directory = tempfile::tempdir().unwrap();
        let written = write_all(&result(), directory.path()).unwrap();
        assert_eq!(written.len(), 6);
        for path in written {
            let octets = fs::read(&path).unwrap();
            if path.extension().unwrap() == "svg" {
                assert!(
                    String::from_utf8(octets).unwrap().contains("edge1")
                        || path.ends_with("response-times.svg")
                );
            } else {
                assert!(octets.starts_with(b"\x89PNG") && octets.len() > 10_000, "{}", path.display());
            }
        }
        if let Some(keep) = std::env::var_os("WEIR_KEEP_FIGURES") {
            write_all(&result(), Path::new(&keep)).unwrap();
        }
    }
}
