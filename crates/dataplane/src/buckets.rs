//! Weights to buckets with no move that the change of weights does not ask for.
//!
//! The buckets are the unit of what a weight change costs: a new flow follows its bucket, so as long as a bucket
//! keeps its locator the flows hashed into it need no entry to stay where they are.

use bpf_abi::{BUCKETS, MEMBERS, NO_MEMBER};

/// What a locator asks for; its place in the slice is its member index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Lower wins; members above the lowest usable priority get no buckets.
    pub priority: u8,
    /// Share among the members of the lowest usable priority.
    pub weight: u32,
    /// Whether new flows may go there at all (priority not 255, R bit, up, routed).
    pub usable: bool,
}

/// The new assignment: every member holds its quota, and the number of buckets that differ from `previous` is the sum
/// of what the members gain.
///
/// Members beyond [`MEMBERS`] are ignored. With nobody usable every bucket is [`NO_MEMBER`].
#[must_use]
pub fn assign(previous: &[u8; BUCKETS], members: &[Share]) -> [u8; BUCKETS] {
    let mut held = [0_usize; MEMBERS];
    for &bucket in previous {
        if let Some(count) = held.get_mut(usize::from(bucket)) {
            *count += 1;
        }
    }
    let quotas = quotas(members, &held);
    let mut room = quotas;
    let mut buckets = [NO_MEMBER; BUCKETS];
    for (bucket, &member) in buckets.iter_mut().zip(previous) {
        if let Some(left) = room.get_mut(usize::from(member)).filter(|left| **left > 0) {
            *left -= 1;
            *bucket = member;
        }
    }
    let mut gaining = room.iter().zip(0_u8..).flat_map(|(&left, member)| std::iter::repeat_n(member, left));
    for bucket in buckets.iter_mut().filter(|bucket| **bucket == NO_MEMBER) {
        *bucket = gaining.next().unwrap_or(NO_MEMBER);
    }
    buckets
}

/// How many buckets each member is to hold: largest remainders of `weight / sum`. Among equal remainders the member
/// that already holds more buckets wins, so that a tie moves nothing.
fn quotas(members: &[Share], held: &[usize; MEMBERS]) -> [usize; MEMBERS] {
    let mut quotas = [0; MEMBERS];
    let Some(best) = members.iter().take(MEMBERS).filter(|m| m.usable).map(|m| m.priority).min() else {
        return quotas;
    };
    let chosen = |m: &Share| m.usable && m.priority == best;
    let sum: u64 = members.iter().take(MEMBERS).filter(|m| chosen(m)).map(|m| u64::from(m.weight)).sum();
    // RFC 9300 §9 leaves the split to us when all weights are 0.
    let weight = |m: &Share| if sum == 0 { 1 } else { u64::from(m.weight) };
    let whole: u64 = members.iter().take(MEMBERS).filter(|m| chosen(m)).map(weight).sum();

    let mut remainders = Vec::with_capacity(MEMBERS);
    let mut given = 0;
    for (index, member) in members.iter().take(MEMBERS).enumerate().filter(|(_, m)| chosen(m)) {
        let scaled = weight(member) * BUCKETS as u64;
        let quota = usize::try_from(scaled / whole).unwrap_or(BUCKETS);
        quotas[index] = quota;
        given += quota;
        remainders.push((std::cmp::Reverse(scaled % whole), held[index] <= quota, index));
    }
    remainders.sort_unstable();
    for &(_, _, index) in remainders.iter().take(BUCKETS - given) {
        quotas[index] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: [u8; BUCKETS] = [NO_MEMBER; BUCKETS];

    fn share(priority: u8, weight: u32, usable: bool) -> Share {
        Share { priority, weight, usable }
    }

    fn counts(buckets: &[u8; BUCKETS]) -> [usize; 256] {
        let mut counts = [0; 256];
        buckets.iter().for_each(|&b| counts[usize::from(b)] += 1);
        counts
    }

    fn shares() -> impl Strategy<Value = Vec<Share>> {
        let one = (0_u8..3, prop_oneof![Just(0), 0_u32..=255], any::<bool>());
        proptest::collection::vec(one.prop_map(|(p, w, u)| share(p, w, u)), 0..=MEMBERS)
    }

    fn candidates(members: &[Share]) -> Vec<usize> {
        let best = members.iter().filter(|m| m.usable).map(|m| m.priority).min();
        (0..members.len()).filter(|&i| members[i].usable && Some(members[i].priority) == best).collect()
    }

    proptest! {
        #[test]
        fn share_error_is_below_one_bucket(members in shares()) {
            let counts = counts(&assign(&EMPTY, &members));
            let candidates = candidates(&members);
            let sum: u32 = candidates.iter().map(|&i| members[i].weight).sum();
            for (i, m) in members.iter().enumerate() {
                let wanted = match (candidates.contains(&i), sum) {
                    (false, _) => 0.0,
                    (true, 0) => 1.0 / candidates.len() as f64,
                    (true, _) => f64::from(m.weight) / f64::from(sum),
                };
                let got = counts[i] as f64 / BUCKETS as f64;
                prop_assert!((got - wanted).abs() < 1.0 / BUCKETS as f64, "member {i}: {got} of {wanted}");
                prop_assert!(wanted > 0.0 || counts[i] == 0);
            }
            prop_assert_eq!(counts[usize::from(NO_MEMBER)], if candidates.is_empty() { BUCKETS } else { 0 });
        }

        #[test]
        fn moves_are_the_sum_of_gains(before in shares(), after in shares()) {
            let old = assign(&EMPTY, &before);
            let new = assign(&old, &after);
            let moves = old.iter().zip(&new).filter(|(a, b)| a != b).count();
            let (had, has) = (counts(&old), counts(&new));
            let gains: usize = had.iter().zip(&has).map(|(h, n)| n.saturating_sub(*h)).sum();
            prop_assert_eq!(moves, gains);
        }

        #[test]
        fn same_weights_move_nothing(before in shares(), after in shares()) {
            let old = assign(&assign(&EMPTY, &before), &after);
            prop_assert_eq!(assign(&old, &after), old);
        }

        #[test]
        fn any_previous_table_is_accepted(previous in proptest::collection::vec(any::<u8>(), BUCKETS), members in shares()) {
            let previous: [u8; BUCKETS] = previous.try_into().unwrap();
            let new = assign(&previous, &members);
            let ok = candidates(&members);
            prop_assert!(new.iter().all(|&b| ok.contains(&usize::from(b)) || (ok.is_empty() && b == NO_MEMBER)));
        }
    }

    #[test]
    fn a_step_of_one_percent_moves_one_percent() {
        let old = assign(&EMPTY, &[share(1, 100, true), share(1, 0, true)]);
        let new = assign(&old, &[share(1, 99, true), share(1, 1, true)]);
        assert_eq!(old.iter().zip(&new).filter(|(a, b)| a != b).count(), 10);
    }

    #[test]
    fn a_tie_stays_with_its_holder() {
        let thirds = [share(1, 1, true); 3];
        let mut old = [0; BUCKETS];
        old[..341].fill(1);
        old[341..683].fill(2);
        assert_eq!(assign(&old, &thirds), old);
    }

    #[test]
    fn the_next_priority_takes_over_only_when_the_best_is_gone() {
        let members = [share(1, 1, true), share(2, 9, true)];
        assert!(assign(&EMPTY, &members).iter().all(|&b| b == 0));
        let members = [share(1, 1, false), share(2, 9, true)];
        assert!(assign(&EMPTY, &members).iter().all(|&b| b == 1));
    }
}
