//! What was there before a start, so that one that fails takes away what it made and nothing else.

use std::path::{Path, PathBuf};

use crate::attach::Attachments;
use crate::bpffs::{self, Owner};
use crate::devices::{RESOLVE, SEGMENT, STACK};
use crate::error::DataplaneError;
use crate::netlink::Netlink;
use crate::sysctl::Sysctls;

/// Seen before a start.
#[derive(Debug)]
pub(crate) struct Before {
    pins: PathBuf,
    sysctls: PathBuf,
    pinned: bool,
    devices: bool,
}

impl Before {
    /// Looks at the pins of a node and at the devices of the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses to tell.
    pub(crate) async fn look(node: &str, sysctls: &Path) -> Result<Self, DataplaneError> {
        let netlink = Netlink::connect(false)?;
        let mut devices = false;
        for name in [RESOLVE, STACK, SEGMENT] {
            devices |= netlink.link(name).await?.is_some();
        }
        let pins = bpffs::pin_path(node);
        // Also by another version of the map layout, whose links a start takes over.
        let pinned = pins.parent().is_some_and(Path::exists);
        Ok(Self { pins, sysctls: sysctls.to_owned(), pinned, devices })
    }

    /// Takes away what a failed start has made, as far as that goes: the start's own error is the one to tell. What
    /// an earlier process left is a data path at work and stays.
    pub(crate) async fn restore(self) {
        if let Err(error) = self.try_restore().await {
            tracing::warn!(%error, "the failed start left something behind");
        }
    }

    async fn try_restore(&self) -> Result<(), DataplaneError> {
        if !self.pinned && self.pins.exists() {
            Attachments::new(&self.pins).detach()?;
            bpffs::remove(&self.pins, Owner::Gateway)?;
        }
        if !self.devices {
            let netlink = Netlink::connect(false)?;
            netlink.remove_own_routes().await?;
            netlink.remove_link(STACK).await?;
            netlink.remove_link(SEGMENT).await?;
        }
        if !self.pinned && !self.devices {
            Sysctls::open(&self.sysctls).restore();
        }
        Ok(())
    }
}
