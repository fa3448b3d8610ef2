//! What the kernel's verifier needs to be told, and the compiler to be kept from.

use core::arch::asm;

/// Something on the stack that a helper reads: the compiler merges neighbouring words into one access of 8 octets,
/// which the verifier takes on the stack only when it is aligned.
#[repr(C, align(8))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// The same value, but the compiler cannot tell where it comes from.
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // One instruction, because none at all would give two source lines to the next one, which the kernel refuses.
    // SAFETY: a register is copied to itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}
