//! Where packets go next, if the tables do not say.

use anyhow::Result;
use bpf_abi::Reason;
use dataplane::test_run::{TC_REDIRECT, XDP_PASS, XDP_REDIRECT};

use crate::frames::{Flow, Outer, client, lisp, udp};
use crate::kernel::Kernel;
use crate::model::{Expected, Hook, Verdict};
use crate::setup::{etr, itr, kernel, traffic};
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

/// A host with the address 10.100.0.1 on a veth of this thread's namespace.
fn host_on_v0() -> Result<()> {
    ip("link add v0 type veth peer name v1")?;
    ip("link set v0 address 02:00:00:00:03:01 up")?;
    ip("link set v1 up")?;
    ip("addr add 10.100.0.254/24 dev v0")?;
    ip("neigh add 10.100.0.1 lladdr 02:00:00:00:04:01 dev v0")?;
    ip("link set lo up")?;
    Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?)
}

fn ip(arguments: &str) -> Result<()> {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status()?;
    anyhow::ensure!(status.success(), "ip {arguments}");
    Ok(())
}

/// With TC the kernel keeps the neighbours: the first packet leaves the addresses to it, the ones that follow take what
/// it said, and a change is seen soon.
#[test]
fn tc_remembers_neighbours_for_a_moment() -> Result<()> {
    let old = [2, 0, 0, 0, 4, 1, 2, 0, 0, 0, 3, 1];
    let new = [2, 0, 0, 0, 4, 2, 2, 0, 0, 0, 3, 1];
    let mut kernel = kernel(tables())?;
    host_on_v0()?;
    let mut on_v0 = tables();
    // SAFETY: a C string.
    let ifindex = unsafe { libc::if_nametoindex(c"v0".as_ptr()) };
    on_v0.local_eids.values_mut().for_each(|eid| eid.ifindex = ifindex);
    kernel.install(on_v0, &traffic())?;
    let frame = lisp(&Outer::default(), &udp(Flow::default(), 30));
    let macs = |kernel: &Kernel| -> Result<Vec<u8>> {
        let outcome = kernel.run(&etr(Hook::Tc, frame.clone()))?;
        assert_eq!(outcome.action, TC_REDIRECT);
        Ok(outcome.packet[..12].to_vec())
    };
    assert_eq!(macs(&kernel)?, frame[..12], "the kernel has not been asked before");
    for (mac, expected, before) in [("04:01", old, old), ("04:02", new, old)] {
        ip(&format!("neigh replace 10.100.0.1 lladdr 02:00:00:00:{mac} dev v0"))?;
        let started = std::time::Instant::now();
        loop {
            let macs = macs(&kernel)?;
            if macs == expected {
                break;
            }
            assert!(macs == frame[..12] || macs == before, "{macs:02x?}");
            assert!(started.elapsed() < std::time::Duration::from_secs(10), "{expected:02x?} never came");
        }
    }
    ip("neigh del 10.100.0.1 dev v0")?;
    ip("link set v1 down")?;
    let started = std::time::Instant::now();
    while macs(&kernel)? == new {
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "a neighbour that is gone stays");
    }
    Ok(())
}

/// With a route and a neighbour XDP sends on by itself, and keeps to what the kernel said.
#[test]
fn xdp_asks_the_kernel_for_the_next_hop() -> Result<()> {
    let kernel = kernel(tables())?;
    host_on_v0()?;
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
