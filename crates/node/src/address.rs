//! Prefixes and identities as the API writes them.

use codec::IpPrefix;
use lisp::wire::{EidPrefix, InstanceId, SiteId, XtrId, XtrIdentity};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IP prefix as text, `10.100.0.0/16` or an address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub IpPrefix);

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let prefix: IpPrefix = text.parse().map_err(|e| D::Error::custom(format!("`{text}`: {e}")))?;
        // 10.100.0.1/16 is a typing error more often than it is meant.
        let written = text.split('/').next().and_then(|address| address.parse().ok());
        if written != Some(prefix.address()) {
            return Err(D::Error::custom(format!("`{text}` has host bits set; write {prefix}")));
        }
        Ok(Self(prefix))
    }
}

impl Prefix {
    /// The prefix in an instance.
    #[must_use]
    pub const fn within(self, instance_id: u32) -> EidPrefix {
        EidPrefix { instance_id: InstanceId(instance_id), prefix: self.0 }
    }
}

/// An xTR-ID as 32 hexadecimal digits.
#[must_use]
pub fn xtr_id_text(id: XtrId) -> String {
    format!("{:032x}", u128::from_be_bytes(id.0))
}

/// An xTR that has no name in the configuration; names hold no colon.
#[must_use]
pub fn identity_text(identity: XtrIdentity) -> String {
    format!("xtr-id:{}/{}", xtr_id_text(identity.xtr_id), identity.site_id.0)
}

/// Reads what [`identity_text`] wrote.
#[must_use]
pub fn read_identity(text: &str) -> Option<XtrIdentity> {
    let (xtr_id, site_id) = text.strip_prefix("xtr-id:")?.split_once('/')?;
    let xtr_id = XtrId(u128::from_str_radix(xtr_id, 16).ok()?.to_be_bytes());
    let identity = XtrIdentity { xtr_id, site_id: SiteId(site_id.parse().ok()?) };
    (identity_text(identity) == text).then_some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_text_without_host_bits() {
        let read = |text: &str| serde_json::from_str::<Prefix>(&format!("\"{text}\""));
        assert_eq!(serde_json::to_string(&read("10.100.0.1").unwrap()).unwrap(), "\"10.100.0.1/32\"");
        assert!(read("10.100.0.1/16").unwrap_err().to_string().contains("write 10.100.0.0/16"));
        assert!(read("10.100.0.1/33").unwrap_err().to_string().contains("longer than the 32 bits"));
        assert_eq!(xtr_id_text(XtrId([1; 16])), "01".repeat(16));
    }

    #[test]
    fn identities_are_text_of_one_form() {
        let identity = XtrIdentity { xtr_id: XtrId([0xa; 16]), site_id: SiteId(7) };
        let text = identity_text(identity);
        assert_eq!(text, format!("xtr-id:{}/7", "0a".repeat(16)));
        assert_eq!(read_identity(&text), Some(identity));
        for other in ["client-gateway", "xtr-id:0a/7", &text.to_uppercase(), &text.replace("/7", "/+7")] {
            assert_eq!(read_identity(other), None, "{other}");
        }
    }
}
