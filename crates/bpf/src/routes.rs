//! The kernel's routes and neighbours, as programs ask for them.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::bpf_fib_lookup as FibLookup, helpers::generated::bpf_fib_lookup};

use crate::headers::{Address, mapped, unmapped};
use crate::verifier::Aligned;

/// Where the kernel would send a packet.
pub(crate) struct Hop {
    pub(crate) ifindex: u32,
    /// The destination, or the gateway on the way to it.
    pub(crate) address: Address,
    pub(crate) macs: Macs,
}

/// What a frame begins with, destination and source MAC, in words as memory holds them.
///
/// Not octets: the compiler would copy them one by one.
pub(crate) type Macs = [u32; 3];

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
    // Volatile, or the compiler merges pairs into words that are not aligned.
    // SAFETY: six octets that were written, aligned to 2.
    let pair = |mac: *const [u8; 6], at: usize| unsafe { mac.cast::<u16>().add(at).read_volatile() };
    let (to, from) = (&raw const fib.dmac, &raw const fib.smac);
    let word = |low: u16, high: u16| (u32::from(low.to_le()) | u32::from(high.to_le()) << 16).to_le();
    let macs = [
        word(pair(to, 0), pair(to, 1)),
        word(pair(to, 2), pair(from, 0)),
        word(pair(from, 1), pair(from, 2)),
    ];
    Some(Hop { ifindex: fib.ifindex, address, macs })
}
