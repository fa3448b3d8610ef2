//! One deadline per key, the earliest first.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use codec::Instant;

/// Deadlines by key.
#[derive(Clone, Debug)]
pub(crate) struct Timers<K> {
    by_key: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Timers<K> {
    pub(crate) const fn new() -> Self {
        Self { by_key: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets or replaces the deadline of `key`; `None` cancels it.
    pub(crate) fn set(&mut self, key: K, at: Option<Instant>) {
        let old = match at {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, key));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key));
        }
    }

    /// The deadline of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<Instant> {
        self.by_key.get(key).copied()
    }

    /// Keys with a deadline.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out every key whose deadline has passed, the earliest first.
    ///
    /// To be walked instead of asking for the next one: what is due again while the keys are dealt with is left to the
    /// next call, so the walk ends whatever is set.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<K> {
        core::iter::from_fn(|| self.pop_due(now)).collect()
    }

    /// Takes out the earliest key whose deadline has passed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (_, key) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.set(key, None);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_deadline_fires_once() {
        let mut timers = Timers::default();
        let t = Instant::from_secs;
        timers.set('a', Some(t(1)));
        timers.set('a', Some(t(3)));
        timers.set('b', Some(t(2)));
        assert_eq!(timers.first(), Some(t(2)));
        assert_eq!(timers.pop_due(t(1)), None);
        assert_eq!(
            (timers.pop_due(t(5)), timers.pop_due(t(5)), timers.pop_due(t(5))),
            (Some('b'), Some('a'), None)
        );
        timers.set('b', Some(t(9)));
        timers.set('b', None);
        assert_eq!(timers.first(), None);
    }

    #[test]
    fn what_is_due_again_is_left_to_the_next_call() {
        let mut timers = Timers::default();
        let t = Instant::from_secs;
        timers.set('a', Some(t(2)));
        timers.set('b', Some(t(1)));
        timers.set('c', Some(t(9)));
        let due = timers.take_due(t(5));
        due.iter().for_each(|key| timers.set(*key, Some(t(5))));
        assert_eq!((due, timers.first(), timers.len()), (Vec::from(['b', 'a']), Some(t(5)), 3));
    }
}
