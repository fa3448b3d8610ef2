//! Packet sockets in batches: every frame of an interface in, any frame out.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Frames per system call.
pub(super) const BATCH: usize = BATCH_LENGTH as usize;
const BATCH_LENGTH: libc::c_uint = 64;
/// Bursts wait here while the process is not scheduled.
const SOCKET_BUFFER: libc::c_int = 32 << 20;
const FAMILY: libc::sa_family_t = 17;
const EVERY_PROTOCOL: u16 = 3;
const _: () =
    assert!(FAMILY as libc::c_int == libc::AF_PACKET && EVERY_PROTOCOL as libc::c_int == libc::ETH_P_ALL);
/// cmsghdr and a timespec.
const CONTROL_BYTES: usize = 64;

/// A raw socket bound to one interface.
#[derive(Debug)]
pub(super) struct PacketSocket {
    descriptor: OwnedFd,
}

impl PacketSocket {
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface).map_err(io::Error::other)?;
        // SAFETY: `name` is a terminated string that lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let index = i32::try_from(index).map_err(io::Error::other)?;
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0 receives nothing until bind(2) names the interface: no frame of another one slips in.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes integers; the result is checked before it is owned.
        let descriptor = unsafe {
            match libc::socket(libc::AF_PACKET, kind, 0) {
                -1 => return Err(io::Error::last_os_error()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        let socket = Self { descriptor };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER)?;
        socket.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER)?;
        socket.option(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        socket.option(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        // Frames that this socket's own side sends would come back otherwise.
        socket.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.bind(index)?;
        Ok(socket)
    }

    fn bind(&self, index: i32) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = FAMILY;
        address.sll_protocol = EVERY_PROTOCOL.to_be();
        address.sll_ifindex = index;
        // SAFETY: `address` is a sockaddr_ll of the length that is passed.
        let result = unsafe {
            libc::bind(
                self.descriptor.as_raw_fd(),
                (&raw const address).cast(),
                length_of::<libc::sockaddr_ll>(),
            )
        };
        check(result).map(drop)
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` is a c_int and its length is passed.
        let result = unsafe {
            libc::setsockopt(
                self.descriptor.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                length_of::<libc::c_int>(),
            )
        };
        check(result).map(drop)
    }

    /// Takes in everything that waits. `None` stands for a frame longer than the buffers.
    pub(super) fn receive(
        &self,
        batch: &mut Batch,
        mut take: impl FnMut(Duration, Option<&[u8]>),
    ) -> io::Result<()> {
        loop {
            let count = batch.receive(&self.descriptor)?;
            let clocks = (now(), clock(libc::CLOCK_REALTIME));
            for index in 0..count {
                let (stamp, frame) = batch.frame(index);
                take(arrival(clocks, stamp), frame);
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }

    /// Sends up to [`BATCH`] frames; returns how many went.
    pub(super) fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let mut vectors: [libc::iovec; BATCH] =
            [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut count = 0;
        for (vector, frame) in vectors.iter_mut().zip(frames) {
            *vector = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            count += 1;
        }
        // SAFETY: mmsghdr is pointers and integers, for which zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (message, vector) in messages.iter_mut().zip(&mut vectors) {
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` messages point at vectors of frames that the caller borrows to us.
        let sent = unsafe { libc::sendmmsg(self.descriptor.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        check(sent)
    }
}

/// Buffers for one recvmmsg(2).
pub(super) struct Batch {
    frame_bytes: usize,
    frames: Vec<u8>,
    controls: Vec<[u64; CONTROL_BYTES / 8]>,
    messages: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
}

impl Batch {
    pub(super) fn new(frame_bytes: usize) -> Self {
        Self {
            frame_bytes,
            frames: vec![0; frame_bytes * BATCH],
            controls: vec![[0; CONTROL_BYTES / 8]; BATCH],
            // SAFETY: mmsghdr is pointers and integers, for which zero is a value.
            messages: vec![unsafe { std::mem::zeroed() }; BATCH],
            vectors: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH],
        }
    }

    fn receive(&mut self, descriptor: &OwnedFd) -> io::Result<usize> {
        let frames = self.frames.chunks_exact_mut(self.frame_bytes);
        for (((message, vector), control), frame) in
            self.messages.iter_mut().zip(&mut self.vectors).zip(&mut self.controls).zip(frames)
        {
            *vector = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_BYTES;
            message.msg_hdr.msg_flags = 0;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: every message points at a vector, a buffer and a control block of `self`, set just above.
        let received = unsafe {
            libc::recvmmsg(
                descriptor.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH_LENGTH,
                flags,
                std::ptr::null_mut(),
            )
        };
        match check(received) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            // The interface went away and came back, or goes away: nothing to take in.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(0),
            other => other,
        }
    }

    /// The kernel's time stamp (real time) and the frame. `MSG_TRUNC` makes the length the one on the wire.
    fn frame(&self, index: usize) -> (Option<Duration>, Option<&[u8]>) {
        let message = &self.messages[index];
        let length = message.msg_len as usize;
        let start = index * self.frame_bytes;
        let frame = (length <= self.frame_bytes).then(|| &self.frames[start..start + length]);
        (timestamp(&message.msg_hdr), frame)
    }
}

fn timestamp(header: &libc::msghdr) -> Option<Duration> {
    // SAFETY: `header` was filled by recvmmsg over a live, aligned control block; CMSG_FIRSTHDR checks its length, and
    // the payload of SCM_TIMESTAMPNS is a timespec.
    unsafe {
        let control = libc::CMSG_FIRSTHDR(header);
        let first = control.as_ref()?;
        if first.cmsg_level != libc::SOL_SOCKET || first.cmsg_type != libc::SCM_TIMESTAMPNS {
            return None;
        }
        Some(duration(libc::CMSG_DATA(control).cast::<libc::timespec>().read_unaligned()))
    }
}

/// When a frame arrived, on the monotonic clock: the process may have been scheduled late, the stamp was not.
fn arrival((monotonic, real): (Duration, Duration), stamp: Option<Duration>) -> Duration {
    let age = stamp.map_or(Duration::ZERO, |stamp| real.saturating_sub(stamp));
    // An older stamp means that the real-time clock was stepped.
    if age > Duration::from_secs(1) { monotonic } else { monotonic.saturating_sub(age) }
}

/// Waits until a socket has frames or `due` has come. Says which sockets have frames.
pub(super) fn wait(sockets: &[&PacketSocket], due: Option<Duration>) -> io::Result<Vec<bool>> {
    let poll = |socket: &&PacketSocket| libc::pollfd {
        fd: socket.descriptor.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls: Vec<libc::pollfd> = sockets.iter().map(poll).collect();
    // A second is short enough that nothing waits forever when a signal falls between the check and the call.
    let timeout = due.map_or(Duration::from_secs(1), |due| due.saturating_sub(now()));
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(1).cast_signed(),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    };
    // SAFETY: `polls` and `timeout` live through the call, and the length is theirs.
    let result = unsafe {
        libc::ppoll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, &raw const timeout, std::ptr::null())
    };
    check(result)?;
    Ok(polls.iter().map(|poll| poll.revents != 0).collect())
}

