//! The site balancer: layer-2 direct server return at XDP. `docs/balancer.md` tells the rules, by number.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod choice;
mod echo;
mod fast_path;
mod frame;
#[expect(dead_code, reason = "shared with the gateway's programs, which speak LISP")]
#[path = "../headers.rs"]
mod headers;
mod maps;
mod packet;
mod segment;
#[path = "../verifier.rs"]
mod verifier;
mod vip_cache;
mod write;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use bpf_abi::BalancerReason as Reason;

use crate::choice::{Asked, Chosen, Flow};
use crate::frame::Frame;
use crate::headers::Ethernet;
use crate::maps::{NODE, count, count_sent, cpu};

/// Balances what comes in on its port.
#[xdp]
#[inline(always)]
pub fn weir_balancer(context: XdpContext) -> u32 {
    if let Some(()) = fast_path::send(&Frame::new(context.ctx.cast::<xdp_md>())) {
        return xdp_action::XDP_TX;
    }
    general(context.ctx.cast::<xdp_md>())
}

/// The way that knows every case. A function of its own, or the compiler would lay its thirty times as many instructions
/// between those of the fast path, and give both the same registers and stack.
///
/// The frame is read anew: whatever the verifier learned of it before would be followed here once more.
#[inline(never)]
fn general(context: *mut xdp_md) -> u32 {
    let frame = Frame::new(context);
    let (reason, action) = match balance(&frame) {
        Ok(sent) => (sent, xdp_action::XDP_TX),
        Err(reason) if reason.passes() => (reason, xdp_action::XDP_PASS),
        Err(reason) => (reason, xdp_action::XDP_DROP),
    };
    count(reason);
    action
}

#[inline(always)]
fn balance(frame: &Frame) -> Result<Reason, Reason> {
    let node = NODE.get(0).ok_or(Reason::DropNotReady)?;
    let ethernet: *mut Ethernet = frame.at(0).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    if unsafe { (*ethernet).destination } != node.mac {
        return Err(Reason::PassNotForUs);
    }
    let layers = segment::layers(frame, node)?;
    let packet = packet::parse(frame, &layers)?;
    let (layers, packet) = (layers.forgotten(node.zero), packet.forgotten(node.zero));
    let vip = match choice::asked(node, &layers, &packet)? {
        Asked::Echo => return echo::answer(frame, &layers),
        Asked::Vip(vip) => vip,
    };
    let flow = Flow::new(node, &layers, &packet, &vip);
    let Chosen { vip, index, backend, reason, remember, drain } = flow.backend(&vip, packet.kind)?;
    write::send(frame, &layers, node, index, backend)?;
    if remember {
        flow.remember(index, backend, drain);
    }
    count_sent(cpu(), vip, index, frame.length());
    Ok(reason)
}

/// Helpers under GPL are used; the source is under either licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier refuses the loop: a program that could panic does not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
