//! The Maglev table against the pseudo code of the paper and a plain second stage, both written from their
//! descriptions with explicit permutations, and against what it promises.
#![expect(clippy::unwrap_used, reason = "literals that are right")]
#![expect(clippy::cast_possible_truncation, reason = "what is narrowed was reduced modulo a small number")]

use std::collections::BTreeMap;

use balance::maglev::{Base, MaglevError, Member, NO_MEMBER, TableSize, table};
use proptest::prelude::*;

/// Weights by name: the oracle knows no other order.
type Weights = BTreeMap<String, u32>;
/// Per slot the name of its owner.
type Owners = Vec<Option<String>>;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("10.{}.{}.{}:8080", i % 7, i / 250, i % 250)).collect()
}

fn site(weights: &[u32]) -> Weights {
    names(weights.len()).into_iter().zip(weights.iter().copied()).collect()
}

fn size(slots: u32) -> TableSize {
    TableSize::new(slots).unwrap()
}

/// The table of the crate with names for indices.
fn owners(size: TableSize, weights: &Weights) -> Owners {
    let members: Vec<Member<'_>> =
        weights.iter().map(|(name, weight)| Member { name, weight: *weight }).collect();
    let named = |i: u16| members.get(usize::from(i)).map(|member| member.name.to_owned());
    table(size, &members).unwrap().into_iter().map(named).collect()
}

fn finalize(mut k: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        k = (k ^ (k >> 33)).wrapping_mul(factor);
    }
    k ^ (k >> 33)
}

fn hash(name: &str, constant: u64) -> u64 {
    let mut hash = 14_695_981_039_346_656_037_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211);
    }
    finalize(hash ^ constant)
}

fn permutation(name: &str, m: u64) -> Vec<usize> {
    let offset = hash(name, 0x243f_6a88_85a3_08d3) % m;
    let skip = hash(name, 0x1319_8a2e_0370_7344) % (m - 1) + 1;
    (0..m).map(|j| ((offset + j * skip) % m) as usize).collect()
}

/// Pseudo code 1 of the paper, and the slots of each member in the order of their claims.
fn populate(names: &[&str], m: usize) -> (Vec<usize>, Vec<Vec<usize>>) {
    let permutation: Vec<Vec<usize>> = names.iter().map(|name| permutation(name, m as u64)).collect();
    let mut next = vec![0; names.len()];
    let mut entry = vec![None; m];
    let mut claims = vec![Vec::new(); names.len()];
    let mut n = 0;
    loop {
        for i in 0..names.len() {
            let mut c = permutation[i][next[i]];
            while entry[c].is_some() {
                next[i] += 1;
                c = permutation[i][next[i]];
            }
            entry[c] = Some(i);
            claims[i].push(c);
            next[i] += 1;
            n += 1;
            if n == m {
                return (entry.into_iter().map(Option::unwrap).collect(), claims);
            }
        }
    }
}

/// The published table of `names`.
fn paper<'a>(names: impl Iterator<Item = &'a String>, m: usize) -> Owners {
    let names: Vec<&str> = names.map(String::as_str).collect();
    populate(&names, m).0.into_iter().map(|i| Some(names[i].to_owned())).collect()
}

