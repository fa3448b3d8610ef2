//! A change, from what is wanted to what is noted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use codec::Instant;

use crate::balancer::bases::Bases;
use crate::balancer::check::check;
use crate::balancer::chunks::GRACE;
use crate::balancer::desired::Vip;
use crate::balancer::maps::{Maps, TableMemory};
use crate::balancer::observed::{Observed, Write};
use crate::balancer::plan::{InForce, Plan, plan};
use crate::balancer::table::Memory;
use crate::error::DataplaneError;

/// What a change came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Writes to the kernel's maps; 0 when everything was as wanted.
    pub writes: usize,
    /// VIPs whose table was replaced.
    pub tables: usize,
    /// Slots of these that name another backend than before.
    pub moved_slots: u64,
}

/// The kernel's maps, and what is known of them.
pub(crate) struct State<M> {
    pub(crate) maps: M,
    pub(crate) observed: Observed,
    pub(crate) in_force: InForce,
    /// The last change came to its end.
    settled: bool,
    bases: Bases,
}

/// Where planned writes are made.
pub(crate) trait Target {
    /// Reads tables.
    type Memory: Memory;
    /// The tables.
    fn memory(&self) -> &Self::Memory;
    /// Makes one write.
    fn write(&mut self, write: &Write) -> Result<(), DataplaneError>;
}

impl Target for Maps {
    type Memory = TableMemory;

    fn memory(&self) -> &Self::Memory {
        self.tables()
    }

    fn write(&mut self, write: &Write) -> Result<(), DataplaneError> {
        Self::write(self, write)
    }
}

impl<M: Target> State<M> {
    pub(crate) fn new(maps: M, observed: Observed) -> Self {
        Self { maps, observed, in_force: InForce::new(), settled: false, bases: Bases::default() }
    }

    /// [`Balancer::apply`](super::Balancer::apply). `clock` goes on while tables are computed and written: what a write
    /// replaces may be read for [`GRACE`] from then on.
    pub(crate) fn apply(
        &mut self,
        clock: &dyn Fn() -> Instant,
        desired: &[Vip],
        vteps: &[IpAddr],
    ) -> Result<Applied, DataplaneError> {
        let now = clock();
        self.observed.chunks.cool_down(now);
        if self.settled && self.is_in_force(desired) {
            return Ok(Applied::default());
        }
        let wrong = check(desired, vteps);
        if !wrong.is_empty() {
            return Err(DataplaneError::Vips(wrong));
        }
        self.observed.chunks.forget_unpublished();
        let nothing = InForce::new();
        let in_force = if self.settled { &self.in_force } else { &nothing };
        let memory = self.maps.memory();
        let plan = plan(now, desired, in_force, &self.observed, memory, &mut self.bases)
            .map_err(DataplaneError::Vips)?;
        let applied =
            Applied { writes: plan.writes.len(), tables: plan.tables, moved_slots: plan.moved_slots };
        self.carry_out(clock, plan, desired)?;
        Ok(applied)
    }

    fn is_in_force(&self, desired: &[Vip]) -> bool {
        let same = |vip: &Vip| self.in_force.get(&vip.id.key()).is_some_and(|placed| placed.vip == *vip);
        // As many and each of them; a VIP that is there twice is found when something else changes.
        desired.len() == self.in_force.len() && desired.iter().all(same)
    }

    fn carry_out(
        &mut self,
        clock: &dyn Fn() -> Instant,
        plan: Plan,
        desired: &[Vip],
    ) -> Result<(), DataplaneError> {
        // After a change that did not come to its end nothing is given up: the next one counts anew.
        self.settled = false;
        self.observed.drains.clear();
        self.observed.retired.clear();
        for write in &plan.writes {
            self.maps.write(write)?;
            self.observed.record(write, clock());
        }
        let let_go = clock() + GRACE;
        self.observed.drains = plan.drains;
        self.observed.retired = plan.retired.into_iter().map(|(index, at)| (index, at.max(let_go))).collect();
        let keys: BTreeSet<_> = desired.iter().map(|vip| vip.id.key()).collect();
        self.in_force.retain(|key, _| keys.contains(key));
        self.bases.retain(|key| keys.contains(key));
        self.in_force.extend(plan.placed);
        self.settled = true;
        Ok(())
    }

    /// [`Balancer::handle_timeout`](super::Balancer::handle_timeout).
    pub(crate) fn handle_timeout(&mut self, clock: &dyn Fn() -> Instant) -> Result<(), DataplaneError> {
        let now = clock();
        self.observed.chunks.cool_down(now);
        for write in self.observed.expired(now) {
            self.maps.write(&write)?;
            self.observed.record(&write, clock());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
