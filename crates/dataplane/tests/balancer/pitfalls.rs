//! What went wrong in other balancers, each once as a test by name.

use anyhow::{Result, ensure};
use bpf_abi::BalancerReason;
use bpf_abi::balancer::segment::{DOT1Q, NONE, VXLAN};
use bpf_abi::balancer::{VIP_BY_ADDRESSES, VIP_FLOW_TABLE};

use crate::frames::tunnel::Outer;
use crate::frames::{ACK, Flow, Fragment, Ip, SYN, flow, frame, icmp, sum, tag};
use crate::kernel::Kernel;
use crate::model::{State, TCP, UDP, Verdict};
use crate::site::{CURRENT, OTHER, Vip, plain, site};

fn kernel(state: State) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.install(state)?;
    Ok(kernel)
}

fn put16(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// Sum of the transport part with its pseudo header, which is all ones if the checksum is right.
fn transport_sum(packet: &[u8], pseudo: bool) -> u16 {
    let v6 = packet[0] >> 4 == 6;
    let (header, addresses, protocol) =
        if v6 { (40, 8..40, packet[6]) } else { (usize::from(packet[0] & 15) * 4, 12..20, packet[9]) };
    let length = ((packet.len() - header) as u32).to_be_bytes();
    let pseudo =
        if pseudo { [&packet[addresses], &length, &[0, 0, 0, protocol]].concat() } else { Vec::new() };
    sum(&[&pseudo, &packet[header..]])
}

/// Katran adds to the ICMP checksum without the carry: wrong for 8 of 65536 checksums, and 1 over IPv6.
#[test]
fn echo_checksums_carry() -> Result<()> {
    let kernel = kernel(plain())?;
    for v6 in [false, true] {
        let (ip, header) = (flow(v6).ip, if v6 { 40 } else { 20 });
        let mut request = icmp::message(&ip, if v6 { 128 } else { 8 }, 0, [0; 4], &[]);
        for checksum in 0..=u16::MAX {
            // Identifier and, over IPv4, identification are what makes this checksum the right one.
            put16(&mut request, header + 2, checksum);
            put16(&mut request, header + 4, 0);
            let identifier = !transport_sum(&request, v6);
            put16(&mut request, header + 4, identifier);
            if !v6 {
                request[8] = checksum as u8;
                put16(&mut request, 4, 0);
                put16(&mut request, 10, checksum);
                let identification = !sum(&[&request[..20]]);
                put16(&mut request, 4, identification);
            }
            ensure!(transport_sum(&request, v6) == 0xffff, "the request with {checksum:04x} is not right");
            let frame = frame(&[], &request);
            let reply = kernel.run(&frame)?.packet;
            ensure!(transport_sum(&reply[14..], v6) == 0xffff, "v6 {v6}, {checksum:04x}: {reply:02x?}");
            ensure!(v6 || sum(&[&reply[14..34]]) == 0xffff, "IPv4 header, {checksum:04x}: {reply:02x?}");
            ensure!(reply == kernel.state.run(&frame).frame, "v6 {v6}, {checksum:04x}: {reply:02x?}");
        }
    }
    Ok(())
}

/// The same in tunnels, where addresses, VNI and inner MAC address are under the outer checksums.
#[test]
fn tunnel_checksums_carry() -> Result<()> {
    for v6 in [false, true] {
        let mut state = site(VXLAN | 100, VXLAN | 0x00fe_dcba, 0);
        state.add_backend(CURRENT, VXLAN | 0x00fe_dcba, v6);
        let kernel = kernel(state)?;
        let mut frame = Outer::vxlan(v6, 100).with_checksum().packet(&flow(false).udp());
        let udp = if v6 { 54 } else { 34 };
        for checksum in 1..=u16::MAX {
            put16(&mut frame, udp + 6, checksum);
            put16(&mut frame, udp, 0);
            let source_port = !transport_sum(&frame[14..], true);
            put16(&mut frame, udp, source_port);
            if !v6 {
                frame[22] = 2 + (checksum % 254) as u8;
                put16(&mut frame, 18, 0);
                put16(&mut frame, 24, checksum);
                let identification = !sum(&[&frame[14..34]]);
                put16(&mut frame, 18, identification);
            }
            let sent = kernel.run(&frame)?.packet;
            ensure!(transport_sum(&sent[14..], true) == 0xffff, "v6 {v6}, {checksum:04x}: {sent:02x?}");
            ensure!(sent[udp + 6..udp + 8] != [0, 0], "v6 {v6}, {checksum:04x}: no checksum any more");
            ensure!(v6 || sum(&[&sent[14..34]]) == 0xffff, "IPv4 header, {checksum:04x}: {sent:02x?}");
            ensure!(sent == kernel.state.run(&frame).frame, "v6 {v6}, {checksum:04x}: {sent:02x?}");
        }
    }
    Ok(())
}

/// Katran tests a pointer instead of a flag, so one family's counter never moves.
#[test]
fn families_count_apart() -> Result<()> {
    let mut state = State::node();
    for (id, v6) in [(1, false), (2, true)] {
        state.add_backend(id, NONE, false);
        let address = flow(v6).ip.destination;
        state.add_vip(Vip { id, address, slots: &[id as u16; 4], ..Vip::default() });
    }
    let mut kernel = kernel(state)?;
    for v6 in [false, true, true, false, true] {
        kernel.check(&frame(&[], &flow(v6).tcp(ACK)))?;
        kernel.check_all()?;
    }
    Ok(())
}

/// blixt matches on its verdict and then returns another.
#[test]
fn verdicts_reach_the_kernel() -> Result<()> {
    let mut kernel = kernel(plain())?;
    let other = Flow { destination_port: 81, ..flow(false) };
    let fragment = Ip { fragment: Some(Fragment { offset: 8, more: false }), ..flow(false).ip };
    for (packet, verdict, action) in [
        (flow(false).tcp(SYN), Verdict::Tx, 3),
        (other.tcp(SYN), Verdict::Pass, 2),
        (fragment.packet(UDP, &[0; 30]), Verdict::Drop, 1),
    ] {
        let frame = frame(&[], &packet);
        ensure!(kernel.check(&frame)?.verdict == verdict, "{verdict:?}");
        ensure!(kernel.run(&frame)?.action == action, "{verdict:?}");
    }
    Ok(())
}

/// blixt writes the port where the checksum is. Nothing behind the Ethernet header and its tag is written here.
#[test]
fn what_is_behind_ethernet_stays() -> Result<()> {
    let kernel = kernel(site(DOT1Q | 100, DOT1Q | 200, 0))?;
    for v6 in [false, true] {
        for packet in
            [flow(v6).tcp(SYN), flow(v6).udp(), flow(v6).sctp(1), icmp::too_big(&flow(v6).reply().udp())]
        {
            let sent = kernel.run(&frame(&[tag(100)], &packet))?;
            ensure!(sent.action == 3 && sent.packet[16..18] == frame(&[], &packet)[12..14], "EtherType");
            ensure!(sent.packet[18..] == packet, "{:02x?}", sent.packet);
        }
    }
    Ok(())
}

/// blixt takes octet 20 for the ports, whatever the header's length.
#[test]
fn header_length_counts() -> Result<()> {
    let mut state = plain();
    // The VIP that the options look like.
    state.add_backend(9, NONE, false);
    state.add_vip(Vip { id: 9, port: 81, slots: &[9; 4], ..Vip::default() });
    let mut kernel = kernel(state)?;
    for words in 1..=10 {
        let mut flow = flow(false);
        flow.ip.options = [0, 81, 0, 81].repeat(words);
        let expected = kernel.check(&frame(&[], &flow.tcp(SYN)))?;
        ensure!(expected.counted == Some((crate::site::VIP, CURRENT)), "{words} words of options");
    }
    Ok(())
}

/// blixt parses fragments as TCP: their payload chooses the port.
#[test]
fn fragments_are_no_segments() -> Result<()> {
    for flags in [0, VIP_BY_ADDRESSES] {
        let mut kernel = kernel(site(NONE, NONE, flags))?;
        for v6 in [false, true] {
            let segment = flow(v6).tcp(SYN);
            for at in [Fragment { offset: 0, more: true }, Fragment { offset: 1480, more: false }] {
                let ip = Ip { fragment: Some(at), ..flow(v6).ip };
                let packet = ip.packet(TCP, &segment[if v6 { 40 } else { 20 }..]);
                let reason = kernel.check(&frame(&[], &packet))?.reason;
                let expected =
                    if flags == 0 { BalancerReason::DropFragment } else { BalancerReason::Forwarded };
                ensure!(reason == expected, "{}", reason.label());
            }
        }
    }
    Ok(())
}

/// blixt knows a client by address and port: a second VIP's flow goes to the first one's backend.
#[test]
fn flows_are_of_a_vip() -> Result<()> {
    let mut state = State::node();
    for (id, port, address) in [(1, 80, "192.0.2.10"), (2, 81, "192.0.2.10"), (3, 80, "192.0.2.11")] {
        state.add_backend(id, NONE, false);
        let address = address.parse()?;
        state.add_vip(Vip {
            id,
            address,
            port,
            slots: &[id as u16; 4],
            flags: VIP_FLOW_TABLE,
            ..Vip::default()
        });
    }
    let mut kernel = kernel(state)?;
    for flags in [SYN, ACK, ACK] {
        for (id, port, address) in [(1, 80, "192.0.2.10"), (2, 81, "192.0.2.10"), (3, 80, "192.0.2.11")] {
            let mut flow = Flow { destination_port: port, ..flow(false) };
            flow.ip.destination = address.parse()?;
            let expected = kernel.check(&frame(&[], &flow.tcp(flags)))?;
            ensure!(expected.counted == Some((id, id)), "{:?}", expected.counted);
        }
    }
    kernel.check_all()
}

/// blixt's table of flows is full after 128 and then refuses. Ours forgets, and goes by the table.
#[test]
fn a_full_flow_table_refuses_nobody() -> Result<()> {
    let mut kernel = kernel(plain().flow_table())?;
    for client in 0..3 * crate::FLOWS {
        let mut flow = flow(false).with_source_port(client as u16);
        flow.ip.source = std::net::Ipv4Addr::from(0x0a00_0000 | client >> 8).into();
        for flags in [SYN, ACK] {
            let sent = kernel.run(&frame(&[], &flow.tcp(flags)))?;
            ensure!(sent.action == 3, "flow {client}");
        }
    }
    // The latest are known: they stay when the table changes.
    let (table, size) = kernel.state.add_table(&[OTHER as u16; 64]);
    let state = kernel.state.clone().change(crate::site::VIP, |vip| (vip.table, vip.size) = (table, size));
    kernel.install_but_flows(state)?;
    let last = 3 * crate::FLOWS - 1;
    let mut flow = flow(false).with_source_port(last as u16);
    flow.ip.source = std::net::Ipv4Addr::from(0x0a00_0000 | last >> 8).into();
    let sent = kernel.run(&frame(&[], &flow.tcp(ACK)))?;
    ensure!(sent.packet[..6] == crate::site::backend_mac(CURRENT), "{:02x?}", &sent.packet[..14]);
    Ok(())
}

/// A panic handler that is undefined behaviour, or a loop: here no path leads to one.
#[test]
fn the_program_does_not_panic() {
    let text = String::from_utf8_lossy(crate::BALANCER);
    for symbol in ["rust_begin_unwind", "core9panicking", "panic_bounds_check", "panic_fmt"] {
        assert!(!text.contains(symbol), "the object has {symbol}");
    }
}
