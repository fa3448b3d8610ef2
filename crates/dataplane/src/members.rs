//! The locator-set of one mapping as a slot: members keep their places, buckets follow the weights.

use bpf_abi::{BUCKETS, MEMBERS, Member, NO_MEMBER, SlotValue};

use crate::buckets::{Share, assign};
use crate::table::Locator;

/// `locator` of a member whose place is free; no entry of `LOCATORS` has this index.
pub(crate) const NO_LOCATOR: u32 = u32::MAX;

/// A locator with its index in `LOCATORS`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Index in `LOCATORS`.
    pub(crate) index: u32,
    /// Whether flows may use it.
    pub(crate) usable: bool,
    /// What was asked for.
    pub(crate) locator: Locator,
}

/// The slot for `placed` (at most [`MEMBERS`]), as close to `previous` as the weights allow.
pub(crate) fn fill_slot(previous: Option<&SlotValue>, placed: &[Placed]) -> SlotValue {
    let free = Member { locator: NO_LOCATOR, usable: 0 };
    let mut members = [free; MEMBERS];
    let mut shares = [Share::default(); MEMBERS];
    let mut end = 0;
    for (place, placed) in places(previous, placed).into_iter().zip(placed) {
        members[place] = Member { locator: placed.index, usable: u32::from(placed.usable) };
        let Locator { priority, weight, .. } = placed.locator;
        shares[place] = Share { priority, weight: u32::from(weight), usable: placed.usable };
        end = end.max(place + 1);
    }
    let mut held = previous.map_or([NO_MEMBER; BUCKETS], |slot| slot.buckets);
    if let Some(slot) = previous {
        forget_moved(&mut held, slot, &members);
    }
    let buckets = assign(&held, &shares[..end]);
    SlotValue { member_count: u32::try_from(end).unwrap_or(0), pad: 0, members, buckets }
}

/// Buckets of a place that another locator has taken over belong to nobody.
fn forget_moved(held: &mut [u8; BUCKETS], previous: &SlotValue, members: &[Member; MEMBERS]) {
    for bucket in held {
        let place = usize::from(*bucket);
        let kept = members.get(place).is_some_and(|m| m.locator == previous.members[place].locator);
        if !kept {
            *bucket = NO_MEMBER;
        }
    }
}

/// The place of each locator: where it was, or the first free one.
fn places(previous: Option<&SlotValue>, placed: &[Placed]) -> Vec<usize> {
    let was = |index| previous.and_then(|slot| slot.members.iter().position(|m| m.locator == index));
    let kept: Vec<Option<usize>> = placed.iter().map(|p| was(p.index)).collect();
    let mut free = (0..MEMBERS).filter(|place| !kept.contains(&Some(*place))).collect::<Vec<_>>().into_iter();
    kept.iter().filter_map(|place| place.or_else(|| free.next())).collect()
}
