//! Programs the benchmarks need around the data path: nothing, sinks, and the in-kernel generator's exit.
#![no_std]
#![no_main]

mod tester;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, DevMap, PerCpuArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Packets and octets that reached a sink.
#[btf_map]
static SINK: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();
/// Entry 0: where the generator's frames go.
#[btf_map]
static GENERATOR: DevMap<1> = DevMap::new();
/// Ethernet, IPv4 and UDP headers of the generator's frames, and six octets of payload.
#[btf_map]
static TEMPLATE: Array<[u64; 6], 1> = Array::new();
/// Frames the generator has sent.
#[btf_map]
static SENT: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Flows of the generator: as many source ports.
const FLOWS: u32 = 1024;
const FIRST_PORT: u32 = 1024;
/// UDP source port, behind Ethernet and IPv4 without options.
const SOURCE_PORT: usize = 14 + 20;

#[inline(always)]
fn count(octets: u64) {
    if let Some(counters) = SINK.get_ptr_mut(0) {
        // SAFETY: this CPU's counters, valid for the run of the program.
        let [packets, bytes] = unsafe { &mut *counters };
        *packets = packets.wrapping_add(1);
        *bytes = bytes.wrapping_add(octets);
    }
}

/// The least a TC program costs.
#[classifier]
pub fn empty(_context: TcContext) -> i32 {
    TC_ACT_OK as i32
}

/// The least an XDP program costs; also what a veth peer needs to take redirected frames.
#[xdp]
pub fn empty_xdp(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Counts and drops socket buffers.
#[classifier]
pub fn sink(context: TcContext) -> i32 {
    count(u64::from(context.len()));
    TC_ACT_SHOT as i32
}

/// Counts and drops frames.
#[xdp]
pub fn sink_xdp(context: XdpContext) -> u32 {
    count((context.data_end() - context.data()) as u64);
    xdp_action::XDP_DROP
}

/// Sends every frame of a BPF_F_TEST_XDP_LIVE_FRAMES run out of the generator's device, one flow after the other.
///
/// The kernel uses a frame's memory again without restoring it, and programs on the way have changed it: every frame
/// gets its headers anew.
#[xdp]
pub fn generator_xdp(context: XdpContext) -> u32 {
    let (Some(template), Some(sent)) = (TEMPLATE.get(0), SENT.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    let start = context.data();
    if start + size_of::<[u64; 6]>() > context.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: this CPU's counter, valid for the run of the program.
    let sent = unsafe { &mut *sent };
    *sent = sent.wrapping_add(1);
    let port = (FIRST_PORT + *sent % FLOWS) as u16;
    // SAFETY: the check above says that as many octets are in the frame, which a live-frames run starts at a multiple
    // of 8 octets of a page.
    unsafe {
        // Volatile, word by word: a copy would be a call of memmove.
        for (index, word) in template.iter().enumerate() {
            (start as *mut u64).add(index).write_volatile(*word);
        }
        ((start + SOURCE_PORT) as *mut u16).write(port.to_be());
    }
    GENERATOR.redirect(0, 0).unwrap_or(xdp_action::XDP_ABORTED)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier refuses the loop: a program that could panic does not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
