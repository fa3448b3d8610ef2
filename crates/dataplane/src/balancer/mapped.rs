//! An array map in this process's memory: what would be a system call for each entry is a few loads or stores.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use aya::Pod;
use aya::maps::{Map, MapError};

use crate::error::DataplaneError;
use crate::maps::of;

const WORD: usize = size_of::<u64>();

/// A map of type `BPF_MAP_TYPE_ARRAY` made with `BPF_F_MMAPABLE`, whose values are `V`.
///
/// Values are multiples of eight octets, or the kernel's would be further apart than these. A word is read and written
/// at once, a value is not: as it is with the system calls.
pub(crate) struct Mapped<V> {
    name: &'static str,
    start: NonNull<V>,
    entries: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this side changes it only through `&mut`.
unsafe impl<V: Send> Send for Mapped<V> {}
// SAFETY: as above; what programs change meanwhile is read in atomic words.
unsafe impl<V: Sync> Sync for Mapped<V> {}

impl<V: Pod> Mapped<V> {
    const WORDS: usize = {
        assert!(size_of::<V>().is_multiple_of(WORD) && align_of::<V>() <= 64, "words, in pages");
        size_of::<V>() / WORD
    };

    /// Maps it. How many entries it has is the map's own word: one that was pinned before may have another number than
    /// was asked for.
    ///
    /// # Errors
    /// [`DataplaneError::Object`] if it is another kind of map or of value.
    pub(crate) fn map(map: &Map, name: &'static str) -> Result<Self, DataplaneError> {
        let other = |what| DataplaneError::Object { what, name: name.to_owned() };
        let Map::Array(data) = map else { return Err(other("array")) };
        let info = data.info().map_err(of(name))?;
        if info.value_size() as usize != Self::WORDS * WORD {
            return Err(other("array of such values"));
        }
        let entries = info.max_entries();
        let octets = entries as usize * size_of::<V>();
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, data.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping of an open map, of the size that the kernel says it has; it aliases nothing of ours.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), octets, protection, libc::MAP_SHARED, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(DataplaneError::last("map", name));
        }
        let start = NonNull::new(address.cast()).ok_or_else(|| DataplaneError::last("map", name))?;
        Ok(Self { name, start, entries })
    }

    /// How many values it has.
    pub(crate) const fn entries(&self) -> u32 {
        self.entries
    }

    /// The value of an index.
    ///
    /// # Errors
    /// [`DataplaneError::Map`] beyond the entries, as for all that follows.
    pub(crate) fn get(&self, index: u32) -> Result<V, DataplaneError> {
        let words = self.words(index)?;
        let mut value = MaybeUninit::<V>::uninit();
        let copy = value.as_mut_ptr().cast::<u64>();
        for word in 0..Self::WORDS {
            // SAFETY: `words` are those of one value in the mapping, aligned as pages are; the copy has as many, of
            // whatever alignment.
            unsafe { copy.add(word).write_unaligned((*words.add(word)).load(Ordering::Relaxed)) };
        }
        // SAFETY: every octet of it was written, and any octets are a `Pod`.
        Ok(unsafe { value.assume_init() })
    }

    /// Replaces the value of an index, its first word first.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn set(&mut self, index: u32, value: &V) -> Result<(), DataplaneError> {
        let words = self.words(index)?;
        let from = std::ptr::from_ref(value).cast::<u64>();
        for word in 0..Self::WORDS {
            // SAFETY: as in `get`; the value has as many words, of whatever alignment.
            unsafe { (*words.add(word)).store(from.add(word).read_unaligned(), Ordering::Release) };
        }
        Ok(())
    }

    /// Replaces the values from an index on, which no program reads yet.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn fill(&mut self, first: u32, values: &[V]) -> Result<(), DataplaneError> {
        let start = self.at(first, values.len()).ok_or_else(|| self.beyond(first))?;
        // SAFETY: `at` checked that the values are within the mapping; the source is memory of Rust's, elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), start.as_ptr(), values.len()) };
        // What names them is published after this.
        fence(Ordering::Release);
        Ok(())
    }

    /// As many values from an index on, of a map that programs only read; `None` beyond the entries.
    pub(crate) fn slice(&self, first: u32, count: u32) -> Option<&[V]> {
        let start = self.at(first, count as usize)?;
        // SAFETY: within the mapping, aligned as pages are, and written only through `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), count as usize) })
    }

    fn words(&self, index: u32) -> Result<*const AtomicU64, DataplaneError> {
        let start = self.at(index, 1).ok_or_else(|| self.beyond(index))?;
        Ok(start.as_ptr().cast_const().cast())
    }

    /// Address of a value, if it and those behind it, `count` in all, are within the mapping.
    fn at(&self, first: u32, count: usize) -> Option<NonNull<V>> {
        let end = (first as usize).checked_add(count)?;
        if end > self.entries as usize {
            return None;
        }
        // SAFETY: within the mapping, as was just checked.
        Some(unsafe { self.start.add(first as usize) })
    }

    fn beyond(&self, index: u32) -> DataplaneError {
        let source = MapError::OutOfBounds { index, max_entries: self.entries };
        DataplaneError::Map { map: self.name, source }
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        let octets = self.entries as usize * size_of::<V>();
        // SAFETY: the mapping that `map` made, of that size; no slice outlives its borrow of this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), octets) };
    }
}
