//! The path that is measured: client, ITR, ETR and server in a row, on direct veth links.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::link::{End, command, veth};
use crate::netns::Netns;

/// Four namespaces and three links. Plain routing works on it before anything is attached.
pub(super) struct BenchPath {
    pub(super) client: Netns,
    pub(super) itr: Netns,
    pub(super) etr: Netns,
    pub(super) server: Netns,
}

pub(super) const CLIENT: [u8; 4] = [10, 200, 0, 1];
pub(super) const SERVER: [u8; 4] = [10, 100, 0, 1];
pub(super) const ITR_RLOC: [u8; 4] = [10, 0, 1, 1];
pub(super) const ETR_RLOC: [u8; 4] = [10, 0, 1, 2];
/// Room for the outer headers, as an operator's underlay has it.
pub(super) const CORE_MTU: u32 = 1600;
const EDGE_MTU: u32 = 1500;

/// An interface and the MAC address that it gets, so that nothing has to be looked up.
#[derive(Clone, Copy)]
pub(super) struct Port {
    pub(super) name: &'static str,
    pub(super) mac: [u8; 6],
}

pub(super) const fn port(name: &'static str, last: u8) -> Port {
    Port { name, mac: [0x02, 0, 0, 0, 0, last] }
}

pub(super) const C0: Port = port("c0", 1);
pub(super) const I0: Port = port("i0", 2);
pub(super) const I1: Port = port("i1", 3);
pub(super) const E1: Port = port("e1", 4);
pub(super) const E0: Port = port("e0", 5);
pub(super) const S0: Port = port("s0", 6);

impl BenchPath {
    /// Builds it.
    pub(super) fn build() -> Result<Self> {
        remove_leftovers()?;
        let [client, itr, etr, server] =
            ["client", "itr", "etr", "server"].map(|role| Netns::create(&name(role)));
        let path = Self { client: client?, itr: itr?, etr: etr?, server: server? };
        path.link((&path.client, C0, "10.200.0.1/24"), (&path.itr, I0, "10.200.0.254/24"), EDGE_MTU)?;
        path.link((&path.itr, I1, "10.0.1.1/24"), (&path.etr, E1, "10.0.1.2/24"), CORE_MTU)?;
        path.link((&path.etr, E0, "10.100.0.254/24"), (&path.server, S0, "10.100.0.1/24"), EDGE_MTU)?;
        path.client.ip(&["route", "add", "default", "via", "10.200.0.254"])?;
        path.server.ip(&["route", "add", "default", "via", "10.100.0.254"])?;
        path.itr.ip(&["route", "add", "10.100.0.0/24", "via", "10.0.1.2"])?;
        path.etr.ip(&["route", "add", "10.200.0.0/24", "via", "10.0.1.1"])?;
        for router in [&path.itr, &path.etr] {
            router.sysctl(&[("net/ipv4/ip_forward", "1")])?;
        }
        // The generator hands frames to c0's peer, which takes them only with NAPI on.
        offload(&path.itr, I0, "gro", true)?;
        Ok(path)
    }

    fn link(&self, a: (&Netns, Port, &str), b: (&Netns, Port, &str), mtu: u32) -> Result<()> {
        let end =
            |(netns, port, address): (&'_ Netns, Port, &'_ str)| (netns.clone(), port, address.to_owned());
        let (a, b) = (end(a), end(b));
        veth(
            End { netns: &a.0, name: a.1.name, address: Some(&a.2) },
            End { netns: &b.0, name: b.1.name, address: Some(&b.2) },
            mtu,
        )?;
        for (here, there) in [(&a, &b), (&b, &a)] {
            here.0.ip(&["link", "set", here.1.name, "address", &text(here.1.mac)])?;
            let neighbour = there.2.split('/').next().unwrap_or_default();
            // Permanent: a sink that drops everything would drop the answers to ARP, too.
            let lladdr = text(there.1.mac);
            here.0.ip(&[
                "neigh",
                "replace",
                neighbour,
                "lladdr",
                &lladdr,
                "dev",
                here.1.name,
                "nud",
                "permanent",
            ])?;
        }
        Ok(())
    }
}

impl Drop for BenchPath {
    fn drop(&mut self) {
        for netns in [&self.client, &self.itr, &self.etr, &self.server] {
            if let Err(error) = netns.delete() {
                tracing::warn!(netns = netns.name(), %error, "left behind");
            }
        }
    }
}

const PREFIX: &str = "weir-bench-";

/// Name of a namespace of this process.
pub(super) fn name(role: &str) -> String {
    format!("{PREFIX}{}-{role}", std::process::id())
}

/// Deletes the namespaces of benches that were killed.
pub(super) fn remove_leftovers() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_leftover(&name) {
            Netns::existing(&name).delete()?;
        }
    }
    Ok(())
}

/// Whether a namespace of this name is of a bench that was killed.
pub(super) fn is_leftover(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Turns an offload of an interface on or off.
pub(super) fn offload(netns: &Netns, port: Port, feature: &str, on: bool) -> Result<()> {
    netns.run(|| command("ethtool", &["-K", port.name, feature, if on { "on" } else { "off" }]))
}

/// Index of an interface of the calling thread's namespace.
pub(super) fn ifindex(port: Port) -> Result<u32> {
    let name = CString::new(port.name)?;
    // SAFETY: the name is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("interface {}", port.name));
    }
    Ok(index)
}

/// A MAC address in words of ip(8).
pub(super) fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
