//! A packet socket for neighbours: ARP and Neighbour Discovery of one interface, in every VLAN, with the tags in place.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use codec::neighbour::{ALL_NODES, Mac};
use tokio::io::unix::AsyncFd;

use crate::error::DataplaneError;

/// Room for a frame with its tags: messages of neighbours are short, and what is longer is cut off.
pub const NEIGHBOUR_FRAME_MAX: usize = 1518;
/// Octets of a tag.
const TAG: usize = 4;
/// Octets in front of the tags: both link-layer addresses.
const ADDRESSES: usize = 12;
/// Octets of room for answers while their reader is busy: a small one takes about 700 of them.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// Before Linux 4.20 there is no such option, and its own frames come back.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Sends and receives whole Ethernet frames on one interface; needs CAP_NET_RAW.
///
/// A socket of one EtherType would not do: the kernel takes off the tag of a VLAN that it has no device for, and such
/// sockets then see an untagged frame.
#[derive(Debug)]
pub struct NeighbourSocket {
    fd: AsyncFd<OwnedFd>,
}

impl NeighbourSocket {
    /// Opens the socket in the calling thread's network namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses the socket, or one of its options.
    pub fn open(interface: &str, ifindex: u32) -> Result<Self, DataplaneError> {
        let failed = |operation| DataplaneError::last(operation, interface);
        // Protocol 0: nothing arrives before the filter is in place and the socket bound.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointer is passed; the result is checked before it becomes an owned descriptor.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(failed("open packet socket"));
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let filter = filter();
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or(0),
            filter: filter.as_ptr().cast_mut(),
        };
        option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
            .map_err(|source| DataplaneError::system("filter packet socket", interface, source))?;
        option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)
            .map_err(|source| DataplaneError::system("see tags on", interface, source))?;
        let _ = option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32);
        // Without CAP_NET_ADMIN the system's own size.
        let _ = option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER);
        option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership(ifindex, ALL_NODES))
            .map_err(|source| DataplaneError::system("join all nodes on", interface, source))?;
        bind(&socket, ifindex).map_err(|source| DataplaneError::system("bind to", interface, source))?;
        // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd owns it.
        let fd = unsafe { AsyncFd::register(socket) }
            .map_err(|refused| DataplaneError::system("poll", interface, refused.into_parts().1))?;
        Ok(Self { fd })
    }

    /// The next frame, with its tags; its length. `frame` should have [`NEIGHBOUR_FRAME_MAX`] octets. Cancelling loses
    /// nothing.
    ///
    /// # Errors
    /// `ENETDOWN` once when the interface goes down: the socket works again when it is back up.
    pub async fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(result) = ready.try_io(|fd| receive(fd, frame)) {
                return result;
            }
        }
    }

    /// Sends a frame as it is, tags included.
    ///
    /// # Errors
    /// If the interface is gone or down, or its queue full; the frame is lost.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads at most `frame.len()` octets from `frame`, which is borrowed for the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// ARP and Neighbour Advertisements, behind no tag or one that the kernel left in the frame.
const fn filter() -> [libc::sock_filter; 14] {
    const LOAD_HALF: u16 = short(libc::BPF_LD | libc::BPF_H | libc::BPF_IND);
    const LOAD_OCTET: u16 = short(libc::BPF_LD | libc::BPF_B | libc::BPF_IND);
    const SET_INDEX: u16 = short(libc::BPF_LDX | libc::BPF_IMM);
    const EQUAL: u16 = short(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    const RETURN: u16 = short(libc::BPF_RET | libc::BPF_K);
    const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    [
        step(SET_INDEX, 0, 0, 0),
        step(LOAD_HALF, 0, 0, 12),
        step(EQUAL, 1, 0, 0x8100),
        step(EQUAL, 0, 2, 0x88a8),
        step(SET_INDEX, 0, 0, 4),
        step(LOAD_HALF, 0, 0, 12),
        step(EQUAL, 6, 0, 0x0806),
        step(EQUAL, 0, 4, 0x86dd),
        step(LOAD_OCTET, 0, 0, 14 + 6),
        step(EQUAL, 0, 2, 58),
        step(LOAD_OCTET, 0, 0, 14 + 40),
        step(EQUAL, 1, 0, 136),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, u32::MAX),
    ]
}

