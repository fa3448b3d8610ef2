//! What an experiment says at its end: `result.json` and the table beside the paper's figures.

mod paper;
mod result;
mod table;

pub use paper::{PAPER_WITH, PAPER_WITHOUT, PaperTimes};
pub use result::{
    Control, EdgeResult, LabResult, LinkDelay, Machine, Percentiles, Reduction, RunResult, Runs, WeightSample,
};
pub use table::table;
