//! A VLAN switch in user space: access ports and trunks.
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
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lab::netns::Netns;

use crate::site::{C_TAG, S_TAG, Tag};

const ETHERNET: usize = 14;
/// Octets of both addresses, behind which the tags are.
const ADDRESSES: usize = 12;
const TAG: usize = 4;
/// Longest frame that ports take.
pub(crate) const FRAME_MAX: usize = 9216;

/// A port of the switch: an interface of its namespace.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// Its interface.
    pub(crate) interface: String,
    /// Tags of the VLAN that an access port is in, from the outside in; `None` is a trunk, which belongs to every VLAN.
    pub(crate) access: Option<Vec<Tag>>,
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

/// Whole frames of one interface, all of them.
pub(crate) struct Frames {
    socket: OwnedFd,
}

struct Opened {
    port: Port,
    frames: Frames,
}

struct Switching {
    ports: Vec<Opened>,
    /// Port on which a source was seen last.
    learned: HashMap<(Vec<Tag>, [u8; 6]), usize>,
    frame: Vec<u8>,
}

impl Switching {
    fn new(ports: Vec<Opened>) -> Self {
        Self { ports, learned: HashMap::new(), frame: vec![0; FRAME_MAX] }
    }

    /// Waits a moment for frames, and forwards what there is.
    fn turn(&mut self) {
        let wait = |opened: &Opened| libc::pollfd {
            fd: opened.frames.as_raw_fd(),
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
            while let Some(length) = self.ports[port].frames.receive(&mut self.frame) {
                self.forward(port, length);
            }
        }
    }

    fn forward(&mut self, from: usize, length: usize) {
        let frame = &self.frame[..length];
        let (Some(destination), Some(source)) = (mac(frame, 0), mac(frame, 6)) else { return };
        let (vlan, rest) = match &self.ports[from].port.access {
            Some(access) => (access.clone(), &frame[ADDRESSES..]),
            None => tags_of(frame),
        };
        self.learned.insert((vlan.clone(), source), from);
        let is_group = destination[0] & 1 != 0;
        let known = self.learned.get(&(vlan.clone(), destination)).copied().filter(|_| !is_group);
        for (index, opened) in self.ports.iter().enumerate() {
            let in_vlan = opened.port.access.as_ref().is_none_or(|access| *access == vlan);
            if index != from && in_vlan && known.is_none_or(|known| known == index) {
                let tags = if opened.port.access.is_some() { &[][..] } else { &vlan };
                opened.frames.send(&with_tags(&frame[..ADDRESSES], tags, rest));
            }
        }
    }
}

/// The tags of a frame from the outside in, and what is behind them.
fn tags_of(frame: &[u8]) -> (Vec<Tag>, &[u8]) {
    let (mut tags, mut rest) = (Vec::new(), &frame[ADDRESSES..]);
    while let [p0, p1, v0, v1, behind @ ..] = rest {
        let protocol = u16::from_be_bytes([*p0, *p1]);
        if protocol != C_TAG && protocol != S_TAG {
            break;
        }
        tags.push((protocol, u16::from_be_bytes([*v0, *v1]) & 0x0fff));
        rest = behind;
    }
    (tags, rest)
}

fn with_tags(addresses: &[u8], tags: &[Tag], rest: &[u8]) -> Vec<u8> {
    let mut frame = addresses.to_vec();
    for (protocol, vid) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(vid.to_be_bytes());
    }
    frame.extend(rest);
    frame
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

impl Opened {
    fn new(port: Port) -> io::Result<Self> {
        Ok(Self { frames: Frames::open(&port.interface)?, port })
    }
}

impl Frames {
    /// Opens them in the calling thread's namespace.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
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
        let name = std::ffi::CString::new(interface)?;
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
        Ok(Self { socket })
    }

    /// To be waited for.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next frame, if there is one; its length. The kernel takes the outer tag out of the frame: it is put back.
    pub(crate) fn receive(&self, frame: &mut [u8]) -> Option<usize> {
        let room = frame.get_mut(TAG..)?;
        let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
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
        let tag = taken_out(&message);
        frame.copy_within(TAG..TAG + ADDRESSES, 0);
        let Some(tag) = tag else {
            frame.copy_within(TAG + ADDRESSES..TAG + length, ADDRESSES);
            return Some(length);
        };
        frame[ADDRESSES..ADDRESSES + TAG].copy_from_slice(&tag);
        Some(length + TAG)
    }

    /// Sends the frame. What does not fit into the kernel's queue is lost, as in any switch.
    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: as many octets as are told.
        unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    }
}

/// The tag that the kernel took out of a received frame.
fn taken_out(message: &libc::msghdr) -> Option<[u8; TAG]> {
    // SAFETY: the kernel has filled in the header and its control messages.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    if first.is_null() {
        return None;
    }
    // SAFETY: the only message asked for is the auxiliary data; it may be unaligned.
    let auxiliary: libc::tpacket_auxdata =
        unsafe { libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned() };
    let has = |flag| auxiliary.tp_status & flag != 0;
    let protocol = if has(libc::TP_STATUS_VLAN_TPID_VALID) { auxiliary.tp_vlan_tpid } else { C_TAG };
    let ([p0, p1], [v0, v1]) = (protocol.to_be_bytes(), auxiliary.tp_vlan_tci.to_be_bytes());
    has(libc::TP_STATUS_VLAN_VALID).then_some([p0, p1, v0, v1])
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value outlives the call and has the size that is told.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