/// Errors that lose a frame, not the link.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOBUFS | libc::EAGAIN | libc::ENETDOWN | libc::ENOMEM | libc::EMSGSIZE | libc::EINVAL)
    )
}

/// Wakes on time: the least timer slack, real-time priority where it is allowed, SIGTERM and SIGINT to `stop`.
pub(super) fn prepare_process(stop: extern "C" fn(libc::c_int)) {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: prctl and sched_setscheduler take integers and a live struct; where they fail, frames are only later.
    // The handler does nothing but an atomic store.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority);
        libc::signal(libc::SIGTERM, stop as *const () as libc::sighandler_t);
        libc::signal(libc::SIGINT, stop as *const () as libc::sighandler_t);
    }
}

/// Monotonic time since boot.
pub(super) fn now() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the two clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    duration(time)
}

fn duration(time: libc::timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of the few structs above, all below 100 bytes")]
fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_corrects_for_late_scheduling_and_a_clock_step_does_not() {
        let second = Duration::from_secs(1);
        let clocks = (50 * second, 1000 * second);
        let stamp = 1000 * second - Duration::from_millis(3);
        assert_eq!(arrival(clocks, Some(stamp)), 50 * second - Duration::from_millis(3));
        assert_eq!(arrival(clocks, Some(900 * second)), 50 * second);
        assert_eq!(arrival(clocks, Some(1001 * second)), 50 * second);
        assert_eq!(arrival(clocks, None), 50 * second);
    }
}
