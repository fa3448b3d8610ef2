//! The frame in memory.

use core::{arch::asm, mem::size_of};

use aya_ebpf::bindings::xdp_md;

use crate::verifier::opaque;

/// A frame. Its size never changes, so the ends are read once.
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        let (start, end): (usize, usize);
        // The fields are 32 bits wide and the kernel makes addresses of them. In a program's terms that is a word that
        // is loaded in 64 bits, which the compiler would spill and extend as the 32 it knows of.
        // SAFETY: two loads from the context, which is valid for the run of the program.
        unsafe {
            asm!(
                "{start} = *(u32 *)({context} + 0)",
                "{end} = *(u32 *)({context} + 4)",
                start = out(reg) start,
                end = lateout(reg) end,
                context = in(reg) context,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        Self { start, end }
    }

    /// Octets from the Ethernet header on.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        (self.end - self.start) as u32
    }

    /// Pointer to a `T` at a constant `offset`, if the frame holds it whole.
    #[inline(always)]
    pub(crate) fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let pointer = self.start + offset;
        if pointer + size_of::<T>() > self.end {
            return None;
        }
        Some(pointer as *mut T)
    }

    /// [`Self::at`] for an offset that is not a constant.
    ///
    /// The compiler must not compute the checked and the used address in two ways: the verifier would take them for
    /// different pointers.
    #[inline(always)]
    pub(crate) fn at_variable<T>(&self, offset: usize) -> Option<*mut T> {
        let pointer = opaque(self.start + offset);
        if pointer + size_of::<T>() > self.end {
            return None;
        }
        Some(pointer as *mut T)
    }
}
