//! Which member of a site takes which flow: a Maglev table with weights.
//!
//! A table has M slots, a flow's hash picks one, the slot names a member. It is made in two stages, each a
//! function of names, weights and M alone: nodes of a group that know the same members have the same
//! table, whatever each of them went through and in whatever order it lists them.
//!
//! 1. [`Base`]: Maglev as published (Eisenbud et al., NSDI 2016, section 3.4) over all configured members
//!    without their weights; turns go round in the order of the names.
//! 2. Quotas: every member's share of M in whole slots. Who has more in the base gives away what it
//!    claimed last, who has less takes from that.
//!
//! With equal weights nothing is left to the second stage and the table is the published one. Of equal
//! members one that fails moves its own slots and no other; [`Base::table_with_down`] gives that for any
//! weights.
//!
//! A change of weights moves what the quotas ask for, the sum of max(0, new - old), and an excess. No table
//! without memory can do without it for every change among three or more members: the slots S_i of a member
//! whose quota q_i stays would have to stay, so S_i would depend on q_i alone. From q = (M - k, k, 0) and
//! (M - k, 0, k) follows that S_2(k) and S_3(k) are both the complement of S_1(M - k), so S_2(k) = S_3(k);
//! but at (M - 2k, k, k) they must be disjoint. docs/decisions/0009-weighted-maglev-in-two-stages.md has the
//! excess in figures.

mod deal;
mod hash;
mod population;
mod quotas;
mod size;

use alloc::string::String;
use alloc::vec::Vec;

use deal::deal;
use population::Population;
use quotas::quotas;

pub use size::{TableSize, TableSizeError};

/// The owner of a slot that nobody takes: there is no member, or none has a weight.
pub const NO_MEMBER: u16 = 0xffff;

/// Members of one table at most: an index is 16 bits wide and [`NO_MEMBER`] is none.
pub const MAX_MEMBERS: usize = NO_MEMBER as usize;

/// One that may take flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// What its slots are computed from, so one name on all nodes of a group and for its whole life.
    pub name: &'a str,
    /// Its part of the flows, relative to the sum of all; 0 takes none.
    pub weight: u32,
}

/// Why there is no table for a list of members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaglevError {
    /// More members than a slot can name.
    #[error("{0} members, a table names at most 65535")]
    TooManyMembers(usize),
    /// Two members of one name.
    #[error("member {0} occurs twice")]
    Twice(String),
}

/// The table of `members`: per slot an index into them, or [`NO_MEMBER`].
///
/// # Errors
/// As [`Base::new`].
pub fn table(size: TableSize, members: &[Member<'_>]) -> Result<Vec<u16>, MaglevError> {
    let names: Vec<&str> = members.iter().map(|member| member.name).collect();
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    Ok(Base::new(size, &names)?.table(&weights))
}

/// The published table of a set of members, from which their weights make others.
///
/// It costs a few times what a table costs that is made from it, so it is kept while only weights change.
#[derive(Clone, Debug)]
pub struct Base {
    size: TableSize,
    /// Turn to index in the list of the caller. All that is private counts members by their turn.
    order: Vec<u16>,
    /// By turn: what decides between members that are equal otherwise.
    ties: Vec<u64>,
    population: Population,
}

impl Base {
    /// Lets the members called `names` claim all slots in turn.
    ///
    /// With more members than slots, those whose names come last claim none.
    ///
    /// # Errors
    /// [`MaglevError`] for too many names, or one that occurs twice.
    pub fn new(size: TableSize, names: &[&str]) -> Result<Self, MaglevError> {
        if names.len() > MAX_MEMBERS {
            return Err(MaglevError::TooManyMembers(names.len()));
        }
        let mut order: Vec<u16> = (0..NO_MEMBER).take(names.len()).collect();
        order.sort_unstable_by_key(|index| names[usize::from(*index)].as_bytes());
        let sorted: Vec<&str> = order.iter().map(|index| names[usize::from(*index)]).collect();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MaglevError::Twice(twice[0].into()));
        }
        let ties = sorted.iter().map(|name| hash::tie(name)).collect();
        let population = Population::new(size.get(), &sorted);
        Ok(Self { size, order, ties, population })
    }

    /// The size given to [`Base::new`].
    #[must_use]
    pub const fn size(&self) -> TableSize {
        self.size
    }

    /// Per slot an index into the names given to [`Base::new`], or [`NO_MEMBER`].
    ///
    /// `weights` are in the order of the names; a member without one has 0. The number of slots of a member
    /// is the whole number below or above its share of the sum of weights.
    #[must_use]
    pub fn table(&self, weights: &[u32]) -> Vec<u16> {
        let weights = self.by_turn(weights);
        self.by_index(self.by_weight(&weights).owners)
    }

    /// The table of `weights` in which the members that are `down` are stood in for.
    ///
    /// Their slots, and no others, go to the members that are up, by weight; who is not listed in `down` is
    /// up. Weight 0 in [`Base::table`] gives the same shares but, where weights differ, moves more: without
    /// its former weight it is not known which slots the member had. Shares are within two slots.
    #[must_use]
    pub fn table_with_down(&self, weights: &[u32], down: &[bool]) -> Vec<u16> {
        let (mut weights, down) = (self.by_turn(weights), self.by_turn(down));
        let Assignment { mut owners, held } = self.by_weight(&weights);
        let is_down = |turn: u16| down.get(usize::from(turn)).is_some_and(|down| *down);
        let mut released = 0;
        for owner in owners.iter_mut().filter(|owner| is_down(**owner)) {
            *owner = NO_MEMBER;
            released += 1;
        }
        for (weight, _) in weights.iter_mut().zip(&down).filter(|(_, down)| **down) {
            *weight = 0;
        }
        let quotas = quotas(self.size.get(), &weights, &held, &self.ties);
        deal(&mut owners, &self.population.owners, room_for(released, &quotas, &held));
        self.by_index(owners)
    }

    /// The second stage.
    fn by_weight(&self, weights: &[u32]) -> Assignment {
        let claimed = self.population.counts();
        let quotas = quotas(self.size.get(), weights, &claimed, &self.ties);
        let mut owners = self.population.owners.clone();
        for (turn, quota) in quotas.iter().enumerate() {
            for slot in self.population.claims(turn).iter().skip(*quota as usize) {
                owners[*slot as usize] = NO_MEMBER;
            }
        }
        let room =
            quotas.iter().zip(&claimed).map(|(quota, claimed)| quota.saturating_sub(*claimed)).collect();
        deal(&mut owners, &self.population.owners, room);
        Assignment { owners, held: quotas }
    }

    fn by_turn<T: Copy + Default>(&self, values: &[T]) -> Vec<T> {
        self.order.iter().map(|index| values.get(usize::from(*index)).copied().unwrap_or_default()).collect()
    }

    fn by_index(&self, mut owners: Vec<u16>) -> Vec<u16> {
        for owner in &mut owners {
            *owner = self.order.get(usize::from(*owner)).copied().unwrap_or(NO_MEMBER);
        }
        owners
    }
}

