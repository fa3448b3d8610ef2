//! The kernel's routes and neighbours, as programs ask for them.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::bpf_fib_lookup as FibLookup, helpers::generated::bpf_fib_lookup};

use crate::headers::{Address, mapped, unmapped};
use crate::maps::Aligned;

/// Where the kernel would send a packet.
pub(crate) struct Hop {
    pub(crate) ifindex: u32,
    /// The destination, or the gateway on the way to it.
    pub(crate) address: Address,
    /// MAC of the hop.
    pub(crate) destination: MacPairs,
    /// MAC of the interface.
    pub(crate) source: MacPairs,
}

/// A MAC address, in pairs of octets as memory holds them.
pub(crate) type MacPairs = [u16; 3];

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Route and neighbour of `destination`; `None` unless the kernel knows both.
///
/// # Safety
/// `context` is the context of this run.
#[inline(always)]
pub(crate) unsafe fn ask(
    context: *mut c_void,
    ifindex: u32,
    destination: &Address,
    flags: u32,
) -> Option<Hop> {
    let mut fib = Aligned(MaybeUninit::<FibLookup>::uninit());
    const { assert!(size_of::<FibLookup>() == 64) };
    for at in 0..16 {
        // Volatile, or the compiler makes it a loop over octets.
        // SAFETY: within the 64 octets, which are aligned to 4.
        unsafe { fib.0.as_mut_ptr().cast::<u32>().add(at).write_volatile(0) };
    }
    // SAFETY: integers and unions of integers, all octets written.
    let fib = unsafe { fib.0.assume_init_mut() };
    fib.ifindex = ifindex;
    match unmapped(destination) {
        Some(v4) => {
            fib.family = AF_INET;
            fib.__bindgen_anon_4.ipv4_dst = v4;
        }
        None => {
            fib.family = AF_INET6;
            fib.__bindgen_anon_4.ipv6_dst = *destination;
        }
    }
    // SAFETY: the parameters live for the call and have the size that is given; the context is the caller's.
    let found = unsafe { bpf_fib_lookup(context, fib, size_of::<FibLookup>() as i32, flags) };
    if found != 0 {
        return None;
    }
    // SAFETY: integers, and all of them were written.
    let address = unsafe {
        match fib.family {
            AF_INET => mapped(fib.__bindgen_anon_4.ipv4_dst),
            _ => fib.__bindgen_anon_4.ipv6_dst,
        }
    };
    let pairs = |at: *const [u8; 6]| {
        // Volatile, or the compiler merges pairs into words that are not aligned.
        // SAFETY: six octets that were written, aligned to 2.
        let pair = |index: usize| unsafe { at.cast::<u16>().add(index).read_volatile() };
        [pair(0), pair(1), pair(2)]
    };
    let (destination, source) = (pairs(&raw const fib.dmac), pairs(&raw const fib.smac));
    Some(Hop { ifindex: fib.ifindex, address, destination, source })
}
