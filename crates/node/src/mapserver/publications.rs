//! The latest publications and when they were acknowledged.

use std::collections::{BTreeMap, VecDeque};

use lisp::wire::{EidPrefix, XtrIdentity};

use super::api::Publication;
use crate::address::Prefix;
use crate::config::Subscriber;

/// Publications that are remembered.
const CAPACITY: usize = 4096;

/// A ring; the oldest is forgotten.
#[derive(Debug)]
pub(super) struct Publications {
    names: BTreeMap<XtrIdentity, String>,
    ring: VecDeque<Publication>,
}

impl Publications {
    /// Nothing published yet.
    pub(super) fn new(subscribers: &[Subscriber]) -> Self {
        let names = subscribers.iter().map(|s| (s.identity, s.name.clone())).collect();
        Self { names, ring: VecDeque::new() }
    }

    /// Notes a publication.
    pub(super) fn published(&mut self, nonce: u64, to: XtrIdentity, eid: EidPrefix, at_unix_ns: u64) {
        if self.ring.len() == CAPACITY {
            self.ring.pop_front();
        }
        self.ring.push_back(Publication {
            nonce,
            eid: Prefix(eid.prefix),
            instance_id: eid.instance_id.0,
            subscriber: self.names.get(&to).cloned().unwrap_or_default(),
            published_at_unix_ns: at_unix_ns,
            acked_at_unix_ns: None,
        });
    }

    /// Notes an acknowledgement; the newest publications are the likely ones.
    pub(super) fn acknowledged(&mut self, nonce: u64, by: XtrIdentity, eid: EidPrefix, at_unix_ns: u64) {
        let name = self.names.get(&by);
        let same = |p: &&mut Publication| {
            p.nonce == nonce && p.eid.within(p.instance_id) == eid && Some(&p.subscriber) == name
        };
        if let Some(publication) = self.ring.iter_mut().rev().find(same) {
            publication.acked_at_unix_ns = Some(at_unix_ns);
        }
    }

    /// All of them, oldest first.
    pub(super) fn list(&self) -> Vec<Publication> {
        self.ring.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lisp::wire::SiteId;

    #[test]
    fn the_ring_is_bounded_and_acknowledgements_find_theirs() {
        let (a, b) = (XtrIdentity::default(), XtrIdentity { site_id: SiteId(2), ..XtrIdentity::default() });
        let mut ring =
            Publications { names: [(a, "a".to_owned()), (b, "b".to_owned())].into(), ring: VecDeque::new() };
        let eid = Prefix("10.100.0.1/32".parse().unwrap()).within(7);
        for nonce in 0..5000 {
            ring.published(nonce, a, eid, nonce);
        }
        ring.published(4999, b, eid, 1);
        ring.acknowledged(4999, a, eid, 9);
        ring.acknowledged(4998, b, eid, 9);
        let list = ring.list();
        assert_eq!(list.len(), CAPACITY);
        let acknowledged: Vec<_> = list.iter().filter(|p| p.acked_at_unix_ns.is_some()).collect();
        assert_eq!(acknowledged.len(), 1);
        assert_eq!((acknowledged[0].nonce, acknowledged[0].subscriber.as_str()), (4999, "a"));
    }
}
