//! The form that tables of slots have in the memory of tables.

use bpf_abi::balancer::{CHUNK_OCTETS, CHUNK_SLOTS, PALETTE_BACKENDS, PALETTE_SHIFT, TableChunk, VipValue};

/// A table as an entry of the VIP table names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// First chunk, and chunks of the palette: [`VipValue::table`].
    pub(crate) named: u32,
    /// Slots.
    pub(crate) size: u32,
}

/// A table that has no place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    size: u32,
    palette_chunks: u32,
    /// As they lie in memory.
    pub(crate) chunks: Vec<TableChunk>,
}

/// Slots as the kernel has them.
pub(crate) trait Memory {
    /// Chunks from the first one on; `None` beyond the memory.
    fn chunks(&self, first: u32, count: u32) -> Option<&[TableChunk]>;

    /// The index in each slot of a table; `None` beyond the memory.
    fn slots(&self, table: Table) -> Option<Vec<u16>> {
        let chunks = self.chunks(table.first(), table.chunks())?;
        (0..table.size).map(|slot| table.index(chunks, slot)).collect()
    }

    /// The index in one slot; `None` beyond the table or the memory.
    fn slot(&self, table: Table, slot: u32) -> Option<u16> {
        let chunks = self.chunks(table.first(), table.chunks()).filter(|_| slot < table.size)?;
        table.index(chunks, slot)
    }
}

impl Table {
    /// The first chunk.
    pub(crate) const fn first(self) -> u32 {
        self.named & ((1 << PALETTE_SHIFT) - 1)
    }

    /// All its chunks.
    pub(crate) const fn chunks(self) -> u32 {
        self.slot_chunks() + self.palette_chunks()
    }

    const fn palette_chunks(self) -> u32 {
        self.named >> PALETTE_SHIFT
    }

    const fn slot_chunks(self) -> u32 {
        self.size.div_ceil(if self.palette_chunks() == 0 { CHUNK_SLOTS } else { CHUNK_OCTETS })
    }

    fn index(self, chunks: &[TableChunk], slot: u32) -> Option<u16> {
        let word = |at: u32| chunks.get((at / CHUNK_SLOTS) as usize).map(|c| c[(at % CHUNK_SLOTS) as usize]);
        if self.palette_chunks() == 0 {
            return word(slot);
        }
        let octets = word(slot / 2)?.to_ne_bytes();
        word(self.slot_chunks() * CHUNK_SLOTS + u32::from(octets[(slot % 2) as usize]))
    }
}

/// The current and the previous table of an entry, those that are there.
pub(crate) fn tables_of(value: &VipValue) -> impl Iterator<Item = Table> + use<> {
    [current(value), previous(value)].into_iter().filter(|table| table.size > 0)
}

/// The table of an entry by which new flows go.
pub(crate) const fn current(value: &VipValue) -> Table {
    Table { named: value.table, size: value.size }
}

/// The table of an entry to which flows keep that are older than the drain.
pub(crate) const fn previous(value: &VipValue) -> Table {
    Table { named: value.previous_table, size: value.previous_size }
}

impl Form {
    /// The form of slots that are indices: with a palette if that can name all of them, even where the palette of a small
    /// table takes what the slots save.
    pub(crate) fn of(slots: &[u16]) -> Self {
        let size = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let Some(palette) = palette(slots) else {
            return Self { size, palette_chunks: 0, chunks: chunks(slots) };
        };
        let first = palette.first().copied().unwrap_or_default();
        let mut numbers = vec![0_u8; palette.last().map_or(0, |last| usize::from(last - first) + 1)];
        for (number, index) in (0..=u8::MAX).zip(&palette) {
            numbers[usize::from(index - first)] = number;
        }
        let octets: Vec<u8> = slots.iter().map(|index| numbers[usize::from(index - first)]).collect();
        let pair = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let mut all = chunks(&octets.chunks(2).map(pair).collect::<Vec<_>>());
        let palette = chunks(&palette);
        let palette_chunks = u32::try_from(palette.len()).unwrap_or(u32::MAX);
        all.extend(palette);
        Self { size, palette_chunks, chunks: all }
    }

    /// How many chunks it takes.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// The table, once it lies at this chunk.
    pub(crate) const fn at(&self, first: u32) -> Table {
        Table { named: first | self.palette_chunks << PALETTE_SHIFT, size: self.size }
    }
}

/// The indices that the slots name, in their order; `None` if there is none, or more than a palette can name.
fn palette(slots: &[u16]) -> Option<Vec<u16>> {
    let (mut seen, mut palette) = ([0_u64; 1 << 10], Vec::new());
    for index in slots {
        let (word, bit) = (&mut seen[usize::from(index / 64)], 1 << (index % 64));
        if *word & bit == 0 {
            if palette.len() == PALETTE_BACKENDS {
                return None;
            }
            *word |= bit;
            palette.push(*index);
        }
    }
    palette.sort_unstable();
    Some(palette).filter(|palette| !palette.is_empty())
}

fn chunks(words: &[u16]) -> Vec<TableChunk> {
    let of = |words: &[u16]| {
        let mut chunk = TableChunk::default();
        chunk[..words.len()].copy_from_slice(words);
        chunk
    };
    words.chunks(CHUNK_SLOTS as usize).map(of).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Whole(Vec<TableChunk>);

    impl Memory for Whole {
        fn chunks(&self, first: u32, count: u32) -> Option<&[TableChunk]> {
            self.0.get(first as usize..(first + count) as usize)
        }
    }

    fn there_and_back(slots: &[u16]) -> (Form, Vec<u16>) {
        let form = Form::of(slots);
        let table = form.at(3);
        assert_eq!((table.first(), table.chunks()), (3, form.len()));
        let memory = Whole([vec![[0xdead; 32]; 3], form.chunks.clone(), vec![[0xdead; 32]]].concat());
        let back = memory.slots(table).unwrap();
        for (slot, index) in (0..).zip(&back) {
            assert_eq!(memory.slot(table, slot), Some(*index));
        }
        (form, back)
    }

    #[test]
    fn few_backends_take_half_the_memory() {
        let slots = |backends: u16| (0..4093).map(|slot| 65_535 - slot % backends).collect::<Vec<_>>();
        for (backends, palette_chunks, chunks) in
            [(1, 1, 65), (32, 1, 65), (33, 2, 66), (256, 8, 72), (257, 0, 128)]
        {
            let (form, back) = there_and_back(&slots(backends));
            assert_eq!(back, slots(backends));
            assert_eq!((form.palette_chunks, form.len()), (palette_chunks, chunks), "{backends}");
        }
    }

    #[test]
    fn beyond_the_memory_there_is_nothing() {
        let form = Form::of(&[1; 251]);
        let memory = Whole(form.chunks.clone());
        assert_eq!(memory.slots(form.at(1)), None);
        assert_eq!(memory.slot(form.at(0), 251), None);
        assert_eq!(memory.slots(Table::default()), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn every_table_comes_back(slots in proptest::collection::vec(any::<u16>(), 0..700)) {
            prop_assert_eq!(there_and_back(&slots).1, slots);
        }
    }
}
