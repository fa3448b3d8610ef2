//! The TAP device through which packets to unresolved EIDs come up, and go back once they are resolved.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::unix::AsyncFd;

use crate::error::DataplaneError;
use crate::ethtool::interface_name;

/// Longest frame: a packet of 65535 octets behind an Ethernet header.
pub const FRAME_MAX: usize = 65_549;

/// A TAP device; it goes away when this is dropped.
#[derive(Debug)]
pub struct Tap {
    fd: AsyncFd<OwnedFd>,
    name: String,
}

impl Tap {
    /// Creates the device in the calling thread's network namespace, down; needs a tokio runtime.
    ///
    /// # Errors
    /// If the kernel has no TUN driver, or somebody else holds a device of that name.
    pub fn create(name: &str) -> Result<Self, DataplaneError> {
        let failed = |source| DataplaneError::system("create TAP", name, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let fd = OwnedFd::from(options.open("/dev/net/tun").map_err(failed)?);
        // SAFETY: an all-zero ifreq is a valid value of that C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = interface_name(name)?;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI)
            .map_err(|_| failed(ErrorKind::InvalidInput.into()))?;
        // SAFETY: TUNSETIFF reads and writes the ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if result < 0 {
            return Err(DataplaneError::last("create TAP", name));
        }
        // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd owns it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|refused| failed(refused.into_parts().1))?;
        Ok(Self { fd, name: name.to_owned() })
    }

    /// Name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next frame that was redirected to the device; its length. Cancelling loses nothing.
    ///
    /// # Errors
    /// If the device is gone.
    pub async fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            // SAFETY: the kernel writes at most `frame.len()` octets into `frame`, which is borrowed for the call.
            let read = |fd: &AsyncFd<OwnedFd>| unsafe {
                length(libc::read(fd.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len()))
            };
            if let Ok(result) = ready.try_io(read) {
                return result;
            }
        }
    }

    /// Lets a frame arrive on the device.
    ///
    /// # Errors
    /// If the device is gone or down; the frame is lost.
    pub fn send(&self, frame: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads at most `frame.len()` octets from `frame`, which is borrowed for the call.
        length(unsafe { libc::write(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len()) })
    }
}

fn length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
