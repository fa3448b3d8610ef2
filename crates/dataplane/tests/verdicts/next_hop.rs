//! Where packets go next, if the tables do not say.

use anyhow::Result;
use bpf_abi::Reason;
use dataplane::test_run::{XDP_PASS, XDP_REDIRECT};

use crate::frames::{Flow, Outer, client, lisp, udp};
use crate::model::{Expected, Hook, Verdict};
use crate::setup::{etr, itr, kernel};
use crate::tables::{locators, tables};

#[test]
fn xdp_without_next_hop() -> Result<()> {
    let mut tables = tables();
    locators(&mut tables, |locator| locator.flags = 0);
    let expected = kernel(tables)?.check(&itr(Hook::Xdp, udp(Flow::default(), 30)))?;
    assert_eq!(expected.reason, Reason::PassNoNextHop);
    Ok(())
}

/// A next hop on the way to the hosts is asked for instead of the host, which no test run shows; it only has to work.
#[test]
fn hosts_behind_a_next_hop() -> Result<()> {
    let mut tables = tables();
    tables.local_eids.values_mut().for_each(|eid| eid.next_hop = client(false, 254));
    let expected: Expected =
        kernel(tables)?.check(&etr(Hook::Tc, lisp(&Outer::default(), &udp(Flow::default(), 9))))?;
    assert_eq!(expected.verdict, Verdict::Redirect);
    Ok(())
}

/// With a route and a neighbour XDP sends on by itself, and keeps to what the kernel said.
#[test]
fn xdp_asks_the_kernel_for_the_next_hop() -> Result<()> {
    let kernel = kernel(tables())?;
    for command in [
        "link add v0 type veth peer name v1",
        "link set v0 address 02:00:00:00:03:01 up",
        "addr add 10.100.0.254/24 dev v0",
        "neigh add 10.100.0.1 lladdr 02:00:00:00:04:01 dev v0",
        "link set lo up",
    ] {
        let status = std::process::Command::new("ip").args(command.split(' ')).status()?;
        anyhow::ensure!(status.success(), "ip {command}");
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let frame = lisp(&Outer::default(), &udp(Flow::default(), 30));
    for _ in 0..2 {
        let outcome = kernel.run(&etr(Hook::Xdp, frame.clone()))?;
        assert_eq!(outcome.action, XDP_REDIRECT);
        assert_eq!(outcome.packet[..12], [2, 0, 0, 0, 4, 1, 2, 0, 0, 0, 3, 1]);
        assert_eq!(outcome.packet[22], 59, "the outer TTL of 60, and this router's decrement");
    }
    let unknown = lisp(&Outer::default(), &udp(Flow { destination: 2, ..Flow::default() }, 30));
    assert_eq!(kernel.run(&etr(Hook::Xdp, unknown))?.action, XDP_PASS);
    Ok(())
}
