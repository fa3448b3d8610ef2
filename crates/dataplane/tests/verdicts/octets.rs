//! What is in the packets that come out: headers, TTL, ECN, source ports, sizes.

use std::collections::HashSet;

use anyhow::Result;
use bpf_abi::Reason;

use crate::frames::{Flow, Outer, lisp, udp};
use crate::model::{self, Hook};
use crate::setup::{HOOKS, etr, itr, kernel};
use crate::tables::{members, over_v6, tables, to_stack};

/// Written by hand from RFC 9300 §5.1, with neither model nor builder.
#[test]
fn encapsulated_octets() -> Result<()> {
    let inner = "45000021123400004011536b0ac800010a640001";
    let datagram = "9c400050000d000068656c6c6f";
    let frame = format!("000000000000020000000001 0800 {inner} {datagram}");
    let mut tables = tables();
    members(&mut tables, &[(1, true)]);
    let mut kernel = kernel(tables)?;
    let expected = kernel.check(&itr(Hook::Tc, hex(&frame)))?;
    let outer_ip = "45000045000040003f11b79bc0000201c000020b";
    let lisp = "0000000000000000";
    let forwarded = "45000021123400003f11546b0ac800010a640001";
    let packet = hex(&format!(
        "000000000000020000000001 0800 {outer_ip} 0000 10f5 0031 0000 {lisp} {forwarded} {datagram}"
    ));
    assert!(expected.packet[34] >= 0xc0, "source port is in the dynamic range");
    assert_eq!(expected.packet[..34], packet[..34]);
    assert_eq!(expected.packet[36..], packet[36..]);
    Ok(())
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Defect seen elsewhere: outer TTL copied to the inner packet even when it is larger, or smaller one lost.
#[test]
fn inner_ttl_is_only_lowered() -> Result<()> {
    let mut tables = tables();
    to_stack(&mut tables);
    let mut to_stack = kernel(tables)?;
    for (inner, outer, result) in [(5, 60, 5), (60, 5, 5), (64, 64, 64), (1, 255, 1)] {
        for hook in HOOKS {
            let frame = udp(Flow { ttl: inner, ..Flow::default() }, 30);
            let expected =
                to_stack.check(&etr(hook, lisp(&Outer { ttl: outer, ..Outer::default() }, &frame)))?;
            assert_eq!(expected.packet[22], result, "inner {inner} outer {outer}");
        }
    }
    Ok(())
}

/// Defect seen elsewhere: the TOS octet copied whole both ways.
#[test]
fn ecn_of_every_combination() -> Result<()> {
    let mut kernel = kernel(tables())?;
    for inner in 0..4_u8 {
        for outer in 0..4_u8 {
            for v6 in [false, true] {
                let frame = udp(Flow { tos: 0x20 | inner, v6, ..Flow::default() }, 30);
                let frame = lisp(&Outer { tos: 0x40 | outer, ..Outer::default() }, &frame);
                let expected = kernel.check(&etr(Hook::Tc, frame))?;
                let result = model::ECN[usize::from(inner)][usize::from(outer)];
                let tos = if v6 {
                    (expected.packet[14] << 4) | (expected.packet[15] >> 4)
                } else {
                    expected.packet[15]
                };
                match result {
                    Some(ecn) => assert_eq!(tos, 0x40 | ecn, "inner {inner} outer {outer}"),
                    None => assert_eq!(expected.reason, Reason::DropEcn),
                }
            }
        }
    }
    Ok(())
}

/// Defect seen elsewhere: one source port for all flows.
#[test]
fn source_ports_tell_flows_apart() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let mut ports = HashSet::new();
    for port in 0..1000 {
        let flow = Flow { source_port: 1024 + port, ..Flow::default() };
        let first = kernel.check(&itr(Hook::Tc, udp(flow, 30)))?.packet;
        let second = kernel.check(&itr(Hook::Tc, udp(flow, 300)))?.packet;
        assert_eq!(first[34..36], second[34..36]);
        ports.insert([first[34], first[35]]);
    }
    assert!(ports.len() > 950, "{} source ports for 1000 flows", ports.len());
    Ok(())
}

/// Defect seen elsewhere: a packet that does not fit vanishes. What is left to the stack is unchanged, so that it can
/// answer or fragment, and the fragments that come back fit.
#[test]
fn packets_that_do_not_fit_go_to_the_stack() -> Result<()> {
    for (v6_locator, largest) in [(false, 1464), (true, 1444)] {
        let mut tables = tables();
        if v6_locator {
            over_v6(&mut tables);
        }
        let mut kernel = kernel(tables)?;
        for hook in HOOKS {
            let fits = kernel.check(&itr(hook, udp(Flow::default(), largest - 28)))?;
            assert_eq!((fits.reason, fits.packet.len()), (Reason::Encapsulated, 1514));
            let frame = udp(Flow::default(), largest - 27);
            let large = kernel.check(&itr(hook, frame.clone()))?;
            assert_eq!((large.reason, large.packet), (Reason::PassTooBig, frame));
        }
    }
    Ok(())
}
