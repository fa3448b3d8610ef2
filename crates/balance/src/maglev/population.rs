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
        let mut free = Free::new(slots);
        let turns = (0..).flat_map(|round| (0..NO_MEMBER).take(names.len()).map(move |turn| (round, turn)));
        for (round, turn) in turns.take(claims.len()) {
            let member = usize::from(turn);
            let slot = free.take_first(&mut walks[member]);
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

    /// The next slot of the permutation.
    fn step(&mut self, slots: u32) -> u32 {
        let slot = self.next;
        self.next += self.skip;
        if self.next >= slots {
            self.next -= slots;
        }
        slot
    }
}

/// The slots that nobody has claimed.
struct Free {
    slots: u32,
    /// A bit for each: a walk of a large table stays in the processor's cache.
    bits: Vec<u64>,
    count: u32,
    /// All of them, once they are [`Self::few`].
    listed: Vec<u32>,
}

impl Free {
    fn new(slots: u32) -> Self {
        Self { slots, bits: vec![u64::MAX; slots.div_ceil(64) as usize], count: slots, listed: Vec::new() }
    }

    /// Takes the first on the way of a member. There is one, or it walks for ever.
    fn take_first(&mut self, walk: &mut Walk) -> u32 {
        let slot = if self.few() { self.nearest(walk) } else { self.stepped(walk) };
        self.bits[slot as usize / 64] &= !(1 << (slot % 64));
        self.count -= 1;
        slot
    }

    /// Whether it takes less to ask each of them how far away it is than to walk: slots / count steps on average. All
    /// walks together are slots * ln(slots) steps, and half of them come after this.
    const fn few(&self) -> bool {
        self.count as u64 * self.count as u64 <= self.slots as u64
    }

    fn stepped(&self, walk: &mut Walk) -> u32 {
        loop {
            let slot = walk.step(self.slots);
            if self.is_free(slot) {
                return slot;
            }
        }
    }

    fn nearest(&mut self, walk: &mut Walk) -> u32 {
        if self.listed.is_empty() {
            self.listed = (0..self.slots).filter(|slot| self.is_free(*slot)).collect();
        }
        let slots = self.slots;
        let inverse = inverse(walk.skip, slots);
        let steps = |slot: u32| u64::from(slot + slots - walk.next) * inverse % u64::from(slots);
        let nearest = (0..self.listed.len()).min_by_key(|at| steps(self.listed[*at]));
        let Some(at) = nearest else { return self.stepped(walk) };
        walk.next = self.listed.swap_remove(at);
        walk.step(slots)
    }

    fn is_free(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] >> (slot % 64) & 1 != 0
    }
}

/// What gives 1 modulo a prime when multiplied with `value`, which is from 1 to below the prime: Euclid's algorithm
/// without the factor of the prime.
fn inverse(value: u32, prime: u32) -> u64 {
    let prime = i64::from(prime);
    let (mut rest, mut next_rest) = (prime, i64::from(value));
    let (mut factor, mut next_factor) = (0, 1);
    while next_rest != 0 {
        let quotient = rest / next_rest;
        (rest, next_rest) = (next_rest, rest - quotient * next_rest);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(prime).unsigned_abs()
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
    fn the_last_slots_are_found_without_walking() {
        for slots in [13, 251, 4093] {
            for members in [1, 2, 7, 100] {
                let names: Vec<_> = (0..members).map(|number| alloc::format!("server-{number}")).collect();
                let names: Vec<&str> = names.iter().map(alloc::string::String::as_str).collect();
                let mut owners = vec![NO_MEMBER; slots as usize];
                let mut walks: Vec<Walk> = names.iter().map(|name| Walk::new(name, slots)).collect();
                for turn in (0..members).cycle().take(slots as usize) {
                    let walk = &mut walks[usize::from(turn)];
                    let mut slot = walk.step(slots);
                    while owners[slot as usize] != NO_MEMBER {
                        slot = walk.step(slots);
                    }
                    owners[slot as usize] = turn;
                }
                assert_eq!(Population::new(slots, &names).owners, owners, "{members} of {slots}");
            }
        }
    }

    #[test]
    fn inverses_give_one() {
        for prime in [2, 3, 251, 4093, 1_048_573] {
            for value in (1..prime).step_by(1 + prime as usize / 100) {
                let one = inverse(value, prime) * u64::from(value) % u64::from(prime);
                assert_eq!(one, 1, "{value} of {prime}");
            }
        }
    }

    #[test]
    fn a_table_is_what_it_was() {
        let population = Population::new(13, &["edge-1", "edge-2", "edge-3"]);
        assert_eq!(population.owners, [0, 1, 0, 0, 2, 2, 0, 0, 2, 1, 1, 1, 2]);
    }
}
