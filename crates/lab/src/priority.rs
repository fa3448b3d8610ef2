//! Who goes first when the lab's processes want the same processor, and who stays on one.

use std::{io, mem};

/// Puts the calling thread, and what it starts from now on, in front of everything of ordinary priority: what
/// measures must not wait for what is measured. Where that is not allowed, the figures are only noisier.
pub(crate) fn go_first() {
    // SAFETY: setpriority takes integers only; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// Keeps the calling thread on the first processor it may run on. What it hands to the kernel is then worked off there
/// as well, before the thread goes on, and not by another processor at its own pace.
///
/// # Errors
/// The kernel tells or takes no affinity.
pub(crate) fn stay_on_one_processor() -> io::Result<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a bit mask, of which all zeroes is a value.
    let mut allowed: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the mask outlives the call and has the size that is given; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let bits = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: reads one bit of the mask, which has as many.
    let first = (0..bits).find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &allowed) });
    let first = first.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: sets one bit of the mask, which has as many.
    unsafe { libc::CPU_SET(first, &mut one) };
    // SAFETY: as for reading it.
    match unsafe { libc::sched_setaffinity(0, size, &raw const one) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
