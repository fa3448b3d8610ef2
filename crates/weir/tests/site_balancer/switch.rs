//! A VLAN switch in user space: access ports and one trunk.
//!
//! The kernels that tests run on may have no VLAN devices. Tags are put into the octets of the frame here, which is also
//! the only place where an XDP program sees them.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants and sizes of structs in the types that the kernel's interface has for them"
)]

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lab::netns::Netns;

const ETHERNET: usize = 14;
const TPID: [u8; 2] = [0x81, 0x00];
const FRAME_MAX: usize = 2048;

/// A port of the switch: an interface of its namespace.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// Its interface.
    pub(crate) interface: String,
    /// VLAN of an access port; `None` is the trunk, which belongs to every VLAN.
    pub(crate) vlan: Option<u16>,
}

/// The switch; it stops when it is dropped.
pub(crate) struct Switch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Opens all ports, then switches in a thread of its own.
    pub(crate) fn start(netns: &Netns, ports: Vec<Port>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let opened = netns.run(|| Ok(ports.into_iter().map(Opened::new).collect::<io::Result<Vec<_>>>()?));
        let (mut switching, stopped) = (Switching::new(opened.unwrap()), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                switching.turn();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread shows as frames that do not arrive.
            let _ = thread.join();
        }
    }
}

struct Opened {
    port: Port,
    socket: OwnedFd,
}

struct Switching {
    ports: Vec<Opened>,
    /// Port on which a source was seen last.
    learned: HashMap<(u16, [u8; 6]), usize>,
    frame: Vec<u8>,
}

impl Switching {
    fn new(ports: Vec<Opened>) -> Self {
        Self { ports, learned: HashMap::new(), frame: vec![0; FRAME_MAX] }
    }

    /// Waits a moment for frames, and forwards what there is.
    fn turn(&mut self) {
        let wait = |opened: &Opened| libc::pollfd {
            fd: opened.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut waiting: Vec<libc::pollfd> = self.ports.iter().map(wait).collect();
        // SAFETY: as many entries as are told, which outlive the call.
        let ready = unsafe { libc::poll(waiting.as_mut_ptr(), waiting.len() as libc::nfds_t, 100) };
        if ready <= 0 {
            return;
        }
        for (port, _) in waiting.iter().enumerate().filter(|(_, waited)| waited.revents & libc::POLLIN != 0) {
            while let Some((length, tag)) = self.ports[port].receive(&mut self.frame) {
                self.forward(port, length, tag);
            }
        }
    }

    fn forward(&mut self, from: usize, length: usize, tag: Option<u16>) {
        let (Some(destination), Some(source)) = (mac(&self.frame, 0), mac(&self.frame, 6)) else { return };
        let Some(vlan) = self.ports[from].port.vlan.or(tag) else { return };
        self.learned.insert((vlan, source), from);
        let is_group = destination[0] & 1 != 0;
        let known = self.learned.get(&(vlan, destination)).copied().filter(|_| !is_group);
        let frame = &self.frame[..length];
        for (index, opened) in self.ports.iter().enumerate() {
            let in_vlan = opened.port.vlan.is_none_or(|access| access == vlan);
            if index != from && in_vlan && known.is_none_or(|known| known == index) {
                opened.send(frame, vlan);
            }
        }
    }
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

impl Opened {
    fn new(port: Port) -> io::Result<Self> {
        const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: a plain call; a descriptor that is returned is nobody else's.
        let socket = unsafe {
            match libc::socket(libc::AF_PACKET, kind, all) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let name = std::ffi::CString::new(port.interface.clone())?;
        // SAFETY: a C string that outlives the call.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: integers and octets, of which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all as u16;
        address.sll_ifindex = ifindex as i32;
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address outlives the call and has the size that is told.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let member = libc::packet_mreq {
            mr_ifindex: ifindex as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(&socket, PACKET_IGNORE_OUTGOING, &1_i32)?;
        set(&socket, libc::PACKET_AUXDATA, &1_i32)?;
        set(&socket, libc::PACKET_ADD_MEMBERSHIP, &member)?;
        Ok(Self { port, socket })
    }

    /// Octets of the next frame and the VLAN id of a tag, which the kernel takes out of the frame.
    fn receive(&self, frame: &mut [u8]) -> Option<(usize, Option<u16>)> {
        const VLAN_VALID: u32 = 1 << 4;
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        let mut control = [0_u64; 16];
        // SAFETY: integers and pointers, of which zero is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: both buffers outlive the call and have the lengths that are told.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(length).ok().filter(|length| *length >= ETHERNET)?;
        // SAFETY: the kernel has filled in the header and its control messages.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if first.is_null() {
            return Some((length, None));
        }
        // SAFETY: the only message asked for is the auxiliary data; it may be unaligned.
        let auxiliary: libc::tpacket_auxdata =
            unsafe { libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned() };
        let tag = (auxiliary.tp_status & VLAN_VALID != 0).then_some(auxiliary.tp_vlan_tci & 0x0fff);
        Some((length, tag))
    }

    /// Sends the frame, on the trunk with its tag. What does not fit into the kernel's queue is lost, as in any switch.
    fn send(&self, frame: &[u8], vlan: u16) {
        let tagged: Vec<u8>;
        let octets = if self.port.vlan.is_some() {
            frame
        } else {
            tagged = [&frame[..12], &TPID[..], &vlan.to_be_bytes()[..], &frame[12..]].concat();
            &tagged
        };
        // SAFETY: as many octets as are told.
        unsafe { libc::send(self.socket.as_raw_fd(), octets.as_ptr().cast(), octets.len(), 0) };
    }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value outlives the call and has the size that is told.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
