//! A map from EID-prefixes to values that answers longest-prefix matches, per instance and family.

use alloc::collections::BTreeMap;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use codec::IpPrefix;

use crate::wire::{EidPrefix, InstanceId};

/// Values by EID-prefix.
///
/// One ordered map per prefix length in use: a match costs one look-up per length, and real tables use few lengths.
#[derive(Clone, Debug)]
pub struct PrefixMap<T> {
    tables: BTreeMap<(InstanceId, Family), Table<T>>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// Length to left-aligned address bits to value.
type Table<T> = BTreeMap<u8, BTreeMap<u128, T>>;

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PrefixMap<T> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { tables: BTreeMap::new(), len: 0 }
    }

    /// Number of prefixes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of exactly this prefix.
    #[must_use]
    pub fn get(&self, eid: &EidPrefix) -> Option<&T> {
        let (family, bits, length) = split(&eid.prefix);
        self.tables.get(&(eid.instance_id, family))?.get(&length)?.get(&bits)
    }

    /// The value of exactly this prefix, to change it.
    pub fn get_mut(&mut self, eid: &EidPrefix) -> Option<&mut T> {
        let (family, bits, length) = split(&eid.prefix);
        self.tables.get_mut(&(eid.instance_id, family))?.get_mut(&length)?.get_mut(&bits)
    }

    /// Sets the value of a prefix and returns the one it replaces.
    pub fn insert(&mut self, eid: EidPrefix, value: T) -> Option<T> {
        let (family, bits, length) = split(&eid.prefix);
        let table = self.tables.entry((eid.instance_id, family)).or_default();
        let old = table.entry(length).or_default().insert(bits, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes a prefix out.
    pub fn remove(&mut self, eid: &EidPrefix) -> Option<T> {
        let (family, bits, length) = split(&eid.prefix);
        let key = (eid.instance_id, family);
        let table = self.tables.get_mut(&key)?;
        let row = table.get_mut(&length)?;
        let old = row.remove(&bits)?;
        if row.is_empty() {
            table.remove(&length);
        }
        if table.is_empty() {
            self.tables.remove(&key);
        }
        self.len -= 1;
        Some(old)
    }

    /// The most specific prefix that holds `address`.
    #[must_use]
    pub fn longest_match(&self, instance_id: InstanceId, address: IpAddr) -> Option<(EidPrefix, &T)> {
        self.covering(EidPrefix { instance_id, prefix: IpPrefix::host(address) }).next()
    }

    /// Every prefix that covers `eid`, itself included, the most specific first.
    pub fn covering(&self, eid: EidPrefix) -> impl Iterator<Item = (EidPrefix, &T)> {
        let (family, bits, limit) = split(&eid.prefix);
        let table = self.tables.get(&(eid.instance_id, family));
        let rows = table.into_iter().flat_map(move |t| t.range(..=limit).rev());
        rows.filter_map(move |(&length, row)| {
            let start = bits & mask(length);
            let value = row.get(&start)?;
            Some((join(eid.instance_id, family, start, length), value))
        })
    }

    /// Every prefix inside `eid`, itself included, shorter ones first.
    pub fn within(&self, eid: EidPrefix) -> impl Iterator<Item = (EidPrefix, &T)> {
        let (family, bits, limit) = split(&eid.prefix);
        let last = bits | !mask(limit);
        let table = self.tables.get(&(eid.instance_id, family));
        let rows = table.into_iter().flat_map(move |t| t.range(limit..));
        rows.flat_map(move |(&length, row)| {
            row.range(bits..=last).map(move |(&b, v)| (join(eid.instance_id, family, b, length), v))
        })
    }

    /// Every prefix that covers `eid` or is inside it, each once: covering ones first, itself among them.
    pub fn overlapping(&self, eid: EidPrefix) -> impl Iterator<Item = (EidPrefix, &T)> {
        self.covering(eid).chain(self.within(eid).filter(move |(inner, _)| *inner != eid))
    }

    /// The shortest prefix that holds `address` and overlaps no prefix of the map; `None` if one of them holds it.
    #[must_use]
    pub fn least_specific_gap(&self, instance_id: InstanceId, address: IpAddr) -> Option<IpPrefix> {
        if self.longest_match(instance_id, address).is_some() {
            return None;
        }
        let (family, bits, _) = split(&IpPrefix::host(address));
        let rows = self.tables.get(&(instance_id, family)).into_iter().flatten();
        let shared = rows.flat_map(|(_, row)| {
            let below = row.range(..=bits).next_back();
            let above = row.range(bits..).next();
            below.into_iter().chain(above).map(|(neighbour, _)| (neighbour ^ bits).leading_zeros())
        });
        // One bit further than the deepest branch shared with a neighbour; an empty table is one gap.
        let length = shared.max().map_or(0, |common| common + 1);
        IpPrefix::new(address, u8::try_from(length).ok()?).ok()
    }

    /// Every prefix, by instance, family, length and address.
    pub fn iter(&self) -> impl Iterator<Item = (EidPrefix, &T)> {
        self.tables.iter().flat_map(|(&(instance, family), table)| {
            table.iter().flat_map(move |(&length, row)| {
                row.iter().map(move |(&bits, value)| (join(instance, family, bits, length), value))
            })
        })
    }

    /// Every prefix in the same order, to change the values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (EidPrefix, &mut T)> {
        self.tables.iter_mut().flat_map(|(&(instance, family), table)| {
            table.iter_mut().flat_map(move |(&length, row)| {
                row.iter_mut().map(move |(&bits, value)| (join(instance, family, bits, length), value))
            })
        })
    }
}

const fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

fn split(prefix: &IpPrefix) -> (Family, u128, u8) {
    match prefix.address() {
        IpAddr::V4(a) => (Family::V4, u128::from(a.to_bits()) << 96, prefix.length()),
        IpAddr::V6(a) => (Family::V6, a.to_bits(), prefix.length()),
    }
}

fn join(instance_id: InstanceId, family: Family, bits: u128, length: u8) -> EidPrefix {
    let address = match family {
        Family::V4 => {
            let [a, b, c, d, ..] = bits.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    let prefix = IpPrefix::new(address, length).expect("the length came from a prefix of this family");
    EidPrefix { instance_id, prefix }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn eid(instance: u32, prefix: &str) -> EidPrefix {
        EidPrefix { instance_id: InstanceId(instance), prefix: prefix.parse().unwrap() }
    }

    fn map(prefixes: &[&str]) -> PrefixMap<usize> {
        let mut map = PrefixMap::new();
        for (i, p) in prefixes.iter().enumerate() {
            map.insert(eid(0, p), i);
        }
        map
    }

    fn gap(map: &PrefixMap<usize>, address: &str) -> Option<alloc::string::String> {
        use alloc::string::ToString;
        map.least_specific_gap(InstanceId(0), address.parse().unwrap()).map(|p| p.to_string())
    }

    #[test]
    fn the_same_prefix_lives_in_two_instances() {
        let mut map = PrefixMap::new();
        map.insert(eid(1, "10.0.0.0/24"), 'a');
        map.insert(eid(2, "10.0.0.0/24"), 'b');
        let hit = |i| map.longest_match(InstanceId(i), "10.0.0.7".parse().unwrap()).map(|(_, v)| *v);
        assert_eq!((hit(1), hit(2), hit(0)), (Some('a'), Some('b'), None));
    }

    #[test]
    fn families_do_not_mix() {
        let map = map(&["0.0.0.0/0"]);
        assert!(map.longest_match(InstanceId(0), "::1".parse().unwrap()).is_none());
    }

    #[test]
    fn covering_and_within_are_ordered() {
        let map = map(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"]);
        let up: Vec<_> = map.covering(eid(0, "10.1.2.3")).map(|(_, v)| *v).collect();
        assert_eq!(up, [2, 1, 0]);
        let down: Vec<_> = map.within(eid(0, "10.1.0.0/16")).map(|(_, v)| *v).collect();
        assert_eq!(down, [1, 2]);
        let both: Vec<_> = map.overlapping(eid(0, "10.1.0.0/16")).map(|(_, v)| *v).collect();
        assert_eq!(both, [1, 0, 2]);
    }

    #[test]
    fn the_gap_is_as_wide_as_can_be() {
        let map = map(&["10.1.0.0/16"]);
        assert_eq!(gap(&map, "10.2.3.4").as_deref(), Some("10.2.0.0/15"));
        assert_eq!(gap(&map, "192.0.2.1").as_deref(), Some("128.0.0.0/1"));
        assert_eq!(gap(&map, "10.1.2.3"), None);
        assert_eq!(gap(&PrefixMap::new(), "10.1.2.3").as_deref(), Some("0.0.0.0/0"));
    }

    #[test]
    fn removing_the_last_of_a_length_leaves_no_trace() {
        let mut map = map(&["10.1.0.0/16", "10.1.2.0/24"]);
        assert_eq!(map.remove(&eid(0, "10.1.2.0/24")), Some(1));
        assert_eq!(map.remove(&eid(0, "10.1.2.0/24")), None);
        assert_eq!(map.len(), 1);
        assert_eq!(map.longest_match(InstanceId(0), "10.1.2.3".parse().unwrap()).map(|m| *m.1), Some(0));
        map.remove(&eid(0, "10.1.0.0/16"));
        assert!(map.is_empty() && map.tables.is_empty());
    }
}
