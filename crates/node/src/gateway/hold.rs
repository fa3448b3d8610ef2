//! Packets that wait for their EID to be resolved: few per EID, few EIDs, not for long.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use codec::{Instant, IpPrefix};

use super::frame::Host;

/// EIDs that may be waited for; a scan pushes out its own traces first only if it is older.
const EIDS_MAX: usize = 1024;
/// Octets held in all.
const OCTETS_MAX: usize = 16 << 20;
/// A packet older than this is of no use to its sender, who has sent it again.
const AGE_MAX: Duration = Duration::from_secs(3);

/// The packets that wait.
#[derive(Debug)]
pub(super) struct Hold {
    per_eid: usize,
    octets: usize,
    queues: BTreeMap<Host, Queue>,
}

#[derive(Debug)]
struct Queue {
    since: Instant,
    frames: VecDeque<Vec<u8>>,
}

/// A packet that is given up.
pub(super) type Dropped = (Host, Vec<u8>);

impl Hold {
    /// Holds at most `per_eid` packets for each EID.
    pub(super) const fn new(per_eid: usize) -> Self {
        Self { per_eid, octets: 0, queues: BTreeMap::new() }
    }

    /// Packets held.
    pub(super) fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.frames.len()).sum()
    }

    /// Takes a packet. Whether its EID is new here and is to be asked for, and what had to go for it.
    pub(super) fn push(&mut self, now: Instant, host: Host, frame: Vec<u8>) -> (bool, Vec<Dropped>) {
        let mut dropped = Vec::new();
        let ask = !self.queues.contains_key(&host);
        if ask && self.queues.len() >= EIDS_MAX {
            dropped.extend(self.drop_oldest());
        }
        self.octets += frame.len();
        let queue = self.queues.entry(host).or_insert_with(|| Queue { since: now, frames: VecDeque::new() });
        queue.frames.push_back(frame);
        while queue.frames.len() > self.per_eid {
            if let Some(frame) = queue.frames.pop_front() {
                self.octets -= frame.len();
                dropped.push((host, frame));
            }
        }
        while self.octets > OCTETS_MAX {
            dropped.extend(self.drop_oldest());
        }
        (ask, dropped)
    }

    /// Gives out the packets to a prefix, in their order.
    pub(super) fn release(&mut self, instance_id: u32, prefix: &IpPrefix) -> Vec<Dropped> {
        self.remove(|host, _| host.instance_id == instance_id && prefix.contains(host.address))
    }

    /// Gives up what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Dropped> {
        self.remove(|_, queue| now.saturating_since(queue.since) >= AGE_MAX)
    }

    fn drop_oldest(&mut self) -> Vec<Dropped> {
        let oldest = self.queues.iter().min_by_key(|(_, queue)| queue.since).map(|(host, _)| *host);
        self.remove(|host, _| Some(*host) == oldest)
    }

    fn remove(&mut self, which: impl Fn(&Host, &Queue) -> bool) -> Vec<Dropped> {
        let hosts: Vec<Host> =
            self.queues.iter().filter(|(h, q)| which(h, q)).map(|(host, _)| *host).collect();
        let mut removed = Vec::new();
        for host in hosts {
            let frames = self.queues.remove(&host).map(|queue| queue.frames).unwrap_or_default();
            removed.extend(frames.into_iter().map(|frame| (host, frame)));
        }
        self.octets -= removed.iter().map(|(_, frame)| frame.len()).sum::<usize>();
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(last: u16) -> Host {
        let [high, low] = last.to_be_bytes();
        Host { instance_id: 0, address: std::net::IpAddr::from([10, 0, high, low]) }
    }

    #[test]
    fn the_oldest_packet_goes_first() {
        let mut hold = Hold::new(2);
        assert_eq!(hold.push(Instant::ZERO, host(1), vec![1]), (true, vec![]));
        assert_eq!(hold.push(Instant::ZERO, host(1), vec![2]), (false, vec![]));
        assert_eq!(hold.push(Instant::ZERO, host(1), vec![3]), (false, vec![(host(1), vec![1])]));
        let released = hold.release(0, &"10.0.0.0/16".parse().unwrap());
        assert_eq!(released, [(host(1), vec![2]), (host(1), vec![3])]);
        assert_eq!(hold.len(), 0);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut hold = Hold::new(2);
        hold.push(Instant::ZERO, host(1), vec![1]);
        assert_eq!(hold.expire(Instant::ZERO + AGE_MAX / 2), []);
        assert_eq!(hold.expire(Instant::ZERO + AGE_MAX), [(host(1), vec![1])]);
        assert!(hold.push(Instant::ZERO + AGE_MAX, host(1), vec![1]).0, "it is asked for again");
    }

    #[test]
    fn holding_nothing_still_asks() {
        let mut hold = Hold::new(0);
        assert_eq!(hold.push(Instant::ZERO, host(1), vec![1]), (true, vec![(host(1), vec![1])]));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_is_lost_uncounted(pushes in proptest::collection::vec((0_u16..1500, 1_usize..60_000), 1..600)) {
            let mut hold = Hold::new(4);
            let mut dropped = 0;
            for (count, (n, octets)) in pushes.iter().enumerate() {
                let now = Instant::from_millis(count as u64);
                dropped += hold.push(now, host(*n), vec![0; *octets]).1.len();
                prop_assert!(hold.octets <= OCTETS_MAX && hold.queues.len() <= EIDS_MAX);
                prop_assert_eq!(hold.len() + dropped, count + 1);
            }
            hold.release(0, &"10.0.0.0/8".parse().unwrap());
            prop_assert_eq!((hold.octets, hold.len()), (0, 0));
        }
    }
}
