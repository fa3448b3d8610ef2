//! How many VIPs, how many servers, and which belong together.

use std::ops::Range;

/// VIPs and servers in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) vips: u32,
    pub(super) backends: u32,
}

/// The paper's scenario A.
pub(super) const ONE_VIP: Scenario = Scenario { vips: 1, backends: 255 };
/// The paper's scenario B.
pub(super) const MANY_VIPS: Scenario = Scenario { vips: 128, backends: 4000 };

impl Scenario {
    /// Numbers of a VIP's servers, as even as it goes: the first VIPs have one more.
    pub(super) fn backends_of(self, vip: u32) -> Range<u32> {
        let (each, more) = (self.backends / self.vips, self.backends % self.vips);
        let start = |vip: u32| vip * each + vip.min(more);
        start(vip)..start(vip + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shared_out_without_rest() {
        for scenario in [ONE_VIP, MANY_VIPS, Scenario { vips: 3, backends: 8 }] {
            let mut next = 0;
            for vip in 0..scenario.vips {
                let range = scenario.backends_of(vip);
                assert_eq!(range.start, next);
                let each = scenario.backends / scenario.vips;
                assert!((each..=each + 1).contains(&u32::try_from(range.len()).unwrap()));
                next = range.end;
            }
            assert_eq!(next, scenario.backends);
        }
    }
}
