//! The tester's generator, and the device under test that does the least.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    helpers::bpf_xdp_adjust_tail,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use bpf_abi::tester::{HEADERS, MIX, TAGGED, TesterValue, UNTAGGED};

use crate::GENERATOR;

/// What the frames are like.
#[btf_map]
static TESTER: Array<TesterValue, 1> = Array::new();
/// Number of the next frame and its place in the mix. The place is kept, because the verifier does not know that a
/// remainder is small, and the compiler does.
#[btf_map]
static NEXT: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// Sends frames without a tag out of the generator's device, as `generator_xdp` does.
#[xdp]
pub fn tester_xdp(context: XdpContext) -> u32 {
    send::<UNTAGGED>(&context).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Likewise with one tag.
#[xdp]
pub fn tester_tagged_xdp(context: XdpContext) -> u32 {
    send::<TAGGED>(&context).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn send<const L3: usize>(context: &XdpContext) -> Option<u32> {
    let value = TESTER.get(0)?;
    // SAFETY: this CPU's counter, valid for the run of the program.
    let next = unsafe { &mut *NEXT.get_ptr_mut(0)? };
    let [number, place] = *next;
    *next = [number.wrapping_add(1), if place + 1 < MIX as u32 { place + 1 } else { 0 }];
    let length = value.length(place);
    let shorter = i32::from(length) - (context.data_end() - context.data()) as i32;
    // The kernel restores a frame's length, not its contents.
    // SAFETY: the context is the one that the program was given.
    if shorter != 0 && unsafe { bpf_xdp_adjust_tail(context.ctx, shorter) } != 0 {
        return None;
    }
    let start = context.data();
    if start + HEADERS > context.data_end() {
        return None;
    }
    // SAFETY: the check above says that as many octets are in the frame, which a live-frames run starts at a multiple
    // of 8 octets of a page; nothing else refers to them.
    let headers = unsafe {
        // Volatile, word by word: a copy would be a call of memmove.
        for (index, word) in value.headers.iter().take(HEADERS / 8).enumerate() {
            (start as *mut u64).add(index).write_volatile(*word);
        }
        let rest = (&raw const value.headers[HEADERS / 8]).cast::<u32>().read();
        ((start + HEADERS / 8 * 8) as *mut u32).write_volatile(rest);
        &mut *(start as *mut [u8; HEADERS])
    };
    value.write::<L3>(number, place, headers);
    Some(GENERATOR.redirect(0, 0).unwrap_or(xdp_action::XDP_ABORTED))
}

/// Sends every frame back to where it came from: what a device under test costs that decides nothing.
#[xdp]
pub fn bounce_xdp(context: XdpContext) -> u32 {
    let start = context.data();
    if start + 12 > context.data_end() {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: the check above says that both addresses are in the frame, in words of
    // which neither end is aligned: the limit is to be as low as it can be.
    unsafe {
        let (high, low) = ((start as *mut u32), (start + 4) as *mut u16);
        let (other_high, other_low) = ((start + 6) as *mut u32, (start + 10) as *mut u16);
        let destination = (high.read_unaligned(), low.read_unaligned());
        high.write_unaligned(other_high.read_unaligned());
        low.write_unaligned(other_low.read_unaligned());
        other_high.write_unaligned(destination.0);
        other_low.write_unaligned(destination.1);
    }
    xdp_action::XDP_TX
}
