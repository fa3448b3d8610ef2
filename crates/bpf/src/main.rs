//! weir's data path: one ITR and one ETR, each for TC ingress and for XDP.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod clock;
mod egress_cache;
mod etr;
mod flow_cache;
mod headers;
mod inner;
mod itr;
mod maps;
mod neighbours;
mod packet;
mod routes;
mod tc;
mod verifier;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::tc::SocketBuffer;
use crate::xdp::Frame;

/// ITR on TC ingress of an EID interface.
#[classifier]
#[inline(always)]
pub fn weir_itr(context: TcContext) -> i32 {
    itr::itr(&SocketBuffer(context.skb.skb))
}

/// ETR on TC ingress of an underlay interface.
#[classifier]
#[inline(always)]
pub fn weir_etr(context: TcContext) -> i32 {
    etr::etr(&SocketBuffer(context.skb.skb))
}

/// ITR on XDP of an EID interface.
#[xdp]
#[inline(always)]
pub fn weir_itr_xdp(context: XdpContext) -> u32 {
    itr::itr(&Frame(context.ctx)).cast_unsigned()
}

/// ETR on XDP of an underlay interface.
#[xdp]
#[inline(always)]
pub fn weir_etr_xdp(context: XdpContext) -> u32 {
    etr::etr(&Frame(context.ctx)).cast_unsigned()
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
