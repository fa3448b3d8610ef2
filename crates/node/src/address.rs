//! Prefixes and identities as the API writes them.

use codec::IpPrefix;
use lisp::wire::{EidPrefix, InstanceId, XtrId};
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
}
