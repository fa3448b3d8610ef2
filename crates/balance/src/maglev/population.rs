//! The first stage: every member claims, in turn, the next free slot of its own permutation.

use alloc::vec;
use alloc::vec::Vec;

use super::NO_MEMBER;
use super::hash::{offset, skip};

/// The table as published, and who claimed what when. Members are counted by their turn.
#[derive(Clone, Debug)]
pub(super) struct Population {
    /// Per slot.
    pub(super) owners: Vec<u16>,
    /// The slots of the first member in the order it claimed them, then those of the second, and so on.
    claims: Vec<u32>,
    /// Where the claims of each member start; one more says where the last end.
    starts: Vec<u32>,
}

impl Population {
    /// `slots` is prime, the names differ.
    pub(super) fn new(slots: u32, names: &[&str]) -> Self {
        let starts = starts(slots, names.len());
        let mut claims = vec![0; starts.last().map_or(0, |end| *end as usize)];
        let mut owners = vec![NO_MEMBER; slots as usize];
        let mut walks: Vec<Walk> = names.iter().map(|name| Walk::new(name, slots)).collect();
        let turns = (0..).flat_map(|round| (0..NO_MEMBER).take(names.len()).map(move |turn| (round, turn)));
        for (round, turn) in turns.take(claims.len()) {
            let member = usize::from(turn);
            let slot = walks[member].next_free(&owners, slots);
            owners[slot as usize] = turn;
            claims[starts[member] as usize + round] = slot;
        }
        Self { owners, claims, starts }
    }

    /// The slots of one member, first claim first.
    pub(super) fn claims(&self, turn: usize) -> &[u32] {
        &self.claims[self.starts[turn] as usize..self.starts[turn + 1] as usize]
    }

    /// How many slots each member claimed.
    pub(super) fn counts(&self) -> Vec<u32> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// A member on its way along its permutation. Its `skip` is prime to the number of slots: it sees them all.
struct Walk {
    next: u32,
    skip: u32,
}

impl Walk {
    fn new(name: &str, slots: u32) -> Self {
        Self { next: offset(name, slots), skip: skip(name, slots) }
    }

    /// There is one, or it walks for ever.
    fn next_free(&mut self, owners: &[u16], slots: u32) -> u32 {
        loop {
            let slot = self.next;
            self.next += self.skip;
            if self.next >= slots {
                self.next -= slots;
            }
            if owners[slot as usize] == NO_MEMBER {
                return slot;
            }
        }
    }
}

/// Turns are equal: slots / members for everyone, and one more for the first slots % members.
fn starts(slots: u32, members: usize) -> Vec<u32> {
    let Some(count) = u32::try_from(members).ok().filter(|members| *members > 0) else {
        return Vec::new();
    };
    (0..=count).map(|turn| slots / count * turn + (slots % count).min(turn)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_counted_before_they_are_made() {
        assert_eq!(starts(11, 3), [0, 4, 8, 11]);
        assert_eq!(starts(3, 5), [0, 1, 2, 3, 3, 3]);
        assert!(starts(11, 0).is_empty());
        let population = Population::new(11, &["a", "b", "c"]);
        for turn in 0..3u16 {
            assert!(
                population.claims(usize::from(turn)).iter().all(|s| population.owners[*s as usize] == turn)
            );
        }
        assert_eq!(population.counts(), [4, 4, 3]);
    }

    #[test]
    fn a_table_is_what_it_was() {
        let population = Population::new(13, &["edge-1", "edge-2", "edge-3"]);
        assert_eq!(population.owners, [0, 1, 0, 0, 2, 2, 0, 0, 2, 1, 1, 1, 2]);
    }
}
