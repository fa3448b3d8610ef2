//! Slots that nobody owns go to members that have room.

use alloc::vec::Vec;

use super::NO_MEMBER;
use super::hash::mix;

/// How often a slot draws a member before it takes the next that has room. More draws move less when
/// weights change, by little from here on, and cost time where few members have room.
const DRAWS: u32 = 8;

/// Gives every free slot of `owners` to a member with `room`, while there is any.
///
/// The slots choose, in their own order, each by draws of its own: who takes a slot depends on the other
/// slots and on the other members only where a member has no more room, so a small change of the free slots
/// or of the room moves few. Members are drawn from the slots of the `base`, which gives equal chances
/// and hardly other ones when a member is added.
pub(super) fn deal(owners: &mut [u16], base: &[u16], room: Vec<u32>) {
    let mut receivers = Receivers::new(room);
    let mut free = (0u64..).zip(owners).filter(|(_, owner)| **owner == NO_MEMBER);
    while receivers.left > 0
        && let Some((slot, owner)) = free.next()
    {
        *owner = receivers.take_one(slot, base);
    }
}

struct Receivers {
    room: Vec<u32>,
    /// Sum of `room`.
    left: u64,
    /// For a member without room: a later one (cyclically), none with room between them.
    later: Vec<u16>,
}

impl Receivers {
    fn new(room: Vec<u32>) -> Self {
        let left = room.iter().copied().map(u64::from).sum();
        let later = (1..NO_MEMBER).take(room.len().saturating_sub(1)).chain([0]).collect();
        Self { room, left, later }
    }

    /// The member that takes `slot`. There is room somewhere.
    fn take_one(&mut self, slot: u64, base: &[u16]) -> u16 {
        let mut seed = slot;
        let mut member = 0;
        for _ in 0..DRAWS {
            // Murmur's finalizer leaves 0 at 0; the increment is the golden ratio, as in SplitMix64.
            seed = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
            member = base[scaled(seed, base.len())];
            if self.room[usize::from(member)] > 0 {
                break;
            }
        }
        let member = self.from(member);
        self.room[usize::from(member)] -= 1;
        self.left -= 1;
        member
    }

    /// `member`, or the first after it that has room.
    fn from(&mut self, mut member: u16) -> u16 {
        while self.room[usize::from(member)] == 0 {
            let later = self.later[usize::from(member)];
            if self.room[usize::from(later)] == 0 {
                // Halves the way for the next that comes along here.
                self.later[usize::from(member)] = self.later[usize::from(later)];
            }
            member = later;
        }
        member
    }
}

/// A hash as an index below `length`, by its upper half: `length` is below 2^32.
const fn scaled(hash: u64, length: usize) -> usize {
    (((hash >> 32) * length as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn only_free_slots_are_dealt_and_only_to_who_has_room() {
        let base = [0, 1, 2, 0, 1, 2, 0];
        let mut owners = [NO_MEMBER, 1, NO_MEMBER, NO_MEMBER, 1, 2, NO_MEMBER];
        deal(&mut owners, &base, vec![1, 0, 3]);
        assert_eq!([owners[1], owners[4], owners[5]], [1, 1, 2]);
        assert_eq!(owners.iter().filter(|o| **o == 0).count(), 1);
        assert_eq!(owners.iter().filter(|o| **o == 2).count(), 4);
    }

    #[test]
    fn what_finds_no_room_stays_free() {
        let mut owners = [NO_MEMBER; 5];
        deal(&mut owners, &[0, 1, 0, 1, 0], vec![1, 2]);
        assert_eq!(owners.iter().filter(|o| **o == NO_MEMBER).count(), 2);
        deal(&mut owners, &[NO_MEMBER; 5], vec![]);
        assert_eq!(owners.iter().filter(|o| **o == NO_MEMBER).count(), 2);
    }

    #[test]
    fn the_way_to_room_is_found_round_the_end() {
        let mut receivers = Receivers::new(vec![0, 0, 1, 0, 0]);
        assert_eq!([receivers.from(3), receivers.from(4), receivers.from(0), receivers.from(2)], [2; 4]);
    }
}
