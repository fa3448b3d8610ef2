//! What the I bit announces at the end of Map-Request (RFC 9437 §4) and Map-Register (RFC 9301 §5.6).
//!
//! ```text
//! +---------------------------------------------------------------+
//! |                        xTR-ID (128 bits)                      |
//! +---------------------------------------------------------------+
//! |                        Site-ID (64 bits)                      |
//! +---------------------------------------------------------------+
//! ```

use codec::{DecodeError, Reader, Writer};

use super::{SiteId, XtrId, XtrIdentity};

impl XtrIdentity {
    /// Reads the trailer if the I bit was set.
    pub(super) fn read(announced: bool, r: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        if !announced {
            return Ok(None);
        }
        let xtr_id = XtrId(r.array("xTR-ID")?);
        let site_id = SiteId(r.u64("Site-ID")?);
        Ok(Some(Self { xtr_id, site_id }))
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.bytes(&self.xtr_id.0);
        w.u64(self.site_id.0);
    }
}
