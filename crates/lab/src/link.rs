//! veth pairs, addresses and routes, through ip(8) and ethtool(8).

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it lies.
    pub netns: &'a Netns,
    /// Interface name there, at most 15 bytes.
    pub name: &'a str,
    /// Address with prefix length; none for a link that only forwards frames.
    pub address: Option<&'a str>,
}

/// Creates a veth pair directly in both namespaces, so that no name appears in the caller's.
pub fn veth(a: End<'_>, b: End<'_>, mtu: u32) -> Result<()> {
    let mtu = mtu.to_string();
    ip(&[
        "link",
        "add",
        "name",
        a.name,
        "mtu",
        &mtu,
        "netns",
        a.netns.name(),
        "type",
        "veth",
        "peer",
        "name",
        b.name,
        "mtu",
        &mtu,
        "netns",
        b.netns.name(),
    ])?;
    for end in [a, b] {
        if let Some(address) = end.address {
            end.netns.ip(&["address", "add", address, "dev", end.name])?;
        }
        end.netns.ip(&["link", "set", end.name, "up"])?;
    }
    Ok(())
}

/// Turns off what would hand frames longer than the MTU, or without a checksum, to a packet socket.
pub fn offloads_off(netns: &Netns, interface: &str) -> Result<()> {
    let features = ["tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"];
    let arguments = [&["-K", interface][..], &features].concat();
    netns.run(|| command("ethtool", &arguments))
}

/// Runs ip(8).
pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    command("ip", arguments)
}

/// Runs a program to its end; an error carries what it said.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be started: is it installed?"))?;
    if !output.status.success() {
        let line: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", line.join(" "), said.trim());
    }
    Ok(())
}
