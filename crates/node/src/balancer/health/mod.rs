//! Whether backends answer: [`Monitor`] decides from results, [`probe()`] gets one, [`Checks`] brings them together.

mod checks;
mod failure;
mod icmp;
mod monitor;
mod probe;

pub use checks::{Checks, News, Watched};
pub use failure::{Failure, Phase};
pub use monitor::{Changed, Monitor, NotSent, Output, Pace, State};
pub use probe::{Check, Endpoint, StatusRange, probe};