/// Both stages: quotas by sorting, release from the end, draws by trial and, after eight, round the list.
fn oracle(weights: &Weights, m: usize) -> Owners {
    let names: Vec<&str> = weights.keys().map(String::as_str).collect();
    let weight: Vec<u128> = weights.values().map(|w| u128::from(*w)).collect();
    let (entry, mut claims) = populate(&names, m);
    let claimed: Vec<usize> = claims.iter().map(Vec::len).collect();
    let quota = oracle_quotas(&names, &weight, &claimed, m);
    let mut result: Vec<Option<usize>> = entry.iter().copied().map(Some).collect();
    for (i, claims) in claims.iter_mut().enumerate() {
        while claims.len() > quota[i] {
            result[claims.pop().unwrap()] = None;
        }
    }
    let mut room: Vec<usize> = quota.iter().zip(&claimed).map(|(q, c)| q.saturating_sub(*c)).collect();
    for (slot, owner) in result.iter_mut().enumerate() {
        if owner.is_none() && room.iter().any(|room| *room > 0) {
            let mut seed = slot as u64;
            let draws = (0..8).map(|_| {
                seed = finalize(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
                entry[((seed >> 32) as usize * m) >> 32]
            });
            let draws: Vec<usize> = draws.collect();
            let ring = (0..names.len()).map(|k| (draws[7] + k) % names.len());
            let receiver = draws.iter().copied().chain(ring).find(|i| room[*i] > 0).unwrap();
            room[receiver] -= 1;
            *owner = Some(receiver);
        }
    }
    result.into_iter().map(|owner| owner.map(|i| names[i].to_owned())).collect()
}

fn oracle_quotas(names: &[&str], weight: &[u128], claimed: &[usize], m: usize) -> Vec<usize> {
    let sum: u128 = weight.iter().sum();
    if sum == 0 {
        return vec![0; names.len()];
    }
    let mut quota: Vec<usize> = weight.iter().map(|w| (m as u128 * w / sum) as usize).collect();
    while quota.iter().sum::<usize>() < m {
        let open = (0..names.len()).filter(|i| {
            let exact = m as u128 * weight[*i];
            (quota[*i] as u128 * sum) < exact
        });
        let best = open.min_by_key(|i| {
            let fraction = m as u128 * weight[*i] % sum;
            (claimed[*i] != quota[*i] + 1, sum - fraction, hash(names[*i], 0), names[*i])
        });
        quota[best.unwrap()] += 1;
    }
    quota
}

fn counts(table: &[u16], members: usize) -> Vec<u32> {
    let mut counts = vec![0; members];
    table.iter().filter(|owner| **owner != NO_MEMBER).for_each(|owner| counts[usize::from(*owner)] += 1);
    counts
}

fn moved<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// What the change of the numbers of slots asks for.
fn asked(a: &[u16], b: &[u16], members: usize) -> usize {
    let gained = counts(a, members).into_iter().zip(counts(b, members)).map(|(a, b)| b.saturating_sub(a));
    gained.sum::<u32>() as usize
}

fn base_of(size: TableSize, members: usize) -> Base {
    let names = names(members);
    Base::new(size, &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

#[test]
fn equal_weights_are_the_paper_s_table() {
    for (members, slots) in [(1, 251), (2, 251), (3, 1021), (255, 2039), (40, 4093), (251, 251)] {
        for weight in [1, 100, u32::MAX] {
            let weights = site(&vec![weight; members]);
            assert_eq!(
                owners(size(slots), &weights),
                paper(weights.keys(), slots as usize),
                "{members} {slots}"
            );
        }
    }
}

#[test]
fn a_member_more_or_less_moves_what_it_moves_in_the_paper_s_table() {
    let slots = 4093;
    let all = site(&[1; 41]);
    let before = owners(size(slots), &all);
    for gone in all.keys() {
        let mut rest = all.clone();
        rest.remove(gone);
        let after = owners(size(slots), &rest);
        let published = moved(&paper(all.keys(), slots as usize), &paper(rest.keys(), slots as usize));
        assert_eq!(moved(&before, &after), published);
    }
}

#[test]
fn one_of_equal_members_that_fails_moves_its_slots_alone() {
    // 255 members at 8191 slots: some have a slot more than others before and after.
    for (members, slots) in [(3, 1021), (10, 1021), (255, 8191), (255, 32_749)] {
        let base = base_of(size(slots), members);
        let mut weights = vec![3; members];
        let before = base.table(&weights);
        for failed in 0..members {
            weights[failed] = 0;
            let after = base.table(&weights);
            assert_eq!(moved(&before, &after), counts(&before, members)[failed] as usize);
            weights[failed] = 3;
        }
    }
}

/// Slots moved beyond what is asked for, per thousand slots of the table, the mean over the members changed.
fn excess(members: usize, weights: &[u32], change: impl Fn(u32) -> u32) -> usize {
    let size = TableSize::default_for(members);
    let base = base_of(size, members);
    let before = base.table(weights);
    let changed = members.min(10);
    let excess = (0..changed).map(|i| {
        let mut weights = weights.to_vec();
        weights[i] = change(weights[i]);
        let after = base.table(&weights);
        moved(&before, &after) - asked(&before, &after, members)
    });
    excess.sum::<usize>() * 1000 / changed / size.get() as usize
}

#[test]
fn the_excess_of_a_change_is_what_the_record_says() {
    for members in [3, 10, 255] {
        let equal = vec![100; members];
        for change in [|w| w * 11 / 10, |w| w * 9 / 10, |w| w * 2, |w| w / 2, |_| 0] {
            assert_eq!(excess(members, &equal, change), 0);
        }
    }
    let mixed: Vec<u32> = (0..255).map(|i| [100, 200, 400][i % 3]).collect();
    for (members, tenth, half, double) in [(3, 3, 15, 18), (10, 9, 26, 26), (255, 2, 4, 7)] {
        let weights = &mixed[..members];
        assert!(excess(members, weights, |w| w * 11 / 10) <= tenth);
        assert!(excess(members, weights, |w| w * 9 / 10) <= tenth);
        assert!(excess(members, weights, |w| w / 2) <= half);
        assert!(excess(members, weights, |w| w * 2) <= double);
    }
}

#[test]
fn a_name_twice_is_refused_by_either_way_in() {
    let twice = [Member { name: "a", weight: 1 }, Member { name: "a", weight: 2 }];
    assert_eq!(table(size(251), &twice), Err(MaglevError::Twice("a".into())));
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 1u32..10, 2 => Just(0), 2 => 1u32..1000, 1 => any::<u32>()]
}

fn weight_list() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(weight(), 1..60)
}

fn slots() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![251, 257, 1021, 2039])
}

