//! The control path before everything of ordinary priority.
//!
//! A decision takes a fraction of a millisecond of work in the map server and in the gateway. Where others want the
//! processor too, the waiting for it is many times that, and no nice value bounds it: an
//! ordinary thread goes on to the end of its slice once it runs.

use std::io;

/// The lowest: in front of ordinary threads, behind everything else that was given a priority on purpose.
const PRIORITY: libc::c_int = 1;

/// Puts the calling thread in front of all threads of ordinary priority, but not what it starts from now on. Without
/// permission (`CAP_SYS_NICE` or `LimitRTPRIO=1`) the thread stays what it is.
pub(crate) fn go_first() {
    match real_time() {
        Ok(()) => tracing::info!("the control path goes first (real-time priority {PRIORITY})"),
        Err(error) => tracing::info!(%error, "the control path has ordinary priority"),
    }
}

fn real_time() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameter outlives the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
