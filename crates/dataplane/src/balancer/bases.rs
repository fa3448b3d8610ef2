//! Tables of slots from lists of backends.

use std::collections::BTreeMap;

use balance::maglev::{Base, MaglevError, NO_MEMBER, TableSize};
use bpf_abi::balancer::VipKey;

use crate::balancer::desired::{Backend, Vip};

/// What tables are made from, kept while the names of a VIP's backends stay: it costs more than a table does.
#[derive(Debug, Default)]
pub(crate) struct Bases(BTreeMap<VipKey, Named>);

#[derive(Debug)]
struct Named {
    names: Vec<String>,
    base: Base,
}

/// Size of a VIP's table.
pub(crate) fn table_size(vip: &Vip) -> TableSize {
    vip.table_size.unwrap_or_else(|| TableSize::default_for(vip.backends.len()))
}

impl Bases {
    /// The table of a VIP whose backends have these `indices`: an index per slot, or no slot if no backend takes new
    /// flows.
    ///
    /// # Errors
    /// If there are too many backends or two of one name.
    pub(crate) fn slots(&mut self, vip: &Vip, indices: &[u16]) -> Result<Vec<u16>, MaglevError> {
        let mut order: Vec<(&Backend, u16)> = vip.backends.iter().zip(indices.iter().copied()).collect();
        order.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let base = self.base(vip, &order)?;
        let weights: Vec<u32> = order.iter().map(|(backend, _)| backend.weight).collect();
        let down: Vec<bool> = order.iter().map(|(backend, _)| !backend.usable).collect();
        let mut slots = base.table_with_down(&weights, &down);
        if slots.first() == Some(&NO_MEMBER) {
            return Ok(Vec::new());
        }
        for slot in &mut slots {
            *slot = order[usize::from(*slot)].1;
        }
        Ok(slots)
    }

    /// Keeps those of the VIPs that are left.
    pub(crate) fn retain(&mut self, is_left: impl Fn(&VipKey) -> bool) {
        self.0.retain(|key, _| is_left(key));
    }

    fn base(&mut self, vip: &Vip, order: &[(&Backend, u16)]) -> Result<&Base, MaglevError> {
        let (key, size) = (vip.id.key(), table_size(vip));
        let names = || order.iter().map(|(backend, _)| backend.name.as_str());
        let known = self.0.get(&key);
        if !known.is_some_and(|known| known.base.size() == size && known.names.iter().eq(names())) {
            let base = Base::new(size, &names().collect::<Vec<_>>())?;
            let names = names().map(str::to_owned).collect();
            self.0.insert(key, Named { names, base });
        }
        Ok(&self.0[&key].base)
    }
}