/// Members by turn.
struct Assignment {
    /// Per slot.
    owners: Vec<u16>,
    /// Slots per member.
    held: Vec<u32>,
}

/// What each member may take of `released` slots to come to its quota while none gives any.
///
/// A member can hold one slot more than its new quota, for largest remainders are not monotone; another is
/// then left one short.
fn room_for(released: u32, quotas: &[u32], held: &[u32]) -> Vec<u32> {
    let mut room: Vec<u32> =
        quotas.iter().zip(held).map(|(quota, held)| quota.saturating_sub(*held)).collect();
    let short = room.iter().sum::<u32>().saturating_sub(released);
    for room in room.iter_mut().filter(|room| **room > 0).take(short as usize) {
        *room -= 1;
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(slots: u32) -> TableSize {
        TableSize::new(slots).unwrap()
    }

    #[test]
    fn no_member_owns_nothing() {
        assert_eq!(table(size(251), &[]).unwrap(), [NO_MEMBER; 251]);
        let idle = [Member { name: "a", weight: 0 }, Member { name: "b", weight: 0 }];
        assert_eq!(table(size(251), &idle).unwrap(), [NO_MEMBER; 251]);
    }

    #[test]
    fn a_list_that_has_no_table() {
        assert_eq!(Base::new(size(251), &["b", "a", "b"]).unwrap_err(), MaglevError::Twice("b".into()));
        let names = alloc::vec!["a"; 65_536];
        assert_eq!(Base::new(size(251), &names).unwrap_err(), MaglevError::TooManyMembers(65_536));
    }

    #[test]
    fn weights_too_few_are_zero_and_too_many_are_nobody_s() {
        let base = Base::new(size(251), &["a", "b"]).unwrap();
        assert_eq!(base.table(&[7]), [0; 251]);
        assert_eq!(base.table(&[0, 7, 9]), [1; 251]);
        assert_eq!(base.table_with_down(&[1, 1], &[true]), [1; 251]);
        assert_eq!(base.table_with_down(&[1, 1], &[true, true, false]), [NO_MEMBER; 251]);
    }

    #[test]
    fn a_slot_too_many_leaves_others_one_short() {
        assert_eq!(room_for(4, &[5, 3, 4, 0], &[2, 4, 2, 5]), [2, 0, 2, 0]);
        assert_eq!(room_for(5, &[5, 4, 4, 0], &[2, 4, 2, 5]), [3, 0, 2, 0]);
    }
}
