//! Running something inside a named network namespace (`ip netns`).

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::path::Path;

/// While this lives the calling thread is in another network namespace; sockets it opens stay there.
#[derive(Debug)]
pub struct NetnsGuard {
    home: File,
    // setns is per thread: the guard must be dropped where it was made.
    not_send: PhantomData<*const ()>,
}

impl NetnsGuard {
    /// Enters the namespace.
    ///
    /// # Errors
    /// If it does not exist or may not be entered.
    pub fn enter(name: &str) -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let there = File::open(Path::new("/run/netns").join(name))?;
        set(&there)?;
        Ok(Self { home, not_send: PhantomData })
    }
}

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        set(&self.home).expect("a thread may return to the namespace it came from");
    }
}

fn set(namespace: &File) -> io::Result<()> {
    // SAFETY: no pointer is passed, and `namespace` is open for the call.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
