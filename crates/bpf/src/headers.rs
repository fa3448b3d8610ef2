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
    pub(crate) source: u32,
    pub(crate) destination: u32,
}

/// IPv6 without extension headers.
#[repr(C, packed)]
pub(crate) struct Ipv6 {
    pub(crate) version_class_label: [u8; 4],
    pub(crate) length: [u8; 2],
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
}

/// UDP and the LISP header behind it (RFC 9300 §5.1).
#[repr(C, packed)]
pub(crate) struct UdpLisp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: [u8; 2],
    pub(crate) length: [u8; 2],
    pub(crate) checksum: u16,
    pub(crate) flags: u8,
    pub(crate) nonce: [u8; 3],
    pub(crate) instance: [u8; 4],
}

/// LISP data port.
pub(crate) const LISP_PORT: u16 = 4341;
/// LISP data port, network order.
pub(crate) const LISP_DATA_PORT: [u8; 2] = LISP_PORT.to_be_bytes();
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

/// Checksum of an IPv4 header without options, whose checksum field is 0, in the byte order of memory.
#[inline(always)]
pub(crate) const fn header_checksum([a, b, c, d, e]: [u32; 5]) -> u16 {
    let sum = a as u64 + b as u64 + c as u64 + d as u64 + e as u64;
    // 32-bit words add up to the same as their halves: 2^16 is 1 modulo 0xffff.
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    !fold(sum as u32)
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

/// An address as the words that memory holds (network order), IPv4 in its mapped form.
///
/// Not octets: the compiler would copy them one by one.
pub(crate) type Address = [u32; 4];

const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// IPv4-mapped IPv6 form.
#[inline(always)]
pub(crate) const fn mapped(address: u32) -> Address {
    [0, 0, MAPPED, address]
}

/// The IPv4 address in a mapped one.
#[inline(always)]
pub(crate) const fn unmapped(address: &Address) -> Option<u32> {
    let [a, b, c, v4] = *address;
    if a == 0 && b == 0 && c == MAPPED { Some(v4) } else { None }
}

/// The words of an address in a map.
#[inline(always)]
pub(crate) fn words(address: &[u8; 16]) -> Address {
    let word =
        |at: usize| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// The words of an address in a packet.
///
/// # Safety
/// The 16 octets must be readable.
#[inline(always)]
pub(crate) unsafe fn read_words(address: *const [u32; 4]) -> Address {
    let word = |at: usize| {
        // SAFETY: the caller's.
        unsafe { address.cast::<u32>().add(at).read_unaligned() }
    };
    [word(0), word(1), word(2), word(3)]
}

/// Writes words into a packet.
///
/// # Safety
/// All of them must be writable.
#[inline(always)]
pub(crate) unsafe fn write_words<const N: usize>(to: *mut [u32; N], words: [u32; N]) {
    for (at, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { to.cast::<u32>().add(at).write_unaligned(word) };
    }
}
