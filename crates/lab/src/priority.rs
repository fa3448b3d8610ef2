//! Who goes first when the lab's processes want the same processor.

/// Puts the calling thread, and what it starts from now on, in front of everything of ordinary priority: what
/// measures must not wait for what is measured. Where that is not allowed, the figures are only noisier.
pub(crate) fn go_first() {
    // SAFETY: setpriority takes integers only; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}
