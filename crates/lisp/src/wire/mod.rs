//! The messages of the LISP control plane as values.
//!
//! `decode` keeps what it does not know (code points, LCAF types), refuses what the RFC says to refuse, and never
//! allocates more than the message is long.

mod types;

pub use types::*;