/// Whether every number of slots is less than `most` from its exact share.
fn within(slots: u32, counts: &[u32], weights: &[u32], most: u64) -> bool {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    counts.iter().zip(weights).all(|(count, weight)| {
        let exact = u64::from(slots) * u64::from(*weight);
        (u64::from(*count) * sum).abs_diff(exact) < most * sum
    })
}

proptest! {
    #[test]
    fn two_stages_are_the_oracle_s(weights in weight_list(), slots in slots()) {
        let weights = site(&weights);
        prop_assert_eq!(owners(size(slots), &weights), oracle(&weights, slots as usize));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(weights in weight_list(), slots in slots(), turn in 0usize..60) {
        let names = names(weights.len());
        let mut members: Vec<Member<'_>> =
            names.iter().zip(&weights).map(|(name, weight)| Member { name, weight: *weight }).collect();
        let named = |members: &[Member<'_>]| -> Vec<Option<String>> {
            let table = table(size(slots), members).unwrap();
            table.into_iter().map(|i| members.get(usize::from(i)).map(|m| m.name.to_owned())).collect()
        };
        let before = named(&members);
        members.rotate_left(turn % weights.len());
        prop_assert_eq!(&named(&members), &before);
        members.reverse();
        prop_assert_eq!(&named(&members), &before);
    }

    #[test]
    fn shares_are_within_a_slot(weights in weight_list(), slots in slots()) {
        let table = base_of(size(slots), weights.len()).table(&weights);
        prop_assume!(weights.iter().any(|w| *w > 0));
        let counts = counts(&table, weights.len());
        prop_assert_eq!(counts.iter().sum::<u32>(), slots);
        prop_assert!(within(slots, &counts, &weights, 1));
    }

    #[test]
    fn only_the_ratio_of_weights_counts(weights in prop::collection::vec(0u32..1000, 1..60), k in 1u32..1000) {
        let base = base_of(size(1021), weights.len());
        let scaled: Vec<u32> = weights.iter().map(|w| w * k).collect();
        prop_assert_eq!(base.table(&weights), base.table(&scaled));
    }

    #[test]
    fn who_is_down_moves_its_own_slots(
        members in prop::collection::vec((weight(), prop::bool::weighted(0.2)), 1..60), slots in slots(),
    ) {
        let (weights, down): (Vec<u32>, Vec<bool>) = members.into_iter().unzip();
        let base = base_of(size(slots), weights.len());
        let before = base.table(&weights);
        let after = base.table_with_down(&weights, &down);
        let up: Vec<u32> = weights.iter().zip(&down).map(|(w, down)| if *down { 0 } else { *w }).collect();
        let nobody = up.iter().all(|w| *w == 0);
        for (before, after) in before.iter().zip(&after) {
            match down.get(usize::from(*before)) {
                Some(true) if nobody => prop_assert_eq!(*after, NO_MEMBER),
                Some(true) => prop_assert!(!down[usize::from(*after)] && weights[usize::from(*after)] > 0),
                _ => prop_assert_eq!(before, after),
            }
        }
        prop_assert!(nobody || within(slots, &counts(&after, up.len()), &up, 2));
    }
}
