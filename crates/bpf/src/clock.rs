//! The time in the kernel's ticks: one load from memory, where nanoseconds are a call.

use core::ptr::addr_of;

use aya_ebpf::helpers::generated::bpf_jiffies64;

/// What the loader found; the verifier sees a constant.
#[unsafe(no_mangle)]
static TICKS_PER_SECOND: u32 = 100;

/// Ticks since some moment before the system started.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: no memory is touched.
    unsafe { bpf_jiffies64() }
}

/// Ticks of one second.
#[inline(always)]
pub(crate) fn ticks_per_second() -> u32 {
    // Volatile, or the compiler would know better than the loader.
    // SAFETY: an aligned word that nobody writes once the program is loaded.
    unsafe { addr_of!(TICKS_PER_SECOND).read_volatile() }
}
