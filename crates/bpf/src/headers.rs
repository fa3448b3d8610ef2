//! Headers as they are on the wire, checksum and ECN arithmetic.

/// Ethernet II.
#[repr(C, packed)]
pub(crate) struct Ethernet {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    pub(crate) ethertype: [u8; 2],
}

/// IPv4 without options.
#[repr(C, packed)]
pub(crate) struct Ipv4 {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) length: [u8; 2],
    pub(crate) identification: [u8; 2],
    pub(crate) fragment: [u8; 2],
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: u16,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
}

/// IPv6 without extension headers.
#[repr(C, packed)]
pub(crate) struct Ipv6 {
    pub(crate) version_class_label: [u8; 4],
    pub(crate) length: [u8; 2],
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
}

/// UDP and the LISP header behind it (RFC 9300 §5.1).
#[repr(C, packed)]
pub(crate) struct UdpLisp {
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) length: [u8; 2],
    pub(crate) checksum: u16,
    pub(crate) flags: u8,
    pub(crate) nonce: [u8; 3],
    pub(crate) instance_id: [u8; 3],
    pub(crate) locator_status: u8,
}

/// Outer headers over IPv4.
#[repr(C, packed)]
pub(crate) struct Outer4 {
    pub(crate) ip: Ipv4,
    pub(crate) udp: UdpLisp,
}

/// Outer headers over IPv6.
#[repr(C, packed)]
pub(crate) struct Outer6 {
    pub(crate) ip: Ipv6,
    pub(crate) udp: UdpLisp,
}

/// Don't Fragment, in the fragment field.
pub(crate) const IPV4_DF: [u8; 2] = [0x40, 0x00];
/// LISP data port, network order.
pub(crate) const LISP_DATA_PORT: [u8; 2] = 4341u16.to_be_bytes();
/// The instance field is valid.
pub(crate) const LISP_I: u8 = 0x08;
/// LISP-GPE: the last octet of the first word is the next protocol (RFC 9305); reserved in RFC 9300.
pub(crate) const LISP_P: u8 = 0x04;
/// Nonce present.
pub(crate) const LISP_N: u8 = 0x80;
/// Map-versions present.
pub(crate) const LISP_V: u8 = 0x10;
/// Key id of an encrypted payload (RFC 8061).
pub(crate) const LISP_KK: u8 = 0x03;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const IPV6_FRAGMENT: u8 = 44;

/// Ones' complement sum folded to 16 bits.
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Header checksum after one 16-bit word changed (RFC 1624 eqn. 3), all in the byte order of memory.
#[inline(always)]
pub(crate) const fn checksum_after(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u32 + !old as u32 + new as u32)
}

/// ECN field of the decapsulated packet (RFC 6040 §4.2); `None` drops it.
#[inline(always)]
pub(crate) const fn merge_ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// IPv4-mapped IPv6 form.
#[inline(always)]
pub(crate) const fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The IPv4 address in its mapped form.
#[inline(always)]
pub(crate) const fn unmapped(address: &[u8; 16]) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}
