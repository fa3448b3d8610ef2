//! What the data path is told.

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::wire::{Action, EidPrefix};

/// A locator as the data path sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Locator {
    /// Where to encapsulate to.
    pub rloc: IpAddr,
    /// Lower wins; 255 must not be used.
    pub priority: u8,
    /// Share among the usable locators of the best priority.
    pub weight: u8,
    /// Priority is not 255, the R bit is set and probing has not found it down.
    pub usable: bool,
}

/// A change of the data path's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableDelta {
    /// Make this the mapping of `eid`.
    Set {
        /// The prefix.
        eid: EidPrefix,
        /// Sorted by address; empty for a negative mapping.
        locators: Vec<Locator>,
        /// What to do with packets when there are no locators.
        action: Action,
        /// Nonce of the publication that brought the mapping; `None` if it was pulled or only a probe changed it.
        nonce: Option<u64>,
    },
    /// Forget the mapping; what covers `eid` applies again.
    Remove {
        /// The prefix.
        eid: EidPrefix,
        /// Nonce of the publication that removed it.
        nonce: Option<u64>,
    },
}
