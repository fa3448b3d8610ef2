//! What links and routes there are, asked beside the loop that serves mappings.
//!
//! The kernel answers in the system call that asks, and questions about links wait there until nobody configures links on
//! the machine (rtnl_lock): tens of milliseconds while interfaces are made. The loop must not be the one that waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use codec::IpPrefix;
use netlink_packet_route::route::RouteMessage;

use crate::error::DataplaneError;
use crate::netlink::{Link, Netlink};
use crate::path::resolve;
use crate::table::Path;

/// Questions to the kernel.
#[derive(Debug)]
pub struct Survey {
    /// Names of the interfaces with programs.
    pub(crate) interfaces: BTreeSet<String>,
    /// Locators to find the way to.
    pub(crate) rlocs: BTreeSet<IpAddr>,
    /// Prefixes that go where other routes than weir's say.
    pub(crate) native: BTreeSet<IpPrefix>,
    pub(crate) own_rlocs: Vec<IpAddr>,
    pub(crate) with_macs: bool,
}

/// The answers, each by what was asked.
#[derive(Debug)]
pub struct Surveyed {
    /// Without those that are gone: they may come back.
    pub(crate) links: BTreeMap<String, Link>,
    /// `None` where there is no way.
    pub(crate) ways: BTreeMap<IpAddr, Option<Path>>,
    pub(crate) native: BTreeMap<IpPrefix, RouteMessage>,
}

impl Survey {
    /// Asks, in the calling thread's network namespace. Waits as long as the kernel does.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    ///
    /// # Panics
    /// Within a tokio runtime, other than on one of its threads for blocking work.
    pub fn run(self) -> Result<Surveyed, DataplaneError> {
        let refused = |source| DataplaneError::system("start", "thread for netlink", source);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(refused)?;
        runtime.block_on(self.ask())
    }

    async fn ask(self) -> Result<Surveyed, DataplaneError> {
        let netlink = Netlink::connect(false)?;
        let mut links = BTreeMap::new();
        for name in self.interfaces {
            if let Some(link) = netlink.link(&name).await? {
                links.insert(name, link);
            }
        }
        let known: Vec<Link> = links.values().cloned().collect();
        let mut ways = BTreeMap::new();
        for rloc in self.rlocs {
            let way = resolve(&netlink, &known, rloc, &self.own_rlocs, self.with_macs).await?;
            ways.insert(rloc, way);
        }
        let mut native = BTreeMap::new();
        for prefix in self.native {
            native.insert(prefix, netlink.native_route(prefix).await?);
        }
        Ok(Surveyed { links, ways, native })
    }
}