/// Constants of the kernel's headers are ints; the fields that take them have 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "asserted")]
const fn short(constant: u32) -> u16 {
    assert!(constant <= 0xffff);
    constant as u16
}

fn option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let value: *const T = value;
    // SAFETY: the kernel reads `length` octets of the value, which is a C structure or an int and borrowed for the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn membership(ifindex: u32, group: Mac) -> libc::packet_mreq {
    // SAFETY: an all-zero packet_mreq is a valid value of that C structure.
    let mut request: libc::packet_mreq = unsafe { std::mem::zeroed() };
    request.mr_ifindex = ifindex.cast_signed();
    request.mr_type = short(libc::PACKET_MR_MULTICAST.cast_unsigned());
    request.mr_alen = 6;
    request.mr_address[..6].copy_from_slice(&group);
    request
}

fn bind(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    // SAFETY: an all-zero sockaddr_ll is a valid value of that C structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = short(libc::AF_PACKET.cast_unsigned());
    address.sll_protocol = short(libc::ETH_P_ALL.cast_unsigned()).to_be();
    address.sll_ifindex = ifindex.cast_signed();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: the kernel reads `length` octets of the address, which is borrowed for the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for one control message, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn receive(fd: &AsyncFd<OwnedFd>, frame: &mut [u8]) -> io::Result<usize> {
    let room = frame.get_mut(TAG..).ok_or(io::ErrorKind::InvalidInput)?;
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: an all-zero msghdr is a valid value of that C structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the kernel writes within the lengths given, into `room` and `control`, which outlive the call.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(put_back(frame, length, stripped(&message)))
}

/// Protocol and value of the tag that the kernel took off.
fn stripped(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: `message` was filled in by recvmsg and its control buffer lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a header inside the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: the kernel's data of this kind is a tpacket_auxdata; it need not be aligned.
            let data = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            let has = |flag| data.tp_status & flag != 0;
            let protocol = if has(libc::TP_STATUS_VLAN_TPID_VALID) {
                data.tp_vlan_tpid
            } else {
                short(libc::ETH_P_8021Q.cast_unsigned())
            };
            return has(libc::TP_STATUS_VLAN_VALID).then_some((protocol, data.tp_vlan_tci));
        }
        // SAFETY: `header` points into the control buffer of `message`.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// The frame was received behind [`TAG`] octets of room; its length with its tag where it was on the wire.
fn put_back(frame: &mut [u8], length: usize, tag: Option<(u16, u16)>) -> usize {
    match tag {
        Some((protocol, value)) if length >= ADDRESSES => {
            frame.copy_within(TAG..TAG + ADDRESSES, 0);
            frame[ADDRESSES..ADDRESSES + 2].copy_from_slice(&protocol.to_be_bytes());
            frame[ADDRESSES + 2..ADDRESSES + TAG].copy_from_slice(&value.to_be_bytes());
            length + TAG
        }
        _ => {
            frame.copy_within(TAG..TAG + length, 0);
            length
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_back_behind_the_addresses() {
        let received: Vec<u8> = (0..20).collect();
        let put = |tag| {
            let mut frame = [&[0xee; TAG], received.as_slice()].concat();
            let length = put_back(&mut frame, 20, tag);
            frame[..length].to_vec()
        };
        assert_eq!(put(None), received);
        let tagged = [&received[..12], &[0x88, 0xa8, 0x20, 0x64], &received[12..]].concat();
        assert_eq!(put(Some((0x88a8, 0x2064))), tagged);
    }
}
