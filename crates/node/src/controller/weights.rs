//! The weights of an EID-prefix as the map server's API carries them.

use std::net::IpAddr;

use codec::IpPrefix;
use serde::{Deserialize, Serialize};

/// One set of weights: what `PUT /v1/weights` takes and `GET /v1/weights` lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightSet {
    /// The EID-prefix, `ADDRESS/LENGTH`.
    pub eid: String,
    /// Its instance.
    #[serde(default)]
    pub instance_id: u32,
    /// The gateway that it is for; all of them without.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The locators.
    pub locators: Vec<LocatorWeight>,
}

/// What one locator gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocatorWeight {
    /// The locator.
    pub rloc: IpAddr,
    /// Lower is better; 255 is never used (RFC 9301 section 5.4).
    pub priority: u8,
    /// Share among the locators of the best priority.
    pub weight: u8,
}

/// Locators of this priority are not used (RFC 9301 section 5.4).
const UNUSED: u8 = 255;
/// The priority of all edges: their order of preference is in the weights.
const PRIORITY: u8 = 1;

impl WeightSet {
    /// Weights for `rlocs`, all of one priority, so that an edge of weight 0 takes no new flow while
    /// another has weight, and still is there for the gateway if all others fail.
    #[must_use]
    pub(super) fn new(
        eid: IpPrefix,
        instance_id: u32,
        gateway: Option<&str>,
        rlocs: &[IpAddr],
        weights: &[u8],
    ) -> Self {
        let locator = |(rloc, weight): (&IpAddr, &u8)| LocatorWeight {
            rloc: *rloc,
            priority: PRIORITY,
            weight: *weight,
        };
        Self {
            eid: eid.to_string(),
            instance_id,
            gateway: gateway.map(str::to_owned),
            locators: rlocs.iter().zip(weights).map(locator).collect(),
        }
    }

    /// Whether this set is for exactly this EID-prefix and gateway.
    pub(super) fn is_for(&self, eid: IpPrefix, instance_id: u32, gateway: Option<&str>) -> bool {
        let same_eid = self.eid.parse::<IpPrefix>().is_ok_and(|prefix| prefix == eid);
        same_eid && self.instance_id == instance_id && self.gateway.as_deref() == gateway
    }

    /// The weights of `rlocs` in their order, if this set is a split among exactly them.
    #[must_use]
    pub(super) fn weights_of(&self, rlocs: &[IpAddr]) -> Option<Vec<u8>> {
        let used = || self.locators.iter().filter(|locator| locator.priority != UNUSED);
        let best = used().map(|locator| locator.priority).min()?;
        if used().count() != rlocs.len() || used().any(|locator| locator.priority != best) {
            return None;
        }
        rlocs.iter().map(|rloc| used().find(|locator| locator.rloc == *rloc).map(|l| l.weight)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rlocs() -> Vec<IpAddr> {
        ["10.0.2.1", "10.0.3.1"].map(|a| a.parse().unwrap()).to_vec()
    }

    fn set() -> WeightSet {
        WeightSet::new("10.100.0.1/32".parse().unwrap(), 0, Some("client-gateway"), &rlocs(), &[102, 153])
    }

    #[test]
    fn weights_come_back_in_the_order_asked_for() {
        let mut rlocs = rlocs();
        assert_eq!(set().weights_of(&rlocs), Some(vec![102, 153]));
        rlocs.reverse();
        assert_eq!(set().weights_of(&rlocs), Some(vec![153, 102]));
    }

    #[test]
    fn a_split_among_others_is_not_ours() {
        let mut other = set();
        other.locators[1].rloc = "10.0.9.1".parse().unwrap();
        assert_eq!(other.weights_of(&rlocs()), None);
        let mut backup = set();
        backup.locators[1].priority = 2;
        assert_eq!(backup.weights_of(&rlocs()), None);
        assert_eq!(set().weights_of(&rlocs()[..1]), None);
        let mut extra = set();
        extra.locators.push(LocatorWeight { rloc: "10.0.9.1".parse().unwrap(), priority: 255, weight: 9 });
        assert_eq!(extra.weights_of(&rlocs()), Some(vec![102, 153]));
    }

    #[test]
    fn a_set_is_for_one_gateway() {
        let eid = "10.100.0.1/32".parse().unwrap();
        assert!(set().is_for(eid, 0, Some("client-gateway")));
        assert!(!set().is_for(eid, 0, None));
        assert!(!set().is_for(eid, 7, Some("client-gateway")));
        assert!(!set().is_for("10.100.0.2/32".parse().unwrap(), 0, Some("client-gateway")));
    }

    #[test]
    fn the_body_of_the_api() {
        let json = serde_json::to_value(set()).unwrap();
        let body = serde_json::json!({
            "eid": "10.100.0.1/32", "instance_id": 0, "gateway": "client-gateway",
            "locators": [{"rloc": "10.0.2.1", "priority": 1, "weight": 102},
                         {"rloc": "10.0.3.1", "priority": 1, "weight": 153}],
        });
        assert_eq!(json, body);
        // What a newer map server adds does not matter here.
        let text = r#"[{"eid":"10.100.0.1/32","gateway":null,"locators":[],"set_at_unix_ns":1}]"#;
        assert_eq!(serde_json::from_str::<Vec<WeightSet>>(text).unwrap()[0].instance_id, 0);
    }
}
