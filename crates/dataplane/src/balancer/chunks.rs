//! Who has which part of the memory of tables.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use codec::Instant;

/// How long a program may go on with an entry that was replaced, and then some: it runs for microseconds, but a
/// hypervisor may stop it in the middle.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// Pieces of the memory of tables, in chunks.
///
/// A piece belongs to a table while an entry names it, then cools down for [`GRACE`], then is free.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    total: u32,
    free: BTreeMap<u32, u32>,
    tables: BTreeMap<u32, Table>,
    cooling: VecDeque<Cooling>,
}

#[derive(Clone, Copy, Debug)]
struct Table {
    chunks: u32,
    /// Entries that name it; none until it is published.
    entries: u32,
}

#[derive(Clone, Copy, Debug)]
struct Cooling {
    until: Instant,
    first: u32,
    chunks: u32,
}

impl Chunks {
    pub(crate) fn new(total: u32) -> Self {
        let free = if total == 0 { BTreeMap::new() } else { BTreeMap::from([(0, total)]) };
        Self { total, free, tables: BTreeMap::new(), cooling: VecDeque::new() }
    }

    /// Takes the smallest free piece that is large enough, so that large ones stay whole. Returns its first chunk.
    pub(crate) fn allocate(&mut self, chunks: u32) -> Option<u32> {
        let enough = self.free.iter().filter(|(_, free)| **free >= chunks);
        let first = *enough.min_by_key(|(first, free)| (**free, **first))?.0;
        self.take(first, chunks).then_some(first)
    }

    /// Takes a piece at its place; `false` if it is not free. What the very same table has already stays as it is.
    pub(crate) fn take(&mut self, first: u32, chunks: u32) -> bool {
        if self.tables.get(&first).is_some_and(|table| table.chunks == chunks) {
            return true;
        }
        let around = self.free.range(..=first).next_back().map(|(start, free)| (*start, *free));
        let Some((start, free)) = around else { return false };
        let before = first - start;
        let Some(behind) = free.checked_sub(before).and_then(|rest| rest.checked_sub(chunks)) else {
            return false;
        };
        self.free.remove(&start);
        if before > 0 {
            self.free.insert(start, before);
        }
        if behind > 0 {
            self.free.insert(first + chunks, behind);
        }
        self.tables.insert(first, Table { chunks, entries: 0 });
        true
    }

    /// An entry names the table from now on.
    pub(crate) fn publish(&mut self, first: u32) {
        if let Some(table) = self.tables.get_mut(&first) {
            table.entries += 1;
        }
    }

    /// An entry does not name the table any more.
    pub(crate) fn withdraw(&mut self, first: u32, now: Instant) {
        let Some(table) = self.tables.get_mut(&first) else { return };
        table.entries = table.entries.saturating_sub(1);
        if table.entries == 0 {
            let chunks = table.chunks;
            self.tables.remove(&first);
            self.cooling.push_back(Cooling { until: now + GRACE, first, chunks });
        }
    }

    /// Gives back what was taken for tables that no entry ever named: no program can have seen them.
    pub(crate) fn forget_unpublished(&mut self) {
        let unpublished: Vec<_> =
            self.tables.iter().filter(|(_, t)| t.entries == 0).map(|(first, t)| (*first, t.chunks)).collect();
        for (first, chunks) in unpublished {
            self.tables.remove(&first);
            self.release(first, chunks);
        }
    }

    /// Gives back what has cooled down.
    pub(crate) fn cool_down(&mut self, now: Instant) {
        while let Some(cooled) = self.cooling.front().copied().filter(|cooling| cooling.until <= now) {
            self.cooling.pop_front();
            self.release(cooled.first, cooled.chunks);
        }
    }

    /// When [`cool_down`](Self::cool_down) has something to do.
    pub(crate) fn cooled_at(&self) -> Option<Instant> {
        self.cooling.front().map(|cooling| cooling.until)
    }

    /// Whether a table that is there begins at this chunk.
    pub(crate) fn is_table(&self, first: u32) -> bool {
        self.tables.contains_key(&first)
    }

    pub(crate) const fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.values().sum()
    }

    pub(crate) fn cooling(&self) -> u32 {
        self.cooling.iter().map(|cooling| cooling.chunks).sum()
    }

    fn release(&mut self, first: u32, chunks: u32) {
        let (mut first, mut chunks) = (first, chunks);
        if let Some((before, free)) = self.free.range(..first).next_back().map(|(b, f)| (*b, *f))
            && before + free == first
        {
            self.free.remove(&before);
            (first, chunks) = (before, free + chunks);
        }
        if let Some(behind) = self.free.remove(&(first + chunks)) {
            chunks += behind;
        }
        self.free.insert(first, chunks);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_is_free_again_when_it_has_cooled_down() {
        let mut chunks = Chunks::new(10);
        let first = chunks.allocate(10).unwrap();
        chunks.publish(first);
        chunks.publish(first);
        chunks.withdraw(first, Instant::ZERO);
        assert_eq!((chunks.cooling(), chunks.is_table(first)), (0, true), "the other entry still names it");
        chunks.withdraw(first, Instant::from_millis(5));
        assert_eq!((chunks.allocate(1), chunks.cooling()), (None, 10));
        assert_eq!(chunks.cooled_at(), Some(Instant::from_millis(105)));
        chunks.cool_down(Instant::from_millis(104));
        assert_eq!(chunks.free(), 0);
        chunks.cool_down(Instant::from_millis(105));
        assert_eq!((chunks.free(), chunks.cooled_at()), (10, None));
        assert_eq!(chunks.allocate(10), Some(0));
    }

    #[test]
    fn large_pieces_stay_whole() {
        let mut chunks = Chunks::new(100);
        assert!(chunks.take(0, 10) && chunks.take(20, 10));
        assert_eq!(chunks.allocate(10), Some(10));
        assert_eq!(chunks.allocate(70), Some(30));
        assert!(!chunks.take(5, 10) && !chunks.take(99, 2), "taken, and beyond the end");
        assert!(chunks.take(20, 10), "the same table");
        chunks.forget_unpublished();
        assert_eq!(chunks.free, BTreeMap::from([(0, 100)]));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_none_is_lost(
            steps in proptest::collection::vec((0_u8..3, 1_u32..20), 0..200)
        ) {
            let mut chunks = Chunks::new(64);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (now, (what, amount)) in steps.into_iter().enumerate() {
                let now = Instant::from_millis(now as u64 * 30);
                chunks.cool_down(now);
                match what {
                    0 if !held.is_empty() => {
                        let (first, _) = held.swap_remove(amount as usize % held.len());
                        chunks.withdraw(first, now);
                    }
                    _ => if let Some(first) = chunks.allocate(amount) {
                        prop_assert!(held.iter().all(|(f, n)| first + amount <= *f || f + n <= first));
                        chunks.publish(first);
                        held.push((first, amount));
                    }
                }
                let all: u32 = held.iter().map(|(_, chunks)| chunks).sum();
                prop_assert_eq!(chunks.free() + chunks.cooling() + all, 64);
            }
        }
    }
}
